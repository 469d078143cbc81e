"""Recipes against llama.cpp's golden tables, against llama-quantize itself, and rule by rule."""

from __future__ import annotations

import ctypes
import dataclasses
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.golden import PATHS, golden

from converter.architectures import traits_of
from converter.architectures.traits import AS_ASKED, F16_OR_F32
from converter.errors import QuantizationError, UsageError
from converter.quant.recipes import (
    ALIASES,
    RECIPES,
    Choice,
    ModelFacts,
    Options,
    Row,
    TensorSpec,
    assign,
    converter_type,
    kept_because,
    needs_imatrix,
    recipe,
    sort_key,
)
from converter.tensors.dtypes import DTYPES

# ---------------------------------------------------------------------------------------------------
# llama.cpp's golden tables: 12 models x 33 ftypes


def test_the_golden_tables_are_complete() -> None:
    assert len(PATHS) == 12
    for path in PATHS:
        assert set(golden(path).entries) == set(RECIPES) - {"COPY", "Q1_0", "Q2_0"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_types_equal_the_golden_table(path: Path) -> None:
    table = golden(path)
    for ftype in table.entries:
        special = table.special(ftype)
        chosen = assign(recipe(ftype), table.specs, table.facts)
        quantized = {name: choice.type for name, choice in chosen.items() if not choice.rule.startswith("kept")}
        assert special.keys() <= quantized.keys()
        assert quantized == {name: special.get(name, table.entries[ftype]["base"]) for name in quantized}, ftype


def test_the_order_of_the_file_does_not_matter() -> None:
    table = golden(next(path for path in PATHS if path.stem == "glm-4.6v"))
    facts, specs = table.facts, table.specs
    shuffled = random.Random(7).sample(specs, len(specs))
    for name in ("Q4_K_M", "IQ2_M", "Q3_K_L"):
        assert list(assign(RECIPES[name], specs, facts).items()) == list(assign(RECIPES[name], shuffled, facts).items())


# ---------------------------------------------------------------------------------------------------
# A small model to ask single rules

DENSE = ModelFacts("llama", n_layer=16, n_head=8, n_head_kv=8, n_expert=0, traits=traits_of("llama"))
_NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def dense(n_layer: int = 16, row: int = 256, tied: bool = False, source: str = "F16") -> list[TensorSpec]:
    """A decoder whose every matrix is (2, row)."""
    names = ["token_embd.weight", *([] if tied else ["output.weight"])]
    names += [f"blk.{i}.{name}.weight" for i in range(n_layer) for name in _NAMES]
    norms = ["output_norm.weight", *(f"blk.{i}.attn_norm.weight" for i in range(n_layer))]
    return [TensorSpec(name, (2, row), source) for name in names] + [TensorSpec(name, (row,), "F32") for name in norms]


def sparse(n_layer: int = 16, experts: int = 8, row: int = 256) -> list[TensorSpec]:
    """`dense` with stacked experts and a router instead of one ffn."""
    kept = [spec for spec in dense(n_layer, row) if ".ffn_" not in spec.name]
    kept += [TensorSpec(f"blk.{i}.ffn_gate_inp.weight", (experts, row), "F32") for i in range(n_layer)]
    return kept + [
        TensorSpec(f"blk.{i}.ffn_{name}_exps.weight", (experts, 2, row), "F16")
        for i in range(n_layer)
        for name in ("gate", "up", "down")
    ]


def one(name: str, recipe_name: str, tensors: list[TensorSpec], facts: ModelFacts = DENSE, /, **options: Any) -> Choice:
    return assign(RECIPES[recipe_name], tensors, facts, Options(**options))[name]


def layers_with(wanted: str, part: str, types: dict[str, Choice]) -> list[int]:
    return [int(name.split(".")[1]) for name, choice in types.items() if part in name and choice.type == wanted]


def replaced(arch: str = "llama", **changes: Any) -> ModelFacts:
    return dataclasses.replace(DENSE, arch=arch, traits=traits_of(arch), **changes)


@pytest.mark.parametrize(
    ("recipe_name", "layer", "without", "with_imatrix"),
    [
        ("Q4_0", 0, "Q4_0", "Q4_1"),
        ("Q4_0", 1, "Q4_0", "Q4_1"),
        ("Q4_0", 2, "Q4_0", "Q4_0"),
        ("Q5_0", 1, "Q5_0", "Q5_1"),
        ("Q5_0", 2, "Q5_0", "Q5_0"),
        ("IQ3_XXS", 1, "Q4_K", "IQ3_XXS"),
        ("IQ3_XXS", 2, "Q3_K", "IQ3_XXS"),
        ("IQ4_NL", 1, "Q5_K", "IQ4_NL"),
        ("IQ4_XS", 1, "Q5_K", "IQ4_XS"),
        ("IQ4_XS", 2, "IQ4_XS", "IQ4_XS"),
    ],
)
def test_ffn_down_with_and_without_an_importance_matrix(
    recipe_name: str, layer: int, without: str, with_imatrix: str
) -> None:
    name = f"blk.{layer}.ffn_down.weight"
    assert one(name, recipe_name, dense()).type == without
    assert one(name, recipe_name, dense(), has_imatrix=True).type == with_imatrix


@pytest.mark.parametrize("name", ["attn_v", "attn_qkv", "attn_kv_b"])
def test_fused_and_latent_values_count_as_attn_v(name: str) -> None:
    specs = [*dense(), TensorSpec(f"blk.0.{name}.weight", (2, 256), "F16")]
    found = one(f"blk.0.{name}.weight", "Q4_K_M", specs)
    assert found.type == "Q6_K" and found.rule.startswith("attn_v, attn_qkv or attn_kv_b in the first eighth")


def test_attn_v_of_iq3_xxs_asks_for_the_importance_matrix_only_where_heads_do_not_share() -> None:
    name = "blk.5.attn_v.weight"
    assert one(name, "IQ3_XXS", dense()).type == "IQ3_S"
    assert one(name, "IQ3_XXS", dense(), has_imatrix=True).type == "IQ3_XXS"
    assert one(name, "IQ3_XXS", dense(), replaced(n_head_kv=2), has_imatrix=True).type == "Q4_K"


def test_what_needs_an_importance_matrix() -> None:
    assert needs_imatrix(RECIPES["IQ2_XS"], "blk.0.attn_q.weight", "IQ2_XS")
    assert needs_imatrix(RECIPES["Q2_K_S"], "blk.0.attn_q.weight", "Q2_K")
    assert not needs_imatrix(RECIPES["Q2_K"], "blk.0.attn_q.weight", "Q2_K")
    for free in ("token_embd.weight", "per_layer_token_embd.weight", "output.weight"):
        assert not needs_imatrix(RECIPES["IQ2_XS"], free, "IQ2_XS")
    assert not needs_imatrix(RECIPES["IQ4_XS"], "blk.0.attn_q.weight", "IQ4_XS")


def test_an_override_shifts_the_layers_counted_after_it() -> None:
    """The quirk: layers are counted as the rules see them, so one tensor taken away moves the rest."""
    plain = assign(RECIPES["Q4_K_M"], dense(), DENSE)
    assert layers_with("Q6_K", "ffn_down", plain) == [0, 1, 4, 7, 10, 13, 14, 15]
    options = Options(tensor_types=((r"blk\.1\.ffn_down", "q8_0"),))
    shifted = assign(RECIPES["Q4_K_M"], dense(), DENSE, options)
    assert layers_with("Q6_K", "ffn_down", shifted) == [0, 2, 5, 8, 11, 14, 15]
    assert layers_with("Q6_K", "attn_v", shifted) == layers_with("Q6_K", "attn_v", plain)


def test_expert_models_read_the_layer_from_the_name() -> None:
    facts = replaced(n_expert=4)
    options = Options(tensor_types=((r"blk\.1\.ffn_down", "q8_0"),))
    types = assign(RECIPES["Q4_K_M"], sparse(experts=4), facts, options)
    assert layers_with("Q6_K", "ffn_down", types) == [0, 4, 7, 10, 13, 14, 15]
    stray = [*sparse(experts=4), TensorSpec("mtp.ffn_down.weight", (2, 256), "F16")]
    with pytest.raises(QuantizationError, match=r"mtp\.ffn_down\.weight.*blk\.N\."):
        assign(RECIPES["Q4_K_M"], stray, facts)


def test_the_first_matching_pattern_wins_even_under_pure() -> None:
    options = {"tensor_types": (("attn_(q|k)", "q5_1"), ("attn", "Q8_0")), "pure": True}
    assert one("blk.3.attn_q.weight", "Q4_K_M", dense(), **options).type == "Q5_1"
    assert one("blk.3.attn_v.weight", "Q4_K_M", dense(), **options) == Choice("Q8_0", "--tensor-type attn")
    assert one("blk.0.ffn_down.weight", "Q4_K_M", dense(), **options) == Choice("Q4_K", "--pure")
    assert one("output.weight", "Q4_K_M", dense(), **options).type == "Q4_K"


def test_patterns_are_lower_cased() -> None:
    assert one("blk.3.attn_q.weight", "Q4_0", dense(), tensor_types=(("ATTN_Q", "q8_0"),)).type == "Q8_0"


def test_patterns_count_for_dense_recipes_too() -> None:
    """llama-quantize ignores them there without a word."""
    types = assign(RECIPES["F16"], dense(source="BF16"), DENSE, Options(tensor_types=(("ffn_down", "bf16"),)))
    assert types["blk.0.ffn_down.weight"].type == "BF16"
    assert types["blk.0.ffn_up.weight"].type == "F16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_types": (("attn_qq", "q8_0"),)}, "'attn_qq' matches no tensor\nnear names: attn_q"),
        ({"tensor_types": (("attn_norm", "q8_0"),)}, r"never quantized, as blk\.0\.attn_norm\.weight \(1-D\)"),
        ({"tensor_types": (("attn_[", "q8_0"),)}, "pattern 'attn_\\['"),
        ({"tensor_types": (("attn", "q4_k_m"),)}, "no type 'q4_k_m'; did you mean Q4_K"),
        ({"tensor_types": (("attn", "q8_k"),)}, "no type 'q8_k'"),
        ({"output_type": "i32"}, "--output-type: no type 'i32'"),
        ({"embedding_type": "nonsense"}, "--embedding-type: no type 'nonsense'"),
    ],
)
def test_options_without_effect_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        one("output.weight", "Q4_K_M", dense(), **options)


