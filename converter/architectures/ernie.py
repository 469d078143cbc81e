"""ERNIE 4.5, dense and with experts. ggml rotates neighbours, as the weights are stored.

Source: the reference converter's Ernie4_5Model, Ernie4_5MoeModel and PaddleOCRModel; transformers' configuration
classes for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    ATTENTION_BIAS,
    DECODER_HPARAMS,
    DENSE_FFN,
    MLP_BIAS,
    MROPE,
    NORM_TENSORS,
    OTHER_INPUTS,
    ROPE_BUFFERS,
    TEXT_MODEL_ALIASES,
    TOP_TENSORS,
    G,
    H,
)
from converter.architectures.moe import EXPERTS, SHARED_EXPERTS
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before, only_when
from converter.architectures.styles import PREFIX_LAST
from converter.architectures.traits import Decoder, Traits
from converter.tensors.ops import Split

USE_BIAS = HParam("use_bias", ("use_bias",), (), "bool", default=False, back="present('blk.0.attn_q.bias')")
ALIASES = (*TEXT_MODEL_ALIASES, ("ernie.{rest}", "model.{rest}"))
EXPERT_BLOCK = "block >= n_dense and (block + 1) % moe_step == 0"

ARCHITECTURES = (
    Architecture(
        gguf="ernie4_5",
        hf=(
            HFClass("Ernie4_5ForCausalLM", "ernie4_5"),
            HFClass("Ernie4_5_ForCausalLM", "ernie4_5", when="0"),
        ),
        hparams=(*DECODER_HPARAMS, USE_BIAS),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            *DENSE_FFN,
            # As its first checkpoints have it.
            T(
                H + "self_attn.qkv_proj.weight", (G + "attn_q.weight", G + "attn_k.weight", G + "attn_v.weight"),
                Split(0, ("n_head", "n_head_kv", "n_head_kv")), shape=("(n_head + 2 * n_head_kv) * head_dim", "n_embd"),
                read_only=True,
            ),
            T(
                H + "mlp.up_gate_proj.weight", (G + "ffn_gate.weight", G + "ffn_up.weight"),
                Split(0, (1, 1)), shape=("2 * n_ff", "n_embd"), read_only=True,
            ),
        ),
        ignore=ROPE_BUFFERS,
        aliases=ALIASES,
        traits=Traits(PREFIX_LAST, decoder=Decoder(neighbours=True)),
    ),
    # The text model of PaddleOCR-VL, which rotates halves: alone it is a Llama.
    Architecture(
        gguf="paddleocr",
        hf=(
            HFClass("LlamaForCausalLM", "llama", takes="0"),
            HFClass("PaddleOCRVLForConditionalGeneration", "paddleocr_vl", when="0"),
        ),
        hparams=(*before("rope_theta", MROPE, DECODER_HPARAMS), ATTENTION_BIAS, MLP_BIAS, USE_BIAS),
        tensors=(*TOP_TENSORS, *NORM_TENSORS, *ATTENTION, *DENSE_FFN),
        ignore=(*ROPE_BUFFERS, *OTHER_INPUTS, "mlp_AR.{rest}", "model.mlp_AR.{rest}", "model.projector.{rest}"),
        aliases=ALIASES,
        traits=Traits(PREFIX_LAST, decoder=Decoder()),
    ),
    Architecture(
        gguf="ernie4_5-moe",
        hf=(
            HFClass(
                "Ernie4_5_MoeForCausalLM",
                "ernie4_5_moe",
            ),
        ),
        hparams=(
            *amended(
                DECODER_HPARAMS, n_expert={"gguf": (), "config": ("moe_num_experts",), "back": "experts"},
                n_expert_used={"gguf": (), "config": ("moe_k",), "back": "experts_used"},
            ),
            HParam("experts", (), ("expert_count",), default="n_expert", always=True),
            HParam("experts_used", (), ("expert_used_count",), default="n_expert_used", always=True),
            HParam("moe_step", ("moe_layer_interval",), ("interleave_moe_layer_step",), default=1),
            HParam("n_dense", ("moe_layer_start_index",), ("leading_dense_block_count",), default=0),
            HParam("n_ff_exp", ("moe_intermediate_size",), ("expert_feed_forward_length",), required=True),
            HParam("n_expert_shared", ("moe_num_shared_experts",), ("expert_shared_count",), default=0),
            HParam(
                "n_ff_shexp", (), ("expert_shared_feed_forward_length",), default="n_ff // n_head_kv", always=True,
                when="n_expert_shared > 0",
            ),
            USE_BIAS,
        ),
        tensors=(
            *TOP_TENSORS,
            *NORM_TENSORS,
            *ATTENTION,
            *only_when(f"not ({EXPERT_BLOCK})", DENSE_FFN),
            *only_when(
                EXPERT_BLOCK,
                (
                    T(H + "mlp.gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
                    T(H + "mlp.moe_statics.e_score_correction_bias", G + "exp_probs_b.bias", shape=(1, "n_expert")),
                    *EXPERTS,
                ),
            ),
            *only_when(f"{EXPERT_BLOCK} and n_expert_shared > 0", SHARED_EXPERTS),
        ),
        ignore=(
            *ROPE_BUFFERS, "model.mtp_block.{rest}", "model.mtp_emb_norm.{rest}", "model.mtp_hidden_norm.{rest}",
            "model.mtp_linear_proj.{rest}",
        ),
        aliases=ALIASES,
        traits=Traits(PREFIX_LAST, decoder=Decoder(neighbours=True, weights_norm=True)),
    ),
)  # fmt: skip
