"""What exporters make today, exported anew: names and numbers come back as they do from the recorded graphs.

`make clients` installs the exporters below build/clients.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support import exports
from support.paths import FIXTURES, ROOT

import converter
from converter import Source
from converter.formats.registry import open_checkpoint

pytestmark = pytest.mark.slow

PYTHON = ROOT / "build" / "clients" / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.mark.parametrize("model", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("exporter", ["dynamo", "optimum"])
def test_exported_anew(exporter: str, model: str, tmp_path: Path) -> None:
    if not PYTHON.is_file():
        pytest.skip("make clients installs exporters")
    graph, folder = tmp_path / "model.onnx", exports.folder(model, tmp_path)
    script = [PYTHON, FIXTURES / "make_exports.py", exporter, model, "--to", graph]
    done = subprocess.run([*map(str, script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    out, plain = tmp_path / "out.safetensors", tmp_path / "model.safetensors"
    converter.convert(Source(graph, config=folder), out)
    converter.convert(folder, plain, converter.Request(dtype="f32"))
    with (
        open_checkpoint(tmp_path / "out.safetensors") as found,
        open_checkpoint(tmp_path / "model.safetensors") as want,
    ):
        assert found.tensors.keys() == want.tensors.keys()
        for name, tensor in want.tensors.items():
            np.testing.assert_array_equal(found.tensors[name].array(), tensor.array(), name)
