"""INT8 with ranges of activations that a text finds: the ranges, and what is left of finding them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures, models, onnx_cases

import converter
from converter import extras
from converter.cli.main import main
from converter.errors import MissingDependency, MissingPart, UsageError
from converter.formats.registry import open_checkpoint
from converter.planning import calibration
from converter.planning.calibration import WINDOW, Calibration
from converter.runtimes.onnxruntime import OnnxRuntime

onnxruntime = pytest.importorskip("onnxruntime")
transformers = pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")

STORIES = models.FIXTURES / "stories260K"
NEAR = 0.08
WORDS = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her dog. "


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(WORDS * 12, "utf-8")
    return tmp_path / "text.txt"


def asked(text: Path) -> converter.Request:
    return converter.Request(quant="int8-static", calibration=text)


def made(source: Path, text: Path, name: str = "model.onnx") -> Path:
    path = text.with_name(name)
    converter.convert(source, path, asked(text))
    onnx.checker.check_model(str(path), full_check=True)
    return path


def initializers(path: Path) -> dict[str, Any]:
    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_ranges_are_those_of_what_matrices_meet(text: Path) -> None:
    """Of transformers' own model, layer by layer, in windows of as many tokens."""
    import torch

    own = initializers(made(STORIES, text))
    model = transformers.AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    ids = transformers.AutoTokenizer.from_pretrained(STORIES).encode(text.read_text())
    assert len(ids) > WINDOW
    met: dict[str, list[float]] = {}

    def note(name: str) -> Any:
        def hook(_: object, given: Any) -> None:
            low, high = met.setdefault(name, [0.0, 0.0])
            met[name] = [min(low, float(given[0].min())), max(high, float(given[0].max()))]

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(note(f"{name}.weight"))
    with torch.no_grad():
        for start in range(0, len(ids), WINDOW):
            model(torch.tensor([ids[start : start + WINDOW]]))
    met["model.embed_tokens.weight"] = met.pop("lm_head.weight")  # tied
    scales = {name.removesuffix(".input_scale"): each for name, each in own.items() if name.endswith(".input_scale")}
    assert len(scales) == 4 * model.config.num_hidden_layers + 1
    for name, scale in scales.items():
        low, high = met[name]
        assert scale == pytest.approx((high - low) / 255, rel=1e-4), name
        assert abs(int(own[f"{name}.input_zero_point"]) + low / scale) < 0.51, name


def test_a_decoder(text: Path) -> None:
    path = made(STORIES, text)
    operators = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    assert "MatMulInteger" not in operators and operators.count("QuantizeLinear") == 4 * 5 + 1
    ids = np.array([transformers.AutoTokenizer.from_pretrained(STORIES).encode(WORDS)])
    reference, _ = onnx_cases.torch_reference(STORIES)
    wanted = reference(ids, np.ones_like(ids))
    found = onnx_cases.run(onnx_cases.session(path), ids, np.ones_like(ids), None)["logits"]
    assert np.abs(found - wanted).max() < NEAR * np.abs(wanted).max()
    assert not left_over(path.parent)


def test_the_same_text_gives_the_same_bytes(text: Path) -> None:
    first, second = made(STORIES, text, "a.onnx"), made(STORIES, text, "b.onnx")
    assert {name: each.tobytes() for name, each in initializers(first).items()} == {
        name: each.tobytes() for name, each in initializers(second).items()
    }
    text.write_text(WORDS[:40])
    third = initializers(made(STORIES, text, "c.onnx"))
    name = "model.layers.0.mlp.down_proj.weight.input_scale"
    assert third[name] < initializers(first)[name]


@pytest.mark.parametrize("name", ["qwen3moe-96", "bert-tiny"])
def test_mixtures_and_encoders(name: str, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples without a tokenizer: any tokens."""
    ids = np.random.default_rng(3).integers(5, 90, 300).tolist()
    monkeypatch.setattr(calibration, "probe_ids", lambda *_: ids)
    encoder = name == "bert-tiny"
    build = architectures.build if encoder else models.build_model
    folder = build(name, text.parent)
    path = made(folder, text)
    converter.convert(folder, text.with_name("plain.onnx"))
    feeds = {"input_ids": np.array([ids[:30]]), "attention_mask": np.ones((1, 30), np.int64)}
    found = []
    for each in (path, text.with_name("plain.onnx")):
        session = onnx_cases.session(each)
        if encoder:
            more = {"token_type_ids": np.zeros((1, 30), np.int64)}
            found.append(session.run(["last_hidden_state"], feeds | more)[0])
        else:
            found.append(onnx_cases.run(session, *feeds.values(), None)["logits"])
    errors = np.abs(found[0] - found[1]).max(axis=-1) / np.abs(found[1]).max()
    assert np.median(errors) < NEAR


def test_weights_are_verified(text: Path) -> None:
    path = made(STORIES, text)
    from converter.verify import verify

    found = verify(STORIES, path)
    assert found.passed, [str(each) for each in found.findings]
    assert any(each.type == "INT8" and each.reproduced for each in found.tensors)
    with open_checkpoint(path) as own:
        assert "converter.gguf" not in own.metadata and own.dialect == "gguf"


# ------------------------------------------------------------------------------------------------------ running


def test_a_plan_runs_nothing(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Calibration, "run", lambda _: pytest.fail("it was run"))
    with converter.plan(STORIES, text.with_name("model.onnx"), asked(text)).checkpoint:
        pass
    assert {path.name for path in text.parent.iterdir()} == {"text.txt"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_nothing_is_left_where_it_ends(error: type[BaseException], text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(*_: object) -> None:
        assert left_over(text.parent)
        raise error

    monkeypatch.setattr(OnnxRuntime, "given", given)
    with pytest.raises(error):
        converter.convert(STORIES, text.with_name("model.onnx"), asked(text))
    assert {path.name for path in text.parent.iterdir()} == {"text.txt"}


def test_without_onnxruntime(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = extras.import_module

    def missing(name: str) -> Any:
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(extras, "import_module", missing)
    with pytest.raises(MissingDependency, match="pip install onnxruntime"):
        converter.convert(STORIES, text.with_name("model.onnx"), asked(text))
    assert {path.name for path in text.parent.iterdir()} == {"text.txt"}


def test_without_a_tokenizer(text: Path) -> None:
    folder = text.parent / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(STORIES / name, folder)
    with pytest.raises(MissingPart, match="no tokenizer"):
        converter.convert(folder, text.with_name("model.onnx"), asked(text))


def test_what_does_not_go_together(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = text.with_name("model.onnx")
    with pytest.raises(UsageError, match="pass --calibration TEXT"):
        converter.convert(STORIES, target, converter.Request(quant="int8-static"))
    with pytest.raises(UsageError, match="--calibration TEXT: finds ranges"):
        converter.convert(STORIES, target, converter.Request(quant="int8", calibration=text))
    with pytest.raises(UsageError, match="--exact: leaves activations"):
        converter.convert(STORIES, target, asked(text).replace(exact=True))
    text.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        converter.convert(STORIES, target, asked(text))
    assert main([str(STORIES), str(target), "-q", "int8-static", "--calibration", "nowhere.txt"]) == 50
    assert "nowhere.txt" in capsys.readouterr().err
