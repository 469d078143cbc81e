"""Architectures of a model or two, close to Llama or Qwen: Maincoder, Nanbeige, openPangu-Embedded, PLM, CogVLM.

Source: the reference converter's MaincoderModel, NanbeigeModel, PanguEmbeddedModel, PLMModel, CogVLMModel; the
configuration classes that the models bring along for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_INTERLEAVED,
    DECODER_HPARAMS,
    DENSE_FFN,
    KV_LORA,
    LLAMA3_ROPE_FREQS,
    LLAMA_HPARAMS,
    N_ROT,
    NORM_TENSORS,
    OTHER_INPUTS,
    QK_NORM,
    ROPE_BUFFERS,
    TOP_TENSORS,
    G,
    H,
    Q,
)
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended
from converter.architectures.styles import BPE, LLAMA, PREFIX_LAST
from converter.architectures.traits import Decoder, Traits

DEFAULTS = {
    "num_key_value_heads": "num_attention_heads", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
}
LANGUAGE, VISION = H + "mlp.language_mlp.", H + "mlp.vision_mlp."
FUSED = "3 * n_head * head_dim"

ARCHITECTURES = (
    Architecture(
        gguf="maincoder",
        hf=(HFClass("MaincoderForCausalLM", "maincoder", DEFAULTS),),
        hparams=(
            *DECODER_HPARAMS,
            N_ROT,
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *QK_NORM, *DENSE_FFN),
        ignore=ROPE_BUFFERS,
        traits=Traits(BPE, decoder=Decoder(neighbours=True, late_norm=True)),
    ),
    Architecture(
        gguf="nanbeige",
        hf=(HFClass("NanbeigeForCausalLM", "nanbeige", DEFAULTS),),
        hparams=(
            *LLAMA_HPARAMS,
            HParam("n_loop", ("num_loops",), ("num_loops",), default=1, always=True),
            HParam(
                "skip_norm", ("skip_loop_final_norm",), ("skip_loop_final_norm",), "bool", default=False, always=True
            ),
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION_INTERLEAVED, *DENSE_FFN, LLAMA3_ROPE_FREQS),
        ignore=ROPE_BUFFERS,
        traits=Traits(LLAMA, decoder=Decoder()),
    ),
    Architecture(
        gguf="pangu-embedded",
        hf=(HFClass("PanguEmbeddedForCausalLM", "PanguEmbedded", DEFAULTS),),
        hparams=(
            *amended(LLAMA_HPARAMS, head_dim={"back": "head_width"}),
            # Where the config has none, it is written last.
            HParam(
                "head_width", (), ("attention.key_length", "attention.value_length"),
                default="head_dim", back="n_embd // n_head", always=True,
            ),
            HParam("bias", ("bias",), (), "bool", default=True, back="present('blk.0.attn_q.bias')"),
        ),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *DENSE_FFN),
        ignore=ROPE_BUFFERS,
        traits=Traits(PREFIX_LAST, decoder=Decoder()),
    ),
    Architecture(
        gguf="plm",
        hf=(HFClass("PLMForCausalLM", "plm", DEFAULTS),),
        hparams=(
            *amended(DECODER_HPARAMS, n_vocab={"gguf": ("vocab_size",)}, head_dim={"config": (), "gguf": ()}),
            KV_LORA,
            HParam("key_length", (), ("attention.key_length",), default="qk_nope + n_rot", always=True),
            HParam("v_dim", ("v_head_dim",), ("attention.value_length",), required=True),
            HParam("n_rot", ("qk_rope_head_dim",), ("rope.dimension_count",), required=True),
            HParam("qk_nope", ("qk_nope_head_dim",), (), required=True, back="key_length - n_rot"),
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            T(H + "self_attn.q_proj.weight", G + "attn_q.weight", shape=("n_head * key_length", "n_embd")),
            T(
                H + "self_attn.kv_a_proj_with_mqa.weight", G + "attn_kv_a_mqa.weight",
                shape=("kv_lora + n_rot", "n_embd"),
            ),
            T(H + "self_attn.kv_a_layernorm.weight", G + "attn_kv_a_norm.weight", shape=("kv_lora",)),
            T(
                H + "self_attn.kv_b_proj.weight", G + "attn_kv_b.weight",
                shape=("n_head * (qk_nope + v_dim)", "kv_lora"),
            ),
            T(H + "self_attn.o_proj.weight", G + "attn_output.weight", shape=("n_embd", "n_head * v_dim")),
            T(H + "mlp.up_proj.weight", G + "ffn_up.weight", shape=("n_ff", "n_embd")),
            T(H + "mlp.down_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
        ),
        ignore=ROPE_BUFFERS,
        traits=Traits(BPE, decoder=Decoder("relu2", neighbours=True), built_in={"hidden_act": ("relu2",)}),
    ),
    Architecture(
        gguf="cogvlm",
        hf=(HFClass("CogVLMForCausalLM", "cogvlm", DEFAULTS),),
        hparams=LLAMA_HPARAMS,
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            T(
                H + "self_attn.language_expert_query_key_value.weight", G + "attn_qkv.weight",
                shape=(FUSED, "n_embd"),
            ),
            T(
                H + "self_attn.vision_expert_query_key_value.weight", G + "vis_attn_qkv.weight",
                shape=(FUSED, "n_embd"),
            ),
            T(H + "self_attn.language_expert_dense.weight", G + "attn_output.weight", shape=("n_embd", Q)),
            T(H + "self_attn.vision_expert_dense.weight", G + "vis_attn_output.weight", shape=("n_embd", Q)),
            T(LANGUAGE + "gate_proj.weight", G + "ffn_gate.weight", shape=("n_ff", "n_embd")),
            T(LANGUAGE + "up_proj.weight", G + "ffn_up.weight", shape=("n_ff", "n_embd")),
            T(LANGUAGE + "down_proj.weight", G + "ffn_down.weight", shape=("n_embd", "n_ff")),
            T(VISION + "gate_proj.weight", G + "vis_gate.weight", shape=("n_ff", "n_embd")),
            T(VISION + "up_proj.weight", G + "vis_up.weight", shape=("n_ff", "n_embd")),
            T(VISION + "down_proj.weight", G + "vis_down.weight", shape=("n_embd", "n_ff")),
        ),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, "model.vision.{rest}"),
        traits=Traits(LLAMA),
    ),
)  # fmt: skip
