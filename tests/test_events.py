"""Events for people: few lines for many of a kind, and every kind can say it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from support import models

from converter import events, pipeline
from converter.events import Decoded, Dropped, Event, MetadataLost, Note, StayBehind, TypeFallback, told
from converter.request import Request

STORIES = models.FIXTURES / "stories260K"


def test_few_have_a_line_each() -> None:
    own = [Dropped("a", "why"), Note("x"), Dropped("b", "why")]
    assert list(told(own)) == [(True, "a: dropped (why)"), (True, "b: dropped (why)"), (False, "x")]
    assert list(told([Note("same"), Note("same")])) == [(False, "same")]
    assert list(told([])) == []


@pytest.mark.parametrize(
    ("many", "lines"),
    [
        (
            [Decoded(f"t{i}", "Q4_K" if i < 39 else "Q6_K", "F32", 500_000) for i in range(44)],
            ["44 tensors decoded to F32: 39 Q4_K, 5 Q6_K (22.0 MB; --dtype bf16 halves it)"],
        ),
        (
            [Decoded(f"t{i}", "I2_S", "F32") for i in range(4)],
            ["4 tensors decoded to F32: 4 I2_S"],
        ),
        (
            [TypeFallback(f"t{i}", "IQ2_XXS", "F16" if i else "Q8_0", 172) for i in range(5)],
            ["rows of 5 tensors do not fit the wanted type: 4 F16 for IQ2_XXS, 1 Q8_0 for IQ2_XXS "
             "(--no-fallback fails instead)"],
        ),
        (
            [MetadataLost(f"k{i}", "npz holds no free texts" if i < 4 else "other") for i in range(5)],
            ["metadata k0, k1, k2 and 1 more: dropped (npz holds no free texts)", "metadata k4: dropped (other)"],
        ),
        ([Note(f"note {i}") for i in range(9)], [*(f"note {i}" for i in range(6)),
                                                 "... and 3 more of the kind (--json lists all)"]),
    ],
)  # fmt: skip
def test_many_have_few(many: list[Event], lines: list[str]) -> None:
    assert [line for _, line in told(many)] == lines
    assert {loss for loss, _ in told(many)} == {many[0].loss}


def _kinds(kind: type[Event] = Event) -> list[type[Event]]:
    return [each for below in kind.__subclasses__() for each in (below, *_kinds(below))]


@pytest.mark.parametrize("kind", [kind for kind in _kinds() if kind.__module__ == events.__name__])
def test_no_kind_is_called_as_in_the_program(kind: type[Event]) -> None:
    values: dict[str, Any] = {"str": "some", "int": 3, "float": 1.0, "tuple[int, int] | None": (1, 2)}
    many = [kind(**{f.name: values.get(str(f.type), ("a", "b")) for f in fields(kind)}) for _ in range(8)]
    many = [*many[:4], *(event for event in many[4:])]
    lines = [line for _, line in told(many)]
    assert lines and len(lines) < 8 and kind.__name__ not in " ".join(lines)


# -------------------------------------------------------------------------------------------- what stays behind


@pytest.mark.parametrize("extension", ["safetensors", "bin", "npz", "onnx", "h5", "msgpack"])
def test_a_file_of_weights_leaves_config_and_tokenizer(extension: str, tmp_path: Any) -> None:
    plan = pipeline.plan(STORIES, tmp_path / f"x.{extension}", Request(strict=True))
    plan.checkpoint.close()
    (left,) = (event for event in plan.report.events if isinstance(event, StayBehind))
    assert left.names[:3] == ("config.json", "tokenizer.json", "tokenizer.model") and not left.loss
    folder = "OUT/ --to onnx" if extension == "onnx" else "OUT/"
    assert str(left).startswith("config.json, tokenizer.json, tokenizer.model and ")
    assert str(left).endswith(f" more stay behind ({folder} writes a whole folder)")


def test_what_takes_them_along_does_not_say_so(tmp_path: Any) -> None:
    pipeline.convert(STORIES, tmp_path / "m.gguf")
    wanted = [
        (STORIES, "x.gguf", Request(), False),
        (STORIES, "x/", Request(), False),
        (STORIES, "x/", Request(format="onnx"), False),
        (STORIES, "x.npz", Request(tensors_only=True), False),
        (tmp_path / "m.gguf", "x.npz", Request(), True),
        (tmp_path / "m.gguf", "x.gguf", Request(), False),
        (tmp_path / "m.gguf", "x/", Request(), False),
        (tmp_path / "m.gguf", "x.onnx", Request(), False),
    ]
    for source, target, request, left in wanted:
        plan = pipeline.plan(source, f"{tmp_path}/{target}", request)
        plan.checkpoint.close()
        found = [str(event) for event in plan.report.events if isinstance(event, StayBehind)]
        assert found == (["config, tokenizer stay behind (OUT/ writes a whole folder)"] if left else []), target
