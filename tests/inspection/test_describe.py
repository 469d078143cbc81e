"""What `inspect` says of a file beyond its tensors: the other parts of a training run's checkpoint."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support import torch_files

from converter.checkpoint import Part
from converter.cli.main import main
from converter.diff import diff
from converter.errors import UsageError
from converter.inspection.describe import inspect


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """{"model": {"w"}, "model_ema": {"w", "v"}, "epoch": 7}, whose EMA has other values."""
    arrays = {"0": np.arange(6, dtype="<f4").tobytes(), "1": np.ones(6, "<f4").tobytes()}
    own, averaged = (torch_files.tensor(torch_files.storage(key=key)) for key in arrays)
    body = {
        "model": torch_files.dictionary({"w": own}),
        "model_ema": torch_files.dictionary({"w": averaged, "v": averaged}),
        "epoch": torch_files.integer(7),
    }
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(torch_files.archive(torch_files.dictionary(body), arrays))
    return path


MODEL, AVERAGE = ("model", 1), ("model_ema", 2)


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        (None, (Part(*MODEL, shown=True), Part(*AVERAGE))),
        ("model_ema", (Part(*AVERAGE, shown=True), Part(*MODEL))),
        (".", ()),
    ],
)
def test_other_parts_are_told(nested: Path, key: str | None, parts: tuple[Part, ...]) -> None:
    found = inspect(nested, key=key)
    assert found.parts == parts
    assert found.as_dict()["parts"] == [vars(part) for part in parts]
    assert ("parts" in dict(found.summary())) == bool(parts)


def test_a_part_that_is_not_there(nested: Path) -> None:
    with pytest.raises(UsageError, match=r"there are: model, model_ema"):
        inspect(nested, key="optimizer")


def test_parts_on_the_command_line(nested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(nested)]) == 0
    assert "model 1 tensor (shown), model_ema 2 tensors (--key model_ema)" in capsys.readouterr().out
    assert main(["inspect", str(nested), "--key", "model_ema", "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)["tensors"]] == ["w", "v"]


def test_parts_of_one_file_are_compared(nested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diff(nested, nested).equal
    found = diff(nested, nested, before_key="model", after_key="model_ema")
    assert {(change.kind, change.name) for change in found.changes} == {("changed", "w"), ("added", "v")}
    arguments = ["diff", str(nested), str(nested), "--key", "model", "--key", "model_ema"]
    assert main(arguments) == 1 and "v: F32 2x3" in capsys.readouterr().out
    assert main([*arguments, "--key", "x"]) == 2


def test_an_optimizer_in_hdf5_is_told(data: Path) -> None:
    path = data / "keras-h5-face" / "tiny_XCEPTION_KDEF.hdf5"
    shown, rest = inspect(path).parts
    assert (shown.name, shown.shown, rest.name, rest.shown) == ("model", True, "optimizer_weights", False)
    other = inspect(path, key="optimizer_weights")
    assert len(other.tensors) == rest.tensors and [part.shown for part in other.parts] == [True, False]
    assert inspect(path, key=".").parts == ()


def test_an_onnx_model_tells_its_graph(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the onnx package reads it."""
    onnx = pytest.importorskip("onnx")
    path = data / "basic-pitch" / "nmp.onnx"
    model = onnx.load(path)
    found = inspect(path)
    assert found.graph is not None and found.graph.producer == f"{model.producer_name} {model.producer_version}".strip()
    assert found.graph.opsets == {each.domain: each.version for each in model.opset_import}
    stored = {each.name for each in model.graph.initializer}
    assert found.graph.inputs == tuple(each.name for each in model.graph.input if each.name not in stored)
    assert found.graph.outputs == tuple(each.name for each in model.graph.output)
    assert found.graph.operators == Counter(node.op_type for node in model.graph.node)
    whole = [tensor.info for tensor in found.tensors if tensor.info.dtype.name == "I64"]
    assert found.n_constants == len(whole) > 0
    assert found.n_parameters == sum(tensor.info.n_elements for tensor in found.tensors if tensor.info not in whole)
    shown = dict(found.summary())
    assert shown["opset"].startswith(str(found.graph.opsets[""])) and "Conv" in shown["operators"]
    assert f"{found.n_constants} constants of its graph" in shown["parameters"]
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["graph"]["outputs"] == list(found.graph.outputs)