def test_a_source_type_that_does_not_exist_is_refused() -> None:
    with pytest.raises(QuantizationError, match="Q9_K"):
        assign(RECIPES["COPY"], [TensorSpec("a.weight", (2, 256), "Q9_K")], DENSE)


def test_every_pattern_must_have_an_effect() -> None:
    with pytest.raises(UsageError, match="'nothing' matches no tensor"):
        one("output.weight", "Q4_K_M", dense(), tensor_types=(("attn", "q8_0"), ("nothing", "q8_0")))


@pytest.mark.parametrize("flag", ["embedding_type", "output_type"])
def test_the_types_of_embedding_and_output_are_of_these_alone(flag: str) -> None:
    assert one("blk.3.attn_q.weight", "Q4_K_M", dense(), **{flag: "q8_0"}).type == "Q4_K"
    stacked = [TensorSpec(name, (2, 96, 256), "F16") for name in ("output.weight", "token_embd.weight")]
    types = assign(RECIPES["Q4_K_M"], stacked, DENSE, Options(**{flag: "q3_k"}))  # type: ignore[arg-type]
    assert sorted(choice.type for choice in types.values()) == sorted(["Q3_K", "Q6_K" if flag[0] == "e" else "Q4_K"])


def test_a_type_that_does_not_exist_is_refused_even_where_no_tensor_asks_for_it() -> None:
    with pytest.raises(UsageError, match="--output-type: no type 'i32'"):
        assign(RECIPES["Q4_K_M"], dense(tied=True), DENSE, Options(output_type="i32", pure=True))


