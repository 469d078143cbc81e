"""What an architecture file can say, each mechanism on a made-up architecture: to GGUF and back, through real files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import models
from support.families import NO_TOKENIZER, Tensors, write

import converter
from converter.architectures.spec import Architecture, HFClass, HParam, T, TensorRule
from converter.architectures.traits import Relation, TokenizerStyle, Traits
from converter.errors import (
    ArchitectureError,
    MissingTensor,
    QuantizationError,
    ShapeMismatch,
    UnknownArchitecture,
    UnmatchedTensor,
    UsageError,
)
from converter.formats.safetensors import open_safetensors
from converter.mapping import detect
from converter.mapping.hparams import hparam_metadata, read_config, read_metadata, write_config
from converter.metadata import Array, Value
from converter.tensors.dtypes import F32
from converter.tensors.expressions import evaluate
from converter.tensors.ops import Product, Transpose
from converter.tensors.tensor import from_array

H, G = "model.layers.{block}.", "blk.{block}."
N_LAYER = HParam("n_layer", ("num_hidden_layers",), ("block_count",), required=True)
N_EMBD = HParam("n_embd", ("hidden_size",), ("embedding_length",), required=True)
CONFIG = {"architectures": ["ToyForCausalLM"], "model_type": "toy", "num_hidden_layers": 4, "hidden_size": 8}
NORM = T(H + "norm.weight", G + "attn_norm.weight", shape=("n_embd",))


def toy(
    *hparams: HParam, tensors: tuple[TensorRule, ...] = (NORM,), gguf: str = "toy", hf: Any = None, **fields: Any
) -> Architecture:
    classes = hf or (HFClass("ToyForCausalLM", "toy"),)
    return Architecture(gguf, classes, (N_LAYER, N_EMBD, *hparams), tensors, **fields)


class Trip:
    """A model to GGUF and back: the keys of the GGUF, its tensors, and what came back."""

    def __init__(
        self, path: Path, architectures: tuple[Architecture, ...], config: Mapping[str, Any], tensors: Tensors
    ):
        known = {architecture.gguf: architecture for architecture in architectures}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(detect, "architectures", lambda *_: known)
            folder = write(path / "m", dict(config), tensors, "F32")
            converter.convert(folder, path / "m.gguf", NO_TOKENIZER, threads=1)
            plan = converter.convert(path / "m.gguf", path / "back.safetensors", NO_TOKENIZER, threads=1)
        self.config = dict(plan.checkpoint.config)
        with converter.open_checkpoint(path / "m.gguf") as gguf:
            self.keys = dict(gguf.config)
            self.tensors = {name: tensor.info.shape for name, tensor in gguf.tensors.items()}
        self.given, self.back = bytes_of(folder / "model.safetensors"), bytes_of(path / "back.safetensors")


def bytes_of(path: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    with open_safetensors(path) as checkpoint:
        return {
            name: (t.info.shape, t.rows(0, t.info.n_rows).tobytes()) for name, t in checkpoint.tensors.items()
        }  # fmt: skip


def random(shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def norms(n_layer: int = 4, n_embd: int = 8) -> Tensors:
    return random({f"model.layers.{i}.norm.weight": (n_embd,) for i in range(n_layer)})


def same(trip: Trip, **config: Any) -> None:
    """The tensors came back to the byte, and the config says this again."""
    assert trip.back == trip.given
    assert {key: trip.config.get(key) for key in config} == config


# ------------------------------------------------------------------------------- lists (M1), values per block (M2)

LISTS = (
    HParam("n_head_kv", ("num_key_value_heads",), ("attention.head_count_kv",), "u32 or i32[]"),
    HParam("pattern", ("sliding_window_pattern",), ("attention.sliding_window_pattern",), "u32 or bool[]"),
    HParam("sparsity", ("sparsity",), ("activation_sparsity_scale",), "f32[]"),
    HParam("labels", ("labels",), ("classifier.output_labels",), "str[]"),
    HParam("sections", ("rope_sections",), ("rope.dimension_sections",), "i32[]"),
    HParam("sizes", ("sizes",), ("sizes",), "u64[]"),
)


@pytest.mark.parametrize(
    ("said", "keys"),
    [
        (
            {
                "num_key_value_heads": [0, 2, 0, 2],
                "sliding_window_pattern": [True, False, True, True],
                "sparsity": [0.95, 0.0, 0.1, 1e-05],
                "labels": ["yes", "né"],
                "rope_sections": [8, -1, 0],
                "sizes": [1 << 40],
            },
            {
                "attention.head_count_kv": Array("i32", [0, 2, 0, 2]),
                "attention.sliding_window_pattern": Array("bool", [True, False, True, True]),
                "activation_sparsity_scale": Array("f32", [float(np.float32(v)) for v in (0.95, 0.0, 0.1, 1e-05)]),
                "classifier.output_labels": Array("str", ["yes", "né"]),
                "rope.dimension_sections": Array("i32", [8, -1, 0]),
                "sizes": Array("u64", [1 << 40]),
            },
        ),
        (
            {"num_key_value_heads": 2, "sliding_window_pattern": 6},
            {"attention.head_count_kv": Value("u32", 2), "attention.sliding_window_pattern": Value("u32", 6)},
        ),
    ],
    ids=["lists", "numbers"],
)
def test_scalar_or_list_by_content(said: dict[str, Any], keys: dict[str, Any], tmp_path: Path) -> None:
    trip = Trip(tmp_path, (toy(*LISTS),), {**CONFIG, **said}, norms())
    found = {key.removeprefix("toy."): value for key, value in trip.keys.items() if key.startswith("toy.")}
    assert found == {"block_count": Value("u32", 4), "embedding_length": Value("u32", 8), **keys}
    same(trip, **said)


def test_an_empty_list_is_not_written(tmp_path: Path) -> None:
    trip = Trip(tmp_path, (toy(*LISTS),), {**CONFIG, "labels": [], "num_key_value_heads": []}, norms())
    assert not {"toy.classifier.output_labels", "toy.attention.head_count_kv"} & trip.keys.keys()
    assert "labels" not in trip.config


@pytest.mark.parametrize("value", [["a"], [True], [1.5], [1 << 40], "2", 1.5, True, [[1]]])
def test_a_list_of_the_wrong_kind_is_an_error(value: Any) -> None:
    architecture = toy(*LISTS)
    with pytest.raises(ArchitectureError, match=r"num_key_value_heads is .*not a usable u32 or i32\[\] value"):
        read_config(architecture, architecture.hf[0], {**CONFIG, "num_key_value_heads": value})


HYBRID = toy(
    HParam("kinds", ("layer_types",), (), "str[]", back="'full_attention' if n_head_kv else 'conv'", per_block=True),
    HParam("kv", ("num_key_value_heads",), back="max(n_head_kv)"),
    HParam(
        "n_head_kv", (), ("attention.head_count_kv",), "i32[]", per_block=True, always=True,
        default="kv if kinds[block] == 'full_attention' else 0",
    ),
    HParam("n_dense", ("first_k_dense_replace",), ("leading_dense_block_count",), default=0),
    HParam("n_expert", ("num_experts",), ("expert_count",)),
    HParam("is_moe", (), (), "bool[]", default="block >= n_dense", per_block=True),
    HParam("ff", ("intermediate_size",), back="first(n_ff)"),
    HParam(
        "n_ff", (), ("feed_forward_length",), "u32 or i32[]", per_block=True, always=True,
        default="ff * (1 + block % 2)",
    ),
    tensors=(
        T(H + "attn.k.weight", G + "attn_k.weight", shape=("n_head_kv * 2", "n_embd"), when="n_head_kv > 0"),
        T(H + "conv.weight", G + "shortconv.conv.weight", shape=("n_embd", 3), when="kinds == 'conv'"),
        T(H + "mlp.up.weight", G + "ffn_up.weight", shape=("n_ff", "n_embd"), when="not is_moe"),
        T(
            H + "mlp.experts.{expert}.up.weight", G + "ffn_up_exps.weight",
            shape=("n_ff", "n_embd"), when="is_moe",
        ),
    ),
)  # fmt: skip
HYBRID_CONFIG = {
    **CONFIG, "layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_key_value_heads": 2,
    "first_k_dense_replace": 1, "num_experts": 3, "intermediate_size": 6,
}  # fmt: skip


def hybrid_tensors() -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(4):
        shapes |= {f"model.layers.{i}.attn.k.weight": (4, 8)} if i % 2 else {f"model.layers.{i}.conv.weight": (8, 3)}
        rows = 6 * (1 + i % 2)
        up = [f"experts.{expert}.up" for expert in range(3)] if i else ["up"]
        shapes |= {f"model.layers.{i}.mlp.{name}.weight": (rows, 8) for name in up}
    return random(shapes)


def test_blocks_differ_and_come_back(tmp_path: Path) -> None:
    trip = Trip(tmp_path, (HYBRID,), HYBRID_CONFIG, hybrid_tensors())
    assert trip.keys["toy.attention.head_count_kv"] == Array("i32", [0, 2, 0, 2])
    assert trip.keys["toy.feed_forward_length"] == Array("i32", [6, 12, 6, 12])
    assert trip.tensors["blk.3.ffn_up_exps.weight"] == (3, 12, 8)
    same(trip, **{key: HYBRID_CONFIG[key] for key in HYBRID_CONFIG if key not in CONFIG})


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"model.layers.1.attn.k.weight": None}, MissingTensor, "layers.1.attn.k.weight"),
        ({"model.layers.2.conv.weight": None}, MissingTensor, "layers.2.conv.weight"),
        ({"model.layers.2.attn.k.weight": (4, 8)}, UnmatchedTensor, "layers.2.attn.k.weight"),
        ({"model.layers.0.mlp.experts.0.up.weight": (6, 8)}, UnmatchedTensor, "layers.0.mlp.experts.0"),
        ({"model.layers.3.mlp.experts.1.up.weight": (6, 8)}, ShapeMismatch, r"makes it \[12, 8\]"),
        ({"model.layers.4.conv.weight": (8, 3)}, ShapeMismatch, "says 4 layers"),
    ],
)
def test_each_block_must_be_complete(change: dict[str, Any], error: Any, said: str, tmp_path: Path) -> None:
    tensors = hybrid_tensors()
    for name, shape in change.items():
        tensors.pop(name, None)
        if shape:
            tensors |= random({name: shape})
    with pytest.raises(error, match=said):
        Trip(tmp_path, (HYBRID,), HYBRID_CONFIG, tensors)


@pytest.mark.parametrize(
    ("rows", "config", "moe"),
    [
        (
            (
                HParam("period", ("period",), ("period",)),
                HParam("offset", ("offset",), ("offset",)),
                HParam("moe", (), (), "bool[]", "block % period == offset", per_block=True),
            ),
            {"period": 2, "offset": 1},
            [False, True, False, True],
        ),
        (
            (
                HParam("letters", (), (), "str[]", back="'E' if moe else '-'", per_block=True),
                HParam("pattern", ("hybrid_override_pattern",), (), "str", back="join(letters)"),
                HParam("moe", (), ("moe",), "bool[]", "pattern[block] == 'E'", per_block=True, always=True),
            ),
            {"hybrid_override_pattern": "-EE-"},
            [False, True, True, False],
        ),
        (
            (
                HParam("listed", ("moe_layers",), (), "u32[]", back="where(moe, 1)"),
                HParam("moe", (), ("moe",), "bool[]", "block + 1 in listed", per_block=True, always=True),
            ),
            {"moe_layers": [1, 4]},
            [True, False, False, True],
        ),
        (
            (
                HParam("listed", ("moe_layers_enum",), (), "str", back="join(where(moe), ',')"),
                HParam("moe", (), ("moe",), "bool[]", "block in numbers(listed)", per_block=True, always=True),
            ),
            {"moe_layers_enum": "2,3"},
            [False, False, True, True],
        ),
        (
            (
                HParam("freq", ("moe_layer_freq",), (), "u32[]", back="1 if moe else 0", per_block=True),
                HParam("dense", (), ("leading_dense_block_count",), default="where(freq)[0]", always=True),
                HParam("moe", (), (), "bool[]", default="block >= dense", per_block=True),
            ),
            {"moe_layer_freq": [0, 0, 1, 1]},
            [False, False, True, True],
        ),
    ],
    ids=["period", "letters", "indexes", "comma-joined", "leading zeros"],
)
def test_facts_per_block_are_rows(rows: tuple[HParam, ...], config: dict[str, Any], moe: list[bool]) -> None:
    architecture = toy(*rows)
    hparams, given = read_config(architecture, architecture.hf[0], {**CONFIG, **config})
    assert hparams["moe"] == moe
    metadata = hparam_metadata(architecture, hparams, given)
    back = read_metadata(architecture, metadata)
    assert back["moe"] == moe
    again = write_config(architecture, back, tied=True)
    assert {key: again.get(key) for key in config} == config


# ------------------------------------------------------------------------------------------ numbers (M3, M4)


def test_numbers_are_computed_and_recovered(tmp_path: Path) -> None:
    architecture = toy(
        HParam("head_dim", ("head_dim",), ("attention.key_length",)),
        HParam("n_rot", (), ("rope.dimension_count",), default="int(partial * head_dim)", always=True),
        HParam("partial", ("partial_rotary_factor",), (), "f32", default=1.0, back="n_rot / head_dim"),
        HParam("depth", ("scale_depth",), (), "f32", back="residual * sqrt(n_layer)"),
        HParam("residual", (), ("residual_scale",), "f32", default="depth / sqrt(n_layer)", always=True),
        HParam("log", ("mscale_all_dim",), (), "f32", back="yarn_log / 0.1"),
        HParam("yarn_log", (), ("rope.scaling.yarn_log_multiplier",), "f32", default="0.1 * log", always=True),
        HParam("ff", ("block_ff_dim",), back="n_ff"),
        HParam("n_ff", (), ("feed_forward_length",), default="round_up(2 * ff // 3, 256)", always=True),
    )
    said = {"head_dim": 96, "partial_rotary_factor": 0.25, "scale_depth": 1.5, "mscale_all_dim": 1.0}
    trip = Trip(tmp_path, (architecture,), {**CONFIG, **said, "block_ff_dim": 6656}, norms())
    found = {key.removeprefix("toy."): value for key, value in trip.keys.items()}
    assert found["rope.dimension_count"] == Value("u32", 24)
    assert found["residual_scale"] == Value("f32", 0.75)
    assert found["rope.scaling.yarn_log_multiplier"] == Value("f32", float(np.float32(0.1)))
    assert found["feed_forward_length"] == Value("u32", 4608)
    same(trip, **said, block_ff_dim=4608)


GATING = HParam(
    "gating", ("scoring_func", "score_function"), ("expert_gating_func",),
    values=(("softmax", 1), ("sigmoid", 2), ("Sigmoid", 2)), closed=True,
)  # fmt: skip
TYPED = (
    GATING,
    HParam("norm", ("norm_topk_prob",), ("expert_weights_norm",), "u32", values=((True, 1), (False, 0))),
    HParam("window", ("sliding_window",), ("attention.sliding_window",), default=0, always=True),
    HParam("topk", ("moe_topk",), (), "u32 or u32[]", back="n_used"),
    HParam("n_used", (), ("expert_used_count",), default="first(topk)", always=True),
    HParam("layers", ("deepstack_indexes",), (), "u32[]"),
    HParam("n_deep", (), ("n_deepstack_layers",), default="len(layers)", always=True),
)


def test_values_change_their_type(tmp_path: Path) -> None:
    said = {"norm_topk_prob": True, "sliding_window": None, "moe_topk": [6, 6, 6, 6], "deepstack_indexes": [5, 11]}
    hf = (HFClass("ToyForCausalLM", "toy", facts={}),)
    trip = Trip(tmp_path, (toy(*TYPED[:5], hf=hf),), {**CONFIG, **said, "score_function": "Sigmoid"}, norms())
    found = {key.removeprefix("toy."): value for key, value in trip.keys.items()}
    assert found["expert_gating_func"] == Value("u32", 2)
    assert found["expert_weights_norm"] == Value("u32", 1)
    assert found["attention.sliding_window"] == Value("u32", 0)
    assert found["expert_used_count"] == Value("u32", 6)
    same(trip, norm_topk_prob=True, sliding_window=None, moe_topk=6, scoring_func="sigmoid")
    hparams, given = read_config(toy(*TYPED), hf[0], {**CONFIG, **said})
    assert hparam_metadata(toy(*TYPED), hparams, given)["toy.n_deepstack_layers"] == Value("u32", 2)


@pytest.mark.parametrize(
    ("value", "said"), [("tanh", "none of 'softmax', 'sigmoid'"), (1, "not a usable str value"), (["softmax"], None)]
)
def test_a_value_without_a_word_is_an_error_where_all_are_known(value: Any, said: str | None) -> None:
    architecture = toy(GATING)
    if said is None:
        assert read_config(architecture, architecture.hf[0], {**CONFIG, "scoring_func": value})[0]["gating"] == value
        return
    with pytest.raises(ArchitectureError, match=said):
        read_config(architecture, architecture.hf[0], {**CONFIG, "scoring_func": value})


# ------------------------------------------------------------------------- constants, places of keys (M5, M7)


def test_constants_absolute_keys_and_their_places(tmp_path: Path) -> None:
    architecture = toy(
        HParam("ctx", ("max_position_embeddings",), ("context_length",)),
        HParam("causal", (), ("attention.causal",), "bool"),
        HParam("mask", ("mask_token_id",), ("/tokenizer.ggml.mask_token_id",)),
        HParam("alpha", ("alpha",), ("xielu.alpha_p",), "f32[]", early=True),
        HParam("ctx_always", (), ("context_length",), default=1 << 18, always=True),
        hf=(
            HFClass("ToyForCausalLM", "toy", when="causal"),
            HFClass("ToyEncoder", "toy_enc", facts={"causal": False}, constants={"use_bidirectional_attention": True}),
        ),
    )
    said = {"architectures": ["ToyEncoder"], "mask_token_id": 7, "alpha": [0.5, 0.25]}
    trip = Trip(tmp_path, (architecture,), {**CONFIG, **said, "max_position_embeddings": 512}, norms())
    keys = list(trip.keys)
    assert keys[:3] == ["general.architecture", "toy.xielu.alpha_p", "general.type"]
    toys = [key for key in keys if key.startswith(("toy.", "tokenizer."))][1:]
    assert toys[:5] == [
        "toy.block_count", "toy.embedding_length", "toy.context_length", "toy.attention.causal",
        "tokenizer.ggml.mask_token_id",
    ]  # fmt: skip
    assert trip.keys["toy.context_length"] == Value("u32", 1 << 18)
    assert trip.keys["toy.attention.causal"] == Value("bool", False)
    same(trip, **said, model_type="toy_enc", use_bidirectional_attention=True)


def test_presence_says_what_no_key_does(tmp_path: Path) -> None:
    bias = T(H + "q.bias", G + "attn_q.bias", shape=("n_embd",), optional=True)
    architecture = toy(
        HParam("bias", ("attention_bias",), (), "bool", back="present('blk.0.attn_q.bias')"),
        HParam("mtp", (), ("nextn",), default="present('model.layers.0.q.bias')", always=True),
        tensors=(NORM, bias),
        aliases=(("{rest}", "model.{rest}"),),
    )
    biases = random({f"layers.{i}.q.bias": (8,) for i in range(4)})
    with_bias = Trip(tmp_path, (architecture,), CONFIG, {**norms(), **biases})
    assert with_bias.config["attention_bias"] is True
    assert with_bias.keys["toy.nextn"] == Value("u32", 1)
    (tmp_path / "plain").mkdir()
    plain = Trip(tmp_path / "plain", (architecture,), CONFIG, norms())
    assert plain.config["attention_bias"] is False
    assert plain.keys["toy.nextn"] == Value("u32", 0)


# ------------------------------------------------------------- tensors that follow from the config, and back (M13)

FACTORS = toy(
    HParam("n_rot", (), ("rope.dimension_count",), default=4, always=True),
    HParam("rope_type", ("rope.rope_type",), (), "str", default="'default'"),
    tensors=(
        NORM,
        T(
            (), ("rope_factors_long.weight", "rope_factors_short.weight"),
            generator="longrope_factors", when="rope_type == 'longrope'", shape=("n_rot // 2",),
        ),
    ),
)  # fmt: skip
SCALING = {"rope_type": "longrope", "long_factor": [1.08, 32.5], "short_factor": [1.0, 1.1]}


def test_generated_tensors_say_what_they_were_made_of(tmp_path: Path) -> None:
    trip = Trip(tmp_path, (FACTORS,), {**CONFIG, "rope_scaling": SCALING}, norms())
    assert {name: shape for name, shape in trip.tensors.items() if name.startswith("rope")} == {
        "rope_factors_long.weight": (2,), "rope_factors_short.weight": (2,),
    }  # fmt: skip
    same(trip, rope_scaling=SCALING)


QUERIES = toy(
    HParam("head_dim", ("head_dim",), ("attention.key_length",), required=True),
    HParam("q_scale", ("qk_scale_factor",), (), "f32"),
    tensors=(
        NORM,
        T(
            (), (G + "attn_q_norm.weight", G + "attn_k_norm.weight"), generator="factor_of_queries",
            shape=("head_dim",), when="block > 0",
        ),
    ),
)  # fmt: skip


def test_tensors_of_blocks_are_generated_and_say_an_hparam(tmp_path: Path) -> None:
    trip = Trip(tmp_path, (QUERIES,), {**CONFIG, "head_dim": 6, "qk_scale_factor": 3.87}, norms())
    made = {name for name in trip.tensors if name.endswith(("q_norm.weight", "k_norm.weight"))}
    blocks = range(1, CONFIG["num_hidden_layers"])
    assert made == {f"blk.{block}.attn_{part}_norm.weight" for block in blocks for part in "qk"}
    same(trip, qk_scale_factor=3.87)


def test_a_class_whose_text_model_is_nested(tmp_path: Path) -> None:
    hf = (HFClass("ToyForEverything", "toy_vl", nested="toy_text", outer=("width",)),)
    toy_vl = toy(HParam("width", ("width",), ("width",), required=True), hf=hf)
    inner = {key: value for key, value in CONFIG.items() if key not in ("architectures", "model_type")}
    config = {"architectures": ["ToyForEverything"], "model_type": "toy_vl", "width": 7, "text_config": inner}
    trip = Trip(tmp_path, (toy_vl,), config, norms())
    assert trip.config["width"] == 7 and trip.config["model_type"] == "toy_vl"
    assert trip.config["text_config"]["model_type"] == "toy_text"
    assert inner.items() <= trip.config["text_config"].items() and "width" not in trip.config["text_config"]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"long_factor": [1.0, 2.0, 3.0]}, ShapeMismatch, r"rope_factors_long.weight is F32\[3\], .* F32\[2\]"),
        ({"short_factor": None}, ArchitectureError, "short_factor is None, not a list of numbers"),
        ({"short_factor": [1.0, 0.0]}, ArchitectureError, "short_factor is 0.0, not a positive number"),
    ],
)
def test_what_is_generated_must_fit(change: dict[str, Any], error: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        Trip(tmp_path, (FACTORS,), {**CONFIG, "rope_scaling": {**SCALING, **change}}, norms())


# ------------------------------------------------------------------------- nested configs, choice of class (M6)


@pytest.mark.parametrize("place", ["text_config", "llm_config", "language_config", "thinker_config.text_config"])
def test_the_text_model_of_a_nested_config(place: str, tmp_path: Path) -> None:
    inner: dict[str, Any] = {**CONFIG, "hidden_size": 8}
    for part in reversed(place.split(".")):
        inner = {part: inner}
    config = {**inner, "architectures": ["ToyForEverything"], "model_type": "toy_vl", "hidden_size": 4}
    trip = Trip(tmp_path, (toy(),), config, norms())
    assert trip.keys["toy.embedding_length"] == Value("u32", 8)
    same(trip, architectures=["ToyForCausalLM"], model_type="toy", hidden_size=8)


def test_what_a_text_model_leaves_out_is_what_its_own_class_leaves_out(tmp_path: Path) -> None:
    """And its head may be tied by the whole model."""
    hf = (
        HFClass("ToyForCausalLM", "toy", {"heads": 3}),
        HFClass("ToyForEverything", "toy_vl", {"heads": 5, "context": 7}, when="0"),
    )
    heads = HParam("heads", ("heads",), ("attention.head_count",))
    context = HParam("context", ("context",), ("context_length",))
    top = (
        T("embed.weight", "token_embd.weight", shape=("n_embd", 2)),
        T("head.weight", "output.weight", shape=("n_embd", 2), tied_to="token_embd.weight"),
    )
    architecture = toy(heads, context, hf=hf, tensors=(NORM, *top))
    text = {"model_type": "toy", "num_hidden_layers": 4, "hidden_size": 8, "tie_word_embeddings": False}
    config = {"architectures": ["ToyForEverything"], "tie_word_embeddings": True, "text_config": text}
    trip = Trip(tmp_path, (architecture,), config, {**norms(), **random({"embed.weight": (8, 2)})})
    assert trip.keys["toy.attention.head_count"] == Value("u32", 3)
    assert trip.keys["toy.context_length"] == Value("u32", 7)
    (tmp_path / "apart").mkdir()
    with pytest.raises(MissingTensor, match=r"head\.weight: not in the file"):
        Trip(
            tmp_path / "apart", (architecture,), {**config, "tie_word_embeddings": False},
            {**norms(), **random({"embed.weight": (8, 2)})},
        )  # fmt: skip


def test_a_class_goes_to_the_architecture_that_its_config_shows(tmp_path: Path) -> None:
    expert = HParam("n_expert", ("num_experts",), ("expert_count",), default=0)
    dense = toy(expert, hf=(HFClass("ToyForCausalLM", "toy", takes="n_expert == 0"),))
    moe = toy(expert, gguf="toymoe", hf=(HFClass("ToyForCausalLM", "toy", takes="n_expert > 0"),))
    for name, n_expert in (("toy", 0), ("toymoe", 4)):
        (tmp_path / name).mkdir()
        trip = Trip(tmp_path / name, (dense, moe), {**CONFIG, "num_experts": n_expert}, norms())
        assert trip.keys["general.architecture"] == Value("str", name)
        same(trip, architectures=["ToyForCausalLM"])
    with pytest.raises(UnknownArchitecture):
        Trip(tmp_path, (moe,), CONFIG, norms())


@pytest.mark.parametrize("values", ["same", "others"])
def test_a_head_that_repeats_the_embedding_is_left_out_where_the_rows_say_so(values: str, tmp_path: Path) -> None:
    sizes = ("n_vocab", "n_embd")
    top = (
        T("embed.weight", "token_embd.weight", shape=sizes),
        T("head.weight", "output.weight", shape=sizes, tied_to="token_embd.weight", unless_equal=True),
    )
    model = toy(HParam("n_vocab", ("vocab_size",), required=True), tensors=(*top, NORM))
    embedding = random({"embed.weight": (6, 8)})["embed.weight"]
    head = embedding if values == "same" else embedding + np.eye(6, 8, -5, dtype=np.float32)
    tensors = {**norms(), "embed.weight": embedding, "head.weight": head}
    trip = Trip(tmp_path, (model,), {**CONFIG, "vocab_size": 6}, tensors)
    assert ("output.weight" in trip.tensors) is (values != "same")
    assert trip.config["tie_word_embeddings"] is (values == "same")
    with pytest.raises(ValueError, match="tensor a, b: equal to nothing"):
        toy(tensors=(T("a", "b", shape=(1,), unless_equal=True),))


def test_a_nested_key_is_written_where_it_was_read(tmp_path: Path) -> None:
    architecture = toy(HParam("state", ("ssm_cfg.layer.d_state",), ("ssm.state_size",)))
    trip = Trip(tmp_path, (architecture,), {**CONFIG, "ssm_cfg": {"layer": {"d_state": 16}}}, norms())
    same(trip, ssm_cfg={"layer": {"d_state": 16}})


def test_an_entry_of_whichever_part_has_it() -> None:
    architecture = toy(HParam("full", ("global_head_dim", "per_layer_config.*.head_dim"), ("key_length",)))
    parts: dict[str, Any] = {"2": {"n_head": 1}, "5": {"head_dim": 24}, "11": {"head_dim": 32}, "x": 3}
    for said, value in (({"per_layer_config": parts}, 24), ({"global_head_dim": 8, "per_layer_config": parts}, 8)):
        assert read_config(architecture, architecture.hf[0], {**CONFIG, **said})[0]["full"] == value
    assert "full" not in read_config(architecture, architecture.hf[0], {**CONFIG, "per_layer_config": {"0": {}}})[0]


def test_rope_facts_of_sliding_blocks_stand_beside_those_of_the_others(tmp_path: Path) -> None:
    architecture = toy(
        HParam("rope_theta", ("rope.rope_theta",), ("rope.freq_base",), "f32"),
        HParam("swa", ("rope_parameters.sliding_attention.rope_theta",), ("rope.freq_base_swa",), "f32"),
    )
    parts = {
        "full_attention": {"rope_type": "default", "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    trip = Trip(tmp_path, (architecture,), {**CONFIG, "rope_parameters": parts}, norms())
    assert trip.keys["toy.rope.freq_base_swa"] == Value("f32", 1e4)
    same(trip, rope_parameters=parts)
    assert not {"rope", "rope_theta", "rope_scaling"} & trip.config.keys()


# ------------------------------------------------------------------------------------------------ names (M8)

NAMED = toy(
    tensors=(
        T(H + "LayerNorm.weight", G + "attn_norm.weight", shape=("n_embd",)),
        T(H + "mlp.sinks", G + "attn_sinks.weight", shape=(3,)),
        T(H + "mlp.router.weight", G + "ffn_gate_inp.weight", shape=("n_embd",), when="block % 2 == 0"),
        T(H + "mlp.router.weight", G + "ffn_gate.weight", shape=("n_embd",), when="block % 2 == 1"),
    ),
    aliases=(
        ("bert.{rest}", "model.{rest}"),
        ("{start}.gamma", "{start}.weight"),
        ("model.layers.{block}.block_sparse_moe.{rest}", "model.layers.{block}.mlp.{rest}"),
    ),
    ignore=("vision_tower.{rest}", "model.layers.{block}.attn.masked_bias"),
)


def test_names_by_other_spellings_conditions_and_prefixes(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(4):
        shapes |= {f"model.layers.{i}.LayerNorm.weight": (8,), f"model.layers.{i}.mlp.sinks": (3,)}
        shapes |= {f"model.layers.{i}.mlp.router.weight": (8,)}
    tensors = random(shapes)
    trip = Trip(tmp_path, (NAMED,), CONFIG, tensors)
    assert ("blk.2.ffn_gate_inp.weight" in trip.tensors, "blk.2.ffn_gate.weight" in trip.tensors) == (True, False)
    assert ("blk.3.ffn_gate_inp.weight" in trip.tensors, "blk.3.ffn_gate.weight" in trip.tensors) == (False, True)
    same(trip)
    (tmp_path / "old").mkdir()
    renamed = {}
    for name, array in tensors.items():
        old_name = name.replace("model.", "bert.").replace("LayerNorm.weight", "LayerNorm.gamma")
        renamed[old_name.replace("mlp", "block_sparse_moe")] = array
    dropped = random({"vision_tower.blocks.0.q.weight": (2,), "model.layers.3.attn.masked_bias": (1,)})
    old = Trip(tmp_path / "old", (NAMED,), CONFIG, {**renamed, **dropped})
    assert old.back == trip.back
    (tmp_path / "bad").mkdir()
    with pytest.raises(UnmatchedTensor, match="other_tower"):
        Trip(tmp_path / "bad", (NAMED,), CONFIG, {**tensors, **random({"other_tower.q": (2,)})})


def test_blocks_counted_from_another_and_the_block_of_a_number(tmp_path: Path) -> None:
    """What stands in a tree of its own on one side are further blocks on the other; some of it lies in one of them."""
    architecture = toy(
        HParam("n_main", ("num_hidden_layers",), required=True, back="n_layer - n_more"),
        HParam("n_more", ("n_more",), ("n_more",)),
        tensors=(
            T(H + "norm.weight", G + "attn_norm.weight", shape=("n_embd",), when="block < n_main"),
            T("more.{block-n_main}.norm.weight", G + "attn_norm.weight", shape=("n_embd",), when="block >= n_main"),
            T("more.fc.weight", "blk.{n_main}.eh_proj.weight", shape=(2, "n_embd"), when="n_more > 0"),
        ),
    )
    layers = HParam("n_layer", (), ("block_count",), default="n_main + n_more", always=True)
    architecture = replace(architecture, hparams=(layers, *architecture.hparams[1:]))
    more = {**random({"more.fc.weight": (2, 8)}), **random({f"more.{i}.norm.weight": (8,) for i in range(2)})}
    trip = Trip(tmp_path, (architecture,), {**CONFIG, "n_more": 2}, {**norms(), **more})
    assert {f"blk.{i}.attn_norm.weight" for i in range(6)} | {"blk.4.eh_proj.weight"} == trip.tensors.keys()
    same(trip, num_hidden_layers=4, n_more=2)
    del more["more.1.norm.weight"]
    with pytest.raises(MissingTensor, match=r"more\.1\.norm\.weight: not in the file"):
        (tmp_path / "less").mkdir()
        Trip(tmp_path / "less", (architecture,), {**CONFIG, "n_more": 2}, {**norms(), **more})
    with pytest.raises(ShapeMismatch, match=r"config\.json says 6 layers"):
        (tmp_path / "beyond").mkdir()
        Trip(
            tmp_path / "beyond",
            (architecture,),
            {**CONFIG, "n_more": 2},
            {**norms(), **random({"more.2.norm.weight": (8,)})},
        )


def test_two_layouts_of_one_name_are_told_by_their_shape(tmp_path: Path) -> None:
    """A row for tensors of its shape only leaves the others to the next; the last one says what is wrong."""
    architecture = toy(
        tensors=(
            T(H + "up", G + "ffn_up.weight", Transpose(), shape=("n_embd", 3), read_only=True, by_shape=True),
            T(H + "up", G + "ffn_up.weight", shape=(3, "n_embd")),
        )
    )
    rows = random({f"model.layers.{i}.up": (3, 8) for i in range(4)})
    trip = Trip(tmp_path, (architecture,), CONFIG, rows)
    same(trip)
    columns = {name: np.ascontiguousarray(array.T) if "2" in name else array for name, array in rows.items()}
    (tmp_path / "columns").mkdir()
    assert Trip(tmp_path / "columns", (architecture,), CONFIG, columns).back == trip.back
    (tmp_path / "bad").mkdir()
    with pytest.raises(ShapeMismatch, match=r"is \[3, 9\], config.json makes it \[3, 8\]"):
        Trip(tmp_path / "bad", (architecture,), CONFIG, {**rows, **random({"model.layers.1.up": (3, 9)})})


# --------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"hparams": (HParam("block"),)}, "hparam block: is no name"),
        ({"hparams": (HParam("max"),)}, "hparam max: is no name"),
        ({"hparams": (HParam("a", type="u33"),)}, "hparam a: there is no type u33"),
        ({"hparams": (HParam("a", type="u32 or f16[]"),)}, "there is no type f16"),
        ({"hparams": (HParam("a", per_block=True, default=1),)}, "is a list, not u32"),
        ({"hparams": (HParam("a", type="u32[]", per_block=True),)}, "nothing to compute"),
        ({"hparams": (HParam("a", default="b + 1"),)}, "hparam a: 'b \\+ 1': there is no hparam b"),
        ({"hparams": (HParam("a", default="block"),)}, "there is no hparam block"),
        ({"hparams": (HParam("a", back="1 +"),)}, "ends too early"),
        ({"hparams": (HParam("a", when="b > 1"),)}, "there is no hparam b"),
        ({"hparams": (HParam("a", values=(("x", 1), ("x", 2))),)}, "listed twice"),
        ({"hparams": (HParam("a", values=(("x", "y"),)),)}, "'y' is no u32"),
        ({"hparams": (HParam("a", default="b"), HParam("b", default="a"))}, "defaults in a circle"),
        ({"tensors": (T("a.{block}", "x"),)}, "lie in blocks or none"),
        ({"tensors": (T("a.b{block}", "x.{block}"),)}, "a component of its own"),
        ({"tensors": (T("a.{rest}", "x.{rest}"),)}, "there is no hparam rest"),
        ({"tensors": (T("a.{block-}", "x.{block}"),)}, "ends too early"),
        ({"tensors": (T("a", "x.{expert}"),)}, "on the GGUF side only"),
        ({"tensors": (T((), "x"),)}, "from the file or from a generator"),
        ({"tensors": (T("a", "x", tied_to="y"),)}, "tied to y"),
        ({"tensors": (T("a", "x", shape=("n",)),)}, "tensor a, x: 'n': there is no hparam n"),
        ({"tensors": (T("a", "x", when="block > 1"),)}, "there is no hparam block"),
        ({"tensors": (T("a", "x"), T("a", "y"))}, "hf name stands in two rules"),
        ({"tensors": (T("a", "x", when="1"), T("a", "x", when="1"))}, "hf name stands in two rules"),
        ({"ignore": ("a.{b",)}, "ignore a.{b"),
        ({"aliases": (("{rest}.a", "{other}.b"),)}, "the same {words}"),
        ({"aliases": (("{a}.{a}", "{a}.b"),)}, "stands twice"),
        ({"hf": (HFClass("A", "a", when="x"),)}, "class A: 'x'"),
        ({"hf": (HFClass("A", "a", takes="x > 0"),)}, "class A: 'x > 0'"),
        ({"hf": (HFClass("A", "a", facts={"x": 1}),)}, "there is no hparam x"),
    ],
)
def test_what_contradicts_itself_is_refused_by_its_row(rows: dict[str, Any], said: str) -> None:
    fields = {"hf": (HFClass("A", "a"),), "hparams": (), "tensors": (), **rows}
    with pytest.raises(ValueError, match=f"^toy: .*{said}"):
        Architecture("toy", **fields)


def test_two_rules_may_share_names_under_two_conditions() -> None:
    rules = (T("a", "x", when="n > 1"), T("a", "x", when="n < 2"))
    assert Architecture("toy", (), (HParam("n", ("n",)),), rules).tensors == rules


def test_values_that_follow_from_each_other_need_one_to_be_given() -> None:
    architecture = toy(HParam("a", ("a",), ("a",), back="b"), HParam("b", (), ("b",), default="a"))
    keys = {"toy.block_count": Value("u32", 4), "toy.embedding_length": Value("u32", 8)}
    assert read_metadata(architecture, {**keys, "toy.b": Value("u32", 3)})["a"] == 3
    with pytest.raises(ArchitectureError, match="a, b: each follows from another"):
        read_metadata(architecture, keys)


def test_a_config_of_more_blocks_than_any_model_has_takes_no_memory() -> None:
    architecture = toy(HParam("a", (), (), "u32[]", "block", per_block=True))
    with pytest.raises(ArchitectureError, match="2000000000 blocks, which no model has"):
        read_config(architecture, architecture.hf[0], {**CONFIG, "num_hidden_layers": 2 * 10**9})


def test_other_things_than_experts_are_stacked(tmp_path: Path) -> None:
    rule = T(H + "attn.norms.{expert}.weight", G + "attn_q_norm.weight", shape=(2,), count="n_head * (1 + block % 2)")
    architecture = toy(HParam("n_head", ("heads",), ("attention.head_count",)), tensors=(NORM, rule))
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{i}.attn.norms.{head}.weight": (2,) for i in range(4) for head in range(3 * (1 + i % 2))
    }
    trip = Trip(tmp_path, (architecture,), {**CONFIG, "heads": 3}, {**norms(), **random(shapes)})
    assert [trip.tensors[f"blk.{i}.attn_q_norm.weight"] for i in range(2)] == [(3, 2), (6, 2)]
    same(trip, heads=3)


def test_a_rule_of_tensors_of_several_shapes_and_what_a_product_leaves(tmp_path: Path) -> None:
    shapes = (("n_embd",), (1, "n_embd"))
    names = (H + "res_norm.weight", H + "res_proj.weight")
    architecture = toy(tensors=(NORM, T(names, G + "attn_res_score.weight", Product(shapes), shape=shapes)))
    given = random({f"model.layers.{i}.res_norm.weight": (8,) for i in range(4)})
    given |= random({f"model.layers.{i}.res_proj.weight": (1, 8) for i in range(4)})
    trip = Trip(tmp_path, (architecture,), CONFIG, {**norms(), **given})
    assert trip.tensors["blk.3.attn_res_score.weight"] == (8,)
    for i in range(4):
        one, other = (np.asarray(given[f"model.layers.{i}.res_{part}.weight"]) for part in ("norm", "proj"))
        assert trip.back[f"model.layers.{i}.res_norm.weight"] == ((8,), np.ones(8, np.float32).tobytes())
        assert trip.back[f"model.layers.{i}.res_proj.weight"] == ((1, 8), (one * other).tobytes())
    wrong = {**given, "model.layers.2.res_proj.weight": np.ones((8, 1), np.float32)}
    (tmp_path / "wrong").mkdir()
    with pytest.raises(ShapeMismatch, match=r"layers\.2\.res_proj\.weight is \[8, 1\], config.json makes it \[1, 8\]"):
        Trip(tmp_path / "wrong", (architecture,), CONFIG, {**norms(), **wrong})


def test_whole_numbers_of_a_tensor_are_a_key_and_pieces_of_a_matrix_are_one(tmp_path: Path) -> None:
    """They come back as a tensor of their own, and the matrix under the name of its first piece."""
    at = "model.layers.{n_hash}.hash."
    hparams = (
        HParam("n_hash", ("hash_block",), ("hash_block",), required=True),
        HParam(
            "multipliers", (), ("hash.multipliers",), "u64[]", always=True,
            default="values_in('model.layers.{block}.hash.multipliers', n_hash)",
        ),
        HParam(
            "n_row", (), (), default="shape('model.layers.{block}.hash.table.shard_0.weight', 0, n_hash)",
            back="shape('per_layer_token_embd.weight', 0)",
        ),
    )  # fmt: skip
    rules = (
        NORM,
        T(at + "multipliers", (), said="multipliers", shape=(3,)),
        T(at + "table.shard_0.weight", "per_layer_token_embd.weight", shape=("n_row", "n_embd")),
    )
    architecture = toy(*hparams, tensors=rules)
    numbers = np.array([24_000_000_000_001, 3, (1 << 62) + 1], np.int64)
    rows = np.arange(11 * 8, dtype=np.float32).reshape(11, 8)
    pieces = {
        f"model.layers.2.hash.table.shard_{i}.weight": rows[a:b] for i, (a, b) in enumerate([(0, 4), (4, 8), (8, 11)])
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detect, "architectures", lambda *_: {"toy": architecture})
        folder = write(tmp_path / "m", {**CONFIG, "hash_block": 2}, norms(), "F32")
        weights = {name: ("F32", value) for name, value in {**norms(), **pieces}.items()}
        said = {**weights, "model.layers.2.hash.multipliers": ("I64", numbers)}
        models.write_mixed_safetensors(folder / "model.safetensors", said)
        converter.convert(folder, tmp_path / "m.gguf", NO_TOKENIZER, threads=1)
        converter.convert(tmp_path / "m.gguf", f"{tmp_path / 'back'}/", NO_TOKENIZER, threads=1)
        with converter.open_checkpoint(tmp_path / "m.gguf") as made:
            key = made.config["toy.hash.multipliers"]
            assert isinstance(key, Array) and (key.type, list(key.values)) == ("u64", numbers.tolist())
            assert np.array_equal(made.tensors["per_layer_token_embd.weight"].array(), rows)
        with open_safetensors(tmp_path / "back" / "model.safetensors") as back:
            again = back.tensors["model.layers.2.hash.multipliers"]
            assert again.info.dtype.name == "I64" and np.array_equal(again.array(), numbers)
            assert np.array_equal(back.tensors["model.layers.2.hash.table.shard_0.weight"].array(), rows)
            assert len(back.tensors) == 6
        del said["model.layers.2.hash.table.shard_1.weight"]
        models.write_mixed_safetensors(folder / "model.safetensors", said)
        with pytest.raises(UnmatchedTensor, match="shard_2"):
            converter.convert(folder, tmp_path / "less.gguf", NO_TOKENIZER, threads=1)


def test_transformers_fills_in_nothing_for_a_class_with_code_of_its_own() -> None:
    own = HFClass("ToyForCausalLM", "toy", remote=True)
    config = {**CONFIG, "text_config": {"model_type": "llama"}}
    eps = HParam("eps", ("rms_norm_eps",), ("eps",), "f32")
    architecture = toy(eps)
    assert "eps" not in read_config(architecture, own, config)[0]
    assert read_config(architecture, replace(own, remote=False), config)[0]["eps"] == 1e-6


def test_a_folder_keeps_what_another_row_is_computed_from(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detect, "architectures", lambda *_: {"toy": HYBRID})
        folder = write(tmp_path / "m", HYBRID_CONFIG, hybrid_tensors(), "F32")
        converter.convert(folder, tmp_path / "m.gguf", NO_TOKENIZER, threads=1)
        converter.convert(tmp_path / "m.gguf", f"{tmp_path / 'back'}/", NO_TOKENIZER, threads=1)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["layer_types"] == HYBRID_CONFIG["layer_types"]
    assert config["num_key_value_heads"] == 2


# ---------------------------------------------------------------------------------------- types of tensors (M14)

FORCED = toy(
    tensors=(
        NORM,
        T("router", "router.weight", shape=("n_embd", "n_embd"), type="as asked"),
        T("position", "position_embd.weight", shape=("n_embd", "n_embd"), type="F32"),
        T("patch", "v.patch_embd.weight", shape=("n_embd", "n_embd"), type="F16 or F32"),
        T("conv", "conv.weight", shape=("n_embd", "n_embd"), type="F16"),
        T("plain", "plain.weight", shape=("n_embd", "n_embd")),
    )
)


@pytest.mark.parametrize(
    ("via", "types"),
    [
        ("f16", {"router": "F16", "position_embd": "F32", "v.patch_embd": "F16", "conv": "F16", "plain": "F16"}),
        ("bf16", {"router": "BF16", "position_embd": "F32", "v.patch_embd": "F32", "conv": "F16", "plain": "BF16"}),
        ("f32", {"router": "F32", "position_embd": "F32", "v.patch_embd": "F32", "conv": "F16", "plain": "F32"}),
    ],
)
def test_a_rule_says_what_type_its_tensors_have(
    via: str, types: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "architectures", lambda *_: {"toy": FORCED})
    square = random({name: (8, 8) for name in ("router", "position", "patch", "conv", "plain")})
    folder = write(tmp_path / "m", dict(CONFIG), {**norms(), **square}, "F32")
    with converter.plan(folder, tmp_path / "m.gguf", NO_TOKENIZER.replace(via=via)).checkpoint as made:
        found = {name.removesuffix(".weight"): tensor.info.dtype.name for name, tensor in made.tensors.items()}
    assert {name: found[name] for name in types} == types


@pytest.mark.parametrize("quant", [None, "q4_0", "f16"])
def test_whole_numbers_stay_whole_and_fit_their_type(
    quant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = T("tid2eid", "blk.0.ffn_gate_tid2eid.weight", shape=("n_embd", 32), type="I32")
    monkeypatch.setattr(detect, "architectures", lambda *_: {"toy": toy(tensors=(NORM, table))})
    numbers = np.arange(8 * 32, dtype=np.int64).reshape(8, 32)
    folder = write(tmp_path / "m", dict(CONFIG), norms(), "F32")
    weights = {name: ("F32", value) for name, value in norms().items()}

    def stored(table: Any) -> Path:
        models.write_mixed_safetensors(folder / "model.safetensors", {**weights, "tid2eid": ("I64", table)})
        converter.convert(folder, tmp_path / "m.gguf", NO_TOKENIZER.replace(quant=quant), threads=1, force=True)
        return tmp_path / "m.gguf"

    with converter.open_checkpoint(stored(numbers)) as made:
        found = made.tensors["blk.0.ffn_gate_tid2eid.weight"]
        assert found.info.dtype.name == "I32" and np.array_equal(found.array(), numbers)
    converter.convert(tmp_path / "m.gguf", f"{tmp_path / 'back'}/", NO_TOKENIZER, threads=1)
    with open_safetensors(tmp_path / "back" / "model.safetensors") as again:
        assert np.array_equal(again.tensors["tid2eid"].array(), numbers)
    with pytest.raises(QuantizationError, match=r"tid2eid\.weight: a value does not fit I32"):
        stored(numbers + (1 << 31))


def test_a_type_that_no_file_has_is_refused() -> None:
    with pytest.raises(ValueError, match="its type is one of F32, F16, I64, I32, F16 or F32, as asked, not Q4_K"):
        toy(tensors=(T("a", "a.weight", shape=(1,), type="Q4_K"),))


# ------------------------------------------------------- null, what follows, blocks after the last, class tokenizers

RANK = HParam("rank", ("q_lora_rank",), ("attention.q_lora_rank",), null=0)
BOUNDS = HParam("bounds", ("limits",), ("swiglu_clamp_exp",), "f32[]", null=0.0)
LOG = (
    HParam("log", (), ("rope.scaling.yarn_log_multiplier",), "f32", default="0.1 * scale", follows="scale"),
    HParam("scale", ("mscale_all_dim",), (), "f32", back="log / 0.1", follows="log"),
)
COUNT = (
    HParam("n_head_kv", ("num_key_value_heads",), ("attention.head_count_kv",), always=True, back="2 * one"),
    HParam("after", ("after",), ("after",)),
    HParam("one", (), ("attention.head_count_kv",), default=1, always=True),
)


@pytest.mark.parametrize(("said", "key"), [({"q_lora_rank": 12}, 12), ({"q_lora_rank": None}, None)])
def test_null_is_a_value(said: dict[str, Any], key: int | None, tmp_path: Path) -> None:
    """It wins over the class's default, has no key, and is null again."""
    hf = (HFClass("ToyForCausalLM", "toy", {"q_lora_rank": 99}),)
    trip = Trip(tmp_path, (toy(RANK, hf=hf),), {**CONFIG, **said}, norms())
    assert trip.keys.get("toy.attention.q_lora_rank") == (Value("u32", key) if key else None)
    assert trip.back == trip.given and "q_lora_rank" in trip.config
    assert trip.config["q_lora_rank"] == said["q_lora_rank"]


