"""Metadata changed: what is written where, what is refused, and that no moment leaves a broken file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import builders as b
from support import models
from support.builders import array_pair, gguf, pair, safetensors_of, tensor

from converter import Request, convert
from converter.cli.main import main
from converter.errors import DiskFull, OutputExists, UnsupportedFeature, UsageError
from converter.formats.gguf import open_gguf
from converter.formats.safetensors import open_safetensors
from converter.housekeeping import edit as module
from converter.housekeeping.edit import Set, edit
from converter.housekeeping.hashes import hashes
from converter.housekeeping.shards import split
from converter.metadata import Array, Value
from converter.storage.disk import Disk

DATA = np.arange(64, dtype="<f4").tobytes()
TOKENS = array_pair("tokenizer.ggml.tokens", b.STR, ["a", "b", "c"])
PAIRS = (
    b.ARCH, pair("general.name", b.STR, "tiny"), pair("general.file_type", b.U32, 0),
    pair("llama.rope.freq_base", b.F32, 10000.0), TOKENS, pair("tokenizer.ggml.bos_token_id", b.U32, 1),
    array_pair("numbers", b.I32, [1, 2, 3]), array_pair("odd", b.F32, [float("nan")]),
)  # fmt: skip
LINES = [tensor("w", (8, 4), b.T_F32, 0), tensor("v", (8, 4), b.T_F32, 128)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(PAIRS, LINES, DATA))
    return path


def config(path: Path) -> dict[str, Any]:
    with open_gguf(path) as checkpoint:
        return dict(checkpoint.config)


def with_pairs(*pairs: bytes) -> bytes:
    return gguf(pairs, LINES, DATA)


# ------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"set": [Set("general.file_type", "7")]}, {2: pair("general.file_type", b.U32, 7)}),
        ({"set": [Set("general.name", "tony")]}, {1: pair("general.name", b.STR, "tony")}),
        ({"set": [Set("general.name", "a longer name")]}, {1: pair("general.name", b.STR, "a longer name")}),
        ({"set": [Set("general.file_type", "7", "u64")]}, {2: pair("general.file_type", b.U64, 7)}),
        ({"set": [Set("llama.rope.freq_base", "5e5")]}, {3: pair("llama.rope.freq_base", b.F32, 5e5)}),
        ({"set": [Set("numbers", "[4, -5]")]}, {6: array_pair("numbers", b.I32, [4, -5])}),
        ({"set": [Set("tokenizer.ggml.tokens", '["x", "", "ß"]')]},
         {4: array_pair("tokenizer.ggml.tokens", b.STR, ["x", "", "ß"])}),
        ({"set": [Set("new", "true", "bool")]}, {8: pair("new", b.BOOL, 1)}),
        ({"set": [Set("new", "[true, false]", "bool[]")]}, {8: array_pair("new", b.BOOL, [1, 0])}),
        ({"remove": ["general.file_type"]}, {2: b""}),
        ({"rename": [("general.name", "general.basename")]}, {1: pair("general.basename", b.STR, "tiny")}),
        ({"rename": [("general.name", "x")], "remove": ["numbers"], "set": [Set("x", "y")]},
         {1: pair("x", b.STR, "y"), 6: b""}),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_gguf_is_what_a_writer_would_have_written(
    file: Path, changes: dict[str, Any], expected: dict[int, bytes], elsewhere: bool
) -> None:
    old = file.read_bytes()
    target = file.with_name("out.gguf") if elsewhere else None
    made = edit(file, target, **changes)
    pairs = [expected.get(at, (*PAIRS, b"")[at]) for at in range(len(PAIRS) + 1)]
    assert made.path == (target or file)
    assert made.path.read_bytes() == with_pairs(*filter(None, pairs))
    assert not elsewhere or file.read_bytes() == old
    assert sorted(path.name for path in file.parent.iterdir()) == sorted({file.name, made.path.name})


@pytest.mark.parametrize(
    ("setting", "how", "nbytes"),
    [
        (Set("general.file_type", "7"), "in place", 1),
        (Set("llama.rope.freq_base", "1e6"), "in place", 3),
        (Set("general.name", "tony"), "in place", 1),
        (Set("general.name", "more than the padding has room for"), "rewritten", None),
        (Set("general.name", "tiny"), "nothing to do", 0),
    ],
)
def test_what_is_written_in_place(file: Path, setting: Set, how: str, nbytes: int | None) -> None:
    before, old = file.stat().st_ino, file.read_bytes()
    tried = edit(file, set=[setting], dry_run=True)
    assert file.read_bytes() == old and (tried.how, tried.dry_run) == (how, True)
    made = edit(file, set=[setting])
    assert (made.how, made.nbytes) == (how, file.stat().st_size if nbytes is None else nbytes) == (how, tried.nbytes)
    assert (file.stat().st_ino == before) == (how != "rewritten")


def test_two_sectors_are_not_written_in_place(tmp_path: Path) -> None:
    """Between the writes of two sectors the file would be neither the old nor the new one."""
    path, key = tmp_path / "m.gguf", pair("general.file_type", b.U32, 1)
    path.write_bytes(with_pairs(b.ARCH, key, pair("long", b.STR, "x" * 600), pair("last", b.U32, 1)))
    assert edit(path, set=[Set("last", "2")], dry_run=True).how == "in place"
    assert edit(path, set=[Set("general.file_type", "2"), Set("last", "2")]).how == "rewritten"
    assert config(path)["last"] == config(path)["general.file_type"] == Value("u32", 2)


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="needs links")
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_what_a_file_shares_its_bytes_with_stays_as_it_is(file: Path, kind: str) -> None:
    """A blob in a hub's cache has its hash for a name."""
    old, link = file.read_bytes(), file.with_name("link.gguf")
    (os.symlink if kind == "symbolic" else os.link)(file, link)
    assert edit(link, set=[Set("general.file_type", "7")]).how == "rewritten"
    assert file.read_bytes() == old and config(link)["general.file_type"] == Value("u32", 7)


