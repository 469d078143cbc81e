"""What a person asks for: values that compare, hash, and survive JSON and pickle."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from converter.errors import UsageError
from converter.mixture import Mixture, Rule
from converter.request import FIELDS, PARTS, Fields, Model, Output, Request, Source, Types

#: Another value than the default for every field.
OTHER: dict[str, Any] = {
    "quant": "q4_k_m",
    "pure": True,
    "tensor_types": (("ffn_down", "q6_k"), ("attn", "q8_0")),
    "output_type": "q8_0",
    "embedding_type": "q5_0",
    "leave_output": True,
    "no_fallback": True,
    "allow_requantize": True,
    "imatrix": Path("folder") / "i.gguf",
    "include_weights": ("ffn",),
    "exclude_weights": ("attn", "output"),
    "via": "f16",
    "dtype": "bf16",
    "arch": "llama",
    "pre": "gpt-2",
    "name": "Llama",
    "tensors_only": True,
    "no_tokenizer": True,
    "mmproj": True,
    "no_nextn": True,
    "no_head": True,
    "dense_modules": True,
    "format": "hf",
    "strict": True,
    "split_max_size": 2_000_000_000,
    "split_max_tensors": 10,
    "external_data": "never",
    "keep_codes": "near",
    "scheme": "fp8",
    "scale": "mse",
    "exact": True,
    "profile": "opset18",
    "calibration": Path("text.txt"),
    "calibrate": Path("llama.calibration.safetensors"),
    "effort": 1,
    "recipe": Mixture("Q4_0", (Rule("output.weight", "Q6_K", kl=0.5),), "llama", 2, "by hand"),
    "spread": (Path("disk"),),
}


def test_every_field_has_another_value_here() -> None:
    assert OTHER.keys() == FIELDS.keys()
    default = Request()
    assert not [name for name, part in FIELDS.items() if getattr(getattr(default, part), name) == OTHER[name]]


def test_the_keywords_are_the_fields_of_the_parts() -> None:
    assert list(Fields.__annotations__) == [field.name for kind in PARTS.values() for field in fields(kind)]
    wider = {
        "tensor_types",
        "include_weights",
        "exclude_weights",
        "imatrix",
        "mmproj",
        "calibration",
        "calibrate",
        "spread",
    }  # lists and texts are taken, too
    own = {name: hint for kind in PARTS.values() for name, hint in get_type_hints(kind).items()}
    keywords = get_type_hints(Fields)
    assert {name for name in own if keywords[name] != own[name]} == wider


def test_keywords_and_parts_say_the_same() -> None:
    by_part = Request(Types(quant="q8_0", pure=True), Model(arch="llama"), Output(strict=True))
    by_name = Request(quant="q8_0", pure=True, arch="llama", strict=True)
    assert by_part == by_name and hash(by_part) == hash(by_name)
    assert Request(Types(quant="q8_0"), pure=True).types == Types(quant="q8_0", pure=True)
    assert by_name.replace(quant=None, arch="qwen2") == Request(pure=True, arch="qwen2", strict=True)
    assert Request() == Request(Types(), Model(), Output())


@pytest.mark.parametrize("name", OTHER)
def test_a_field_is_in_its_part_alone(name: str) -> None:
    request = Request(**{name: OTHER[name]})
    assert request != Request()
    assert getattr(getattr(request, FIELDS[name]), name) == OTHER[name]
    rest = set(PARTS) - {FIELDS[name]}
    assert all(getattr(request, part) == getattr(Request(), part) for part in rest)
    assert request.replace(**{name: getattr(getattr(Request(), FIELDS[name]), name)}) == Request()


def test_lists_and_texts_become_values_that_hash() -> None:
    request = Request(tensor_types=[["a", "q8_0"]], include_weights=["x"], exclude_weights=["y"], imatrix="i.gguf")  # type: ignore[list-item]
    same = Request(
        tensor_types=(("a", "q8_0"),), include_weights=("x",), exclude_weights=("y",), imatrix=Path("i.gguf")
    )
    assert request == same and hash(request) == hash(same)
    assert Source("a", config="b") == Source(Path("a"), config=Path("b"))
    assert hash(Source("a")) == hash(Source(Path("a"))) and Source.of("a") == Source("a")
    assert Source.of(Source("a", "gguf")) == Source("a", "gguf")


@pytest.mark.parametrize("request_", [Request(), Request(**OTHER)], ids=["default", "other"])
def test_json_and_pickle_give_the_same_request(request_: Request) -> None:
    there = json.loads(json.dumps(request_.as_dict()))
    assert Request.from_dict(there) == request_
    assert pickle.loads(pickle.dumps(request_)) == request_


def test_json_and_pickle_give_the_same_source() -> None:
    lora = Source("m", adapters=[("a", 1), (Path("b"), 0.5)])
    for source in (Source("model"), Source("m.pt", "torch", Path("f"), "optimizer.state"), lora, Source("a", base="m")):
        assert Source.from_dict(json.loads(json.dumps(source.as_dict()))) == source
        assert pickle.loads(pickle.dumps(source)) == source
    assert lora.as_dict()["adapters"] == [["a", 1.0], ["b", 0.5]]
    said = {"path": "m", "format": None, "config": None, "key": "k", "adapters": [], "base": None}
    assert Source("m", key="k").as_dict() == said


def test_json_says_a_part_in_an_object() -> None:
    made = Request(quant="q8_0", include_weights=("a",), imatrix=Path("i.dat"), arch="llama").as_dict()
    assert list(made) == ["types", "model", "output"]
    assert made["types"]["quant"] == "q8_0" and made["types"]["include_weights"] == ["a"]
    assert made["types"]["imatrix"] == "i.dat" and made["model"]["arch"] == "llama"
    assert made["output"] == {
        "format": None,
        "strict": False,
        "split_max_size": None,
        "split_max_tensors": None,
        "external_data": "auto",
        "spread": [],
    }
    assert Request.from_dict({"types": {"quant": "q8_0"}}) == Request(quant="q8_0")


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Request has no field 'quants'; did you mean quant"):
        Request(quants="q8_0")  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="a request has no part 'kinds'; there are types, model, output"):
        Request.from_dict({"kinds": {}})
    with pytest.raises(UsageError, match="Types cannot be made of quants; it has quant, recipe"):
        Request.from_dict({"types": {"quants": "q8_0"}})
    with pytest.raises(UsageError, match="Types cannot be made of tensor_types"):
        Request.from_dict({"types": {"tensor_types": [["a", "b", "c"]]}})
    with pytest.raises(UsageError, match="Source cannot be made of key; it has path, format"):
        Source.from_dict({"key": "a"})


def test_values_are_frozen() -> None:
    for value, name in ((Source("a"), "path"), (Request(), "types"), (Types(), "quant"), (Model(), "arch")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)
