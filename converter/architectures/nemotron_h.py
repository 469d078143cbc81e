"""Nemotron-H and Nemotron 3: a block is Mamba-2, attention without positions, or a feed-forward network.

Those of Nemotron 3 are mixtures of experts, which make an architecture of their own.

Source: the reference converter's NemotronHModel; transformers' configuration class for the defaults.
"""

from converter.architectures.common import ATTENTION_INTERLEAVED, LLAMA_HPARAMS, NORM, ROPE_BUFFERS, G, H
from converter.architectures.granite_hybrid import BIASES, MAMBA, MAMBA2
from converter.architectures.spec import Architecture, HFClass, HParam, T, amended, before, moved, only_when, pair
from converter.architectures.styles import NEMOTRON_H
from converter.architectures.traits import SIGMOID, Decoder, Traits

B = "backbone.layers.{block}."
MIXER = B + "mixer."
EXPERT, SHARED = MIXER + "experts.{expert}.", MIXER + "shared_experts."
IS_ATTENTION, IS_FFN, IS_MAMBA = "n_head_kv > 0", "n_ff > 0", "n_head_kv == 0 and n_ff == 0"

# The reference writes the epsilon under the name of norms that subtract the mean; the size of a head comes last.
HPARAMS = before(
    "n_expert",
    (HParam("norm_eps", ("layer_norm_epsilon",), ("attention.layer_norm_epsilon",), "f32"),),
    amended(
        LLAMA_HPARAMS[:-3],
        n_layer={"required": False, "default": "len(kinds)", "always": True},
        n_ctx={"config": (), "default": 1048576, "always": True},
        n_ff={
            "config": (), "type": "i32[]", "per_block": True, "required": False, "always": True,
            "default": "n_ff_exp if kinds == 'E' or kinds == 'moe' else 0",
        },
        n_head_kv={
            "config": (), "type": "i32[]", "per_block": True, "always": True,
            "default": "n_head_kv_said if kinds == '*' or kinds == 'attention' or kinds == 'full_attention' else 0",
        },
    ),
)
VOCABULARY = amended(LLAMA_HPARAMS[-2:], n_rot={"default": "n_embd // n_head"})
# A word for each block; older configs have a letter.
PATTERN = (
    HParam("pattern", ("hybrid_override_pattern",), (), "str", default="''"),
    HParam(
        "kinds", ("layers_block_type", "layer_types"), (), "str[]", per_block=True, default="pattern[block]",
        back=f"'full_attention' if {IS_ATTENTION} else 'moe' if {IS_FFN} else 'linear_attention'",
    ),
    HParam("n_head_kv_said", ("num_key_value_heads",), default="n_head", back="max(n_head_kv)"),
    HParam("n_ctx_said", ("max_position_embeddings",), default=4096, back=1048576),
)
STATE = (
    HParam("conv_kernel", ("conv_kernel",), ("ssm.conv_kernel",), required=True),
    HParam("n_state", ("ssm_state_size",), ("ssm.state_size",), required=True),
    HParam("n_group", ("n_groups",), ("ssm.group_count",), required=True),
    HParam("n_inner", (), ("ssm.inner_size",), default="n_head_ssm * head_ssm", always=True),
    HParam("n_head_ssm", ("mamba_num_heads",), ("ssm.time_step_rank",), required=True),
    HParam("head_ssm", ("mamba_head_dim",), required=True, back="n_inner // n_head_ssm"),
    HParam("use_rope", (), ("rope.scaling.finetuned",), "bool", default=False, always=True),
    HParam(
        "head_dim", ("head_dim", "attention_head_dim"), ("attention.key_length", "attention.value_length"),
        required=True,
    ),
)
ALL_BIASES = (
    *amended(BIASES, conv_bias={"config": ("use_conv_bias",)}, proj_bias={"config": ("use_bias",)}),
    HParam("attention_bias", ("attention_bias",), (), "bool", default=False, back="max(attention_biases)"),
)

