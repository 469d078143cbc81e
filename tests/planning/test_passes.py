"""Single passes over models made up in memory: what is refused, which types are chosen, what a file says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import builders, importance, samples

import converter
from converter.architectures import traits_of
from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, ConverterError, QuantizationError, UsageError
from converter.events import Decoded, Event, MetadataLost, NamesKept, Note, NotFinite, Requantized, TypeFallback
from converter.formats.registry import formats, open_checkpoint
from converter.metadata import Array, Metadata, Value, text, u32
from converter.planning import types
from converter.planning.asked import check, detach
from converter.planning.draft import Draft, begin, run
from converter.planning.files import encode, lay_out, name_file
from converter.planning.model import map_names
from converter.planning.passes import ASKED, MODEL, PASSES, TYPES
from converter.planning.types import choose
from converter.quant import imatrix
from converter.quant.recipes import Choice, ModelFacts, Options
from converter.request import Request
from converter.tensors.dtypes import DTYPES
from converter.tensors.tensor import LazyTensor, TensorInfo

ARCH = {"general.architecture": text("llama")}
WEIGHT = "blk.0.ffn_down.weight"


def made_up(name: str, shape: tuple[int, ...], dtype: str) -> LazyTensor:
    """Ones, in their bytes, which every type takes."""
    info = TensorInfo(name, shape, DTYPES[dtype])
    return samples.stored(info, np.ones(info.nbytes, np.uint8))


def model(
    *tensors: LazyTensor, dialect: str | None = "gguf", config: Mapping[str, Any] = ARCH, **more: Any
) -> Checkpoint:
    """A model that no file holds; by default one with the names of GGUF, and a matrix."""
    chosen = tensors or (made_up(WEIGHT, (2, 256), "F16"),)
    return Checkpoint(
        dialect or "npz", Path("in"), dialect, {each.name: each for each in chosen}, config=config, **more
    )


def drafted(opened: Checkpoint, target: str, **fields: Any) -> Draft:
    return begin(opened, formats()[target], Request(**fields), Path("out"))


def planned(opened: Checkpoint, target: str = "gguf", **fields: Any) -> Draft:
    return run(drafted(opened, target, **fields), PASSES)


def events(draft: Draft, kind: type[Event]) -> list[Event]:
    return [event for event in draft.report.events if type(event) is kind]


# ------------------------------------------------------------------------------------- what is asked

Q, MATRIX = {"quant": "q4_0"}, {"imatrix": "m.gguf"}


@pytest.mark.parametrize(
    ("dialect", "target", "fields", "kind", "message"),
    [
        ("gguf", "safetensors", Q, UsageError, "--quant q4_0: safetensors holds plain types"),
        ("gguf", "gguf", {"dtype": "f16"}, UsageError, "for GGUF output say --quant f16"),
        ("gguf", "gguf", MATRIX, UsageError, "no effect without a type to encode to"),
        ("gguf", "gguf", {"quant": "copy"} | MATRIX, UsageError, "no effect without a type to encode to"),
        ("gguf", "gguf", Q | {"include_weights": ["a"]}, UsageError, "pass --imatrix"),
        ("gguf", "gguf", Q | {"exclude_weights": ["a"]}, UsageError, "pass --imatrix"),
        ("gguf", "gguf", Q | MATRIX | {"include_weights": ["a"], "exclude_weights": ["b"]}, UsageError, "together"),
        (None, "onnx", {"external_data": "sometimes"}, UsageError, "sometimes: say auto, always, never"),
        (None, "npz", {"external_data": "always"}, UsageError, "only ONNX has data files, not npz"),
        (None, "gguf", {}, ArchitectureError, "--tensors-only keeps names"),
    ],
)
def test_what_contradicts_itself_is_refused(
    dialect: str | None, target: str, fields: dict[str, Any], kind: type[ConverterError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        check(drafted(model(dialect=dialect, config={}), target, **fields))


@pytest.mark.parametrize(
    ("dialect", "target", "fields"),
    [
        ("gguf", "gguf", {}),
        ("gguf", "gguf", Q),
        ("gguf", "gguf", Q | MATRIX),
        ("gguf", "gguf", {"quant": "f16"} | MATRIX),
        ("gguf", "gguf", Q | MATRIX | {"include_weights": ["a"]}),
        ("gguf", "gguf", Q | MATRIX | {"exclude_weights": ["a"]}),
        ("gguf", "safetensors", {"dtype": "f16"}),
        (None, "npz", {}),
        (None, "npz", {"external_data": "auto"}),
        (None, "onnx", {"external_data": "always"}),
        (None, "onnx", {"external_data": "never"}),
        (None, "gguf", {"tensors_only": True}),
    ],
)
def test_what_agrees_is_not(dialect: str | None, target: str, fields: dict[str, Any]) -> None:
    draft = drafted(model(dialect=dialect, config={}), target, **fields)
    assert check(draft) is draft


# ------------------------------------------------------------------------------------- around the tensors


@dataclass(frozen=True)
class Around:
    """What a file has around its tensors, made up."""

    fixed: Mapping[str, str] = field(default_factory=dict)

    def leave(self) -> tuple[Event, ...]:
        return (Note("a graph is left"),)


def test_only_its_own_format_keeps_what_is_around_the_tensors() -> None:
    opened = replace(model(dialect=None, config={}), format="onnx", structure=Around())
    kept, left = detach(drafted(opened, "onnx")), detach(drafted(opened, "npz"))
    assert kept.checkpoint.structure is opened.structure and kept.report.events == []
    assert left.checkpoint.structure is None and left.report.events == [Note("a graph is left")]


def test_types_that_the_graph_relies_on_stay() -> None:
    """As they are, each with the reason; counted are those that would have changed."""
    tensors = [
        made_up("scale", (2, 2), "F32"), made_up("ids", (2, 2), "I64"), made_up("same", (2, 2), "F16"),
        made_up("free", (2, 2), "F32"),
    ]  # fmt: skip
    fixed = {"scale": "an input", "ids": "an index", "same": "an input"}
    opened = replace(model(*tensors, dialect=None, config={}), format="onnx", structure=Around(fixed))
    draft = choose(drafted(opened, "onnx", dtype="f16"))
    assert draft.choices == {
        "scale": Choice("F32", "as in the source: an input"),
        "ids": Choice("I64", "as in the source"),
        "same": Choice("F16", "as in the source: an input"),
        "free": Choice("F16", "--dtype f16"),
    }
    (note,) = events(draft, Note)
    assert str(note).startswith("type kept of 1 tensor,")
    plain = choose(drafted(opened, "onnx"))  # nothing was asked for, so nothing was refused
    assert plain.choices["scale"] == Choice("F32", "as in the source") and plain.report.events == []


# ------------------------------------------------------------------------------------- names


def stranger() -> Checkpoint:
    """A GGUF of an architecture that nobody knows."""
    return model(config={"general.architecture": text("perceptron")})


def test_a_file_of_tensors_keeps_names_that_no_architecture_knows() -> None:
    draft = map_names(drafted(stranger(), "safetensors"))
    assert list(draft.checkpoint.tensors) == [WEIGHT] == list(draft.read)
    assert draft.route.map is None and draft.route.stages == ("open", "encode", "save")
    (kept,) = events(draft, NamesKept)
    assert "perceptron" in str(kept) and "\n" not in str(kept)


@pytest.mark.parametrize(("target", "fields"), [("safetensors", {"arch": "perceptron"}), ("hf", {})])
def test_elsewhere_unknown_architectures_are_refused(target: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ArchitectureError, match="perceptron"):
        map_names(drafted(stranger(), target, **fields))


def test_a_gguf_of_plain_tensors_says_nothing_of_its_source() -> None:
    """What a config.json and free texts say has no place there."""
    opened = model(dialect="hf", config={"model_type": "llama"}, metadata={"author": "x"})
    draft = map_names(drafted(opened, "gguf", tensors_only=True))
    assert (draft.checkpoint.config, draft.checkpoint.metadata, draft.checkpoint.dialect) == ({}, {}, "gguf")
    own = map_names(drafted(model(metadata={"author": "x"}), "gguf"))
    assert (own.checkpoint.config, own.checkpoint.metadata) == (ARCH, {})
    plain = map_names(drafted(opened, "npz"))
    assert plain.checkpoint.config == opened.config and plain.checkpoint.metadata == {"author": "x"}


def test_tensors_alone_are_not_narrowed() -> None:
    """Only a mapped model has an intermediate file, where vectors are F32."""
    vector = made_up("norm.weight", (8,), "F16")
    draft = planned(model(vector, dialect="hf", config={}), tensors_only=True)
    assert [(step.name, step.type, step.rule) for step in draft.steps] == [("norm.weight", "F16", "as in the source")]
    assert draft.intermediate is draft.read


def test_what_mapping_has_to_say_is_in_the_report(tmp_path: Path) -> None:
    """Of the model card and of the tokenizer; a file of Hugging Face names says for whom it is."""
    folder = builders.llama_folder(tmp_path / "in")
    (folder / "README.md").write_text("---\nversion: [1, 2]\n---\n")
    (folder / "tokenizer_config.json").write_text('{"chat_template": 5}')
    with open_checkpoint(folder) as opened:
        notes = [str(note) for note in events(map_names(drafted(opened, "gguf")), Note)]
        assert [each for each in notes if "version" in each] and [each for each in notes if "chat_template" in each]
        assert map_names(drafted(opened, "gguf")).checkpoint.metadata == {}
    converter.convert(folder, tmp_path / "model.gguf")
    with open_checkpoint(tmp_path / "model.gguf") as opened:
        back = map_names(drafted(opened, "safetensors")).checkpoint
    assert back.metadata == {"format": "pt"} and set(back.tensors) == set(builders.llama_shapes())


# ------------------------------------------------------------------------------------- types


def test_what_the_rules_ask_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, per layer or not; what is not there or no whole number counts as nothing."""
    seen: list[ModelFacts] = []
    assign = types.assign
    monkeypatch.setattr(types, "assign", lambda *given: seen.append(given[2]) or assign(*given))

    def facts(**keys: Any) -> ModelFacts:
        values = {f"llama.{key.replace('__', '.')}": value for key, value in keys.items()}
        choose(drafted(model(config=ARCH | values), "gguf", quant="q8_0"))
        return seen[-1]

    def llama(*numbers: int) -> ModelFacts:
        return ModelFacts("llama", *numbers, traits=traits_of("llama"))

    assert facts() == llama(0, 0, 0, 0)
    assert facts(block_count=u32(3), attention__head_count=u32(8), expert_count=u32(4)) == llama(3, 8, 8, 4)
    per_layer = {"attention__head_count": Array("i32", [8, 4]), "attention__head_count_kv": Array("i32", [2, 4])}
    assert facts(**per_layer) == llama(0, 8, 2, 0)
    none = {"attention__head_count": u32(8), "attention__head_count_kv": Array("i32", [])}
    assert facts(**none) == llama(0, 8, 8, 0)
    assert facts(block_count=text("3"), expert_count=Value("f32", 2.0)) == llama(0, 0, 0, 0)
    choose(drafted(model(config={"a.block_count": u32(1)}), "gguf", quant="q8_0"))
    assert seen[-1] == ModelFacts("", 0, 0, 0, 0, traits=traits_of(""))