def test_a_model_of_vectors_takes_no_patterns() -> None:
    with pytest.raises(UsageError, match="no tensor that may be quantized"):
        assign(RECIPES["Q8_0"], [TensorSpec("a.weight", (8,), "F32")], DENSE, Options(tensor_types=(("a", "q8_0"),)))


@pytest.mark.parametrize(
    "options", [{"tensor_types": (("attn", "q8_0"),)}, {"output_type": "q8_0"}, {"embedding_type": "q8_0"}]
)
def test_copy_takes_no_types(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="COPY"):
        one("output.weight", "COPY", dense(), **options)


def test_copy_keeps_every_type() -> None:
    specs = [*dense(source="Q4_K"), TensorSpec("blk.0.ffn_gate_tid2eid.weight", (2, 2), "I32")]
    types = assign(RECIPES["COPY"], specs, DENSE)
    assert {name: choice.type for name, choice in types.items()} == {spec.name: spec.source for spec in specs}


def test_output_and_embedding_types() -> None:
    assert one("output.weight", "Q4_K_M", dense(), output_type="bf16") == Choice("BF16", "--output-type")
    assert one("output.weight", "Q4_K_M", dense(), output_type="q8_0", pure=True).type == "Q8_0"
    assert one("output.weight", "Q4_K_M", dense(), leave_output=True) == Choice("F16", "kept: --leave-output")
    assert one("token_embd.weight", "Q4_K_M", dense(), embedding_type="q8_0").type == "Q8_0"
    assert one("token_embd.weight", "Q4_K_M", dense(tied=True)).type == "Q6_K"
    assert one("token_embd.weight", "Q4_K_M", dense(tied=True), output_type="q8_0").type == "Q8_0"
    assert one("token_embd.weight", "Q4_K_M", dense(tied=True), output_type="q8_0", pure=True).type == "Q4_K"
    both = {"output_type": "q8_0", "embedding_type": "q5_1"}
    assert one("token_embd.weight", "Q4_K_M", dense(tied=True), **both).type == "Q5_1"


def test_a_pattern_may_free_the_per_layer_embedding_from_the_embedding_type() -> None:
    specs = [*dense(), TensorSpec("per_layer_token_embd.weight", (2, 256), "F16")]
    options = {"embedding_type": "q8_0", "tensor_types": (("token_embd", "q5_0"),)}
    assert one("per_layer_token_embd.weight", "Q4_K_M", specs, embedding_type="q8_0").type == "Q8_0"
    assert one("per_layer_token_embd.weight", "Q4_K_M", specs, **options).type == "Q5_0"
    assert one("token_embd.weight", "Q4_K_M", specs, **options).type == "Q8_0"


def test_named_types_that_do_not_fit_are_refused() -> None:
    with pytest.raises(QuantizationError, match=r"output\.weight: rows of 96 .*Q6_K blocks of 256\n.*--output-type"):
        one("output.weight", "Q4_K_M", dense(row=96), output_type="q6_k")


