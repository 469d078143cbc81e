"""Programs of PyTorch: exported ones (.pt2), whose graph is taken where nothing in it could run; TorchScript is not."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import onnx_cases
from support.traced import outputs, relative

import converter
from converter.errors import UnsupportedFeature, UsageError
from converter.formats.registry import open_checkpoint
from converter.formats.torch.exported import ExportedProgram

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")


class SimpleModel(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)
        self.register_buffer("scale", torch.tensor([2.0, 3.0]))
        self.shift = torch.tensor([1.0, 2.0])

    def forward(self, x: Any) -> Any:
        return self.second(torch.relu(self.first(x))) * self.scale + self.shift


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return SimpleModel().eval()


@pytest.fixture
def file(model: Any, tmp_path: Path) -> Path:
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(model, (torch.zeros(2, 4),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


def changed(file: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The file with its graph's JSON changed."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("models/model.json"))
    program = json.loads(members[name])
    change(program)
    members[name] = json.dumps(program).encode()
    made = file.with_name("changed.pt2")
    with zipfile.ZipFile(made, "w") as archive:
        for each, data in members.items():
            archive.writestr(each, data)
    return made


def test_tensors_are_those_of_the_model(file: Path, model: Any) -> None:
    with open_checkpoint(file) as checkpoint:
        found = {name: tensor.array() for name, tensor in checkpoint.tensors.items()}
        assert isinstance(checkpoint.structure, ExportedProgram) and not checkpoint.structure.refused
        checkpoint.check()
    want = {**model.state_dict(), "shift": model.shift}
    assert found.keys() == want.keys()
    assert all(np.array_equal(found[name], want[name].numpy()) for name in want)


def test_it_computes_what_the_program_does(file: Path, model: Any) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    target = file.with_name("model.onnx")
    plan = converter.convert(file, target)
    assert any("translated by torch" in str(event) for event in plan.report.events)
    onnx.checker.check_model(str(target), full_check=True)
    assert {each.name for each in onnx.load(target).graph.initializer} >= {"first.weight", "scale", "shift"}
    for batch in (1, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 4), np.float32)
        with torch.no_grad():
            want = model(torch.tensor(x)).numpy()
        assert relative(outputs(onnx_cases.session(target), {"x": x})["output"], want) < 1e-5


def test_what_cannot_be_asked_of_it(file: Path) -> None:
    with pytest.raises(UsageError, match="its own types"):
        converter.convert(file, file.with_name("model.onnx"), converter.Request(dtype="f16"))
    plan = converter.convert(file, file.with_name("model.safetensors"))
    assert any("its graph is not" in str(event) for event in plan.report.events)


def node(program: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = program["graph_module"]["graph"]["nodes"][0]
    return first


def size(program: dict[str, Any], text: str) -> None:
    program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text


def called(program: dict[str, Any], spec: dict[str, Any]) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = json.dumps([1, spec])


#: What `torch.export.load` would look up, evaluate or compile.
HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a function of Python's": lambda each: node(each).update(target="torch.hub.os.system"),
    "a module's": lambda each: node(each).update(target="torch.serialization.load"),
    "an operator that reads files": lambda each: node(each).update(target="torch.ops.aten.from_file.default"),
    "an operator of others": lambda each: node(each).update(target="torch.ops.mine.run.default"),
    "a name that is code": lambda each: node(each).update(name="x=print(1)"),
    "a size that is code": lambda each: size(each, "__import__('os').system('true')"),
    "a size with an attribute": lambda each: size(each, "Symbol('s77').__class__"),
    "a size with another name": lambda each: size(each, "open('there')"),
    "a size without end": lambda each: size(each, "1+" * 5000 + "1"),
    "another container": lambda each: called(each, {"type": "os.system", "context": "null", "children_spec": []}),
    "objects": lambda each: each["graph_module"]["graph"].update(custom_obj_values={"a": {"class_fqn": "a"}}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_graph_with_anything_to_run_is_refused(name: str, file: Path) -> None:
    made = changed(file, HOSTILE[name])
    with pytest.raises(UnsupportedFeature, match="no graph can be made of it") as caught:
        converter.convert(made, file.with_name("model.onnx"))
    assert len(str(caught.value).splitlines()) <= 3
    converter.convert(made, file.with_name("model.safetensors"))  # the tensors are as good as ever


def test_what_would_be_run_when_it_is_called_is_left_out(file: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        program["guards_code"] = ["print(1)"]
        node(program)["metadata"]["nn_module_stack"] = "x,,os.system"

    with open_checkpoint(changed(file, change)) as checkpoint:
        assert isinstance(checkpoint.structure, ExportedProgram) and not checkpoint.structure.refused
        assert checkpoint.structure.program["guards_code"] == [] and "os.system" not in str(
            checkpoint.structure.program
        )


def test_torchscript_is_code(model: Any, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(model, torch.zeros(2, 4)), tmp_path / "module.pt")
    with pytest.raises(UnsupportedFeature, match=r"TorchScript is code.*\n.*torch.export.save"):
        converter.convert(tmp_path / "module.pt", tmp_path / "model.onnx")
    converter.convert(tmp_path / "module.pt", tmp_path / "model.onnx", converter.Request(tensors_only=True))
    converter.convert(tmp_path / "module.pt", tmp_path / "model.safetensors")


def test_a_pickled_model_says_what_to_save_instead(model: Any, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "model.pt")
    torch.save({"model": model, "epoch": 3}, tmp_path / "training.pt")
    for name in ("model.pt", "training.pt"):
        for target in ("model.onnx", "model.safetensors"):
            with pytest.raises(UnsupportedFeature, match=r"SimpleModel.*\n.*state_dict\(\).*\n.*torch.export.save"):
                converter.convert(tmp_path / name, tmp_path / target)
