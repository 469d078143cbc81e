"""Graphs in the making: what is written of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import architectures
from support.onnx_cases import unread

import converter
from converter.graphs.builder import Builder
from converter.tensors.dtypes import F32


def test_what_no_output_is_made_of_is_left_out() -> None:
    build = Builder(F32)
    one, two, three, four = map(build.number, (1, 2, 3, 4))
    left = build.op("Add", "x", one)
    build.op("Neg", left)
    kept = build.op("Mul", "x", two)
    after = build.scan(lambda states, _: ([build.op("Add", states[0], three)], []), [kept], ["x"], ["y"])
    assert after == ("y",)
    nodes, initializers = build.reached(after)
    assert [node.op for node in nodes] == ["Mul", "Scan"]
    assert list(initializers) == [two, three] and four in build.initializers


@pytest.mark.parametrize("name", ["phi2-tiny", "phimoe-tiny", "jina-bert-v2-tiny"])
@pytest.mark.parametrize("asked", [{}, {"profile": "opset18"}, {"quant": "q4_0"}], ids=["f32", "opset18", "q4_0"])
def test_nothing_is_written_for_nothing(name: str, asked: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    folder = architectures.build(name, tmp_path)
    converter.convert(folder, tmp_path / "model.onnx", converter.Request(**asked))
    assert not list(unread(tmp_path / "model.onnx"))