@pytest.mark.parametrize(
    ("recipe_name", "row", "used"),
    [
        ("Q4_K_S", 96, "Q5_0"),
        ("Q5_K_S", 96, "Q5_1"),
        ("Q6_K", 96, "Q8_0"),
        ("Q3_K_S", 96, "Q4_0"),
        ("TQ2_0", 96, "Q4_0"),
        ("Q2_0", 96, "Q4_0"),
        ("IQ4_XS", 96, "IQ4_NL"),
        ("IQ1_S", 96, "IQ4_NL"),
        ("Q4_K_S", 100, "F16"),
        ("Q8_0", 100, "F16"),
        ("IQ4_NL", 100, "F16"),
    ],
)
def test_rows_that_do_not_fit(recipe_name: str, row: int, used: str) -> None:
    base = RECIPES[recipe_name].base
    choice = one("blk.9.ffn_up.weight", recipe_name, dense(row=row))
    assert (choice.type, choice.fallback_from) == (used, base)
    message = rf"^output\.weight: rows of {row} do not .*\n.*--no-fallback"
    with pytest.raises(QuantizationError, match=message) as caught:
        one("blk.9.ffn_up.weight", recipe_name, dense(row=row), no_fallback=True, pure=True)
    assert caught.value.exit_code == 30


def test_types_without_a_substitute() -> None:
    with pytest.raises(QuantizationError, match="Q1_0 has no substitute"):
        one("output.weight", "Q1_0", dense(row=96))
    with pytest.raises(QuantizationError, match="NVFP4 has no substitute"):
        one("output.weight", "Q4_0", dense(row=96), tensor_types=(("ffn_up", "nvfp4"),))


@pytest.mark.parametrize(
    ("name", "shape", "arch", "why"),
    [
        ("blk.0.attn_norm.weight", (256,), "llama", "1-D"),
        ("blk.0.x.weight", (1, 256), "llama", "1-D"),
        ("blk.0.attn_q_norm.weight", (8, 256), "llama", "norm"),
        ("blk.0.ffn_gate_inp.weight", (8, 256), "llama", "router"),
        ("blk.0.ffn_down_exps.bias", (8, 256), "llama", "not a weight"),
        ("position_embd.weight", (8, 256), "gpt2", "positions"),
        ("blk.0.ssm_conv1d.weight", (8, 4), "mamba", "small"),
        ("blk.0.time_mix_w1.weight", (8, 256), "rwkv6", "RWKV mixing"),
        ("v.patch_embd.weight", (8, 3, 14, 14), "clip", "vision"),
        ("blk.0.attn_k_b.weight", (8, 2, 256), "glm5-next", "sensitive in GLM-5"),
    ],
)
def test_what_is_never_quantized(name: str, shape: tuple[int, ...], arch: str, why: str) -> None:
    types = assign(RECIPES["Q8_0"], [TensorSpec(name, shape, "BF16")], replaced(arch=arch))
    assert types[name] == Choice("BF16", f"kept: {why}")


#: Every part of a name that llama-quantize knows as one that it leaves alone.
LEFT_ALONE = (
    "attn_q_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup_proj.weight", "laurel_l.weight",
    "ssm_conv1d.weight", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight",
    "per_layer_model_proj.weight", "attn_rel_b.weight", "attn.rel_pos_h.weight",
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2")),
    *(f"time_mix_{part}.weight" for part in ("g1", "g2", "decay_w1", "decay_w2", "lerp_fused")),
)  # fmt: skip


def test_names_that_are_left_alone() -> None:
    """Not one that only looks like them."""
    specs = [TensorSpec(f"blk.0.{name}", (8, 256), "BF16") for name in LEFT_ALONE]
    also = [TensorSpec(f"blk.0.{name}.weight", (8, 256), "BF16") for name in ("time_mix_key", "shortconv.in_proj")]
    types = assign(RECIPES["Q8_0"], [*specs, *also], DENSE)
    assert {name for name, choice in types.items() if choice.type == "BF16"} == {spec.name for spec in specs}