@pytest.mark.parametrize(("said", "key"), [([None, 7.5], [0.0, 7.5]), ([], None), (None, None)])
def test_null_among_the_items_of_a_list(
    said: list[float | None] | None, key: list[float] | None, tmp_path: Path
) -> None:
    """It is the row's value for it; a list that is null or empty is not there."""
    trip = Trip(tmp_path, (toy(BOUNDS),), {**CONFIG, "limits": said}, norms())
    assert trip.keys.get("toy.swiglu_clamp_exp") == (Array("f32", key) if key else None)
    assert trip.config.get("limits") == key


def test_a_fact_follows_another_or_is_not_there(tmp_path: Path) -> None:
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    trip = Trip(tmp_path / "with", (toy(*LOG),), {**CONFIG, "mscale_all_dim": 0.707}, norms())
    assert trip.keys["toy.rope.scaling.yarn_log_multiplier"] == Value("f32", float(np.float32(0.0707)))
    same(trip, mscale_all_dim=0.707)
    trip = Trip(tmp_path / "without", (toy(*LOG),), CONFIG, norms())
    assert "toy.rope.scaling.yarn_log_multiplier" not in trip.keys and "mscale_all_dim" not in trip.config


def test_a_key_of_two_rows_has_the_first_place_and_the_last_alone_reads_it(tmp_path: Path) -> None:
    trip = Trip(tmp_path, (toy(*COUNT),), {**CONFIG, "num_key_value_heads": 2, "after": 5}, norms())
    own = [key for key in trip.keys if key.startswith("toy.")]
    assert own.index("toy.attention.head_count_kv") < own.index("toy.after")
    assert trip.keys["toy.attention.head_count_kv"] == Value("u32", 1)
    same(trip, num_key_value_heads=2)