def test_every_option_reaches_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Options] = []
    assign = types.assign
    monkeypatch.setattr(types, "assign", lambda *given: seen.append(given[3]) or assign(*given))
    wishes: dict[str, Any] = {
        "pure": True, "tensor_types": ((".", "q8_0"),), "output_type": "q5_0", "embedding_type": "f16",
        "leave_output": True, "no_fallback": True,
    }  # fmt: skip
    choose(replace(drafted(model(), "gguf", quant="q4_0", **wishes), weighted=True))
    choose(drafted(model(), "gguf", quant="q4_0"))
    assert seen == [Options(**wishes, has_imatrix=True), Options()]


@pytest.mark.parametrize("asked", ["q8_0", "i32", "bool"])
def test_a_plain_type_is_one_of_numbers(asked: str) -> None:
    with pytest.raises(UsageError, match=f"--dtype {asked}: give a plain floating type"):
        choose(drafted(model(dialect=None), "npz", dtype=asked))


def test_plain_files_hold_what_they_can() -> None:
    """Packed numbers become F32, which holds them all; what is no number stays, or is refused."""
    tensors = [made_up("a", (2, 32), "Q8_0"), made_up("b", (2, 2), "F16"), made_up("c", (2, 2), "I32")]
    draft = choose(drafted(model(*tensors, dialect=None), "npz"))
    assert draft.choices == {
        "a": Choice("F32", "npz cannot hold Q8_0"),
        "b": Choice("F16", "as in the source"),
        "c": Choice("I32", "as in the source"),
    }
    assert draft.report.events == [Decoded("a", "Q8_0", "F32")]
    asked = choose(drafted(model(*tensors, dialect=None), "npz", dtype="f32"))
    assert [choice.rule for choice in asked.choices.values()] == ["--dtype f32", "--dtype f32", "as in the source"]
    with pytest.raises(QuantizationError, match="c: safetensors cannot hold C128"):
        choose(drafted(model(made_up("c", (2, 2), "C128"), dialect=None), "safetensors"))


