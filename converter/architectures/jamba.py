"""Jamba: Mamba in most blocks, attention without positions in the others; experts in some.

Source: the reference converter's JambaModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import (
    ATTENTION,
    DENSE_FFN,
    N_FF,
    N_HEAD,
    N_LAYER,
    N_VOCAB,
    NORM,
    ROPE_BUFFERS,
    G,
    H,
)
from converter.architectures.granite_hybrid import BIASES, MAMBA
from converter.architectures.mamba import AUTOMATIC, MAMBA1
from converter.architectures.moe import EXPERTS
from converter.architectures.nemotron_h import MIXER
from converter.architectures.spec import (
    Architecture,
    HFClass,
    HParam,
    T,
    moved,
    only_when,
    read_only,
)
from converter.architectures.styles import NO_PREFIX
from converter.architectures.traits import Decoder, TokenizerStyle, Traits

MLP = H + "feed_forward."
IN_SSM, IN_ATTENTION = "n_head_kv == 0", "n_head_kv > 0"
NORMS = (
    T(MAMBA + "dt_layernorm.weight", G + "ssm_dt_norm.weight", shape=("dt_rank",)),
    T(MAMBA + "b_layernorm.weight", G + "ssm_b_norm.weight", shape=("n_state",)),
    T(MAMBA + "c_layernorm.weight", G + "ssm_c_norm.weight", shape=("n_state",)),
)

ARCHITECTURES = (
    Architecture(
        gguf="jamba",
        hf=(
            HFClass(
                "JambaForCausalLM", "jamba",
            ),
        ),
        hparams=(
            N_LAYER,
            HParam("n_ctx", ("max_position_embeddings", "n_ctx"), ("context_length",), required=True),
            HParam("n_embd", ("hidden_size", "mamba_d_model"), ("embedding_length",), required=True),
            N_FF,
            N_HEAD,
            HParam(
                "n_head_kv", (), ("attention.head_count_kv",), "i32[]", per_block=True, always=True,
                default="n_head_kv_said if block % attention_period == attention_offset else 0",
            ),
            HParam("conv_kernel", ("mamba_d_conv",), ("ssm.conv_kernel",), required=True),
            HParam("n_inner", (), ("ssm.inner_size",), default="expand * n_embd", always=True),
            HParam("n_state", ("mamba_d_state",), ("ssm.state_size",), required=True),
            HParam(
                "dt_rank", (), ("ssm.time_step_rank",), always=True,
                default=f"{AUTOMATIC} if dt_rank_said == 'auto' else dt_rank_said",
            ),
            HParam(
                "rms_eps", ("layer_norm_epsilon", "rms_norm_eps"), ("attention.layer_norm_rms_epsilon",), "f32",
                required=True,
            ),
            HParam("n_expert", ("num_local_experts", "num_experts"), ("expert_count",), required=True),
            HParam("n_expert_used", ("num_experts_per_tok",), ("expert_used_count",), required=True),
            N_VOCAB,
            HParam("head_dim", default="n_embd // n_head"),
            HParam("n_head_kv_said", ("num_key_value_heads",), default="n_head", back="max(n_head_kv)"),
            # Blocks are counted from the offset by the period; where there are none, both lie beyond the last.
            HParam(
                "attention_period", ("attn_layer_period",), required=True,
                back="where(n_head_kv)[1] - where(n_head_kv)[0] if len(where(n_head_kv)) > 1 else n_layer + 1",
            ),
            HParam(
                "attention_offset", ("attn_layer_offset",), required=True,
                back="where(n_head_kv)[0] if len(where(n_head_kv)) > 0 else n_layer",
            ),
            HParam(
                "expert_period", ("expert_layer_period",), required=True,
                back="where(is_moe)[1] - where(is_moe)[0] if len(where(is_moe)) > 1 else n_layer + 1",
            ),
            HParam(
                "expert_offset", ("expert_layer_offset",), required=True,
                back="where(is_moe)[0] if len(where(is_moe)) > 0 else n_layer",
            ),
            HParam(
                "is_moe", (), (), "bool[]", per_block=True,
                default="n_expert > 1 and block % expert_period == expert_offset",
                back="present('blk.{block}.ffn_gate_inp.weight')",
            ),
            HParam("expand", ("mamba_expand",), required=True, back="n_inner // n_embd"),
            HParam("dt_rank_said", ("mamba_dt_rank",), (), "u32 or str", default=AUTOMATIC, back="dt_rank"),
            HParam("n_ff_exp", default="n_ff"),
            *BIASES[:2],
        ),
        tensors=(
            T("model.embed_tokens.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
            T("model.final_layernorm.weight", "output_norm.weight", shape=NORM),
            T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
            T(H + "input_layernorm.weight", G + "attn_norm.weight", shape=NORM),
            T(H + "pre_ff_layernorm.weight", G + "ffn_norm.weight", shape=NORM),
            *only_when(IN_SSM, (*moved(MIXER, MAMBA, MAMBA1), *NORMS)),
            *only_when(IN_ATTENTION, ATTENTION),
            *only_when("not is_moe", moved(H + "mlp.", MLP, DENSE_FFN)),
            *only_when("not is_moe", read_only(moved(H + "mlp.", MLP + "experts.0.", DENSE_FFN))),
            *only_when(
                "is_moe",
                (
                    T(MLP + "router.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
                    *moved(H + "mlp.", MLP, EXPERTS),
                ),
            ),
        ),
        ignore=ROPE_BUFFERS,
        aliases=(("{rest}.moe.{more}", "{rest}.feed_forward.{more}"),),
        traits=Traits(
            TokenizerStyle(("spm", "hf-spm", "bpe"), last=NO_PREFIX, last_reader="hf-spm"),
            decoder=Decoder(rotates="0", weights_norm=False),
        ),
    ),
)  # fmt: skip
