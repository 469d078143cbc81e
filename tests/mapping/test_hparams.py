"""Hyperparameters row by row: which place counts, what a type holds, what is refused, and what is written again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from converter.architectures.spec import Architecture, HFClass, HParam
from converter.errors import ArchitectureError
from converter.mapping.hparams import (
    Scope,
    flat_config,
    hparam_metadata,
    lookup,
    read_config,
    read_metadata,
    says,
    text_config,
    write_config,
)
from converter.metadata import Array, Value

N_LAYER = HParam("n_layer", ("n_layer",), ("block_count",), default=2)
CLASS = HFClass("Toy", "toy")
F32_MAX = float(np.finfo(np.float32).max)


def toy(*rows: HParam, hf: tuple[HFClass, ...] = (CLASS,)) -> Architecture:
    return Architecture("toy", hf, (N_LAYER, *rows), ())


def read(row: HParam, config: dict[str, Any], hf: HFClass = CLASS) -> Any:
    return read_config(toy(row, hf=(hf,)), hf, config)[0].get(row.name)


# ----------------------------------------------------------------------------------------------- types

HOLDS: dict[str, list[Any]] = {
    "u32": [0, (1 << 31) - 1],
    "i32": [-(1 << 31), 0, (1 << 31) - 1],
    "u64": [0, 1 << 31, (1 << 64) - 1],
    "f32": [0, 1, -0.5, F32_MAX, -F32_MAX],
    "str": ["", "a"],
    "bool": [True, False],
    "u32[]": [[], [0, 7]],
    "str[]": [["a", ""]],
    "u32 or bool[]": [7, [True, False], []],
}
REFUSES: dict[str, list[Any]] = {
    "u32": [-1, 1 << 31, 0.0, 1.5, True, "1", [1]],
    "i32": [-(1 << 31) - 1, 1 << 31, 1.0, False],
    "u64": [-1, 1 << 64, True],
    "f32": [F32_MAX * 1.01, -F32_MAX * 1.01, float("inf"), float("nan"), True, "1"],
    "str": [1, True, ["a"]],
    "bool": [0, 1, "true", [True]],
    "u32[]": [7, [-1], [0, "1"], [[1]], "ab"],
    "str[]": ["a", ["a", 1]],
    "u32 or bool[]": [True, [1], [True, 1]],
}


@pytest.mark.parametrize("kind", HOLDS)
def test_a_type_holds_its_values_and_no_others(kind: str) -> None:
    row = HParam("x", ("x",), ("x",), kind)
    for value in HOLDS[kind]:
        found = read(row, {"x": value})
        assert found == value and type(found) is type(value)
    for value in REFUSES[kind]:
        with pytest.raises(ArchitectureError, match=r"^config.json: x is .*, not a usable "):
            read(row, {"x": value})


@pytest.mark.parametrize(
    ("kind", "value", "written"),
    [
        ("u32", 7, Value("u32", 7)),
        ("f32", 7, Value("f32", 7)),
        ("u32 or i32[]", [7, -1], Array("i32", [7, -1])),
        ("u32 or i32[]", 7, Value("u32", 7)),
        ("str[]", ["a"], Array("str", ["a"])),
        ("u32[]", [], None),
    ],
)
def test_a_key_has_the_first_type_that_holds_the_value(kind: str, value: Any, written: Any) -> None:
    architecture = toy(HParam("x", ("x",), ("x", "/again"), kind))
    metadata = hparam_metadata(architecture, {"n_layer": 2, "x": value}, {"x"})
    assert metadata.get("toy.x") == metadata.get("again") == written


def test_a_value_of_no_type_of_its_key_is_named() -> None:
    row = HParam("x", ("x",), ("x",), "u32", values=(("a", 1),))
    with pytest.raises(ArchitectureError, match=r"^x is 1\.5, not a usable u32 value"):
        hparam_metadata(toy(HParam("x", ("x",), ("x",))), {"x": 1.5}, {"x"})
    assert hparam_metadata(toy(row), {"x": "a"}, {"x"}) == {"toy.x": Value("u32", 1)}


# ----------------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    "place",
    [
        "text_config", "llm_config", "lm_config", "language_config", "thinker_config.text_config", "lfm",
        "transformer_layer_config",
    ],
)  # fmt: skip
def test_the_places_of_a_text_models_own_config(place: str) -> None:
    inner: dict[str, Any] = {"n_layer": 5}
    config: dict[str, Any] = inner
    for part in reversed(place.split(".")):
        config = {part: config}
    assert text_config(config) == inner
    assert flat_config({**config, "n_layer": 3, "outer": 1}) == {**config, "n_layer": 5, "outer": 1, "rope": {}}


def test_a_place_that_holds_nothing_is_passed_over() -> None:
    assert text_config({"text_config": {}, "llm_config": [], "lfm": {"a": 1}}) == {"a": 1}
    assert text_config({"text_config": None, "a": 1}) == {}


def test_an_entry_at_a_dotted_key() -> None:
    config = {"a": {"b": {"c": 0}}, "a.b": 1, "n": None}
    assert lookup(config, "a.b.c") == 0
    assert lookup(config, "a.b.c.d") is lookup(config, "x") is lookup(config, "n") is lookup(config, "n.a") is None


@pytest.mark.parametrize(
    ("config", "value"),
    [
        ({"first": 1, "second": 2}, 1),
        ({"second": 2}, 2),
        ({"first": None, "second": 2}, 2),
        ({"first": 0, "second": 2}, 0),
        ({"deep": {"third": 3}}, 3),
        ({}, 9),
    ],
)
def test_of_several_keys_the_first_that_is_there_counts(config: dict[str, Any], value: int) -> None:
    row = HParam("x", ("first", "second", "deep.third"), ("x",), default=9)
    hparams, given = read_config(toy(row), CLASS, config)
    assert hparams == {"n_layer": 2, "x": value} and given == ({"x"} if config else set())


def test_what_the_class_says() -> None:
    """Facts win over the config, defaults stand in for it, the first of its keys first; what has no value is passed."""
    row = HParam("x", ("first", "rope.second"), ("x",), default=9)
    fact = HFClass("Toy", "toy", facts={"x": 3})
    assert read(row, {"first": 1}, fact) == 3
    assert read_config(toy(row, hf=(fact,)), fact, {})[1] == {"x"}
    both = HFClass("Toy", "toy", defaults={"first": 4, "second": 5})
    assert read(row, {}, both) == 4
    assert read(row, {"first": 1}, both) == 1
    second = HFClass("Toy", "toy", defaults={"second": 5})
    assert read(row, {}, second) == 5
    computed = HFClass("Toy", "toy", defaults={"first": "width // heads", "second": 6})
    assert read(row, {"width": 8, "heads": 2}, computed) == 4
    assert read(row, {"width": 8}, computed) == 6
    assert read(row, {"width": 8, "heads": 0}, HFClass("Toy", "toy", defaults={"first": "width // heads"})) == 9


def test_what_is_required() -> None:
    row = HParam("x", ("first", "second"), ("a.x",), required=True)
    with pytest.raises(ArchitectureError, match=r"^config.json has no first, which toy needs$"):
        read(row, {})
    with pytest.raises(ArchitectureError, match=r"^the file has no toy\.a\.x$"):
        read_metadata(toy(row), {})
    assert read_metadata(toy(HParam("x", ("x",), required=True)), {}) == {"n_layer": 2}  # no key could say it
    follows = HParam("x", ("x",), ("x",), required=True, back="n_layer + 1")
    assert read_metadata(toy(follows), {}) == {"n_layer": 2, "x": 3}


def test_defaults_of_either_direction() -> None:
    rows = (
        HParam("both", ("both",), ("both",), default="n_layer"),
        HParam("back", ("back",), ("back",), default=5, back=6),
        HParam("falsy", ("falsy",), ("falsy",), default=5, back=0),
        HParam("never", ("never",), ("never",)),
        HParam("unless", ("unless",), ("unless",), default=1, when="n_layer > 2"),
        HParam("when", ("when",), ("when",), default=1, when="n_layer == 2"),
        HParam("flag", (), (), "bool", default="n_layer == 2"),
        HParam("number", (), (), "u32", default="n_layer == 2"),
        HParam("flags", (), (), "bool[]", default="block", per_block=True),
        HParam("listed", (), (), "u32[]", default="block", per_block=True),
    )
    there, given = read_config(toy(*rows), CLASS, {})
    again = {"both": 2, "when": 1, "flag": True, "number": 1, "flags": [False, True], "listed": [0, 1]}
    assert there == {"n_layer": 2, "back": 5, "falsy": 5, **again} and not given
    back = read_metadata(toy(*rows), {})
    assert back == {"n_layer": 2, "back": 6, "falsy": 0, **again}
    for found in (there, back):
        assert [type(found[name]) for name in ("flag", "number")] == [bool, int]
        assert [type(item) for name in ("flags", "listed") for item in found[name]] == [bool, bool, int, int]
        order = [row.name for row in (N_LAYER, *rows) if row.name in found]
        assert list(found) == order


def test_what_is_computed_must_be_of_the_type_too() -> None:
    row = HParam("x", ("x",), ("x",), default="n_layer - 3")
    with pytest.raises(ArchitectureError, match=r"^config.json: x is '-1', not a usable u32 value"):
        read_config(toy(row), CLASS, {})
    with pytest.raises(ArchitectureError, match=r"^toy\.x is '-1', not a usable u32 value"):
        read_metadata(toy(row), {})
    with pytest.raises(ArchitectureError, match=r"^config.json: x is '-1', "):
        read_config(toy(HParam("x", default="n_layer - 3")), CLASS, {})
    with pytest.raises(ArchitectureError, match=r"^x is '-1', "):
        read_metadata(toy(HParam("x", default="n_layer - 3")), {})
    with pytest.raises(ArchitectureError, match=r"^config.json: first is 'a', "):
        read_config(toy(HParam("x", ("first", "second"))), CLASS, {"second": "a"})
    truth = HParam("x", (), (), "bool", default="n_layer")
    with pytest.raises(ArchitectureError, match="x is '2', not a usable bool value"):
        read_config(toy(truth), CLASS, {})


def test_what_follows_from_each_other_and_more_than_once() -> None:
    """A value is computed once, whoever asks, and a circle that no value opens is named with its members."""
    rows = (
        HParam("a", ("a",), default="b + c"), HParam("b", ("b",), default="c + 1"), HParam("c", ("c",), default=3),
    )  # fmt: skip
    assert read_config(toy(*rows), CLASS, {})[0] == {"n_layer": 2, "a": 7, "b": 4, "c": 3}
    circle = (HParam("a", ("a",), ("a",), back="b"), HParam("b", (), (), default="a"))
    assert read_config(toy(*circle), CLASS, {"a": 1})[0] == {"n_layer": 2, "a": 1, "b": 1}
    with pytest.raises(ArchitectureError, match=r"^a, b: each follows from another, and none is given$"):
        read_metadata(toy(*circle), {})


def test_how_many_blocks_have_values() -> None:
    """Of as many as there may be each is computed, here up to the first, which is none."""
    row = HParam("x", (), (), "u32[]", default="1 // block", per_block=True)
    for n_layer, said in ((1 << 16, "division by zero"), ((1 << 16) + 1, "^65537 blocks, which no model has$")):
        with pytest.raises(ArchitectureError, match=said):
            read(row, {"n_layer": n_layer})


# ---------------------------------------------------------------------------------------------- words

WORDS = HParam(
    "kind", ("kind",), ("kind",), values=(("soft", 1), ("sig", 2), ("sigmoid", 2), (True, 3), (1, 4))
)  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs", "again"),
    [("soft", 1, "soft"), ("sig", 2, "sig"), ("sigmoid", 2, "sig"), (True, 3, True), (1, 4, 1)],
)
def test_words_are_translated_by_value_and_type(ours: Any, theirs: int, again: Any) -> None:
    metadata = hparam_metadata(toy(WORDS), read_config(toy(WORDS), CLASS, {"kind": ours})[0], {"kind"})
    assert metadata == {"toy.kind": Value("u32", theirs)} and says(WORDS, ours)
    found = read_metadata(toy(WORDS), metadata)["kind"]
    assert found == again and type(found) is type(again)


def test_words_that_nobody_knows() -> None:
    assert read(WORDS, {"kind": "tanh"}) == "tanh" and not says(WORDS, "tanh")
    assert hparam_metadata(toy(WORDS), {"kind": "tanh"}, {"kind"}) == {}
    assert read_metadata(toy(WORDS), {"toy.kind": Value("u32", 9)}) == {"n_layer": 2}
    with pytest.raises(ArchitectureError, match=r"^config.json: kind is '1.5', not a usable bool or int or str value"):
        read(WORDS, {"kind": 1.5})
    closed = HParam("kind", ("kind",), ("kind",), values=WORDS.values, closed=True)
    with pytest.raises(ArchitectureError, match=r"^config.json: kind is 'tanh', which is none of 'soft', 'sig', "):
        read(closed, {"kind": "tanh"})
    assert read(closed, {"kind": "sig"}) == "sig"


def test_lists_of_words() -> None:
    row = HParam("kinds", ("kinds",), ("kinds",), "u32[]", values=(("full", 0), ("sliding", 1)))
    said = {"kinds": ["sliding", "full"]}
    metadata = hparam_metadata(toy(row), read_config(toy(row), CLASS, said)[0], {"kinds"})
    assert metadata == {"toy.kinds": Array("u32", [1, 0])}
    assert read_metadata(toy(row), metadata)["kinds"] == said["kinds"]
    assert says(row, ["full"]) and not says(row, ["full", "odd"]) and says(HParam("x"), "anything")
    assert hparam_metadata(toy(row), {"kinds": ["full", "odd"]}, {"kinds"}) == {}
    assert "kinds" not in read_metadata(toy(row), {"toy.kinds": Array("u32", [1, 7])})
    with pytest.raises(ArchitectureError, match=r"kinds is .*, not a usable str value"):
        read(row, {"kinds": ["full", 1]})


# ----------------------------------------------------------------------------------------------- GGUF keys


def test_which_keys_are_written() -> None:
    rows = (
        HParam("given", ("given",), ("given",)),
        HParam("default", ("default",), ("default",), default=1),
        HParam("always", ("always",), ("always",), default=1, always=True),
        HParam("unless", ("unless",), ("unless",), when="n_layer > 2"),
        HParam("early", ("early",), ("early",), early=True),
        HParam("keyless", ("keyless",)),
    )
    config = {"given": 7, "unless": 7, "early": 7, "keyless": 7}
    architecture = toy(*rows)
    found = read_config(architecture, CLASS, config)
    everything = {key: Value("u32", value) for key, value in (("toy.given", 7), ("toy.always", 1), ("toy.early", 7))}
    assert hparam_metadata(architecture, *found) == everything
    assert list(hparam_metadata(architecture, *found)) == list(everything)
    assert hparam_metadata(architecture, *found, early=True) == {"toy.early": Value("u32", 7)}


def test_a_row_without_a_value_is_not_asked_for_its_condition() -> None:
    architecture = toy(HParam("x", ("x",), ("x",), always=True, when="y > 0"), HParam("y", ("y",)))
    assert hparam_metadata(architecture, *read_config(architecture, CLASS, {})) == {}
    assert write_config(architecture, {"n_layer": 2}, tied=True)["n_layer"] == 2


def test_which_key_is_read() -> None:
    row = HParam("x", ("x",), ("old", "new"))
    one, other = Value("u32", 1), Value("u32", 2)
    assert read_metadata(toy(row), {"toy.old": one})["x"] == 1
    assert read_metadata(toy(row), {"toy.new": other})["x"] == 2
    assert read_metadata(toy(row), {"toy.old": one, "toy.new": other})["x"] == 2
    assert "x" not in read_metadata(toy(row), {"x": one, "other.old": one})
    with pytest.raises(ArchitectureError, match=r"^toy\.old is 'a', not a usable u32 value"):
        read_metadata(toy(row), {"toy.new": Value("str", "a")})


def test_lists_of_a_gguf() -> None:
    plain, listed = HParam("x", ("x",), ("x",)), HParam("x", ("x",), ("x",), "u32 or u32[]")
    assert "x" not in read_metadata(toy(plain), {"toy.x": Array("u32", [1, 2])})
    for values in ([1, 2], np.array([1, 2], np.uint32)):
        found = read_metadata(toy(listed), {"toy.x": Array("u32", values)})["x"]
        assert found == [1, 2] and isinstance(found, list) and type(found[0]) is int
    # As many as there may be are looked at, here up to the first, which is none; of one more nothing is.
    for count, said in (
        (1 << 20, r"^toy\.x is '\[-1, 0, .*, not a usable u32"),
        ((1 << 20) + 1, "^x has 1048577 values$"),
    ):
        with pytest.raises(ArchitectureError, match=said):
            read_metadata(toy(listed), {"toy.x": Array("i32", -np.eye(1, count, dtype=np.int32)[0])})


def test_the_vocabulary_is_counted_where_no_key_says_it() -> None:
    row = HParam("n_vocab", ("vocab_size",), ("vocab_size",))
    tokens = {"tokenizer.ggml.tokens": Array("str", ["a", "b", "c"])}
    said = {"toy.vocab_size": Value("u32", 7)}
    assert read_metadata(toy(row), {**said, **tokens}, 9)["n_vocab"] == 7
    assert read_metadata(toy(row), tokens, 9)["n_vocab"] == 3
    assert read_metadata(toy(row), {}, 9)["n_vocab"] == 9
    assert read_metadata(toy(row), {"tokenizer.ggml.tokens": Value("u32", 3)}, 9)["n_vocab"] == 9
    assert "n_vocab" not in read_metadata(toy(row), {})
    assert "x" not in read_metadata(toy(HParam("x", ("x",), ("x",))), tokens, 9)


# ----------------------------------------------------------------------------------------- config.json again


def test_the_class_that_is_written() -> None:
    classes = (HFClass("A", "a", when="n_layer == 1"), HFClass("B", "b", constants={"fixed": 1, "n_layer": 5}))
    for n_layer, expected in (
        (1, {"architectures": ["A"], "model_type": "a", "tie_word_embeddings": True, "n_layer": 1}),
        (2, {"architectures": ["B"], "model_type": "b", "tie_word_embeddings": True, "n_layer": 5, "fixed": 1}),
    ):
        assert write_config(toy(hf=classes), {"n_layer": n_layer}, tied=True) == expected
    with pytest.raises(ArchitectureError, match=r"^no transformers class of toy is for such a model$"):
        write_config(toy(hf=classes[:1]), {"n_layer": 2}, tied=False)


@pytest.mark.parametrize(
    ("row", "value", "expected"),
    [
        (HParam("x", ("first", "second")), 7, {"first": 7}),
        (HParam("x", ("a.b.c",)), 7, {"a": {"b": {"c": 7}}}),
        (HParam("x", ("first",)), None, {}),
        (HParam("x", (), ("x",)), 7, {}),
        (HParam("x", ("first",), when="n_layer > 2"), 7, {}),
        (HParam("x", ("first",), when="n_layer == 2"), 7, {"first": 7}),
        # 0 that is 0 by default is what a config without it says
        (HParam("x", ("first",), default=0), 0, {}),
        (HParam("x", ("first",), default=0), 1, {"first": 1}),
        (HParam("x", ("first",), default=1), 0, {"first": 0}),
        (HParam("x", ("first",), default=1), 1, {"first": 1}),
        (HParam("x", ("first",)), 0, {"first": 0}),
        # the shortest decimal of an F32
        (HParam("x", ("first",), type="f32"), float(np.float32(1e-5)), {"first": 1e-05}),
        (HParam("x", ("first",), type="f32[]"), [float(np.float32(0.1)), 2.0], {"first": [0.1, 2.0]}),
        # rope facts are an object of their own where they say something
        (HParam("x", ("rope.rope_theta",), type="f32"), 5e5, {"rope_theta": 5e5}),
        (HParam("x", ("rope.rope_type",), type="str"), "yarn", {"rope_scaling": {"rope_type": "yarn"}}),
        (HParam("x", ("rope.rope_type",), type="str"), "default", {}),
        (HParam("x", ("rope.rope_type",), type="str"), "longrope", {}),
        (HParam("x", ("rope.factor",), type="f32", default=0), 0.0, {}),
    ],
)
def test_what_a_config_says_again(row: HParam, value: Any, expected: dict[str, Any]) -> None:
    config = write_config(toy(row), {"n_layer": 2, row.name: value}, tied=False)
    always = {"architectures": ["Toy"], "model_type": "toy", "tie_word_embeddings": False, "n_layer": 2}
    assert config == {**always, **expected}
    assert {type(config[key]) for key in expected} == {type(value) for value in expected.values()}


def test_a_factor_of_0_is_said_with_its_scaling() -> None:
    rows = (HParam("t", ("rope.rope_type",), type="str"), HParam("f", ("rope.factor",), type="f32", default=0))
    config = write_config(toy(*rows), {"n_layer": 2, "t": "linear", "f": 0.0}, tied=False)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 0.0}


# ------------------------------------------------------------------------------------------------- scopes


def test_a_scope_has_the_model_and_each_block() -> None:
    scope = Scope({"n": [5, 6], "m": 2}, {"blk.1.x"})
    assert [scope.size("n", block) for block in (0, 1, 0)] == [5, 6, 5]
    assert scope.size("m") == 2 and scope.size(7) == 7 and scope.size("m", 1) == 2
    assert scope.holds(None) and scope.holds(None, 1) and scope.holds("m == 2") and not scope.holds("m == 3")
    assert [scope.holds("present('blk.{block}.x')", block) for block in (0, 1)] == [False, True]
    assert "block" not in scope.at(None) and scope.at(1)["block"] == 1 and scope.at(0)["block"] == 0
    with pytest.raises(ArchitectureError, match=r"'n': \[5, 6\] is no whole number"):
        scope.size("n")
