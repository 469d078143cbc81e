"""Importance by transformers against llama.cpp's: names, counts and sums; and what llama.cpp does not run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from support import architectures, models

from converter.calibration import texts
from converter.calibration.activations import runnable
from converter.calibration.folders import ByTransformers
from converter.calibration.importance import measure
from converter.calibration.matrices import Asked, make
from converter.cli.main import main
from converter.errors import MissingDependency, UnsupportedFeature, UsageError
from converter.pipeline import convert
from converter.quant.imatrix import open_imatrix
from converter.request import Request, Source

pytest.importorskip("transformers")
pytest.importorskip("torch")

KJV = models.FIXTURES / "kjv-llama"
ROUGH = {"gemma2-tiny": 2e-3, "falcon-tiny": 2e-3, "gpt2-tiny": 2e-3}  # ggml has GELU as a table in half precision

Folder = Callable[[str], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    def build(name: str) -> Path:
        if name in models.FIXTURE_MODELS:
            return models.FIXTURES / name
        return models.build_model(name, tmp_path) if name in models.MODELS else architectures.build(name, tmp_path)

    return build


@pytest.mark.parametrize(
    "name",
    [
        "kjv-llama", "qwen2-96", "gemma2-tiny", "mixtral-96", "qwen3moe-96",  # plain, biases, softcapping, experts
        "gpt2-tiny", "phi4-mini", "falcon-tiny", "bert-tiny", "granitemoe-tiny",  # transposed, fused, an encoder, both
    ],
)  # fmt: skip
def test_both_runtimes_measure_the_same(name: str, folder: Folder) -> None:
    """Every weight that llama.cpp multiplies, every count of every expert, and the sums but for the order of adding."""
    pytest.importorskip("llama_cpp")
    source = folder(name)
    model = ByTransformers(Source(source))
    with runnable(source, dtype="f32", threads=1) as gguf:
        text = texts.drawn(gguf, 96, 3)
        wanted = measure(gguf, text, process_output=True, threads=1)
    found = measure(model, text, process_output=True, threads=1)
    assert found.importance.entries.keys() == wanted.importance.entries.keys()
    assert found.missing == wanted.missing == ()
    for weight, each in wanted.importance.entries.items():
        own = found.importance.entries[weight]
        assert own.counts.tolist() == each.counts.tolist(), weight
        tolerance = ROUGH.get(name, 2e-4)
        np.testing.assert_allclose(
            own.sums, each.sums, rtol=tolerance, atol=tolerance * each.sums.mean(), err_msg=weight
        )


def test_what_llama_cpp_does_not_run_is_read_by_transformers(folder: Folder, tmp_path: Path) -> None:
    """T5: llama.cpp aborts. It is told, and asked for llama.cpp alone it is an error."""
    pytest.importorskip("llama_cpp")
    source, out = folder("t5-tiny"), tmp_path / "i.gguf"
    asked = Asked(calibrate="random", chunks=2, context=32)
    made = make(source, out, asked, threads=1)
    assert made.made and "transformers" in made.made.runtime and made.made.missing == ()
    assert any("read by transformers: llama.cpp does not run it" in str(event) for event in made.events)
    names = made.importance.entries
    assert {name.split(".")[0] for name in names} == {"enc", "dec"} and "dec.blk.0.cross_attn_k.weight" in names
    assert all(each.counts.tolist() == [64] for each in names.values())
    with pytest.raises(UnsupportedFeature):
        make(source, tmp_path / "no.gguf", Asked(calibrate="random", runtime="llama.cpp"), threads=1)
    convert(source, tmp_path / "q.gguf", Request(quant="q4_0", imatrix=out))
    with closing(open_imatrix(out)) as matrix:
        assert matrix.entries.keys() == names.keys()


def test_its_own_words(tmp_path: Path) -> None:
    """Transformers writes: every chunk begins with BOS, no control token is drawn, and the same seed says the same."""
    model = ByTransformers(Source(KJV))
    one, two = (texts.written(model, 24, 3, threads=1) for _ in range(2))
    assert one.chunks == two.chunks and {chunk[0] for chunk in one.chunks} == {0}
    with model.writer(24, 1) as runtime:
        controls = runtime.controls()
        for position in (0, 1, 5):
            given = [chunk[position] for chunk in one.chunks]
            logits = runtime.continued(given, position)
            if position < 2:  # what comes next is likely enough to have been drawn
                after = [logits[at][chunk[position + 1]] for at, chunk in enumerate(one.chunks)]
                assert all((logits[at] > value).sum() < texts.TOP for at, value in enumerate(after))
            else:
                break
    assert controls[:4].all() and not any(controls[token] for chunk in one.chunks for token in chunk[1:])


def test_no_code_of_the_folder_is_run(folder: Folder, tmp_path: Path) -> None:
    source = folder("qwen2-96")
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {key: f"evil.{key}" for key in ("AutoConfig", "AutoModelForCausalLM", "AutoModel")}
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}))
    mark = tmp_path / "ran"
    (source / "evil.py").write_text(
        f"open({str(mark)!r}, 'w')\nAutoConfig = AutoModel = AutoModelForCausalLM = T = 1\n"
    )
    asked = Asked(calibrate="random", chunks=1, context=16, runtime="transformers")
    make(source, tmp_path / "i.gguf", asked, threads=1)
    assert (tmp_path / "i.gguf").exists() and not mark.exists() and "evil" not in sys.modules


def test_what_cannot_be_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "i.gguf"
    convert(KJV, tmp_path / "m.gguf")
    with pytest.raises(UnsupportedFeature, match="reads to a Hugging Face folder, and this is none"):
        make(tmp_path / "m.gguf", out, Asked(calibrate="random", runtime="transformers"))
    with pytest.raises(UsageError, match="--run-as"):
        make(KJV, out, Asked(calibrate="random", runtime="transformers", run_as="q8_0"))
    with pytest.raises(UsageError, match="made for texts of 256 tokens, not 300"):
        make(KJV, out, Asked(calibrate="random", runtime="transformers", context=300, chunks=1))
    assert main(["imatrix", str(KJV), "-o", str(out), "--calibrate", "own", "--runtime", "onnx"]) == 2
    assert not out.exists()


@pytest.mark.parametrize(("runtime", "gone", "said"), [
    ("transformers", ("torch",), "pip install torch"),
    (None, ("torch", "llama_cpp"), "pip install llama-cpp-python"),
    ("llama.cpp", ("llama_cpp",), "pip install llama-cpp-python"),
])  # fmt: skip
def test_what_is_not_installed(
    runtime: str | None, gone: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in gone:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=said):
        make(KJV, tmp_path / "i.gguf", Asked(calibrate="random", runtime=runtime), threads=1)


def test_without_llama_cpp_a_folder_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    asked = Asked(text=models.FIXTURES / "kjv-heldout.txt", chunks=1, context=64)
    made = make(KJV, tmp_path / "i.gguf", asked, threads=1)
    assert len(made.importance.entries) == 42 and "read by transformers: " in str(made.events[0])