@pytest.mark.parametrize("type", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"])
def test_types_that_no_recipe_gives_without_an_importance_matrix(type: str) -> None:
    given = [recipe for recipe in RECIPES.values() if not needs_imatrix(recipe, "blk.0.attn_q.weight", type)]
    assert given == []


def test_ternary_files_keep_what_stands_at_their_ends() -> None:
    for outtype in ("TQ1_0", "TQ2_0"):
        for name in ("token_embd.weight", "per_layer_token_embd.weight", "output.weight", "blk.3.laurel_r.weight"):
            assert converter_type(name, (2, 256), "F32", outtype) == Choice("F16", f"never {outtype}")
        assert converter_type("blk.3.ffn_up.weight", (2, 256), "F32", outtype).type == outtype
    assert converter_type("output.weight", (2, 256), "F32", "Q8_0").type == "Q8_0"


def test_glm5_keeps_its_query_latents_at_8_bits() -> None:
    specs = [*dense(), TensorSpec("blk.0.attn_q_a.weight", (2, 256), "F16")]
    assert one("blk.0.attn_q_a.weight", "Q4_K_M", specs, replaced(arch="glm5-next")).type == "Q8_0"
    assert one("blk.0.attn_q_a.weight", "Q4_K_M", specs).type == "Q4_K"
    assert one("blk.0.attn_q_a.weight", "F16", specs, replaced(arch="glm5-next")).type == "F16"


def test_stacked_matrices_of_ling_3_are_experts_only_in_the_ffn() -> None:
    specs = [TensorSpec(f"blk.0.{name}.weight", (4, 2, 256), "F16") for name in ("attn_k_b", "ffn_up_exps")]
    for arch, latent in (("bailingmoe3", "Q8_0"), ("deepseek2", "MXFP4")):
        types = assign(RECIPES["MXFP4_MOE"], specs, replaced(arch=arch, n_expert=4))
        assert [types[spec.name].type for spec in specs] == [latent, "MXFP4"]


@pytest.mark.parametrize(
    ("arch", "layers", "shares_keys"),
    [
        ("llama", 80, True), ("llama-embed", 80, True), ("qwen2", 80, False), ("deci", 80, False), ("olmo", 80, False),
        ("jais2", 68, False),
    ],
)  # fmt: skip
def test_which_models_are_70b(arch: str, layers: int, shares_keys: bool) -> None:
    """The table of llama.cpp: by architecture and block count, Llama only where heads share keys (65B is the other)."""

    def attn_v(n_layer: int, n_head_kv: int) -> str:
        facts = replaced(arch=arch, n_layer=n_layer, n_head_kv=n_head_kv)
        return one("blk.0.attn_v.weight", "Q3_K_S", dense(1), facts).type

    assert [attn_v(n, 2) for n in (layers - 1, layers, layers + 1)] == ["Q3_K", "Q5_K", "Q3_K"]
    assert attn_v(layers, 8) == ("Q3_K" if shares_keys else "Q5_K")


@pytest.mark.parametrize(("layer", "fits"), [(-1, False), (0, True), (15, True), (16, False)])
def test_the_layer_of_an_expert_is_one_of_the_models(layer: int, fits: bool) -> None:
    facts, name = replaced(n_expert=2), f"blk.{layer}.ffn_down_exps.weight"
    stray = [TensorSpec(name, (2, 2, 256), "F16")]
    if fits:
        assert one(name, "Q4_K_M", stray, facts).type == "Q6_K"
    else:
        with pytest.raises(QuantizationError, match=r"from 0 to 15\n.*--pure"):
            one(name, "Q4_K_M", stray, facts)
        assert one(name, "Q4_K_M", stray, replaced(n_expert=1)).type == "Q6_K"  # one expert is none: counted


@pytest.mark.parametrize(
    ("n_head", "n_head_kv", "shared"), [(8, 2, True), (8, 3, False), (12, 3, True), (8, 0, False), (3, 1, False)]
)
def test_four_heads_share_a_key(n_head: int, n_head_kv: int, shared: bool) -> None:
    found = one("blk.9.attn_v.weight", "Q2_K_S", dense(), replaced(n_head=n_head, n_head_kv=n_head_kv)).type
    assert found == ("Q4_K" if shared else "Q2_K")


@pytest.mark.parametrize(
    ("experts", "of_four", "of_eight"),
    [(3, "Q2_K", "IQ2_XS"), (4, "Q4_K", "IQ2_XS"), (7, "Q4_K", "IQ2_XS"), (8, "Q4_K", "Q4_K"), (9, "Q4_K", "IQ2_XS")],
)
def test_how_many_experts_count(experts: int, of_four: str, of_eight: str) -> None:
    types = assign(RECIPES["IQ2_XS"], sparse(experts=experts), replaced(n_expert=experts))
    assert (types["blk.9.attn_v.weight"].type, types["blk.9.attn_k.weight"].type) == (of_four, of_eight)


def test_layers_of_attention_are_counted_in_expert_models_too() -> None:
    options = Options(tensor_types=((r"blk\.1\.attn_v", "q8_0"),))
    types = assign(RECIPES["Q4_K_M"], sparse(experts=4), replaced(n_expert=4), options)
    assert layers_with("Q6_K", "attn_v", types) == [0, 2, 5, 8, 11, 14, 15]


def test_which_recipes_quantize() -> None:
    assert [name for name in RECIPES if not RECIPES[name].quantized] == ["F32", "F16", "BF16", "COPY"]


def test_names_with_a_block_number() -> None:
    assert [sort_key(name)[0] for name in ("blk.7.x", "blk.+7.x", "blk. 7.x", "blk.-7.x", "v.blk.7.x", "blk.x")] == [
        7, 7, 7, -7, -1, -1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((), True),
        ((256,), True),
        ((1, 256), True),
        ((1, 1, 256), True),
        ((2, 256), False),
        ((2, 1), False),
        ((2, 1, 256), False),
    ],
)
def test_leading_axes_of_one_do_not_count(shape: tuple[int, ...], kept: bool) -> None:
    spec = TensorSpec("blk.0.x.weight", shape, "BF16")
    assert (kept_because(spec, traits_of("llama"), leave_output=False) == "1-D") is kept