# ------------------------------------------------------------------------------------- the files


def test_what_is_quantized_twice_is_told() -> None:
    twice = model(made_up(WEIGHT, (2, 256), "Q8_0"))
    with pytest.raises(QuantizationError, match=f"{WEIGHT}: already quantized as Q8_0; encoding it again as Q4_0"):
        planned(twice, quant="q4_0")
    assert events(planned(twice, quant="q4_0", allow_requantize=True), Requantized) == [
        Requantized(WEIGHT, "Q8_0", "Q4_0")
    ]
    assert planned(twice, quant="q8_0").report.events == []
    assert planned(twice).report.events == []


def test_plain_numbers_of_what_was_quantized_are_no_second_time() -> None:
    draft = planned(model(made_up(WEIGHT, (2, 256), "Q8_0"), dialect=None), "npz")
    assert draft.report.events == [Decoded(WEIGHT, "Q8_0", "F32")]


@pytest.mark.parametrize("via", ["source", "f16", "f32"])
def test_what_is_not_finite_is_counted_once(tmp_path: Path, via: str) -> None:
    """Whether there is something between the source and the file or not."""
    weights = builders.llama_weights()
    weights["model.layers.0.mlp.up_proj.weight"][1, 2:5] = np.nan
    folder = builders.llama_folder(tmp_path / "in", weights=weights)
    plan = converter.convert(folder, tmp_path / "out.gguf", Request(quant="bf16", via=via))
    found = [event for event in plan.report.events if isinstance(event, NotFinite)]
    assert found == [NotFinite("blk.0.ffn_up.weight", 3)]
    assert {step.intermediate is step.read for step in plan.steps} == ({True, False} if via == "f16" else {True})