FURTHER = Architecture(
    "toy", (HFClass("ToyForCausalLM", "toy"),),
    (
        HParam("n_layer", (), ("block_count",), required=True, default="n_main + n_nextn", always=True),
        N_EMBD,
        HParam("n_main", ("num_hidden_layers",), (), required=True, back="n_layer - n_nextn"),
        HParam("n_nextn_said", ("num_nextn_predict_layers",), (), default=0, back="n_nextn"),
        HParam(
            "n_nextn", (), ("nextn_predict_layers",), back=0, follows="n_nextn_said",
            default="n_nextn_said if present('model.layers.{block}.eh.weight', n_main) else 0",
        ),
    ),
    (NORM, T(H + "eh.weight", G + "nextn.eh_proj.weight", shape=("n_embd", 2), when="block >= n_main")),
    ignore=("model.layers.{beyond}.{rest}",),
    traits=Traits(told=(Relation("n_nextn == n_nextn_said", "n_nextn_said", "promised and not there"),)),
)  # fmt: skip


def further(
    tmp_path: Path, said: int | None, there: bool, **request: Any
) -> tuple[dict[str, Any], set[str], list[str]]:
    """Keys, names and events of a model with two blocks and, if `there`, one for further tokens."""
    tensors = {**norms(3 if there else 2), **(random({"model.layers.2.eh.weight": (8, 2)}) if there else {})}
    config = {**CONFIG, "num_hidden_layers": 2, **({} if said is None else {"num_nextn_predict_layers": said})}
    folder = write(tmp_path / "m", config, tensors, "F32")
    plan = converter.plan(folder, tmp_path / "m.gguf", NO_TOKENIZER.replace(**request))
    with plan.checkpoint as made:
        keys = {key.removeprefix("toy."): value.value for key, value in made.config.items() if key.startswith("toy.")}
        return keys, set(made.tensors), [str(event) for event in plan.report.events]


