"""The Python API: its names, the documented promises of each function, progress and cancellation."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import models

import converter
from converter import Request
from converter.errors import (
    ConverterError,
    Interrupted,
    LossyError,
    MissingImportance,
    OutputExists,
    QuantizationError,
    SameFile,
    UnknownFormat,
)
from converter.request import FIELDS
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES

STORIES = models.FIXTURES / "stories260K"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build_model("mistral-256", tmp_path_factory.mktemp("wide"))


# -------------------------------------------------------------------------------------------------- names


def test_all_is_what_there_is() -> None:
    assert converter.__all__ == sorted(converter.__all__)
    for name in converter.__all__:
        value = getattr(converter, name)
        home = importlib.import_module(value.__module__)
        assert getattr(home, name) is value
        assert inspect.getdoc(value), f"{name} has no docstring"
    assert set(converter.__all__) <= set(dir(converter))
    assert {"convert", "open_checkpoint", "plan", "quantize", "dequantize"} <= set(converter.__all__)


def test_star_import_and_unknown_names() -> None:
    code = "from converter import *; import converter; assert set(converter.__all__) <= set(globals()); print(quantize)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        converter.quantise  # noqa: B018


CONSUMER = """
import converter
from converter.verify import verify

plan = converter.convert("in", "out.gguf", converter.Request(quant="q4_k_m"))
reveal_type(plan.bits_per_weight)
reveal_type(verify("in", "out.gguf").passed)
with converter.open_checkpoint("out.gguf") as model:
    reveal_type(model.tensors)
