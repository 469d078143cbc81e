"""Manifests: three formats that mean the same, and what cannot be meant, with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from converter.batch import manifest
from converter.errors import UsageError
from converter.request import Request, Source

TOML = """
[defaults]
out = "out/{name}-{quant}.gguf"
quant = ["q4_0", "q8_0"]

[[models]]
source = "a*"

[[models]]
source = "b.safetensors"   # a file
verify = true
quant = "f16, q8_0"
tensor_types = {"attn_v" = "q6_k"}
imatrix = "im.gguf"
"""
YAML = """
defaults:
  out: "out/{name}-{quant}.gguf"
  quant: [q4_0, q8_0]
models:
  - source: "a*"
  - source: b.safetensors
    verify: true
    quant: f16, q8_0
    tensor_types: {attn_v: q6_k}
    imatrix: im.gguf
"""
JSON = {
    "defaults": {"out": "out/{name}-{quant}.gguf", "quant": ["q4_0", "q8_0"]},
    "models": [
        {"source": "a*"},
        {"source": "b.safetensors", "verify": True, "quant": "f16, q8_0", "tensor_types": {"attn_v": "q6_k"},
         "imatrix": "im.gguf"},
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a1", "a2.5"):
        (tmp_path / name).mkdir()
    (tmp_path / "b.safetensors").touch()
    return tmp_path


def written(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content, "utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [("m.toml", TOML, (7, 10)), ("m.yaml", YAML, (6, 7)), ("m.json", json.dumps(JSON, indent=1), (11, 14))],
)
def test_what_it_means(folder: Path, name: str, content: str, lines: tuple[int, int]) -> None:
    path = written(folder, name, content)
    quants = tuple(Request(quant=quant) for quant in ("q4_0", "q8_0"))
    own = tuple(
        Request(quant=quant, tensor_types=(("attn_v", "q6_k"),), imatrix=folder / "im.gguf")
        for quant in ("f16", "q8_0")
    )
    wanted = [("a1", "a1", quants, False, 0), ("a2.5", "a2.5", quants, False, 0), ("b", "b.safetensors", own, True, 1)]
    assert manifest.read(path, {}) == [
        manifest.Job(
            each, Source(folder / source), f"{folder}/out/{each}-{{quant}}.gguf", asked, verify, f"{path}:{lines[at]}",
            folder,
        )
        for each, source, asked, verify, at in wanted
    ]  # fmt: skip


def test_the_command_line_is_for_what_it_does_not_say(folder: Path) -> None:
    path = written(
        folder, "m.toml", '[[models]]\nsource = "a1"\nout = "x.gguf"\n[[models]]\nsource = "a1"\nstrict = false'
    )
    jobs = manifest.read(path, {"out": "y/", "strict": True, "quant": "q8_0"})
    assert [job.target for job in jobs] == [f"{folder}/x.gguf", f"{folder}/y/"]
    assert [job.requests for job in jobs] == [(Request(quant="q8_0", strict=strict),) for strict in (True, False)]


WRONG = {
    "no list": ("models = 3", "a manifest has a list `models` of one model at least"),
    "no models": ("models = []", "a manifest has a list `models`"),
    "syntax": ("[[models]\n", r"m\.toml: .*line 1"),
    "table": ("other = 1\nmodels = [{source = 'a1', out = 'x'}]", "'other' is not known; there are defaults, models"),
    "key": ("[[models]]\nsource = 'a1'\nout = 'x'\nquants = 'q8_0'", r"m\.toml:4: 'quants' is not known"),
    "missing": ("[[models]]\nsource = 'a1'\n", r"m\.toml:1: 'out' is missing"),
    "default": ("[defaults]\nstrict = 1\n[[models]]\nsource = 'a1'\nout = 'x'", r":2: 'strict' is true or false"),
    "number": ("[[models]]\nsource = 'a1'\nout = 'x'\nsplit_max_size = true", r":4: 'split_max_size' is a whole"),
    "list": ("[[models]]\nsource = 'a1'\nout = 'x'\nquant = [1]", r"m\.toml:4: 'quant' is a text or a list of them"),
    "types": ("[[models]]\nsource = 'a1'\nout = 'x'\ntensor_types = ['a=b']", r"m\.toml:4: 'tensor_types' is a table"),
    "nothing": ("[[models]]\nsource = 'c*'\nout = 'x'", r"m\.toml:2: c\*: nothing is there"),
    "one name": ("[[models]]\nsource = 'a*'\nout = 'x'", r"m\.toml:2: x: 2 models are found"),
    "address": ("[[models]]\nsource = 'a1'\nout = 'https://h/x?y=z'", r"m\.toml:2: https://h/x: https is only read"),
    "source": ("[[models]]\nsource = 'hf://a'\nout = 'x'", r"m\.toml:2: hf://a: a model on the Hub is hf://ORG/NAME"),
    "pattern": ("[[models]]\nsource = 's3://b/*'\nout = 'x'", r"m\.toml:2: s3://b/\*: has a name in it"),
    "models": ("models = [1]", r"models\[0\] and defaults are tables"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_meant(folder: Path, kind: str) -> None:
    content, words = WRONG[kind]
    with pytest.raises(UsageError, match=words):
        manifest.read(written(folder, "m.toml", content), {})


@pytest.mark.parametrize(
    ("name", "content"),
    [("m.yaml", "models: [1\n"), ("m.yaml", ""), ("m.json", '{"models": [}'), ("m.json", "\xff"), ("m.txt", "x")],
)
def test_files_that_are_no_manifests(folder: Path, name: str, content: str) -> None:
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=name):
        manifest.read(folder / name, {})


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    models = "".join(f"[[models]]\nsource = 'a1'\nout = 'x'\nk{number} = 1\n" for number in range(12))
    with pytest.raises(UsageError) as caught:
        manifest.read(written(folder, "m.toml", models), {})
    said = str(caught.value).splitlines()
    assert len(said) == 11 and said[-1] == "and 2 more" and ":48:" not in str(caught.value)
