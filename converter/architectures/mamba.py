"""Mamba, FalconMamba and Mamba-2: no attention at all.

Source: the reference converter's MambaModel and Mamba2Model; transformers' configuration classes for the defaults, and
the configs of the authors' own package.
"""

from converter.architectures.common import NORM, G
from converter.architectures.granite_hybrid import MAMBA, MAMBA2
from converter.architectures.nemotron_h import MIXER, B
from converter.architectures.spec import Architecture, HFClass, HParam, T, TensorRule, moved, pair
from converter.architectures.styles import MAMBA2_TOKENS, MAMBA_TOKENS
from converter.architectures.traits import Decoder, Relation, Traits
from converter.tensors.ops import NegExp, Reshape

# The authors' package rounds the vocabulary up, and says the number before.
ROUNDED = {"pad_vocab_size_multiple": 8}
AUTOMATIC = "(n_embd + 15) // 16"

# The runtime wants to hear of a network and of heads, which there are none of.
HPARAMS = (
    HParam("n_ctx", (), ("context_length",), default=1048576, always=True),
    HParam("n_embd", ("hidden_size", "d_model", "dim"), ("embedding_length",), required=True),
    HParam("no_ff", (), ("feed_forward_length",), default=0, always=True),
    HParam("no_heads", (), ("attention.head_count",), default=0, always=True),
    HParam("n_layer", ("num_hidden_layers", "n_layer"), ("block_count",), required=True),
    HParam("conv_kernel", ("conv_kernel", "d_conv", "ssm_cfg.d_conv"), ("ssm.conv_kernel",), default=4, always=True),
)
EPSILON = HParam(
    "rms_eps", ("layer_norm_epsilon", "rms_norm_eps"), ("attention.layer_norm_rms_epsilon",), "f32", default=1e-5,
    always=True,
)
UNWRITTEN = (
    HParam("n_vocab_said", ("vocab_size",), required=True, back="n_vocab"),
    HParam("vocab_multiple", ("pad_vocab_size_multiple",), default=1),
    HParam("n_vocab", default="round_up(n_vocab_said, vocab_multiple)"),
    HParam("n_head", default=1),
    HParam("n_head_kv", default=1),
    HParam("head_dim", default="n_embd"),
    HParam("conv_biases", (), (), "bool[]", per_block=True, back="present('blk.{block}.ssm_conv1d.bias')"),
    HParam("conv_bias", ("use_conv_bias",), (), "bool", default=True, back="max(conv_biases)"),
    HParam("proj_biases", (), (), "bool[]", per_block=True, back="present('blk.{block}.ssm_in.bias')"),
    HParam("proj_bias", ("use_bias",), (), "bool", default=False, back="max(proj_biases)"),
)

TOP: tuple[TensorRule, ...] = (
    T("backbone.embeddings.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
    T("backbone.norm_f.weight", "output_norm.weight", shape=NORM),
    T(
        "lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight", unless_equal=True
    ),
    T(B + "norm.weight", G + "attn_norm.weight", shape=NORM),
)
MAMBA1: tuple[TensorRule, ...] = (
    *pair(MIXER + "in_proj", G + "ssm_in", shape=("2 * n_inner", "n_embd")),
    T(
        MIXER + "conv1d.weight", G + "ssm_conv1d.weight",
        Reshape(("n_inner", 1, "row"), ("n_inner", "row")), shape=("n_inner", 1, "conv_kernel"),
    ),
    T(MIXER + "conv1d.bias", G + "ssm_conv1d.bias", shape=("n_inner",), optional=True),
    T(MIXER + "x_proj.weight", G + "ssm_x.weight", shape=("dt_rank + 2 * n_state", "n_inner")),
    *pair(MIXER + "dt_proj", G + "ssm_dt", shape=("n_inner", "dt_rank"), bias=True),
    T(MIXER + "A_log", G + "ssm_a", NegExp(), shape=("n_inner", "n_state")),
    T(MIXER + "D", G + "ssm_d", shape=("n_inner",)),
    *pair(MIXER + "out_proj", G + "ssm_out", shape=("n_embd", "n_inner")),
)
ALIASES = (("model.{rest}", "{rest}"), ("backbone.embedding.{rest}", "backbone.embeddings.{rest}"))

ARCHITECTURES = (
    Architecture(
        gguf="mamba",
        hf=(
            HFClass("FalconMambaForCausalLM", "falcon_mamba", facts={"normed": True}, when="normed"),
            HFClass("MambaForCausalLM", "mamba"),
            HFClass("MambaLMHeadModel", "mamba_ssm", ROUNDED, when="0"),
        ),
        hparams=(
            *HPARAMS,
            HParam(
                "n_inner", ("intermediate_size", "d_inner"), ("ssm.inner_size",), default="2 * n_embd", always=True
            ),
            HParam(
                "n_state", ("state_size", "d_state", "ssm_cfg.d_state"), ("ssm.state_size",), default=16, always=True
            ),
            HParam(
                "dt_rank", (), ("ssm.time_step_rank",), always=True,
                default=f"{AUTOMATIC} if dt_rank_said == 'auto' else dt_rank_said",
            ),
            EPSILON,
            HParam("normed", (), ("ssm.dt_b_c_rms",), "bool", default=False, always=True),
            HParam(
                "dt_rank_said", ("time_step_rank", "dt_rank", "ssm_cfg.dt_rank"), (), "u32 or str",
                default=AUTOMATIC, back="dt_rank",
            ),
            *UNWRITTEN,
        ),
        tensors=(*TOP, *MAMBA1),
        aliases=ALIASES,
        traits=Traits(
            MAMBA_TOKENS,
            decoder=Decoder(),
            relations=(Relation("n_inner == 2 * n_embd", "n_inner", "must be twice the width in llama.cpp"),),
            # llama.cpp takes the epsilon of the other norms.
            built_in={"mixer_rms_eps": (1e-6,)},
        ),
    ),
    Architecture(
        gguf="mamba2",
        hf=(
            HFClass(
                "Mamba2ForCausalLM", "mamba2",
                {"num_heads": 128},
            ),
            HFClass("Mamba2LMHeadModel", "mamba2_ssm", {"pad_vocab_size_multiple": 16}, when="0"),
        ),
        hparams=(
            *HPARAMS,
            HParam("n_inner", (), ("ssm.inner_size",), default="expand * n_embd", always=True),
            HParam(
                "n_state", ("state_size", "d_state", "ssm_cfg.d_state"), ("ssm.state_size",), default=128, always=True
            ),
            HParam(
                "n_head_ssm", ("num_heads",), ("ssm.time_step_rank",), default="n_inner // head_ssm", always=True
            ),
            HParam(
                "n_group", ("n_groups", "ssm_cfg.ngroups"), ("ssm.group_count",), default=1, always=True
            ),
            EPSILON,
            HParam("expand", ("expand", "ssm_cfg.expand"), default=2, back="n_inner // n_embd"),
            HParam("head_ssm", ("head_dim", "ssm_cfg.headdim"), default=64, back="n_inner // n_head_ssm"),
            *UNWRITTEN,
        ),
        tensors=(*TOP, *moved(MAMBA, MIXER, MAMBA2)),
        aliases=ALIASES,
        traits=Traits(MAMBA2_TOKENS, decoder=Decoder()),
    ),
)  # fmt: skip