TENSORS = (
    T("backbone.embeddings.weight", "token_embd.weight", shape=("n_vocab", "n_embd")),
    T("backbone.norm_f.weight", "output_norm.weight", shape=NORM),
    T("lm_head.weight", "output.weight", shape=("n_vocab", "n_embd"), tied_to="token_embd.weight"),
    T(B + "norm.weight", G + "attn_norm.weight", shape=NORM),
    *only_when(IS_ATTENTION, moved(H + "self_attn.", MIXER, ATTENTION_INTERLEAVED)),
    *only_when(IS_MAMBA, moved(MAMBA, MIXER, MAMBA2)),
)
DENSE = (
    *pair(MIXER + "up_proj", G + "ffn_up", shape=("n_ff", "n_embd")),
    *pair(MIXER + "down_proj", G + "ffn_down", shape=("n_embd", "n_ff")),
)
# Experts may work in a space of their own, smaller than the model's.
EXPERTS = (
    T(MIXER + "gate.weight", G + "ffn_gate_inp.weight", shape=("n_expert", "n_embd")),
    T(MIXER + "gate.e_score_correction_bias", G + "exp_probs_b.bias", shape=("n_expert",)),
    T(EXPERT + "down_proj.weight", G + "ffn_down_exps.weight", shape=("n_latent if n_latent else n_embd", "n_ff_exp")),
    T(EXPERT + "up_proj.weight", G + "ffn_up_exps.weight", shape=("n_ff_exp", "n_latent if n_latent else n_embd")),
    T(SHARED + "down_proj.weight", G + "ffn_down_shexp.weight", shape=("n_embd", "n_ff_shexp")),
    T(SHARED + "up_proj.weight", G + "ffn_up_shexp.weight", shape=("n_ff_shexp", "n_embd")),
    T(MIXER + "fc1_latent_proj.weight", G + "ffn_latent_down.weight", shape=("n_latent", "n_embd"), optional=True),
    T(MIXER + "fc2_latent_proj.weight", G + "ffn_latent_up.weight", shape=("n_embd", "n_latent"), optional=True),
)
ALIASES = (("model.{rest}", "backbone.{rest}"),)
TRAITS = Traits(
    NEMOTRON_H, decoder=Decoder("relu2", rotates="0", rms=True, gating=SIGMOID),
    built_in={"mlp_hidden_act": ("relu2",), "mamba_hidden_act": ("silu",)},
)

ARCHITECTURES = (
    Architecture(
        gguf="nemotron_h",
        hf=(
            HFClass(
                "NemotronHForCausalLM", "nemotron_h", takes="not ('moe' in kinds or 'E' in kinds)"
            ),
        ),
        hparams=(
            *amended(
                HPARAMS,
                n_ff={"default": "n_ff_said if kinds == '-' or kinds == 'mlp' else 0"},
                n_expert={"config": (), "gguf": ()},
                n_expert_used={"config": (), "gguf": ()},
            ),
            *VOCABULARY,
            *STATE,
            HParam("n_ff_said", ("intermediate_size",), required=True, back="max(n_ff)"),
            *amended(
                PATTERN,
                kinds={
                    "back": f"'full_attention' if {IS_ATTENTION} else 'mlp' if {IS_FFN} else 'linear_attention'",
                },
            ),
            *ALL_BIASES,
            HParam(
                "mlp_biases", (), (), "bool[]", per_block=True, back="present('blk.{block}.ffn_up.bias')",
            ),
            HParam("mlp_bias", ("mlp_bias",), (), "bool", default=False, back="max(mlp_biases)"),
        ),
        tensors=(*TENSORS, *only_when(IS_FFN, DENSE)),
        ignore=ROPE_BUFFERS,
        aliases=ALIASES,
        traits=TRAITS,
    ),
    Architecture(
        gguf="nemotron_h_moe",
        hf=(HFClass("NemotronHForCausalLM", "nemotron_h"),),
        hparams=(
            *HPARAMS,
            HParam("n_expert_group", ("n_group",), ("expert_group_count",)),
            HParam("n_group_used", ("topk_group",), ("expert_group_used_count",)),
            *VOCABULARY,
            *STATE,
            HParam("n_ff_exp", ("moe_intermediate_size",), ("expert_feed_forward_length",), required=True),
            HParam(
                "n_ff_shexp", ("moe_shared_expert_intermediate_size",), ("expert_shared_feed_forward_length",),
                required=True,
            ),
            HParam("n_shared", ("n_shared_experts",), ("expert_shared_count",), required=True),
            HParam("weights_norm", ("norm_topk_prob",), ("expert_weights_norm",), "bool", required=True),
            HParam("weights_scale", ("routed_scaling_factor",), ("expert_weights_scale",), "f32", required=True),
            HParam("n_latent", ("moe_latent_size",), ("moe_latent_size",), default=0, null=0),
            *PATTERN,
            *ALL_BIASES,
        ),
        tensors=(*TENSORS, *only_when(IS_FFN, EXPERTS)),
        ignore=ROPE_BUFFERS,
        aliases=ALIASES,
        traits=TRAITS,
    ),
)  # fmt: skip
