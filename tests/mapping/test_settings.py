"""Settings that change what a model computes: neutral, understood, or named as lost."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.architectures import class_config
from support.families import FAMILIES, NO_TOKENIZER, family_config, planned, random_tensors, write
from support.models import as_transformers_4

import converter
from converter.architectures import architectures
from converter.architectures.settings import NEUTRAL, ONLY_WHEN, SAME_AS
from converter.architectures.spec import Architecture, HFClass, HParam, T
from converter.architectures.traits import Traits
from converter.cli.main import main
from converter.compare import compare
from converter.diff import diff
from converter.errors import FidelityError, LossyError
from converter.events import MetadataLost, SettingLost
from converter.mapping.hparams import Scope, flat_config, hparam_metadata, read_config, read_metadata
from converter.mapping.settings import lost_settings
from converter.verify import verify

QKVO = tuple(f"self_attn.{letter}_proj" for letter in "qkvo")
ODD = ("gelu_pytorch_tanh", 0.5, [3, 5], {"a": 1}, "strange", 2.5)


def lost(folder: Path, family: str = "llama", **changes: Any) -> dict[str, str]:
    """The settings that are named when a small model with these in its config becomes a GGUF."""
    config = family_config(family, **changes)
    write(folder, config, random_tensors(family_config(family), "F32"), "F32")
    events = planned(folder).report.events
    return {event.key: event.value for event in events if isinstance(event, SettingLost)}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_every_family_says_is_understood(family: str, tmp_path: Path) -> None:
    assert lost(tmp_path, family) == {}
    (tmp_path / "config.json").write_text(json.dumps(as_transformers_4(family_config(family, dtype="float32"))))
    assert not [event for event in planned(tmp_path).report.events if isinstance(event, SettingLost)]


@pytest.mark.parametrize("key", NEUTRAL)
def test_each_setting_is_told_at_every_other_value(key: str, tmp_path: Path) -> None:
    for value in ODD:
        changes: dict[str, Any] = {key: value}
        if key.startswith(("rope.", "rope_parameters.")):
            *parts, last = key.split(".")[1:]
            inner = {parts[0]: {last: value}} if parts else {last: value}
            changes = {"rope_parameters": {"rope_theta": 10000.0, **inner}}
        elif "." in key:
            changes = {key.partition(".")[0]: {key.partition(".")[2]: value}}
        if key == "rope.rope_type" and not isinstance(value, str):
            continue  # refused, it is no name
        spelled = key.replace("rope.", "rope_parameters.")
        assert lost(tmp_path, **changes) == {spelled: str(value)}, (key, value)
    assert lost(tmp_path, **{key: None}) == {}
    for value in NEUTRAL[key]:
        assert lost(tmp_path, **{key: list(value) if isinstance(value, tuple) else value}) == {}, (key, value)


@pytest.mark.parametrize(
    ("family", "changes", "keys"),
    [
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {"rope_scaling.rope_type"}),
        ("llama", {"rope_scaling": {"type": "ntk", "alpha": 1000.0}}, {"rope_scaling.rope_type"}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, set()),
        ("llama", {"partial_rotary_factor": 0.5}, {"partial_rotary_factor"}),
        ("llama", {"partial_rotary_factor": 1.0}, set()),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, set()),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, set()),
        ("qwen2", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, {"rope_scaling.rope_type"}),
        ("qwen2", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"}},
         {"rope_scaling.mrope_section"}),
        ("llama", {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}},
         {"rope_scaling.rope_type", "rope_scaling.short_factor", "rope_scaling.long_factor"}),
        ("mistral", {"sliding_window": 128}, {"sliding_window"}),
        ("mistral", {"sliding_window": 512}, set()),
        ("qwen2", {"sliding_window": 128}, set()),
        ("qwen2", {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 2}, set()),
        ("qwen2", {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 1}, {"sliding_window"}),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, {"layer_types"}),
        ("qwen3_moe", {"norm_topk_prob": False}, {"norm_topk_prob"}),
    ],
)  # fmt: skip
def test_values_of_one_family(family: str, changes: dict[str, Any], keys: set[str], tmp_path: Path) -> None:
    if "rope_scaling" in changes:
        changes = {"rope_parameters": None, "rope_theta": 10000.0, **changes}
    assert set(lost(tmp_path, family, **changes)) == keys


def test_what_the_class_does_without_being_told(tmp_path: Path) -> None:
    config = {**family_config("mistral"), "max_position_embeddings": 32768}
    del config["sliding_window"]
    write(tmp_path, config, random_tensors(config, "F32"), "F32")
    events = planned(tmp_path).report.events
    assert SettingLost("sliding_window", "4096", "llama") in events
    config = family_config("qwen3_moe")
    del config["norm_topk_prob"]
    write(tmp_path, config, random_tensors(config, "F32"), "F32")
    assert SettingLost("norm_topk_prob", "False", "qwen3moe") in planned(tmp_path).report.events


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, set()),
        ({"query_pre_attn_scalar": 32, "rope_theta": 10000, "hidden_activation": "gelu_pytorch_tanh"}, set()),
        ({"layer_types": ["sliding_attention", "full_attention"]}, set()),
        ({"layer_types": ["full_attention", "sliding_attention"]}, {"layer_types"}),
        ({"query_pre_attn_scalar": 16}, {"query_pre_attn_scalar"}),
        ({"query_pre_attn_scalar": 16, "num_hidden_layers": 46}, set()),
        ({"rope_theta": 1e6}, {"rope_theta"}),
        ({"hidden_activation": "silu"}, {"hidden_activation"}),
    ],
)  # fmt: skip
def test_what_no_key_says_and_the_runtime_does_anyway(changes: dict[str, Any], keys: set[str]) -> None:
    """A value without a key is no loss where it follows from the others."""
    architecture = architectures()["gemma2"]
    config = {
        "architectures": ["Gemma2ForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "head_dim": 32, "vocab_size": 48, **changes,
    }  # fmt: skip
    config = {"query_pre_attn_scalar": 32, **config}
    hparams, given = read_config(architecture, architecture.hf[0], config)
    back = read_metadata(architecture, hparam_metadata(architecture, hparams, given), 48)
    events = lost_settings(architecture, architecture.hf[0], config, Scope(hparams), back)
    assert {event.key.removeprefix("rope_scaling.") for event in events} == keys


def test_a_loss_is_refused_under_strict_and_told_by_verify(tmp_path: Path) -> None:
    folder, target = tmp_path / "m", tmp_path / "out.gguf"
    config = family_config("llama", hidden_act="gelu")
    write(folder, config, random_tensors(config, "F32"), "F32")
    with pytest.raises(LossyError, match=r"hidden_act is gelu, .*\nrefused under --strict"):
        converter.convert(folder, target, NO_TOKENIZER.replace(strict=True))
    assert not target.exists()
    converter.convert(folder, target, NO_TOKENIZER)
    told = [each for each in verify(folder, target, NO_TOKENIZER).findings if each.subject == "config.json: hidden_act"]
    assert [(each.check, each.message) for each in told] == [
        ("metadata", "is gelu, which changes what the model computes, and a GGUF of llama cannot say it")
    ]
    flags = ("--no-tokenizer", "--quiet")
    assert main(["verify", str(folder), str(target), *flags]) == 0
    assert main(["verify", str(folder), str(target), *flags, "--strict"]) == FidelityError.exit_code
    (change,) = diff(folder, target, metadata_only=True).changes
    assert (change.group, change.kind, change.name) == ("metadata", "removed", "config.json: hidden_act")
    (change,) = diff(target, folder, metadata_only=True).changes
    assert (change.kind, change.after) == ("added", told[0].message)
    assert SettingLost("hidden_act", "gelu", "llama") in compare(folder, ["f32"], NO_TOKENIZER).events


def test_the_way_back_writes_no_rope_scaling_that_transformers_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    scaling = {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    config = family_config("llama", rope_parameters=None, rope_scaling=scaling)
    write(folder, config, random_tensors(config, "F32"), "F32")
    converter.convert(folder, tmp_path / "out.gguf", NO_TOKENIZER)
    done = converter.convert(tmp_path / "out.gguf", f"{tmp_path}/back/")
    assert MetadataLost("llama.rope.scaling.type", "the file has no factors for it") in done.report.events
    assert "rope_scaling" not in json.loads((tmp_path / "back" / "config.json").read_text())


@pytest.mark.parametrize(
    ("family", "changes", "biased"),
    [
        ("llama", {}, ()),
        ("llama", {"attention_bias": True}, QKVO),
        ("llama", {"mlp_bias": True}, ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")),
        ("qwen3", {"attention_bias": True}, QKVO),
        ("qwen3_moe", {"attention_bias": True, "norm_topk_prob": True}, ("self_attn.q_proj", "self_attn.o_proj")),
    ],
)  # fmt: skip
def test_what_only_the_tensors_say_is_said_again_on_the_way_back(
    family: str, changes: dict[str, Any], biased: tuple[str, ...], tmp_path: Path
) -> None:
    config = family_config(family, **changes)
    tensors = random_tensors(config, "F32")
    for block in range(config["num_hidden_layers"]):
        for name in biased:
            rows = tensors[f"model.layers.{block}.{name}.weight"][:, 0]
            tensors[f"model.layers.{block}.{name}.bias"] = rows.copy()
    folder = write(tmp_path / "m", config, tensors, "F32")
    converter.convert(folder, tmp_path / "out.gguf", NO_TOKENIZER)
    converter.convert(tmp_path / "out.gguf", f"{tmp_path}/back/")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    said = {key: back[key] for key in ("attention_bias", "mlp_bias", "norm_topk_prob") if key in back}
    assert said == ({"norm_topk_prob": True, **changes} if family == "qwen3_moe" else changes)
    assert not [each for each in verify(folder, tmp_path / "back").findings if each.failed]


def test_a_head_size_that_is_null_is_absent(tmp_path: Path) -> None:
    keys = {"llama.attention.key_length", "llama.attention.value_length"}
    for changes, written in (({"head_dim": None}, set()), ({"head_dim": 16}, keys)):
        config = family_config("mistral", **changes)
        write(tmp_path, config, random_tensors(config, "F32"), "F32")
        assert keys & planned(tmp_path).checkpoint.config.keys() == written


# --------------------------------------------------------------------- one setting, and an architecture made up for it

TOY = Architecture("toy", (HFClass("Toy", "toy"),), (), ())
ROPE = HParam("rope_type", ("rope.rope_type",), ("rope",), "str", values=(("linear", "l"), ("llama3", "l3")))
FREQS = T((), "rope_freqs.weight", generator="llama3_rope_freqs", when="rope_type == 'llama3'")
FACTORS = T((), ("a", "b"), generator="longrope_factors", when="rope_type == 'longrope'")
PLAIN = T("freqs", "rope_freqs.weight", when="rope_type == 'llama3'")


def told(config: dict[str, Any], architecture: Architecture = TOY, **hparams: Any) -> dict[str, str]:
    events = lost_settings(architecture, architecture.hf[0], config, Scope(hparams), hparams)
    return {event.key: event.value for event in events}


@pytest.mark.parametrize(
    ("config", "lost"),
    [
        ({"layer_types": ["full_attention", "full_attention"]}, {}),  # a list of what changes nothing
        ({"layer_types": ["full_attention", "odd"]}, {"layer_types": "['full_attention', 'odd']"}),
        ({"layer_types": []}, {}),
        ({"no_rope_layers": [1, True]}, {}),
        ({"no_rope_layers": (1, 0)}, {"no_rope_layers": "(1, 0)"}),
        ({"alibi": None}, {}),
        ({"hidden_act": "x" * 61}, {"hidden_act": "x" * 60}),
        ({"hidden_act": "x" * 60}, {"hidden_act": "x" * 60}),
        # what a window needs to act
        ({"sliding_window": 8}, {"sliding_window": "8"}),
        ({"sliding_window": 8, "max_position_embeddings": 8}, {}),
        ({"sliding_window": 8, "max_position_embeddings": 9}, {"sliding_window": "8"}),
        ({"sliding_window": 8, "use_sliding_window": False, "max_position_embeddings": 9}, {}),
        # a key of a nested object is called as config.json has it
        ({"rope_parameters": {"rope_type": "odd"}}, {"rope_parameters.rope_type": "odd"}),
        ({"rope_scaling": {"rope_type": "odd"}}, {"rope_scaling.rope_type": "odd"}),
        ({"rope_parameters": {}, "rope_scaling": {"rope_type": "odd"}}, {"rope_scaling.rope_type": "odd"}),
        ({"text_config": {"rope_scaling": {"rope_type": "odd"}}}, {"text_config.rope_type": "odd"}),
        ({"llm_config": {"rope_scaling": {"rope_type": "odd"}}}, {"rope_scaling.rope_type": "odd"}),
        ({"rope_scaling": {"rope_type": "odd"}, "text_config": {"a": 1}}, {"rope_scaling.rope_type": "odd"}),
    ],
)  # fmt: skip
def test_what_acts_and_what_it_is_called(config: dict[str, Any], lost: dict[str, str]) -> None:
    assert told(config) == lost


def test_defaults_of_the_class_and_what_the_runtime_has_built_in() -> None:
    hf = HFClass("Toy", "toy", defaults={"hidden_act": "gelu", "sliding_window": 4})
    usual = Architecture("toy", (hf,), (), ())
    assert told({}, usual) == {"hidden_act": "gelu", "sliding_window": "4"}
    assert told({"hidden_act": "silu", "sliding_window": None}, usual) == {}
    built_in = Architecture("toy", (hf,), (), (), traits=Traits(built_in={"hidden_act": ("gelu",)}))
    assert told({"sliding_window": 0}, built_in) == {}
    assert told({"hidden_act": "silu", "sliding_window": 0}, built_in) == {"hidden_act": "silu"}


@pytest.mark.parametrize(
    ("value", "tensors", "lost"),
    [
        ("linear", (), False),  # a row has a word for it
        ("odd", (), True),
        ("llama3", (), True),  # a word is not enough: the factors are a tensor
        ("llama3", (FREQS,), False),
        ("linear", (FREQS,), False),
        ("odd", (FREQS,), True),
        ("longrope", (FREQS,), True),
        ("longrope", (FREQS, FACTORS), False),
        ("llama3", (PLAIN,), True),  # not computed
    ],
)
def test_what_a_row_or_a_computed_tensor_says(value: str, tensors: tuple[Any, ...], lost: bool) -> None:
    architecture = Architecture("toy", TOY.hf, (ROPE,), tensors)
    found = told({"rope_scaling": {"rope_type": value}}, architecture, rope_type=value)
    assert found == ({"rope_scaling.rope_type": value} if lost else {})


def test_a_tensor_says_what_it_is_computed_from() -> None:
    config = {"rope_scaling": {"rope_type": "longrope", "long_factor": [2.0], "short_factor": [1.0], "mscale": 2}}
    every = {f"rope_scaling.{key}" for key in ("rope_type", "long_factor", "short_factor", "mscale")}
    for tensors, lost in (((FREQS,), every), ((FACTORS,), {"rope_scaling.mscale"})):
        architecture = Architecture("toy", TOY.hf, (ROPE,), tensors)
        assert told(config, architecture, rope_type="longrope").keys() == lost


def test_factors_are_of_a_rope_only() -> None:
    acts = HParam("act", ("hidden_act",), ("act",), "str", values=(("gelu", "g"), ("llama3", "l")))
    architecture = Architecture("toy", TOY.hf, (acts,), ())
    assert told({"hidden_act": "gelu"}, architecture, act="gelu") == {}
    assert told({"hidden_act": "llama3"}, architecture, act="llama3") == {}, "only a rope is said by factors"
    assert told({"hidden_act": "odd"}, architecture, act="odd") == {"hidden_act": "odd"}


@pytest.mark.parametrize(
    ("value", "back", "alike"),
    [
        (8, 8, True),
        (8, 8.0, True),
        (8, 9, False),
        (0.1, float(np.float32(0.1)), True),  # as a file holds it
        (0.1, 0.1000001, False),
        (8, None, False),
        ("odd", "odd", True),
        ("odd", "even", False),
        ([3, 4], [3, 4], True),
        ([3, 4], [3, 5], False),
    ],
)
def test_what_follows_from_the_keys_is_no_loss(value: Any, back: Any, alike: bool) -> None:
    """A row without a key says the value that a reader of the target makes of the others."""
    architecture = Architecture("toy", TOY.hf, (HParam("scale", ("logit_scale",), type="f32"),), ())
    found = told({"logit_scale": value}, architecture, scale=back)
    assert found == ({} if alike else {"logit_scale": str(value)})


@pytest.mark.parametrize("name", ["partial_rotary_factor", "rope_pct", "rope_percent"])
def test_a_rope_fact_beside_the_scaling_is_called_so(name: str) -> None:
    assert f"rope_parameters.{name}" not in told({name: 0.5})
    assert name in told({name: 0.5, "rope_parameters": {"rope_type": "default"}})
    within = {"rope_parameters": {"partial_rotary_factor": 0.5}}
    assert "rope_parameters.partial_rotary_factor" in told(within)


# ------------------------------------------------------------------------------- key by key against transformers

#: Entries of transformers' classes that no row reads and no table lists, and why they lose nothing.
IN_TRAINING = {
    "altup_coef_clip", "L_bp_cycles",
    "attention_dropout", "attn_pdrop", "emb_pdrop", "embd_pdrop", "embedding_dropout", "hidden_dropout", "resid_pdrop",
    "residual_dropout", "classifier_dropout", "initializer_range", "input_jitter_noise", "router_jitter_noise",
    "router_aux_loss_coef", "embedding_initializer_range", "initializer_cutoff_factor", "mlp_dropout",
    "sparse_prediction", "sparse_pred_ignore_index", "dropout_rate", "initializer_factor",
}  # fmt: skip
ABOUT_THE_OBJECT = {
    "_name_or_path", "architectures", "model_type", "transformers_version", "dtype", "chunk_size_feed_forward",
    "attention_probs_dropout_prob", "hidden_dropout_prob", "dropout", "attention_dropout", "qa_dropout",
    "seq_classif_dropout", "sinusoidal_pos_embds", "classifier_dropout",
    "id2label", "label2id", "problem_type", "is_encoder_decoder", "is_decoder", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "use_cache", "init_device", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj", "enable_audio_output",
}  # fmt: skip
PRECISION_OR_SPEED = {
    "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "reorder_and_upcast_attn", "slow_but_exact",
    "pretraining_tp", "mamba_chunk_size", "enable_moe_fp32_combine", "attn_config.attn_impl", "chunk_size",
    "mamba_ssm_cache_dtype", "moe_shared_expert_overlap", "num_logits_to_keep", "residual_in_fp32", "use_mamba_kernels",
    "use_associative_scan", "use_mambapy", "deterministic_flash_attn",
}  # fmt: skip
#: Tensors that are there or not there, or their shapes, say it: other values make other tensors, which rules refuse.
SEEN_IN_THE_TENSORS = {
    "tie_word_embeddings", "attention_bias", "mlp_bias", "qkv_bias", "no_bias", "qk_layernorm", "multi_query",
    "num_key_value_heads", "add_cross_attention", "decoder_sparse_step", "mlp_only_layers", "mlp_layer_types",
    "moe_layers", "moe_layer_end_index", "qk_head_dim", "attn_config.qk_ln", "expand", "intermediate_size",
    "mamba_proj_bias", "projectors_bias", "mtp_layers_block_type", "num_nextn_predict_layers", "mtp_layer_types",
    "mtp_mlp_layer_types", "decoder_bias",
}  # fmt: skip
#: How the steps of Mamba are drawn at first; transformers' slow way also keeps them above the least, its fast one and
#: the runtimes do not.
STEPS = {
    "rescale_prenorm_residual", "time_step_floor", "time_step_init_scheme", "time_step_max", "time_step_min",
    "time_step_scale",
}  # fmt: skip
#: Conditions of other entries, and what follows from entries that are read.
BESIDE_OTHERS = {
    "use_sliding_window", "max_window_layers", "_sliding_window_pattern", "rope.type", "rope_theta", "dense_act_fn",
    "is_gated_act",
}  # fmt: skip
#: Those that no modelling class of transformers reads; a limit that no computation has.
UNREAD = {
    "attn_config.attn_type", "attn_config.attn_uses_sequence_id", "embedding_fraction", "learned_pos_emb", "norm_type",
    "max_position_embeddings",
}  # fmt: skip
#: The other inputs of a model for several kinds of input; their tensors go elsewhere.
OTHER_INPUTS = {
    "merged_hidden_size", "out_hidden_size", "projector_bias", "projector_hidden_size",
    "im_end_id", "im_newline_id", "im_start_id", "image_seq_length", "mm_tokens_per_image",
    "multimodal_projector_bias", "projector_hidden_act", "spatial_merge_size", "vision_feature_layer",
    "vision_feature_select_strategy", "audio_soft_tokens_per_image",
    "vision_soft_tokens_per_image", "token_classification_bias",
    "downsample_mode", "drop_vision_last_layer", "image_size", "insert_layer_id", "merge_kernel_size", "merger_times",
    "patch_size",
}  # fmt: skip
WITHOUT_EFFECT = (
    STEPS
    | IN_TRAINING
    | ABOUT_THE_OBJECT
    | PRECISION_OR_SPEED
    | SEEN_IN_THE_TENSORS
    | BESIDE_OTHERS
    | UNREAD
    | OTHER_INPUTS
)
#: What a class says of parts that the models of an architecture do not have.
OF_OTHERS = {
    "falcon-h1": {"mamba_expand"},
    "gemma4-assistant": {
        "centroid_intermediate_top_k", "hidden_size_per_layer_input", "num_centroids", "num_kv_shared_layers",
        "use_ordered_embeddings", "vocab_size_per_layer_input",
    },
    "glm5-next": {"head_dim"},
    "hy_v4": {"head_dim", "learnable_sink_init", "num_key_value_heads"},
    "mamba2": {"time_step_rank"},
    "minicpm3": {"head_dim"},
    "nemotron_h": {
        "moe_intermediate_size", "moe_latent_size", "moe_shared_expert_intermediate_size", "n_routed_experts",
        "n_shared_experts", "num_experts_per_tok",
    },
    "nomic-bert-moe": {"head_dim"},
    "qwen4exp": {"number_of_conv_states", "seed"},
    "t5encoder": {"num_decoder_layers", "scale_decoder_outputs"},
}  # fmt: skip
LIFTED = ("rope_parameters", "rope_scaling")  # flat_config has them under "rope"
#: What a class does by default and a GGUF of its architecture cannot say.
LOST_BY_DEFAULT = {
    ("afmoe", "AfmoeForCausalLM"): {"mup_enabled": "False"},
    ("gemma-embedding", "Gemma3TextModel"): {"use_bidirectional_attention": "False"},
    ("llama", "MistralForCausalLM"): {"sliding_window": "4096"},
    ("mistral3", "MistralForCausalLM"): {"sliding_window": "4096"},
    ("qwen3moe", "Qwen3MoeForCausalLM"): {"norm_topk_prob": "False"},
    ("qwen3vlmoe", "Qwen3MoeForCausalLM"): {"norm_topk_prob": "False"},
}
CLASSES = [(each, hf) for each in architectures().values() for hf in each.hf]
CLASS_IDS = [f"{each.gguf}-{hf.name}-{hf.model_type}" for each, hf in CLASSES]


def class_default(hf: HFClass) -> dict[str, Any]:
    """The config of a class as transformers fills it in."""
    transformers = pytest.importorskip("transformers")
    if hf.model_type not in transformers.models.auto.configuration_auto.CONFIG_MAPPING:
        pytest.skip(f"transformers has no {hf.model_type}")
    return {**class_config(hf.model_type), "architectures": [hf.name]}


def named_losses(architecture: Architecture, hf: HFClass, config: dict[str, Any]) -> dict[str, str]:
    hparams, given = read_config(architecture, hf, config)
    back = read_metadata(architecture, hparam_metadata(architecture, hparams, given), hparams["n_vocab"])
    return {each.key: each.value for each in lost_settings(architecture, hf, config, Scope(hparams), back)}


def dotted(config: Mapping[str, Any], known: Container[str], above: str = "") -> Iterator[str]:
    """The keys that nobody knows; those within an object where it is not known as a whole."""
    for key, value in config.items():
        name = f"{above}{key}"
        if name in known or {key, name} & WITHOUT_EFFECT or key.endswith(("_token_id", "_token_index")):
            continue
        if isinstance(value, dict):
            yield from dotted(value, known, f"{name}.")
        else:
            yield name


@pytest.mark.parametrize(("architecture", "hf"), CLASSES, ids=CLASS_IDS)
def test_what_a_class_does_by_default_is_understood(architecture: Architecture, hf: HFClass) -> None:
    expected = LOST_BY_DEFAULT.get((architecture.gguf, hf.name), {})
    assert named_losses(architecture, hf, class_default(hf)) == expected


@pytest.mark.parametrize(("architecture", "hf"), CLASSES, ids=CLASS_IDS)
def test_every_entry_of_a_class_is_read_listed_or_without_effect(architecture: Architecture, hf: HFClass) -> None:
    flat = flat_config(class_default(hf))
    rows = {key for hparam in architecture.hparams for key in hparam.config}
    known = {
        *hf.keys.values(),
        *rows,
        *(key.partition(".*")[0] for key in rows),
        *NEUTRAL,
        *architecture.traits.built_in,
    }
    own = {key: value for key, value in flat.items() if key not in LIFTED and not key.endswith("_config")}
    own |= {"attn_config": flat.get("attn_config", {})}
    assert sorted(set(dotted(own, known)) - OF_OTHERS.get(architecture.gguf, set())) == []


def test_the_list_of_what_has_no_effect_names_nothing_that_a_table_lists() -> None:
    assert not WITHOUT_EFFECT & {*NEUTRAL, *ONLY_WHEN, *SAME_AS}


@pytest.mark.parametrize(
    ("gguf", "changes", "expected"),
    [
        ("qwen2moe", {"norm_topk_prob": True}, {"norm_topk_prob": "True"}),
        ("falcon", {"activation": "gelu_new"}, {}),
        ("falcon", {"activation": "relu"}, {"activation": "relu"}),
        ("bloom", {"apply_residual_connection_post_layernorm": True},
         {"apply_residual_connection_post_layernorm": "True"}),
        ("gpt-oss", {"swiglu_alpha": 1.5}, {"swiglu_alpha": "1.5"}),
        ("mpt", {"layer_norm_epsilon": 1e-6}, {"layer_norm_epsilon": "1e-06"}),
        ("mpt", {"attn_config": {"softmax_scale": 0.5}}, {"attn_config.softmax_scale": "0.5"}),
        ("granitehybrid", {"time_step_limit": [0.0, {"__float__": "Infinity"}]}, {}),
        ("granitehybrid", {"time_step_limit": [0.001, 0.1]}, {"time_step_limit": "[0.001, 0.1]"}),
        ("granite_swa", {"layer_rope_theta": [10000.0, 500000.0]}, {"layer_rope_theta": "[10000.0, 500000.0]"}),
        ("deepseek2", {"rope_interleave": False}, {"rope_interleave": "False"}),
        ("llama4", {"floor_scale": 4096}, {"floor_scale": "4096"}),
        ("llama4", {"floor_scale": 4096, "attn_temperature_tuning": False}, {"attn_temperature_tuning": "False"}),
        ("olmo2", {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5},
                                       "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
         {"rope_parameters.sliding_attention.rope_theta": "10000.0"}),
    ],
)  # fmt: skip
def test_what_a_class_can_say_and_its_runtime_does_not_do(
    gguf: str, changes: dict[str, Any], expected: dict[str, str]
) -> None:
    architecture = architectures()[gguf]
    hf = next(each for each in architecture.hf if each.name not in ("MPTForCausalLM", "Olmo2ForCausalLM"))
    assert named_losses(architecture, hf, {**class_default(hf), **changes}) == expected