def test_what_only_leave_output_keeps() -> None:
    output, other = TensorSpec("output.weight", (2, 256), "F16"), TensorSpec("blk.0.x.weight", (2, 256), "F16")
    llama = traits_of("llama")
    assert [kept_because(output, llama, leave) for leave in (True, False)] == ["--leave-output", None]
    assert kept_because(other, llama, leave_output=True) is None
    assert kept_because(TensorSpec("blk.0.x.weight", (2, 256), "I32"), llama, leave_output=False) == "integers"


def test_only_quantized_types_have_to_fit_and_only_large_blocks_need_a_substitute() -> None:
    assert one("blk.0.ffn_up.weight", "F16", dense(row=7)).type == "F16"
    assert one("blk.9.ffn_up.weight", "MXFP4_MOE", dense(row=100)).type == "F16"
    assert one("blk.9.ffn_up.weight", "Q4_K_S", dense(row=255)) == Choice("F16", "base type of Q4_K_S", "Q4_K")


def test_stacks_are_matrices_along_a_third_axis() -> None:
    for shape, found in (((2, 2, 256), "MXFP4"), ((1, 2, 256), "Q8_0"), ((2, 256), "Q8_0"), ((5, 1, 2, 256), "Q8_0")):
        assert one("blk.0.x.weight", "MXFP4_MOE", [TensorSpec("blk.0.x.weight", shape, "F16")]).type == found


def test_three_near_names_and_two_that_are_like_none() -> None:
    with pytest.raises(UsageError, match=r"did you mean \w+ or \w+ or \w+\?\n") as near:
        recipe("q4_k_")
    assert {"Q4_K", "Q4_K_M", "Q4_K_S"} == set(re.findall(r"\bQ\w+", str(near.value).split("\n")[0]))
    with pytest.raises(UsageError, match=r"names look like output\.weight, token_embd\.weight$"):
        one("output.weight", "Q4_K_M", dense(), tensor_types=(("zzzzzzzzzzzzzzzz", "q8_0"),))
    with pytest.raises(UsageError, match="names look like"):
        one("output.weight", "Q4_K_M", dense(), tensor_types=(("qqqq_q", "q8_0"),))
    with pytest.raises(UsageError, match=r"near names: attn_\w, attn_\w, attn_\w$"):
        one("output.weight", "Q4_K_M", dense(), tensor_types=(("attn_x", "q8_0"),))
    with pytest.raises(UsageError) as caught:
        one("output.weight", "Q4_K_M", dense(), tensor_types=(("ffn_gown", "q8_0"),))
    assert str(caught.value).partition("near names: ")[2].split(", ")[0] == "ffn_down"
    assert len(str(caught.value).partition("near names: ")[2].split(", ")) == 3


def test_names_aliases_and_numbers() -> None:
    assert recipe(" q4_k ").name == "Q4_K_M" == recipe("15").name
    assert {recipe(alias).name for alias in ALIASES} == {"Q3_K_M", "Q4_K_M", "Q5_K_M", "F16", "F32"}
    assert recipe("0").name == "F32"
    assert (recipe("40").name, recipe("41").name) == ("Q1_0", "Q2_0")  # newer than the oracle of the tests
    with pytest.raises(UsageError, match="did you mean Q4_K_M") as caught:
        recipe("q4_km")
    assert all(name in str(caught.value) for name in RECIPES)


def test_rules_read_well() -> None:
    assert one("blk.4.attn_v.weight", "Q4_K_M", dense()).rule == (
        "attn_v, attn_qkv or attn_kv_b in the first eighth, the last eighth and every third layer -> Q6_K"
    )
    assert one("blk.3.attn_q.weight", "Q4_K_M", dense()).rule == "base type of Q4_K_M"
    assert RECIPES["Q5_K_M"].describe()[-1] == "every other tensor -> Q5_K"
    for wrong in (("attn_v", "Q6_K", ("on_mondays",)), ("attn_w", "Q6_K", ()), ("attn_v", "Q6_KK", ())):
        with pytest.raises(ValueError, match="never be read"):
            Row(*wrong)


def test_sort_key() -> None:
    names = ["blk.10.a", "blk.9.b", "blk.9.B", "token_embd.weight", "output.weight", "blk.9.é"]
    assert sorted(names, key=sort_key) == [
        "output.weight",
        "token_embd.weight",
        "blk.9.B",
        "blk.9.b",
        "blk.9.é",
        "blk.10.a",
    ]