def test_a_fallback_is_told_with_the_row_that_did_not_fit() -> None:
    draft = planned(model(made_up(WEIGHT, (2, 96), "F16")), quant="q6_k")
    assert events(draft, TypeFallback) == [TypeFallback(WEIGHT, "Q6_K", "Q8_0", 96)]
    assert planned(model(), quant="q6_k").report.events == []


def said(draft: Draft) -> Metadata:
    return dict(draft.checkpoint.config)


@pytest.mark.parametrize(
    ("old", "kept"),
    [
        (u32(15), 15), (u32(0), 0), (Value("u64", (1 << 32) - 1), (1 << 32) - 1),
        (Value("u64", 1 << 32), None), (Value("i32", -1), None), (Value("bool", True), None), (text("15"), None),
        (Value("f32", 15.0), None), (Array("u32", [15]), None),
    ],
)  # fmt: skip
def test_a_copy_is_of_the_type_that_it_was(old: Value | Array, kept: int | None) -> None:
    """Where that is a number that fits; the quantizer's version is always its own."""
    found = said(planned(model(config=ARCH | {"general.file_type": old, "general.quantization_version": u32(1)})))
    assert found["general.file_type"] == u32(1 if kept is None else kept)  # of the F16 matrix
    assert found["general.quantization_version"] == u32(2)
    assert said(planned(model(config=ARCH | {"general.file_type": old}), quant="q8_0"))["general.file_type"] == u32(7)