converter.quantise
converter.convert(path=1)
"""
SAID = (
    'Revealed type is "float"',
    'Revealed type is "bool"',
    'Revealed type is "typing.Mapping[str, converter.tensors.tensor.LazyTensor]"',
    'Module has no attribute "quantise"',
    'Unexpected keyword argument "path" for "convert"',
)


def test_type_checkers_see_the_public_names(tmp_path: Path) -> None:
    """A program of someone else's gets a type for every name, and an error where one is due."""
    pytest.importorskip("mypy")
    package = Path(converter.__file__).parent
    assert (package / "py.typed").is_file(), "without it, checkers take nothing from an installed package"
    names = "".join(f"reveal_type(converter.{name})\n" for name in converter.__all__)
    (tmp_path / "consumer.py").write_text(CONSUMER + names)
    options = ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={tmp_path / 'cache'}"]
    command = [sys.executable, "-m", "mypy", *options, "consumer.py"]
    environment = {**os.environ, "MYPYPATH": str(package.parent)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = [line.split(": ", 2)[2] for line in result.stdout.splitlines() if line.startswith("consumer.py:")]
    said = [line for line in said if "defined in" not in line]
    assert result.returncode == 1, result.stdout + result.stderr
    assert len(said) == len(SAID) + len(converter.__all__)
    assert all(line.startswith(wanted) for line, wanted in zip(said, SAID, strict=False)), said
    assert not [line for line in said if '"Any"' in line]


@pytest.mark.parametrize("name", ["convert", "plan", "run", "open_checkpoint", "quantize", "dequantize"])
def test_signatures_are_typed_and_options_are_keywords(name: str) -> None:
    signature = inspect.signature(getattr(converter, name))
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        if parameter.default is not inspect.Parameter.empty and parameter.name != "request":
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


def test_request_has_the_options_of_the_command_line() -> None:
    from converter.cli import verbs

    parsed = vars(verbs.parser("convert").parse_args(["in", "out"]))
    spelled = {"tensor_types": "tensor_type", "format": "target_type"}
    assert {spelled.get(field, field) for field in FIELDS} <= parsed.keys()


# ---------------------------------------------------------------------------------------------- convert


def test_convert_returns_the_plan_it_carried_out(tmp_path: Path) -> None:
    seen: list[converter.Plan] = []
    target = tmp_path / "out.gguf"

    def on_plan(plan: converter.Plan) -> None:
        assert not target.exists()
        seen.append(plan)

    plan = converter.convert(str(STORIES), str(target), Request(quant="q8_0"), on_plan=on_plan)
    assert seen == [plan]
    assert plan.total_bytes == target.stat().st_size
    assert {step.type for step in plan.steps} == {"Q8_0", "F16", "F32"}
    assert any(event.kind == "TypeFallback" for event in plan.report.events)
    assert str(plan).startswith("{")


def test_a_plan_can_be_looked_at_and_then_run(tmp_path: Path) -> None:
    plan = converter.plan(STORIES, tmp_path / "out.gguf", Request(quant="f16"))
    assert not list(tmp_path.iterdir())
    with plan.checkpoint:
        converter.run(plan)
        with pytest.raises(OutputExists):
            converter.run(plan)
        converter.run(plan, force=True)
    assert (tmp_path / "out.gguf").stat().st_size == plan.total_bytes


@pytest.mark.parametrize("slab", [4096, kernels.SLAB_NBYTES])
def test_threads_and_slabs_do_not_change_a_byte(
    slab: int, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter.convert(wide, tmp_path / "one.gguf", Request(quant="q4_k_m"), threads=1)
    monkeypatch.setattr(kernels, "SLAB_NBYTES", slab)
    converter.convert(wide, tmp_path / "many.gguf", Request(quant="q4_k_m"), threads=7)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()


def test_a_folder_as_target_gets_a_named_file(tmp_path: Path) -> None:
    plan = converter.convert(STORIES, tmp_path, Request(quant="q4_0"))
    (file,) = tmp_path.iterdir()
    assert file == plan.layout.files[0].path and file.name.endswith("-Q4_0.gguf")


def test_errors_are_one_family(tmp_path: Path) -> None:
    for arguments, error in (
        ((tmp_path / "absent", tmp_path / "o.gguf"), ConverterError),
        ((STORIES, tmp_path / "o.doc"), UnknownFormat),
        ((STORIES / "model.safetensors", STORIES / "model.safetensors"), SameFile),
    ):
        with pytest.raises(error) as caught:
            converter.convert(*arguments)
        assert isinstance(caught.value, ConverterError) and caught.value.exit_code >= 10
    with pytest.raises(LossyError):
        converter.convert(STORIES, tmp_path / "o.gguf", Request(quant="q4_k_m", strict=True))
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------- progress


def test_progress_counts_every_byte_once(wide: Path, tmp_path: Path) -> None:
    seen: list[converter.Progress] = []
    plan = converter.convert(wide, tmp_path / "out.gguf", Request(quant="q4_0"), threads=3, progress=seen.append)
    stored = sum(step.bytes for step in plan.steps)
    assert [each.total for each in seen] == [stored] * len(seen)
    done = [each.done for each in seen]
    assert done == sorted(done) and len(set(done)) == len(done) and done[-1] == stored
    assert {each.tensor for each in seen} == {step.name for step in plan.steps}


@pytest.mark.parametrize("after", [1, 20])
def test_progress_can_cancel(after: int, wide: Path, tmp_path: Path) -> None:
    """What was there before stays, nothing of the new file is left, and the workers are gone."""
    (tmp_path / "out.gguf").write_text("old")
    threads = threading.active_count()
    calls: list[Any] = []

    def progress(state: converter.Progress) -> bool:
        calls.append(state)
        return len(calls) < after

    with pytest.raises(Interrupted, match="cancelled"):
        converter.convert(wide, tmp_path / "out.gguf", Request(quant="q4_0"), force=True, threads=2, progress=progress)
    assert after <= len(calls) <= after + 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert (tmp_path / "out.gguf").read_text() == "old"
    assert threading.active_count() == threads


def test_an_error_in_the_callback_ends_the_run(wide: Path, tmp_path: Path) -> None:
    def progress(state: converter.Progress) -> None:
        raise ZeroDivisionError("of the caller")

    with pytest.raises(ZeroDivisionError, match="of the caller"):
        converter.convert(wide, tmp_path / "out.gguf", Request(quant="q4_0"), progress=progress)
    assert not list(tmp_path.iterdir())


def test_none_from_the_callback_goes_on(wide: Path, tmp_path: Path) -> None:
    converter.convert(wide, tmp_path / "out.gguf", progress=lambda state: None)
    assert (tmp_path / "out.gguf").exists()


# -------------------------------------------------------------------------------------------- checkpoints


def test_open_checkpoint_reads_on_demand() -> None:
    with converter.open_checkpoint(STORIES) as checkpoint:
        assert (checkpoint.format, checkpoint.dialect) == ("hf", "hf")
        assert checkpoint.config["model_type"] == "llama"
        tensor = checkpoint.tensors["model.embed_tokens.weight"]
        assert isinstance(tensor, converter.LazyTensor)
        assert (tensor.info.shape, tensor.info.dtype) == ((512, 64), DTYPES["F32"])
        array = tensor.array()
        assert array.shape == (512, 64) and array.dtype == np.float32
        assert tensor.rows(3, 5).tobytes() == array[3:5].tobytes()
        with pytest.raises(IndexError, match=r"model\.embed_tokens\.weight"):
            tensor.rows(500, 513)
        with pytest.raises(AttributeError):
            checkpoint.format = "other"  # type: ignore[misc]


def test_open_checkpoint_with_another_config(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes((STORIES / "model.safetensors").read_bytes())
    with converter.open_checkpoint(tmp_path / "w.safetensors") as bare:
        assert bare.dialect is None and not bare.config
    with converter.open_checkpoint(converter.Source(tmp_path / "w.safetensors", config=STORIES)) as checkpoint:
        assert checkpoint.dialect == "hf" and checkpoint.config["model_type"] == "llama"


# ------------------------------------------------------------------------------------------- quantization


@pytest.mark.parametrize(
    ("name", "bound"), [("F32", 0.0), ("f16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("q6_k", 5e-2), ("Q4_K", 2e-1)]
)
def test_quantize_and_back(name: str, bound: float) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 512)).astype(np.float32)
    data = converter.quantize(x, name)
    assert data.dtype == np.uint8 and data.shape == (3, 4, DTYPES[name.upper()].row_nbytes(512))
    again = converter.dequantize(data, name, x.shape)
    assert again.dtype == np.float32 and again.shape == x.shape
    assert float(np.abs(again - x).max()) <= bound * 2
    assert np.array_equal(converter.quantize(x, name, threads=1), converter.quantize(x, name, threads=5))
    assert np.array_equal(converter.dequantize(data.reshape(-1), name, x.shape, threads=3), again)


def test_importance_weights_change_what_matters() -> None:
    """Columns that weigh more are stored more exactly."""
    x = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)
    weights = np.where(np.arange(256) % 8 == 0, 100.0, 0.01).astype(np.float32)
    plain = converter.dequantize(converter.quantize(x, "Q4_K"), "Q4_K", x.shape)
    guided = converter.dequantize(converter.quantize(x, "Q4_K", weights=weights), "Q4_K", x.shape)
    heavy = weights > 1
    assert ((guided - x)[:, heavy] ** 2).mean() < ((plain - x)[:, heavy] ** 2).mean()


def test_quantize_refuses() -> None:
    x = np.zeros((2, 256), np.float32)
    with pytest.raises(QuantizationError, match="unknown type 'Q9_9'"):
        converter.quantize(x, "Q9_9")
    with pytest.raises(QuantizationError, match="100"):
        converter.quantize(x[:, :100], "Q4_K")
    with pytest.raises(MissingImportance, match="IQ2_XXS"):
        converter.quantize(x, "IQ2_XXS")
    with pytest.raises(TypeError, match="float32"):
        converter.quantize(x.astype(np.float64), "Q4_0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights"):
        converter.quantize(x, "Q4_K", weights=np.ones(5, np.float32))
    with pytest.raises(QuantizationError, match="do not hold shape"):
        converter.dequantize(np.zeros(10, np.uint8), "Q4_0", (2, 32))


def test_names_that_are_nearly_right_are_answered() -> None:
    with pytest.raises(QuantizationError, match=r"unknown type 'Q4_K_M'; did you mean Q4_K\?"):
        converter.quantize(np.zeros((2, 256), np.float32), "Q4_K_M")
    with pytest.raises(TypeError, match=r"Request has no field 'quants'; did you mean quant\?"):
        converter.convert("in", "out.gguf", quants="q4_k_m")  # type: ignore[call-arg]


def test_fields_of_a_request_are_keywords_too(wide: Path, tmp_path: Path) -> None:
    """And what is opened, planned and read says in a line what it is."""
    plan = converter.convert(wide, tmp_path / "a.gguf", quant="q8_0", pure=True)
    converter.convert(wide, tmp_path / "b.gguf", Request(quant="q8_0"), pure=True)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    told = converter.plan(wide, tmp_path / "a.gguf", quant="q8_0", pure=True)
    told.checkpoint.close()
    assert told == plan and repr(told).startswith("<Plan ") and len(repr(told)) < 300
    with converter.open_checkpoint(tmp_path / "a.gguf") as model:
        assert repr(model).startswith("<Checkpoint ") and len(repr(model)) < 300
        assert re.match(r"<LazyTensor '[\w.]+': \w+ [\dx]+, .*a\.gguf@\d+>$", repr(next(iter(model.tensors.values()))))


def test_quantize_agrees_with_convert(wide: Path, tmp_path: Path) -> None:
    """One kernel behind both: the bytes in the file are those of `quantize`."""
    converter.convert(wide, tmp_path / "out.gguf", Request(quant="q4_k_m", pure=True))
    with converter.open_checkpoint(wide) as hf, converter.open_checkpoint(tmp_path / "out.gguf") as gguf:
        source = hf.tensors["model.layers.0.mlp.up_proj.weight"].array().astype(np.float32)
        stored = gguf.tensors["blk.0.ffn_up.weight"].array()
        assert np.array_equal(converter.quantize(source, "Q4_K"), stored)


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=3),
    blocks=st.integers(0, 3),
    name=st.sampled_from(["Q8_0", "Q4_0", "Q4_K", "F16"]),
)
def test_any_shape(shape: list[int], blocks: int, name: str) -> None:
    full = (*shape, blocks * DTYPES[name].block_size)
    x = np.ones(full, np.float32)
    data = converter.quantize(x, name)
    assert data.shape[:-1] == full[:-1]
    assert np.allclose(converter.dequantize(data, name, full), x, atol=0.1)
