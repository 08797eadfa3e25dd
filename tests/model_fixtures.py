"""Model directories made in the test: small, random, with tokenizers of their own, as the libraries write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

WORDS = ("a", "an", "and", "boot", "coat", "curve", "dress", "leather", "red", "shirt", "shoe", "the", "with")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def bert(root: Path, modules: dict[str, dict[str, Any]] | None = None) -> Path:
    """A BERT of two layers, width 32; ``modules`` are what sentence-transformers puts behind it."""
    transformers = pytest.importorskip("transformers", reason="makes a model")
    torch = pytest.importorskip("torch", reason="makes a model")
    root.mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *WORDS, *LETTERS, *(f"##{c}" for c in LETTERS)]
    (root / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(vocab=str(root / "vocab.txt")).save_pretrained(root)
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=40, hidden_dropout_prob=0.0,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(root)
    if modules is not None:
        sentence(root, modules)
    return root


def roberta(root: Path, modules: dict[str, dict[str, Any]] | None = None) -> Path:
    """A RoBERTa of two layers, width 48, whose byte-level tokenizer was trained on a few words."""
    transformers = pytest.importorskip("transformers", reason="makes a model")
    torch = pytest.importorskip("torch", reason="makes a model")
    root.mkdir(parents=True)
    size = byte_level(root, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    transformers.RobertaTokenizerFast.from_pretrained(root).save_pretrained(root)
    torch.manual_seed(2)
    config = transformers.RobertaConfig(
        vocab_size=size, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=66, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    transformers.RobertaModel(config).save_pretrained(root)
    if modules is not None:
        sentence(root, modules)
    return root


def clip(root: Path) -> Path:
    """A CLIP of two layers a tower, pictures of 32 × 32, a joint space of 24 dimensions."""
    transformers = pytest.importorskip("transformers", reason="makes a model")
    torch = pytest.importorskip("torch", reason="makes a model")
    pytest.importorskip("PIL", reason="reads pictures")
    root.mkdir(parents=True)
    size = byte_level(root, ["<|startoftext|>", "<|endoftext|>"], end="</w>")
    transformers.CLIPTokenizerFast.from_pretrained(root).save_pretrained(root)
    torch.manual_seed(3)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": size, "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**tower, "image_size": 32, "patch_size": 8}, projection_dim=24,
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(root)
    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(root)
    return root


def byte_level(root: Path, special: list[str], end: str = "") -> int:
    """Write ``vocab.json`` and ``merges.txt`` of a byte-pair tokenizer that merges nothing; the size of its vocabulary.

    end: what a word's last letter carries behind it.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*special, *alphabet, *(f"{c}{end}" for c in alphabet if end)]
    (root / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (root / "merges.txt").write_text("#version: 0.2\n")
    return len(tokens)


def sentence(root: Path, modules: dict[str, dict[str, Any]]) -> None:
    """Write ``modules.json`` and the folders of modules, as sentence-transformers does."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, (kind, config) in enumerate(modules.items(), 1):
        folder = root / f"{number}_{kind}"
        folder.mkdir()
        if kind == "Dense":
            dense(folder, config)
        if kind != "Normalize":
            (folder / "config.json").write_text(json.dumps(config))
        listed.append(
            {"idx": number, "name": str(number), "path": folder.name, "type": f"sentence_transformers.models.{kind}"}
        )
    (root / "modules.json").write_text(json.dumps(listed))
    (root / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": False}))


def dense(folder: Path, config: dict[str, Any]) -> None:
    """Random weights of a dense layer."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(4)
    layer = torch.nn.Linear(config["in_features"], config["out_features"])
    save_file({f"linear.{name}": value for name, value in layer.state_dict().items()}, folder / "model.safetensors")


def pooling(mode: str, width: int) -> dict[str, Any]:
    """The configuration of a pooling, as sentence-transformers writes it."""
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {"word_embedding_dimension": width} | {f"pooling_mode_{name}": name in mode.split("+") for name in names}