@pytest.mark.parametrize(
    ("name", "shape", "source", "outtype", "expected"),
    [
        ("output_norm.weight", (256,), "BF16", "BF16", Choice("F32", "1-D")),
        ("blk.0.attn_q_norm.weight", (8, 256), "BF16", "BF16", Choice("F32", "norm")),
        ("blk.0.ffn_gate_inp.weight", (8, 256), "BF16", "F16", Choice("F32", "read as F32 by the runtime")),
        ("blk.0.ffn_gate_inp_shexp.weight", (1, 256), "BF16", "F16", Choice("F32", "read as F32 by the runtime")),
        ("position_embd.weight", (8, 256), "F16", "F16", Choice("F32", "read as F32 by the runtime")),
        ("blk.0.ffn_down_exps.bias", (8, 256), "BF16", "BF16", Choice("F32", "not a weight")),
        ("blk.0.attn_q.weight", (8, 256), "F32", "BF16", Choice("BF16", "outtype")),
        ("blk.0.attn_q.lora_a", (8, 256), "F32", "F16", Choice("F16", "outtype")),
        ("blk.0.attn_q.weight", (8, 100), "F32", "Q8_0", Choice("F16", "outtype", "Q8_0")),
        ("output.weight", (8, 256), "F32", "TQ1_0", Choice("F16", "never TQ1_0")),
        ("output.weight", (8, 256), "F32", "BF16", Choice("BF16", "outtype")),
        ("blk.0.attn_q.weight", (8, 256), "F32", "TQ1_0", Choice("TQ1_0", "outtype")),
        ("blk.0.attn_sinks.weight", (256,), "BF16", "BF16", Choice("F32", "1-D")),
        ("blk.0.scale.weight", (), "BF16", "BF16", Choice("F32", "1-D")),
        ("blk.0.ffn_up_exps.weight", (4, 100, 256), "F32", "Q8_0", Choice("Q8_0", "outtype")),
        ("blk.0.ffn_up_exps.weight", (4, 256, 100), "F32", "Q8_0", Choice("F16", "outtype", "Q8_0")),
        ("blk.0.ffn_up_exps.weight", (8, 2, 32), "MXFP4", "F16", Choice("MXFP4", "kept: arrives quantized")),
    ],
)
def test_type_in_the_intermediate_file(
    name: str, shape: tuple[int, ...], source: str, outtype: str, expected: Choice
) -> None:
    assert converter_type(name, shape, source, outtype) == expected


@pytest.mark.parametrize(
    ("forced", "shape", "outtype", "type"),
    [
        ("F32", (8, 256), "F16", "F32"),
        ("F32", (8, 256), "Q8_0", "F32"),
        ("F16", (8, 256), "F32", "F16"),
        ("F16", (8, 256), "BF16", "F16"),
        ("F16", (256,), "F32", "F16"),
        (F16_OR_F32, (8, 256), "F16", "F16"),
        (F16_OR_F32, (8, 256), "F32", "F32"),
        (F16_OR_F32, (8, 256), "BF16", "F32"),
        (AS_ASKED, (8, 256), "BF16", "BF16"),
        (AS_ASKED, (8, 256), "Q8_0", "Q8_0"),
    ],
)
def test_an_architecture_may_force_a_type(forced: str, shape: tuple[int, ...], outtype: str, type: str) -> None:
    """A norm shows it: without force it is F32."""
    expected = Choice(type, "forced by its architecture")
    assert converter_type("blk.0.attn_norm.weight", shape, "BF16", outtype, forced) == expected


@pytest.mark.parametrize(("shape", "why"), [((256,), "1-D"), ((8, 100), "norm")])
def test_what_cannot_be_as_asked_goes_by_the_rules(shape: tuple[int, ...], why: str) -> None:
    assert converter_type("blk.0.attn_norm.weight", shape, "BF16", "Q8_0", AS_ASKED) == Choice("F32", why)


def test_what_arrives_quantized_is_not_forced() -> None:
    kept = Choice("Q4_0", "kept: arrives quantized")
    assert converter_type("blk.0.attn_q.weight", (8, 256), "Q4_0", "F16", "F32") == kept


# ---------------------------------------------------------------------------------------------------
# llama-quantize itself: a dry run says which type each tensor would get

_LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\w+), (?:size = .*?-> .*? MiB \((\w+)\)|size = )")
_HPARAMS = {
    "llama": ("attention.layer_norm_rms_epsilon",),
    "qwen2": ("attention.layer_norm_rms_epsilon",),
    "falcon": ("attention.layer_norm_epsilon",),
}


