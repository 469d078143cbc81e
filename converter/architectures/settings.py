"""Entries of config.json that change what a model computes, and the values with which they change nothing.

An architecture understands those that its hparams read. Of the others, one whose value is not in this table is a loss:
the target has no word for it, and the model in it computes something else. `Traits.built_in` says where the runtime of
an architecture computes another value than the usual one. Source: the configuration and modelling classes of
transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

OFF: tuple[object, ...] = (0, False, ())
ONE: tuple[object, ...] = (1, True)
SILU = ("silu", "swish")
#: What is no bound; transformers 5 writes what JSON has no number for as an object.
ENDLESS = (1e999, {"__float__": "Infinity"})

#: Dotted key -> values that change nothing; null never does, and a list does not where none of its items does.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    # what stands between the two halves of the feed-forward network
    "hidden_act": SILU,
    "hidden_activation": SILU,
    "activation_function": SILU,
    "activation": SILU,
    "swiglu_alpha": (),
    "swiglu_limit": OFF,
    # positions
    "rope.rope_type": ("default", "mrope"),
    "rope.long_factor": (),
    "rope.short_factor": (),
    "rope.mrope_section": (),
    "rope.mrope_interleaved": OFF,
    "rope.short_mscale": (),
    "rope.long_mscale": (),
    "rope.mscale": OFF,
    "rope.mscale_all_dim": OFF,
    "rope.truncate": ONE,
    "rope.partial_rotary_factor": ONE,
    "rotary_pct": ONE,
    "rope_parameters.sliding_attention.rope_theta": (),
    "rope_parameters.sliding_attention.rope_type": ("default",),
    "rope_parameters.sliding_attention.factor": ONE,
    "rope_parameters.sliding_attention.partial_rotary_factor": ONE,
    "rope_local_base_freq": (),
    "layer_rope_theta": (),
    "rope_interleave": ONE,
    "no_rope_layers": ONE,
    "no_rope_layer_interval": (4,),
    "relative_attention_max_distance": (128,),
    "alibi": OFF,
    "use_alibi": OFF,
    "position_embedding_type": ("rope", "rotary"),
    # what a token sees
    "sliding_window": OFF,
    "layer_types": ("full_attention",),
    "attention_chunk_size": OFF,
    "is_causal": ONE,
    "use_bidirectional_attention": OFF,
    "attn_config.prefix_lm": OFF,
    # scales and bounds
    "attention_multiplier": (),
    "query_pre_attn_scalar": (),
    "residual_multiplier": ONE,
    "embedding_multiplier": ONE,
    "logits_scaling": ONE,
    "logit_scale": ONE,
    "scale_emb": ONE,
    "scale_depth": (),
    "altup_correct_scale": ONE,
    "dim_model_base": (),
    "attn_temperature_tuning": OFF,
    "attn_scale": (0.1,),
    "floor_scale": (8192,),
    "attn_config.softmax_scale": (),
    "time_step_limit": (0, *ENDLESS),
    "attn_logit_softcapping": OFF,
    "final_logit_softcapping": OFF,
    "clip_qkv": OFF,
    "scale_attn_weights": ONE,
    "scale_attn_by_inverse_layer_idx": OFF,
    "parallel_attn": OFF,
    "use_parallel_residual": OFF,
    "apply_residual_connection_post_layernorm": OFF,
    # which experts, and how much of each
    "norm_topk_prob": ONE,
    "routed_scaling_factor": ONE,
    "scoring_func": ("softmax",),
    "n_group": ONE,
    "topk_group": ONE,
    "moe_norm_min": (1e-12,),
    "moe_apply_router_weight_on_input": OFF,
    "moe_router_logit_softcapping": OFF,
}

#: Dotted key -> conditions over config.json under all of which it changes something; one it cannot answer holds.
ONLY_WHEN: Mapping[str, tuple[str, ...]] = {
    "sliding_window": (
        "use_sliding_window != 0", "max_window_layers < num_hidden_layers", "sliding_window < max_position_embeddings",
    ),
    "attn_scale": ("attn_temperature_tuning != 0",),
    "floor_scale": ("attn_temperature_tuning != 0",),
}  # fmt: skip

#: Dotted key -> another, whose value changes nothing here either.
SAME_AS: Mapping[str, str] = {
    "rope_parameters.sliding_attention.rope_theta": "rope.rope_theta",
    "rope_local_base_freq": "rope.rope_theta",
    "layer_rope_theta": "rope.rope_theta",
}

#: Types of rope scaling that are factors for each frequency: only a tensor of them says what they mean.
BY_FACTORS = ("llama3", "longrope", "su")