def test_tensors_keep_their_bytes_whatever_their_order(tmp_path: Path) -> None:
    """A table that lists tensors in another order than they lie in, and an older version of the format."""
    path = tmp_path / "m.gguf"
    path.write_bytes(
        gguf((b.ARCH,), [tensor("w", (8, 4), b.T_F32, 128), tensor("v", (8, 4), b.T_F32, 0)], DATA, version=2)
    )
    old = hashes(path)
    assert edit(path, set=[Set("x", "1", "u8")]).how == "rewritten"
    assert hashes(path).root == old.root != hashes(path).metadata_root


def test_the_first_shard_has_the_metadata(file: Path) -> None:
    parts = [path for path, _ in split(file, file.with_name("p"), max_tensors=1).files]
    edit(parts[0], set=[Set("general.name", "a new name")])
    assert config(parts[1])["general.name"] == Value("str", "a new name")
    with pytest.raises(UsageError, match="first shard"):
        edit(parts[1], set=[Set("general.name", "x")])


def test_llama_cpp_loads_what_was_edited(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    path = tmp_path / "m.gguf"
    convert(models.FIXTURES / "stories260K", path, Request(quant="q8_0"))
    edit(
        path, set=[Set("tokenizer.chat_template", "{{ messages }}", "str"), Set("general.name", "another, longer name")]
    )
    model = llama_cpp.Llama(str(path), n_ctx=32, verbose=False)
    assert model.metadata["general.name"] == "another, longer name"
    assert model.metadata["tokenizer.chat_template"] == "{{ messages }}"
    assert model("Once", max_tokens=3, temperature=0)["choices"][0]["text"]


# ------------------------------------------------------------------------------------- safetensors


def test_texts_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tensors = {"b": np.ones(3, "<f2"), "a": np.zeros((2, 2), "<f4")}
    path.write_bytes(safetensors_of(tensors, {"format": "pt", "note": "one"}))
    old = hashes(path).root
    assert edit(path, set=[Set("note", "two")]).how in ("in place", "rewritten")
    assert edit(path, set=[Set("note", "six")]).how == "in place"
    assert edit(path, set=[Set("more", "x" * 2000)], remove=["note"]).how == "rewritten"
    assert edit(path, set=[Set("more", "y")]).how == "rewritten"
    size = path.stat().st_size
    assert edit(path, set=[Set("more", "z" * 9)]).nbytes <= size, "what a shorter header leaves is filled again"
    assert path.stat().st_size == size
    with open_safetensors(path) as checkpoint:
        assert checkpoint.metadata == {"format": "pt", "more": "z" * 9}
    assert hashes(path).root == old
    loaded = pytest.importorskip("safetensors.numpy").load_file(path)
    assert all(np.array_equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"remove": ["format"]}, "transformers"),
        ({"set": [Set("n", "7", "u32")]}, "texts alone"),
        ({"rename": [("nothing", "x")]}, "has no 'nothing'"),
    ],
)
def test_what_safetensors_cannot_say(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_of({"a": np.ones(3, "<f4")}, {"format": "pt"}))
    with pytest.raises(UsageError, match=says):
        edit(path, **changes)


