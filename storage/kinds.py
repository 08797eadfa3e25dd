"""What a tensor does in its model, told from its name: embedding, attention, mlp, norm, head or other."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
_FAMILIES: dict[str, tuple[tuple[Kind, str], ...]] = {
    "gpt2": (("other", r"(^|\.)attn\.(masked_)?bias$"),),
    "clip": (("head", r"^(visual\.)?proj$"),),
}
# GGUF and Llama's own release call the last projection `output`, which inside a layer is something else.
_FIRST: tuple[tuple[Kind, str], ...] = (("head", r"^output\.(weight|bias)$"), ("head", r"^visual\.proj$"))
_TABLE = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (*_FIRST, *((kind, rf"(^|\.)({'|'.join(words.split())})(\.|$)") for kind, words in _WORDS))
)


def tensor_kind(name: str, config: Mapping[str, Any] | None = None) -> Kind:
    """Kind of the tensor called ``name``.

    Parameters
    ----------
    name: as the checkpoint spells it; prefixes such as ``model.`` or ``bert.`` do not matter.
    config: the checkpoint's ``config.json``; its ``model_type`` picks what only one family does. Without it BERT,
        RoBERTa, GPT-2, Llama, Qwen, Mistral, T5, ViT and CLIP are still told apart, but for GPT-2's mask tensors.
    """
    lowered = name.lower()
    family = str((config or {}).get("model_type", ""))
    for kind, pattern in _FAMILIES.get(family, ()):
        if re.search(pattern, lowered):
            return kind
    return next((kind for kind, pattern in _TABLE if pattern.search(lowered)), "other")
