"""Kinds of tensors, on the names that real checkpoints of each family have (layer 0 stands for all)."""

from __future__ import annotations

import pytest

from storage.kinds import Kind, tensor_kind

# By family: kind -> names as `state_dict()` of the transformers class or the model's own release lists them.
NAMES: dict[str, dict[Kind, str]] = {
    "bert": {
        "embedding": "bert.embeddings.word_embeddings.weight bert.embeddings.position_embeddings.weight "
        "bert.embeddings.token_type_embeddings.weight embeddings.position_ids",
        "norm": "bert.embeddings.LayerNorm.weight bert.encoder.layer.0.attention.output.LayerNorm.bias "
        "bert.encoder.layer.0.output.LayerNorm.weight cls.predictions.transform.LayerNorm.bias",
        "attention": "bert.encoder.layer.0.attention.self.query.weight bert.encoder.layer.0.attention.self.key.bias "
        "bert.encoder.layer.0.attention.self.value.weight bert.encoder.layer.0.attention.output.dense.weight",
        "mlp": "bert.encoder.layer.0.intermediate.dense.weight bert.encoder.layer.0.output.dense.weight "
        "encoder.layer.11.output.dense.bias",
        "head": "bert.pooler.dense.weight pooler.dense.bias cls.predictions.bias cls.predictions.decoder.weight "
        "cls.predictions.transform.dense.weight cls.seq_relationship.weight classifier.weight qa_outputs.weight",
    },
    "roberta": {
        "embedding": "roberta.embeddings.word_embeddings.weight roberta.embeddings.position_embeddings.weight",
        "norm": "roberta.embeddings.LayerNorm.weight lm_head.layer_norm.weight "
        "roberta.encoder.layer.0.attention.output.LayerNorm.weight",
        "attention": "roberta.encoder.layer.0.attention.self.query.weight "
        "roberta.encoder.layer.0.attention.output.dense.weight",
        "mlp": "roberta.encoder.layer.0.intermediate.dense.weight roberta.encoder.layer.0.output.dense.weight",
        "head": "lm_head.dense.weight lm_head.decoder.weight lm_head.bias classifier.out_proj.weight",
    },
    "gpt2": {
        "embedding": "wte.weight wpe.weight transformer.wte.weight",
        "norm": "h.0.ln_1.weight h.0.ln_2.bias ln_f.weight transformer.ln_f.bias",
        "attention": "h.0.attn.c_attn.weight h.0.attn.c_proj.weight transformer.h.0.attn.c_attn.bias",
        "mlp": "h.0.mlp.c_fc.weight h.0.mlp.c_proj.weight",
        "head": "lm_head.weight score.weight",
        "other": "h.0.attn.bias h.0.attn.masked_bias",
    },
    "llama": {
        "embedding": "model.embed_tokens.weight tok_embeddings.weight",
        "norm": "model.layers.0.input_layernorm.weight model.layers.0.post_attention_layernorm.weight "
        "model.norm.weight layers.0.attention_norm.weight layers.0.ffn_norm.weight norm.weight",
        "attention": "model.layers.0.self_attn.q_proj.weight model.layers.0.self_attn.o_proj.weight "
        "model.layers.0.self_attn.rotary_emb.inv_freq layers.0.attention.wq.weight layers.0.attention.wo.weight",
        "mlp": "model.layers.0.mlp.gate_proj.weight model.layers.0.mlp.up_proj.weight "
        "model.layers.0.mlp.down_proj.weight layers.0.feed_forward.w1.weight layers.0.feed_forward.w2.weight",
        "head": "lm_head.weight output.weight score.weight",
    },
    "qwen3": {
        "embedding": "model.embed_tokens.weight",
        "norm": "model.layers.0.self_attn.q_norm.weight model.layers.0.self_attn.k_norm.weight model.norm.weight",
        "attention": "model.layers.0.self_attn.q_proj.bias transformer.h.0.attn.c_attn.weight",
        "mlp": "model.layers.0.mlp.gate_proj.weight model.layers.0.mlp.experts.0.down_proj.weight "
        "model.layers.0.mlp.shared_expert.up_proj.weight model.layers.0.mlp.gate.weight",
        "head": "lm_head.weight",
    },
    "mistral": {
        "embedding": "model.embed_tokens.weight",
        "norm": "model.layers.0.input_layernorm.weight",
        "attention": "model.layers.0.self_attn.k_proj.weight",
        "mlp": "model.layers.0.mlp.down_proj.weight model.layers.0.block_sparse_moe.experts.0.w1.weight "
        "model.layers.0.block_sparse_moe.gate.weight model.layers.0.mlp.experts.gate_up_proj",
        "head": "lm_head.weight",
    },
    "t5": {
        "embedding": "shared.weight encoder.embed_tokens.weight decoder.embed_tokens.weight",
        "norm": "encoder.block.0.layer.0.layer_norm.weight decoder.block.0.layer.2.layer_norm.weight "
        "encoder.final_layer_norm.weight",
        "attention": "encoder.block.0.layer.0.SelfAttention.q.weight decoder.block.0.layer.1.EncDecAttention.o.weight "
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "mlp": "encoder.block.0.layer.1.DenseReluDense.wi.weight encoder.block.0.layer.1.DenseReluDense.wo.weight "
        "decoder.block.0.layer.2.DenseReluDense.wi_0.weight decoder.block.0.layer.2.DenseReluDense.wi_1.weight",
        "head": "lm_head.weight",
    },
    "vit": {
        "embedding": "vit.embeddings.cls_token vit.embeddings.position_embeddings patch_embed.proj.weight pos_embed "
        "vit.embeddings.patch_embeddings.projection.weight cls_token",
        "norm": "vit.encoder.layer.0.layernorm_before.weight vit.encoder.layer.0.layernorm_after.bias "
        "vit.layernorm.weight blocks.0.norm1.weight norm.weight fc_norm.weight",
        "attention": "vit.encoder.layer.0.attention.attention.query.weight blocks.0.attn.qkv.weight "
        "vit.encoder.layer.0.attention.output.dense.weight vit.layers.0.attention.q_proj.weight",
        "mlp": "vit.encoder.layer.0.intermediate.dense.weight vit.encoder.layer.0.output.dense.weight "
        "blocks.0.mlp.fc1.weight",
        "head": "classifier.weight vit.pooler.dense.weight head.weight",
    },
    "clip": {
        "embedding": "text_model.embeddings.token_embedding.weight vision_model.embeddings.class_embedding "
        "vision_model.embeddings.patch_embedding.weight vision_model.embeddings.position_embedding.weight "
        "visual.conv1.weight positional_embedding visual.class_embedding",
        "norm": "vision_model.pre_layrnorm.weight vision_model.post_layernorm.weight visual.ln_pre.weight "
        "text_model.encoder.layers.0.layer_norm1.weight text_model.final_layer_norm.bias ln_final.weight",
        "attention": "text_model.encoder.layers.0.self_attn.k_proj.weight transformer.resblocks.0.attn.in_proj_weight "
        "vision_model.encoder.layers.0.self_attn.out_proj.bias",
        "mlp": "text_model.encoder.layers.0.mlp.fc1.weight visual.transformer.resblocks.0.mlp.c_proj.weight",
        "head": "visual_projection.weight text_projection.weight logit_scale visual.proj",
    },
    "gguf": {
        "embedding": "token_embd.weight position_embd.weight",
        "norm": "blk.0.attn_norm.weight blk.0.ffn_norm.weight output_norm.weight",
        "attention": "blk.0.attn_q.weight blk.0.attn_output.weight rope_freqs.weight",
        "mlp": "blk.0.ffn_gate.weight blk.0.ffn_down.weight",
        "head": "output.weight",
    },
}
CASES = [
    (family, kind, name) for family, kinds in NAMES.items() for kind, names in kinds.items() for name in names.split()
]


@pytest.mark.parametrize(("family", "kind", "name"), CASES)
def test_kind_with_config(family: str, kind: Kind, name: str) -> None:
    assert tensor_kind(name, {"model_type": family}) == kind


@pytest.mark.parametrize(("family", "kind", "name"), [case for case in CASES if case[1] != "other"])
def test_kind_from_the_name_alone(family: str, kind: Kind, name: str) -> None:
    assert tensor_kind(name) == kind


@pytest.mark.parametrize("name", ["", "x", "weight", "step", "..", "transformer.h.0.rotator", "é.ü"])
def test_unknown_names_are_other(name: str) -> None:
    assert tensor_kind(name, {"model_type": 7}) == "other"