@pytest.mark.parametrize(
    ("said", "there", "request_", "blocks", "key", "told"),
    [
        (1, True, {}, 3, 1, None),
        (None, False, {}, 2, None, None),
        (0, False, {}, 2, 0, None),
        (1, False, {}, 2, 0, "promised and not there"),
        (1, True, {"no_nextn": True}, 2, None, "layer 2: left out (2 tensors"),
        (None, True, {}, 2, None, "layer 2: dropped (2 tensors"),
    ],
)
def test_blocks_for_further_tokens_are_those_that_are_there(
    said: int | None, there: bool, request_: Any, blocks: int, key: int | None, told: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(detect, "architectures", lambda *_: {"toy": FURTHER})
    keys, names, events = further(tmp_path, said, there, **request_)
    assert (keys["block_count"], keys.get("nextn_predict_layers")) == (blocks, key)
    assert ("blk.2.nextn.eh_proj.weight" in names) is (blocks == 3)
    assert [event for event in events if "layer 2" in event or "promised" in event] == [
        event for event in events if told and told in event
    ]
    assert not told or any(told in event for event in events)


def test_blocks_for_further_tokens_come_back(tmp_path: Path) -> None:
    tensors = {**norms(3), **random({"model.layers.2.eh.weight": (8, 2)})}
    config = {**CONFIG, "num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    same(Trip(tmp_path, (FURTHER,), config, tensors), num_hidden_layers=2, num_nextn_predict_layers=1)


def test_no_nextn_is_for_folders_to_gguf(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", dict(CONFIG), norms(), "F32")
    with pytest.raises(UsageError, match="--no-nextn"):
        converter.plan(folder, tmp_path / "m.safetensors", NO_TOKENIZER.replace(no_nextn=True))


def test_a_class_may_write_its_tokenizer_otherwise() -> None:
    own = TokenizerStyle(("bpe",), first=(("add_bos_token", Value("bool", False)),))
    architecture = toy(hf=(HFClass("A", "a", tokenizer=own), HFClass("B", "b")))
    assert [architecture.tokenizer(hf) for hf in (*architecture.hf, None)] == [own, TokenizerStyle(), TokenizerStyle()]


def test_a_condition_may_ask_for_the_type_that_a_tensor_has() -> None:
    tensor = from_array("a.0", np.zeros(3, np.float32), F32, "here")
    for present, wanted in (({"a.0": tensor}, 1), ({}, 0), (("a.0",), 0)):
        assert evaluate("stored('a.{block}', 'F32')", {"block": 0, "present": present}) == wanted
    assert evaluate("stored('a.0', 'F16')", {"present": {"a.0": tensor}}) == 0


def test_a_number_may_be_the_length_of_a_tensor() -> None:
    tensor = from_array("a.0", np.zeros((3, 5), np.float32), F32, "here")
    for present, wanted in (({"a.0": tensor}, [3, 5]), ({}, [0, 0]), (("a.0",), [0, 0])):
        sizes = {"block": 0, "present": present}
        assert [evaluate(f"shape('a.{{block}}', {axis})", sizes) for axis in (0, 1)] == wanted
    with pytest.raises(ArchitectureError, match="has 2 values, none at 2"):
        evaluate("shape('a.0', 2)", {"present": {"a.0": tensor}})


def test_words_of_a_row_may_be_no_numbers_of_a_config() -> None:
    row = HParam("scale", ("pattern",), ("scale",), "f32[]", values=((0.5, 0.0), (0.0, -math.inf)), closed=True)
    architecture = toy(row)
    hparams, given = read_config(architecture, architecture.hf[0], {**CONFIG, "pattern": [0.5, 0.0]})
    keys = hparam_metadata(architecture, hparams, given)
    assert keys["toy.scale"] == Array("f32", [0.0, -math.inf])
    assert read_metadata(architecture, keys)["scale"] == [0.5, 0.0]
    for strange in ([0.25], [-math.inf]):
        with pytest.raises(ArchitectureError, match=r"pattern is .*, which is none of 0\.5, 0\.0"):
            read_config(architecture, architecture.hf[0], {**CONFIG, "pattern": strange})
    with pytest.raises(ArchitectureError, match="not a usable f32"):
        hparam_metadata(architecture, {"scale": 0.5}, {"scale"})


def test_a_class_may_have_tensors_beside_the_model(tmp_path: Path) -> None:
    """They are dropped on purpose, also where one is called as the model's is under an alias."""
    hf = (HFClass("ToyForCausalLM", "toy"), HFClass("SeeingToy", "seeing", when="0", ignore=("norm.weight",)))
    top = T("model.norm.weight", "output_norm.weight", shape=("n_embd",))
    architecture = toy(tensors=(NORM, top), hf=hf, aliases=(("{rest}", "model.{rest}"),))
    given = {**norms(), **random({"model.norm.weight": (8,), "norm.weight": (3,)})}
    trip = Trip(tmp_path, (architecture,), {**CONFIG, "architectures": ["SeeingToy"], "model_type": "seeing"}, given)
    assert trip.back == {name: content for name, content in trip.given.items() if name != "norm.weight"}
    (other := tmp_path / "other").mkdir()
    with pytest.raises(UnmatchedTensor, match="under another name"):
        Trip(other, (architecture,), CONFIG, given)
