"""What a tensor does in its model, told from its name: embedding, attention, mlp, norm, head or other."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Kind = Literal["embedding", "attention", "mlp", "norm", "head", "other"]

# Words between dots of the lower-case name, and the kind they stand for. The first row that is found decides, so the
# order says what is stronger: a norm inside an attention block is a norm; T5's table of relative positions belongs to
# attention; `wo` closes an MLP in T5 and attention in Llama's own release, so the block's name goes before the leaf's.
# Spellings are those of the transformers library, of the models' own releases, of timm and of GGUF.
_WORDS: tuple[tuple[Kind, str], ...] = (
    ("norm", r"\w*layer_?norm\w* pre_layrnorm ln(_\w+)?\d* rms_?norm norms?\d* \w+_norm\d* bn\d*"),
    ("attention", r"relative_attention_bias \w*inv_freq rope_freqs"),
    ("head", r"lm_head cls classifier score qa_outputs pooler predictions seq_relationship head head_dist"),
    ("head", r"visual_projection text_projection logit_scale final_logits_bias"),
    ("embedding", r"\w*embed \w*embd embed_\w+ \w*embeddings? \w*_embed\w* embeds wte wpe shared"),
    ("embedding", r"cls_token mask_token class_token position_ids"),
    ("attention", r"self_attn self_attention attention attn attn_\w+ self \w*selfattention encdecattention"),
    ("attention", r"crossattention cross_attn encoder_attn multihead_attention"),
    ("mlp", r"mlp ffn ffn_\w+ feed_forward feedforward densereludense intermediate experts? shared_expert\w*"),
    ("mlp", r"block_sparse_moe moe gate_up_proj gate_proj up_proj down_proj"),
    ("mlp", r"fc\d c_fc w[123] wi(_\d)? linear\d output\.dense"),
    ("attention", r"[qkvo]_proj qkv(_proj)? w[qkvo] c_attn query_key_value in_proj_\w+ out_proj"),
    ("embedding", r"conv1 position\w*"),
)
# What the words alone would get wrong, by `model_type` of config.json: GPT-2 releases carry causal masks as tensors.
_FAMILIES: dict[str, tuple[tuple[Kind, re.Pattern[str]], ...]] = {
    "gpt2": (("other", re.compile(r"(?:.*\.)?attn\.(masked_)?bias")),),
    "clip": (("head", re.compile(r"(visual\.)?proj")),),
}
# GGUF and Llama's own release call the last projection `output`, which inside a layer is something else.
_HEADS = frozenset({"output.weight", "output.bias", "visual.proj"})
_RANKS = re.compile("|".join(f"({'|'.join(words.replace('(', '(?:').split())})" for _, words in _WORDS))
_PAIR = next(rank for rank, (_, words) in enumerate(_WORDS) if r"output\.dense" in words)
_LONGEST_WORD, _LONGEST_NAME, _MOST_WORDS = 64, 512, 12
_MOST_LOOKED_AT = 20_000  # different words of a checkpoint, a few microseconds each; real ones have some hundreds


def tensor_kind(name: str, config: Mapping[str, Any] | None = None) -> Kind:
    """Kind of the tensor called ``name``; see :func:`tensor_kinds`."""
    return tensor_kinds([name], config)[0]


def tensor_kinds(names: Iterable[str], config: Mapping[str, Any] | None = None) -> list[Kind]:
    """Kinds of the tensors called so.

    Parameters
    ----------
    names: as the checkpoint spells them; prefixes such as ``model.`` or ``bert.`` do not matter. Of a long name the
        last 12 words are looked at, and in all 20,000 different words: who writes a file also chooses its names.
    config: the checkpoint's ``config.json``; its ``model_type`` picks what only one family does. Without it BERT,
        RoBERTa, GPT-2, Llama, Qwen, Mistral, T5, ViT and CLIP are still told apart, but for GPT-2's mask tensors.
    """
    family = _FAMILIES.get(str(config.get("model_type", "")), ()) if config else ()
    ranks: dict[str, int] = {}
    return [_kind(name[-_LONGEST_NAME:].lower(), family, ranks) for name in names]


def _kind(name: str, family: tuple[tuple[Kind, re.Pattern[str]], ...], ranks: dict[str, int]) -> Kind:
    for kind, pattern in family:
        if pattern.fullmatch(name):
            return kind
    if name in _HEADS:
        return "head"
    words, best = name.split(".")[-_MOST_WORDS:], len(_WORDS)
    for word in words:
        rank = ranks.get(word)
        if rank is None:
            rank = len(_WORDS)
            if len(ranks) < _MOST_LOOKED_AT:
                rank = ranks[word] = _rank(word)
        best = min(best, rank)
    if best > _PAIR and ("output", "dense") in itertools.pairwise(words):
        best = _PAIR
    return _WORDS[best][0] if best < len(_WORDS) else "other"


def _rank(word: str) -> int:
    """The first row of the table that knows a word between dots; their number where none does."""
    match = _RANKS.fullmatch(word) if len(word) <= _LONGEST_WORD else None
    return match.lastindex - 1 if match is not None and match.lastindex else len(_WORDS)