@pytest.mark.parametrize(
    ("tensors", "file_type"),
    [
        ((("a", (4, 256), "BF16"), ("b", (2, 256), "F16")), 32),
        ((("a", (2, 256), "F16"), ("b", (4, 256), "BF16")), 32),
        ((("a", (2, 256), "F16"), ("b", (1024,), "F32")), 1),  # vectors do not count
        ((("a", (2, 256), "Q6_K"),), 18),
        ((("a", (2, 256), "F32"),), 0),
        ((("a", (2, 256), "F64"),), 0),  # which is no recipe's
        ((("a", (1024,), "F16"),), 0),
    ],
)
def test_the_type_of_a_file_is_that_of_its_largest_matrix(
    tensors: tuple[tuple[str, tuple[int, ...], str], ...], file_type: int
) -> None:
    draft = planned(model(*(made_up(*each) for each in tensors)))
    assert said(draft)["general.file_type"] == u32(file_type)


def test_what_the_file_says_of_itself_stands_last(tmp_path: Path) -> None:
    """Keys of an earlier importance matrix go where there is another, and only there."""
    old = {"general.file_type": u32(1), imatrix.KEYS[0]: text("old.dat"), "llama.block_count": u32(1)}
    plain = said(planned(model(config=ARCH | old), quant="q4_0"))
    own = ["general.quantization_version", "general.file_type"]
    assert list(plain) == ["general.architecture", imatrix.KEYS[0], "llama.block_count", *own]
    path = tmp_path / "new.dat"
    path.write_bytes(importance.dat_bytes({WEIGHT: np.ones(256, np.float32)}))
    draft = planned(model(config=ARCH | old), quant="q4_0", imatrix=path)
    draft.checkpoint.close()
    assert list(said(draft))[:4] == ["general.architecture", "llama.block_count", *own]
    assert said(draft)[imatrix.KEYS[0]] == text("new.dat")
    assert draft.checkpoint.files == (path,)


@pytest.mark.parametrize(
    ("tensors", "fields", "name"),
    [
        ((("a", (2, 256), "F16"), ("b", (4, 256), "F32")), {}, "A-F32.gguf"),
        ((("a", (16, 256), "F16"), ("b", (4, 256), "F32")), {}, "A-F16.gguf"),
        ((("a", (16, 256), "F16"),), {"quant": "q8_0"}, "A-Q8_0.gguf"),
    ],
)
def test_a_file_is_named_by_its_type(
    tensors: tuple[tuple[str, tuple[int, ...], str], ...], fields: dict[str, Any], name: str
) -> None:
    opened = model(*(made_up(*each) for each in tensors), config=ARCH | {"general.basename": text("A")})
    draft = run(replace(drafted(opened, "gguf", **fields), unnamed=True), PASSES)
    assert (draft.path, draft.unnamed) == (Path("out") / name, False)
    assert draft.layout is not None and draft.layout.files[0].path == draft.path
    assert planned(opened, **fields).path == Path("out")


def test_a_file_of_nothing_has_a_name_too() -> None:
    empty = replace(model(config={}), tensors={})
    draft = name_file(replace(run(drafted(empty, "gguf"), (*MODEL, *TYPES)), unnamed=True))
    assert draft.path == Path("out") / "ggml-model-F32.gguf"


def test_free_texts_without_a_place_are_lost() -> None:
    """Not the framework, which any reader knows; nor what the format keeps, one of them or all."""
    opened = model(dialect=None, config={}, metadata={"format": "pt", "author": "x", "note": "y"})
    npz = formats()["npz"]

    def lost(kept: frozenset[str] | None) -> list[Event]:
        draft = replace(drafted(opened, "npz"), target=replace(npz, free_metadata=kept))
        return lay_out(run(draft, (*ASKED, *MODEL, *TYPES, encode))).report.events

    assert lost(frozenset()) == [MetadataLost(key, "npz holds no free texts") for key in ("author", "note")]
    assert lost(frozenset({"author"})) == [MetadataLost("note", "npz holds no free texts")]
    assert lost(None) == []
