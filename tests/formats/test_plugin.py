"""Third-party formats: the example plugin, installed for real with pip and used through the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from converter.formats.safetensors import open_safetensors

EXAMPLE = Path(__file__).parent.parent / "example_plugin"
TEXT = "scale;3;1,2,3\nmatrix;2x4;0.5,1,1.5,2,-1,-2,-3,1e-3\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example installed by pip from a copy of its source."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "site"
    source.mkdir()
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run([*pip, "--target", str(target), str(source)], capture_output=True, text=True, check=False)
    if result.returncode and "setuptools" in result.stderr:
        pytest.skip("no setuptools in this environment to build the example with")
    assert result.returncode == 0, result.stderr
    return target


def run(site: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "converter", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def install_broken(site: Path, name: str, module: str | None, value: str) -> None:
    """A distribution as pip leaves it: metadata with the entry point, and a module if there is one."""
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[converter.formats]\n{name} = {value}\n")
    if module is not None:
        (site / f"{value.partition(':')[0]}.py").write_text(module)


def test_the_example_is_ten_lines() -> None:
    """Without the blank lines, imports and docstring; the README says so."""
    lines = (EXAMPLE / "csvt.py").read_text().splitlines()
    code = [line for line in lines if line and not line.startswith(("from ", "import ", '"""'))]
    assert len(code) <= 10


def test_a_plugin_is_listed(site: Path) -> None:
    rows = json.loads(run(site, "formats", "--json").stdout)["formats"]
    assert [(row["read"], row["write"]) for row in rows if row["format"] == "csvt"] == [(True, False)]
    assert {"gguf", "safetensors", "hf"} <= {row["format"] for row in rows}


def test_a_plugin_converts(site: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csvt").write_text(TEXT)
    result = run(site, tmp_path / "in.csvt", tmp_path / "out.safetensors", "--dtype", "f16")
    assert (result.returncode, result.stderr) == (0, "")
    with open_safetensors(tmp_path / "out.safetensors") as out:
        assert np.array_equal(out.tensors["scale"].array(), np.array([1, 2, 3], "<f2"))
        assert np.array_equal(out.tensors["matrix"].array(), np.array([[0.5, 1, 1.5, 2], [-1, -2, -3, 1e-3]], "<f2"))


def test_a_plugin_reaches_every_writer(site: Path, tmp_path: Path) -> None:
    """One reader is enough for the whole graph: GGUF too, which it knows nothing of."""
    row = ",".join(map(str, range(64)))
    (tmp_path / "in.csvt").write_text(f"a.weight;2x32;{row}\n")
    options = ("--tensors-only", "--quant", "q8_0")
    result = run(site, tmp_path / "in.csvt", tmp_path / "out.gguf", *options)
    assert result.returncode == 0, result.stderr
    tensors = json.loads(run(site, "plan", tmp_path / "out.gguf", tmp_path / "x.gguf", "--json").stdout)["tensors"]
    assert [(tensor["name"], tensor["type"], tensor["shape"]) for tensor in tensors] == [("a.weight", "Q8_0", [2, 32])]


def test_without_the_plugin_the_file_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "in.csvt").write_text(TEXT)
    result = run(tmp_path, tmp_path / "in.csvt", tmp_path / "out.safetensors")
    assert result.returncode == 10
    assert "in.csvt" in result.stderr and "known:" in result.stderr


GOOD = "from converter.formats.base import Format\n"


BROKEN = {
    "absent": None,
    "raises": "raise OSError('disk on fire')\n",
    "exits": "import sys\nsys.exit(3)\n",
    "number": "FORMAT = 42\n",
    "nameless": GOOD,
    "empty": GOOD + "FORMAT = Format()\n",
}


def test_broken_plugins_are_warnings(tmp_path: Path) -> None:
    for name, module in BROKEN.items():
        install_broken(tmp_path / "site", name, module, f"plugin_{name}:FORMAT")
    result = run(tmp_path / "site", "formats", "--json")
    assert result.returncode == 0
    assert "gguf" in {row["format"] for row in json.loads(result.stdout)["formats"]}
    said = [line.partition(" is broken and left out: ")[0] for line in result.stderr.splitlines()]
    assert said == [f"convert: warning: format plugin {name!r}" for name in sorted(BROKEN)]


def test_a_plugin_that_fails_to_sniff_is_passed_over(tmp_path: Path) -> None:
    module = GOOD + "FORMAT = Format('bad', (), None, '', frozenset(), lambda p, s: 1 // 0, lambda p: 1 // 0)\n"
    install_broken(tmp_path / "site", "bad", module, "bad:FORMAT")
    header = b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "in.weights").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    result = run(tmp_path / "site", tmp_path / "in.weights", tmp_path / "out.safetensors")
    assert result.returncode == 0
    assert "failed to look at in.weights" in result.stderr


def test_a_plugin_that_fails_to_read_is_one_message(tmp_path: Path) -> None:
    module = GOOD + "FORMAT = Format('bad', ('.bad',), None, '', frozenset(), lambda p, s: True, lambda p: 1 // 0)\n"
    install_broken(tmp_path / "site", "bad", module, "bad:FORMAT")
    (tmp_path / "in.bad").write_text("x")
    result = run(tmp_path / "site", tmp_path / "in.bad", tmp_path / "out.safetensors")
    assert result.returncode == 70
    assert "ZeroDivisionError" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_a_plugin_cannot_replace_a_format_of_ours(tmp_path: Path) -> None:
    module = GOOD + "FORMAT = Format('gguf', ('.gguf',), None, 'mine', frozenset(), lambda p, s: True, print)\n"
    install_broken(tmp_path / "site", "usurper", module, "usurper:FORMAT")
    rows = json.loads(run(tmp_path / "site", "formats", "--json").stdout)["formats"]
    assert [row["description"] for row in rows if row["format"] == "gguf"] != ["mine"]