# ------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"set": [Set("general.architecture", "qwen2")]}, "convert the model again"),
        ({"remove": ["general.architecture"]}, "convert the model again"),
        ({"rename": [("general.architecture", "x")]}, "convert the model again"),
        ({"set": [Set("general.alignment", "64", "u32")]}, "where the tensors lie"),
        ({"set": [Set("split.count", "2", "u16")]}, "convert split"),
        ({"set": [Set("llama.block_count", "2", "u32")]}, "a size of the tensors"),
        ({"set": [Set("tokenizer.ggml.tokens", '["a"]')]}, "a list of 3"),
        ({"remove": ["tokenizer.ggml.tokens"]}, "a list of 3"),
        ({"set": [Set("tokenizer.ggml.tokens", "abc", "str")]}, "a list of 3"),
        ({"set": [Set("tokenizer.ggml.bos_token_id", "3")]}, "there are 3 tokens"),
        ({"set": [Set("new", "1")]}, "say its type"),
        ({"set": [Set("new", "1", "u33")]}, "no type 'u33'"),
        ({"set": [Set("general.file_type", "x")]}, "is no u32"),
        ({"set": [Set("general.file_type", "-1")]}, "is no u32"),
        ({"set": [Set("general.file_type", "1.5")]}, "is no u32"),
        ({"set": [Set("numbers", "7")]}, "a list in JSON"),
        ({"set": [Set("numbers", "[1.5]")]}, "is no i32"),
        ({"set": [Set("numbers", "[true]")]}, "is no i32"),
        ({"set": [Set("numbers", "[4294967296]")]}, "is no i32"),
        ({"set": [Set("b", "yes", "bool")]}, "is no bool"),
        ({"set": [Set("s", "\ud800", "str")]}, "is no str"),
        ({"set": [Set("a\nb", "x", "str")]}, "cannot be a key"),
        ({"set": [Set("", "x", "str")]}, "cannot be a key"),
        ({"set": [Set("k" * 65536, "x", "str")]}, "cannot be a key"),
        ({"remove": ["nothing"]}, "has no 'nothing'"),
        ({"rename": [("general.name", "numbers")]}, "there already"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_changes_that_are_refused(file: Path, changes: dict[str, Any], says: str) -> None:
    old = file.read_bytes()
    with pytest.raises(UsageError, match=says):
        edit(file, **changes)
    assert file.read_bytes() == old


def test_values_that_stay_the_same_are_no_change(file: Path) -> None:
    assert not edit(file, set=[Set("general.architecture", "llama")]).changes


def test_other_files(file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(UnsupportedFeature, match="gguf and safetensors"):
        edit(tmp_path / "a.npy", set=[Set("x", "y")])
    file.with_name("there.gguf").write_bytes(b"x")
    with pytest.raises(OutputExists):
        edit(file, file.with_name("there.gguf"), set=[Set("general.name", "x")])


# ------------------------------------------------------------------------------------- faults


def test_a_rewrite_that_fails_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = file.read_bytes()

    def full(*_: object) -> None:
        raise DiskFull("no room")

    monkeypatch.setattr(Disk, "flush", full)
    with pytest.raises(DiskFull):
        edit(file, set=[Set("general.name", "a longer name")])
    assert file.read_bytes() == old and [path.name for path in file.parent.iterdir()] == [file.name]


def test_in_place_is_one_write_within_a_sector(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed has written all of it or nothing; so has a disk that loses its power."""
    written: list[tuple[int, bytes]] = []
    real = open

    class Recorded:
        def __init__(self, raw: Any) -> None:
            self.raw = raw

        def write(self, data: bytes) -> int:
            written.append((self.raw.tell(), data))
            return int(self.raw.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.raw, name)

        def __enter__(self) -> Recorded:
            return self

        def __exit__(self, *_: object) -> None:
            self.raw.close()

    def recording(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        opened = real(path, mode, *args, **options)
        return Recorded(opened) if mode == "r+b" else opened

    monkeypatch.setattr(module, "open", recording, raising=False)
    edit(file, set=[Set("llama.rope.freq_base", "123456.0"), Set("general.file_type", "1")])
    ((offset, data),) = written
    assert offset // 512 == (offset + len(data) - 1) // 512
    assert config(file)["llama.rope.freq_base"] == Value("f32", 123456.0)


def test_lists_with_nan_and_nested_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    nested = array_pair("nested", b.ARR, [b.array(b.I32, [1]), b.array(b.STR, ["x"])])
    path.write_bytes(with_pairs(b.ARCH, nested, array_pair("nan", b.F32, [float("nan")])))
    made = edit(path, set=[Set("x", "y", "str")])
    assert [change.key for change in made.changes] == ["x"]
    assert config(path)["nested"] == Array("array", [Array("i32", [1]), Array("str", ["x"])])
    with pytest.raises(UsageError, match="no type 'array"):
        edit(path, set=[Set("nested", "[[1]]")])


# ------------------------------------------------------------------------------------- the command


def test_the_command(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}=ß{% endfor %}\n", "utf-8")
    argv = ["edit", str(file), "--set", f"tokenizer.chat_template:str=@{template}", "--set", "general.name=@@home=x"]
    assert main([*argv, "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["dry_run"] and said["how"] == "rewritten" and "tokenizer.chat_template" not in config(file)
    assert said["changes"][0] == {"key": "general.name", "type": "str", "before": "tiny", "after": "@home=x"}
    assert main(argv) == 0
    assert "general.name" in capsys.readouterr().out
    assert config(file)["tokenizer.chat_template"] == Value("str", template.read_text("utf-8"))
    assert config(file)["general.name"] == Value("str", "@home=x")
    shutil.copyfile(file, tmp_path / "copy.gguf")
    for wrong in ([], ["--set", "x"], ["--rename", "=y"]):
        assert main(["edit", str(file), *wrong]) == 2
    (tmp_path / "latin").write_bytes(b"\xff")
    assert main(["edit", str(file), "--set", f"general.name=@{tmp_path / 'latin'}"]) == 2
    assert main(["edit", str(file), "--set", f"general.name=@{tmp_path / 'absent'}"]) == 50
    assert file.read_bytes() == (tmp_path / "copy.gguf").read_bytes()