def _write_model(path: Path, facts: ModelFacts, specs: list[TensorSpec]) -> None:
    """A GGUF with just enough metadata for llama-quantize and with zeros for weights."""
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(path, facts.arch)
    writer.add_context_length(128)
    writer.add_embedding_length(256)
    writer.add_block_count(facts.n_layer)
    writer.add_feed_forward_length(256)
    writer.add_head_count(facts.n_head)
    writer.add_head_count_kv(facts.n_head_kv)
    if facts.n_expert:
        writer.add_expert_count(facts.n_expert)
        writer.add_expert_used_count(2)
    for key in _HPARAMS[facts.arch]:
        writer.add_float32(f"{facts.arch}.{key}", 1e-5)
    for spec in random.Random(1).sample(specs, len(specs)):
        writer.add_tensor(spec.name, np.zeros(spec.shape, np.float32 if spec.source == "F32" else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


DryRun = Callable[[Path, str, Options], dict[str, str] | None]


@pytest.fixture(scope="module")
def dry_run() -> Iterator[DryRun]:
    """`run(model, recipe, options)` -> the types llama-quantize would write, in its order; None if it refuses."""
    llama = pytest.importorskip("llama_cpp")
    lines: list[str] = []
    callback = llama.llama_log_callback(lambda _level, text, _data: lines.append(text.decode(errors="replace")))
    llama.llama_log_set(callback, ctypes.c_void_p(0))

    def run(model: Path, recipe_name: str, options: Options) -> dict[str, str] | None:
        params = llama.llama_model_quantize_default_params()
        params.ftype = RECIPES[recipe_name].file_type or 0
        params.only_copy, params.pure, params.dry_run, params.nthread = recipe_name == "COPY", options.pure, True, 1
        params.quantize_output_tensor = not options.leave_output
        if options.output_type is not None:
            params.output_tensor_type = DTYPES[options.output_type].gguf
        if options.embedding_type is not None:
            params.token_embedding_type = DTYPES[options.embedding_type].gguf
        numbers = (ctypes.c_float * 1)(1.0)
        entries = (llama.llama_model_imatrix_data * 2)()
        entries[0].name, entries[0].data, entries[0].size = b"none.weight", numbers, 1
        if options.has_imatrix:
            params.imatrix = entries
        overrides = (llama.llama_model_tensor_override * (len(options.tensor_types) + 1))()
        for slot, (pattern, wanted) in zip(overrides, options.tensor_types, strict=False):
            slot.pattern, slot.type = pattern.lower().encode(), DTYPES[wanted].gguf
        if options.tensor_types:
            params.tt_overrides = overrides
        lines.clear()
        failed = llama.llama_model_quantize(str(model).encode(), b"unused.gguf", ctypes.byref(params))
        found = _LINE.findall("".join(lines))
        return None if failed else {name: (new or old).upper() for name, old, new in found}

    yield run
    llama.llama_log_set(llama.llama_log_callback(lambda *_: None), ctypes.c_void_p(0))


MODELS = {
    "dense": (DENSE, dense()),
    "tied": (replaced(n_head_kv=2), dense(tied=True)),
    "ragged": (DENSE, dense(row=96)),
    "rows_of_100": (DENSE, dense(row=100)),
    "experts8": (replaced(n_expert=8), sparse()),
    "experts4": (replaced(n_expert=4, n_head_kv=2), sparse(experts=4)),
    "falcon": (replaced(arch="falcon", n_layer=32, n_head_kv=1), dense(32)),
    "llama70b": (replaced(n_layer=80, n_head_kv=1), dense(80)),
    "llama65b": (replaced(n_layer=80), dense(80)),
    "qwen72b": (replaced(arch="qwen2", n_layer=80), dense(80)),
}
OPTIONS = {
    "default": Options(),
    "imatrix": Options(has_imatrix=True),
    "pure": Options(pure=True),
    "leave_output": Options(leave_output=True),
    "types": Options(tensor_types=((r"blk\.[13]\.(attn_v|ffn_down)", "Q8_0"), ("ATTN_K", "IQ4_NL"))),
    "pure_types": Options(pure=True, tensor_types=(("token_embd|blk.*ffn_up", "Q5_1"),)),
    "output": Options(output_type="Q5_0"),
    "embedding": Options(embedding_type="Q8_0"),
    "both_pure": Options(pure=True, output_type="Q5_0", embedding_type="Q8_0"),
}


SOME = ("default", "imatrix", "types")
LARGE = ("default",)  # dry runs of 80 layers take their time
ASKED: dict[str, tuple[str, ...]] = {  # the rest are asked with every option
    "tied": (*SOME, "output", "embedding", "both_pure"),
    "ragged": SOME,
    "rows_of_100": SOME,
    "experts8": SOME,
    "experts4": SOME,
    "falcon": ("default", "imatrix"),
    "llama70b": LARGE,
    "llama65b": LARGE,
    "qwen72b": LARGE,
}


@pytest.mark.parametrize("model", MODELS)
def test_types_equal_those_of_llama_quantize(model: str, tmp_path: Path, dry_run: DryRun) -> None:
    facts, specs = MODELS[model]
    path = tmp_path / "model.gguf"
    _write_model(path, facts, specs)
    for name in RECIPES:
        for label in ASKED.get(model, tuple(OPTIONS)):
            options = OPTIONS[label]
            if options.tensor_types and not RECIPES[name].quantized:
                continue  # there llama-quantize ignores the patterns, on purpose we do not
            if name == "COPY" and (options.output_type or options.embedding_type):
                continue  # ignored by llama-quantize, refused here
            theirs = dry_run(path, name, options)
            try:
                ours = {key: choice.type for key, choice in assign(RECIPES[name], specs, facts, options).items()}
            except QuantizationError:
                ours = None
            assert ours == theirs and list(ours or ()) == list(theirs or ()), (name, label)


def test_ids_are_those_of_the_oracle() -> None:
    llama = pytest.importorskip("llama_cpp")
    constants = {name: f"LLAMA_FTYPE_{'ALL' if name == 'F32' else 'MOSTLY'}_{name}" for name in RECIPES}
    known = {name: getattr(llama, constant) for name, constant in constants.items() if hasattr(llama, constant)}
    assert RECIPES.keys() - known.keys() <= {"COPY", "Q1_0", "Q2_0"}
    assert known == {name: RECIPES[name].file_type for name in known}
