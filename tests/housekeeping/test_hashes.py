"""Hashes: what they are made of, what they survive, and what they find."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import builders as b
from support import models
from support.builders import gguf, pair, safetensors_of, tensor

from converter import Request, convert
from converter.cli.main import main
from converter.errors import CorruptFile, Interrupted, UsageError
from converter.housekeeping.hashes import Difference, Hashes, differences, hashes, root
from converter.housekeeping.shards import merge, split
from converter.tensors import kernels

STORIES = models.FIXTURES / "stories260K"
KJV = models.FIXTURES / "kjv-llama"


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def written(path: Path, made: Hashes) -> Path:
    path.write_text(json.dumps(made.as_dict()))
    return path


def test_what_is_hashed_by_the_definition(tmp_path: Path) -> None:
    """docs/housekeeping.md, written out for two tensors and two keys."""
    first, second = b.F32_2X3, bytes(range(34))
    pairs = [pair("general.name", b.STR, "tiny"), pair("general.architecture", b.STR, "llama")]
    lines = [tensor("w", (3, 2), b.T_F32, 0), tensor("b", (32,), b.T_Q8_0, 32)]
    (tmp_path / "m.gguf").write_bytes(gguf(pairs, lines, first + bytes(8) + second + bytes(30)))
    made = hashes(tmp_path / "m.gguf")

    def leaf(*fields: bytes) -> bytes:
        return sha(b"\0" + b"".join(struct.pack("<Q", len(field)) + field for field in fields))

    w = leaf(b"w", b"F32", struct.pack("<QQ", 2, 3), sha(first))
    q = leaf(b"b", b"Q8_0", struct.pack("<Q", 32), sha(second))
    assert made.root == sha(b"\1" + q + w).hex()
    architecture = leaf(b"general.architecture", struct.pack("<IQ", 8, 5) + b"llama")
    name = leaf(b"general.name", struct.pack("<IQ", 8, 4) + b"tiny")
    assert made.metadata_root == sha(b"\1" + architecture + name).hex()
    assert [(each.name, each.dtype, each.shape, each.nbytes, each.sha256) for each in made.tensors] == [
        ("b", "Q8_0", (32,), 34, sha(second).hex()), ("w", "F32", (2, 3), 24, sha(first).hex()),
    ]  # fmt: skip


def test_the_tree_of_rfc_6962() -> None:
    """The roots of its reference implementation over 0 to 8 leaves."""
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    leaves = [sha(b"\0" + bytes.fromhex(each)) for each in inputs]
    assert root([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert root(leaves[:1]) == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert root(leaves[:2]) == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert root(leaves[:3]) == "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"
    assert root(leaves) == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@pytest.mark.parametrize("slab", [1000, 1 << 30])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_gguf_and_its_shards_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab: int, threads: int
) -> None:
    monkeypatch.setattr(kernels, "SLAB_NBYTES", slab)
    convert(STORIES, tmp_path / "m.gguf", Request(quant="q8_0"))
    parts = split(tmp_path / "m.gguf", tmp_path / "p", max_tensors=10)
    made = hashes(tmp_path / "m.gguf", threads=threads)
    again = hashes(parts.files[2][0], threads=threads)
    assert (again.root, again.metadata_root) == (made.root, made.metadata_root)
    assert again.tensors == made.tensors
    assert not differences(again, written(tmp_path / "h.json", made)) and not differences(again, made.root)


def test_safetensors_in_shards_and_in_another_order(tmp_path: Path) -> None:
    arrays: list[tuple[str, Any]] = [(f"w{n}", np.full((n + 1, 3), n, "<f4")) for n in range(7)]
    random.Random(3).shuffle(arrays)
    (tmp_path / "one.safetensors").write_bytes(safetensors_of(dict(arrays), {"format": "pt"}))
    (tmp_path / "other.safetensors").write_bytes(safetensors_of(dict(sorted(arrays)), {"format": "pt"}))
    parts = split(tmp_path / "one.safetensors", tmp_path / "p", max_tensors=2)
    merge(parts.files[0][0], tmp_path / "whole")
    found = {
        (made.root, made.metadata_root)
        for made in map(hashes, [*tmp_path.glob("o*.safetensors"), parts.files[-1][0], tmp_path / "whole.safetensors"])
    }
    assert len(found) == 1


def test_another_container_has_the_same_root(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones((2, 3), "<f4"), v=np.zeros(5, "<f2"))
    convert(tmp_path / "a.npz", tmp_path / "a.safetensors")
    assert hashes(tmp_path / "a.npz").root == hashes(tmp_path / "a.safetensors").root


@pytest.mark.parametrize("change", ["value", "name", "type", "shape", "less", "more", "metadata"])
def test_what_differs_is_named(tmp_path: Path, change: str) -> None:
    tensors: dict[str, Any] = {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.ones(4, "<f4")}
    (tmp_path / "old.safetensors").write_bytes(safetensors_of(tensors, {"k": "v"}))
    old = hashes(tmp_path / "old.safetensors")
    texts, expected = {"k": "v"}, [Difference("changed", "b")]
    match change:
        case "value":
            tensors["b"] = np.array([1, 1, 1, 2], "<f4")
        case "name":
            tensors["c"] = tensors.pop("b")
            expected = [Difference("removed", "b"), Difference("added", "c")]
        case "type":
            tensors["b"] = tensors["b"].view("<i4")
        case "shape":
            tensors["b"] = tensors["b"].reshape(2, 2)
        case "less":
            del tensors["b"]
            expected = [Difference("removed", "b")]
        case "more":
            tensors["c"] = np.ones(1, "<f4")
            expected = [Difference("added", "c")]
        case "metadata":
            texts, expected = {"k": "w"}, [Difference("changed", "metadata")]
    (tmp_path / "new.safetensors").write_bytes(safetensors_of(tensors, texts))
    new = hashes(tmp_path / "new.safetensors")
    assert differences(new, written(tmp_path / "h.json", old)) == expected
    assert (new.root == old.root) == (change == "metadata")
    assert differences(new, old.root) == ([] if change == "metadata" else [Difference("changed", "root")])


def test_empty_and_scalar_tensors(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", empty=np.zeros((0, 3), "<f4"), scalar=np.float32(2))
    made = hashes(tmp_path / "a.npz")
    assert [(each.shape, each.nbytes) for each in made.tensors] == [((0, 3), 0), ((), 4)]
    assert made.tensors[0].sha256 == sha(b"").hex()


def test_a_run_can_be_cancelled(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        hashes(STORIES, progress=lambda _: False)


# ------------------------------------------------------------------------------------- earlier files


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda said: said.pop("tensors"), "is not what"),
        (lambda said: said.update(tensors=7), "is not what"),
        (lambda said: said["tensors"][0].update(sha256="xyz"), "is not what"),
        (lambda said: said["tensors"][0].update(shape=[True]), "is not what"),
        (lambda said: said["tensors"][0].update(shape=[-1]), "is not what"),
        (lambda said: said["tensors"][0].update(sha256="0" * 64), "its root is not that of its tensors"),
        (lambda said: said["tensors"].pop(), "its root is not that of its tensors"),
    ],
)
def test_files_that_no_run_has_printed(tmp_path: Path, damage: Any, says: str) -> None:
    made = hashes(STORIES)
    said = made.as_dict()
    damage(said)
    (tmp_path / "h.json").write_text(json.dumps(said))
    with pytest.raises(CorruptFile, match=says):
        differences(made, tmp_path / "h.json")


def test_another_algorithm(tmp_path: Path) -> None:
    made = hashes(STORIES)
    (tmp_path / "h.json").write_text(json.dumps(made.as_dict() | {"algorithm": "md5"}))
    with pytest.raises(UsageError, match="md5"):
        differences(made, tmp_path / "h.json")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hash", str(STORIES), "--json"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "h.json").write_text(printed)
    assert main(["hash", str(STORIES), "--check", str(tmp_path / "h.json")]) == 0
    assert capsys.readouterr().out == "nothing differs\n"
    assert main(["hash", str(KJV), "--check", str(tmp_path / "h.json"), "--json"]) == 41
    found = json.loads(capsys.readouterr().out)
    assert not found["equal"] and {each["kind"] for each in found["differences"]} == {"added", "changed"}
    assert main(["hash", str(STORIES)]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = json.loads(printed)
    assert lines[-1].startswith(said["root"]) and len(lines) == len(said["tensors"]) + 2
    assert main(["hash", str(STORIES), "--check", said["root"], "--quiet"]) == 0
    assert main(["hash", str(STORIES), "--check", "0" * 64, "--quiet"]) == 41
    assert capsys.readouterr().out == "changed: root\n"
