"""Which architecture a model is, by every place that may say it, and in which order they count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from converter.architectures.spec import Architecture, HFClass, HParam
from converter.errors import UnknownArchitecture
from converter.mapping import detect as module
from converter.mapping.detect import detect, detect_gguf
from converter.metadata import Array, Value, text

SHARED = HFClass("Shared", "shared")
N_EXPERT = (HParam("n_expert", ("num_experts",), ("expert_count",), default=0),)
TOY = Architecture("toy", (HFClass("ToyLM", "toy"), HFClass("ToyModel", "toy_v2"), SHARED), (), ())
DENSE = Architecture("other", (HFClass("OtherLM", "other", takes="n_expert == 0"),), N_EXPERT, ())
MIXED = Architecture("othermoe", (HFClass("OtherLM", "other", takes="n_expert > 0"), SHARED), N_EXPERT, ())
KNOWN = {"toy": TOY, "other": DENSE, "othermoe": MIXED}
PLUGGED = {
    "plug": Architecture("plug", (HFClass("PlugLM", "plug"), HFClass("ToyModel", "toy")), (), ()),
    "toy": Architecture("toy", (HFClass("PlugToy", "plug_toy"),), (), ()),
}
UNKNOWN = (
    "no architecture answers to {}; `convert architectures` lists the known ones\n"
    "--arch NAME or --arch-file FILE says which it is, --tensors-only keeps its names"
)


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "architectures", lambda *_: KNOWN)
    monkeypatch.setattr(module, "plugged", lambda: PLUGGED)


@pytest.mark.parametrize(
    ("config", "name", "found"),
    [
        ({"architectures": ["ToyModel"]}, None, ("toy", "ToyModel")),
        ({"architectures": ["Strange", 7, "ToyModel"]}, None, ("toy", "ToyModel")),
        ({"architectures": ["Shared"]}, None, ("toy", "Shared")),  # the first of two that answer
        ({"architectures": ["OtherLM"]}, None, ("other", "OtherLM")),
        ({"architectures": ["OtherLM"], "num_experts": 4}, None, ("othermoe", "OtherLM")),
        # the whole model's class, then its text model's, then the type
        ({"architectures": ["ToyLM"], "text_config": {"architectures": ["OtherLM"]}}, None, ("toy", "ToyLM")),
        ({"architectures": ["ToyVision"], "text_config": {"architectures": ["OtherLM"]}}, None, ("other", "OtherLM")),
        ({"model_type": "toy", "text_config": {"architectures": ["OtherLM"]}}, None, ("other", "OtherLM")),
        ({"model_type": "toy_v2"}, None, ("toy", "ToyModel")),
        ({"model_type": "toy_v2", "architectures": "ToyLM"}, None, ("toy", "ToyModel")),  # a text is no list
        ({"model_type": "other", "num_experts": 4}, None, ("othermoe", "OtherLM")),
        # what the caller says wins over all
        ({"architectures": ["ToyLM"], "model_type": "toy"}, "OtherLM", ("other", "OtherLM")),
        ({"architectures": ["OtherLM"]}, "toy", ("toy", "ToyLM")),
        # of a chosen architecture the class by name, by type, else the first
        ({"architectures": ["A", "ToyModel"], "model_type": "shared"}, "toy", ("toy", "ToyModel")),
        ({"text_config": {"architectures": ["Shared"]}, "model_type": "toy_v2"}, "toy", ("toy", "Shared")),
        ({"model_type": "toy_v2"}, "toy", ("toy", "ToyModel")),
        ({"model_type": "strange"}, "toy", ("toy", "ToyLM")),
        # others' architectures only where none of ours answers
        ({"architectures": ["PlugLM"]}, None, ("plug", "PlugLM")),
        ({"architectures": ["PlugLM", "ToyLM"]}, None, ("toy", "ToyLM")),
        ({"architectures": ["ToyModel"], "model_type": "toy"}, "plug", ("plug", "ToyModel")),
        ({"model_type": "plug_toy"}, None, ("toy", "PlugToy")),
        ({}, "PlugToy", ("toy", "PlugToy")),
        ({"architectures": ["OtherLM"], "num_experts": 0}, "othermoe", ("othermoe", "OtherLM")),
    ],
)
def test_what_says_the_architecture(config: dict[str, Any], name: str | None, found: tuple[str, str]) -> None:
    architecture, hf = detect(config, name)
    assert (architecture.gguf, hf.name) == found and hf in architecture.hf


@pytest.mark.parametrize(
    ("config", "name", "said"),
    [
        ({}, None, "model_type None"),
        ({"model_type": "strange"}, None, "model_type 'strange'"),
        ({"architectures": ["A"], "model_type": "toy"}, None, "'A'"),
        ({"architectures": ["A", "B", "C", "D"]}, None, "'A', 'B', 'C'"),
        ({"architectures": ["ToyLM"], "text_config": {"architectures": ["ToyLM"]}, "model_type": "toy"}, "N", "'N'"),
    ],
)
def test_what_no_architecture_answers_to(config: dict[str, Any], name: str | None, said: str) -> None:
    with pytest.raises(UnknownArchitecture) as caught:
        detect(config, name)
    assert str(caught.value) == UNKNOWN.format(said)


def test_the_architecture_of_a_gguf() -> None:
    said = {"general.architecture": text("toy")}
    assert detect_gguf(said) is TOY
    assert detect_gguf(said, "othermoe") is detect_gguf({}, "othermoe") is MIXED
    assert detect_gguf({"general.architecture": text("plug")}) is detect_gguf(said, "plug") is PLUGGED["plug"]


def test_a_file_that_the_caller_names_is_read_and_one_that_a_model_names_is_not(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('gguf = "own"\n[[class]]\nname = "A"\nmodel_type = "a"\n[[class]]\nname = "B"\nmodel_type = "b"\n')
    architecture, hf = detect({"model_type": "b"}, str(path))
    assert (architecture.gguf, hf.name) == ("own", "B")
    assert detect_gguf({"general.architecture": text("toy")}, str(path)).gguf == "own"
    for said in (str(path), str(tmp_path / "none.toml")):
        with pytest.raises(UnknownArchitecture):
            detect_gguf({"general.architecture": text(said)})
        with pytest.raises(UnknownArchitecture):
            detect({"architectures": [said], "model_type": said})


@pytest.mark.parametrize(
    ("value", "name", "said"),
    [
        (text("strange"), None, "'strange'"),
        (Value("u32", 7), None, "7"),
        (Array("str", ["toy"]), None, "None"),
        (None, None, "None"),
        (text("toy"), "strange", "'strange'"),
        (text("ToyLM"), None, "'ToyLM'"),  # a class is no word of a GGUF
    ],
)
def test_a_gguf_of_no_known_architecture(value: Value | Array | None, name: str | None, said: str) -> None:
    metadata = {} if value is None else {"general.architecture": value}
    with pytest.raises(UnknownArchitecture) as caught:
        detect_gguf(metadata, name)
    assert str(caught.value) == UNKNOWN.format(said)


@pytest.mark.parametrize(
    ("config", "gguf"),
    [
        ({"model_type": "toy"}, "toy"),
        ({"model_type": "other", "num_experts": 2}, "othermoe"),
        ({"model_type": "both", "text_config": {"model_type": "toy_v2"}}, "toy"),
    ],
)
def test_a_classifier_is_its_model_without_a_head(config: dict[str, Any], gguf: str) -> None:
    architecture, hf = detect({"architectures": ["NewForSequenceClassification"], **config})
    assert (architecture.gguf, hf.name, hf.head) == (gguf, "NewForSequenceClassification", False)


@pytest.mark.parametrize(("cls", "kind"), [("NewForSequenceClassification", "nobody"), ("NewForTokens", "toy")])
def test_other_classes_are_not_guessed(cls: str, kind: str) -> None:
    with pytest.raises(UnknownArchitecture):
        detect({"architectures": [cls], "model_type": kind})
