"""Bad input through the real command line: one clear message, its own exit code, nothing written, nothing destroyed."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import builders as b
from support.builders import (
    ARCH,
    CONFIG,
    T_F32,
    T_Q8_0,
    entry,
    examples,
    gguf,
    llama_folder,
    llama_weights,
    pair,
    safetensors,
    safetensors_of,
    sharded,
    tensor,
)

from converter import errors
from converter.cli.main import main
from converter.errors import ConverterError
from converter.formats.gguf import open_gguf
from converter.formats.safetensors import open_safetensors
from converter.pipeline import convert
from converter.pipeline import plan as make_plan
from converter.request import Request
from converter.storage.disk import Disk

OLD = b"an old output that must survive\n" * 9
WEIGHTS = llama_weights()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder for outputs with an old one in it."""
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "old.gguf"
    path.write_bytes(OLD)
    return path


Run = Callable[..., str]


@pytest.fixture
def fails(out: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Convert `source` to an output that exists and, with --force, to one that does not: both must fail alike."""

    def run(source: Path, code: int, says: str, *options: str, target: Path = out) -> str:
        new = target.with_name("new" + target.suffix)
        first = _message(capsys, code, says, str(source), str(target), "--force", *options)
        second = _message(capsys, code, says, str(source), str(new), *options)
        assert first.replace(target.name, "*") == second.replace(new.name, "*")
        assert source.name in first or code == errors.UsageError.exit_code
        assert [path.name for path in out.parent.iterdir()] == ["old.gguf"]
        assert out.read_bytes() == OLD
        return first

    return run


def _message(capsys: pytest.CaptureFixture[str], code: int, says: str, *argv: str) -> str:
    assert main(argv) == code
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == "" and 1 <= len(lines) <= 3 and lines[0].startswith("convert: ")
    assert "Traceback" not in printed.err and "internal error" not in printed.err
    assert all(line.isprintable() and len(line) < 600 for line in lines)
    assert re.search(says, printed.err), printed.err
    return printed.err


def folder_with(folder: Path, **changes: Any) -> Path:
    """The small Llama with some keys of its config.json changed."""
    return llama_folder(folder / "model", config=changes, tokenizer=False)


def weights_with(folder: Path, **changes: Any) -> Path:
    """The small Llama with tensors replaced, or left out where None."""
    named = {name.replace("__", "."): array for name, array in changes.items()}
    kept = {name: array for name, array in (WEIGHTS | named).items() if array is not None}
    return llama_folder(folder / "model", weights=kept, tokenizer=False)


# ------------------------------------------------------------------------------------- the file itself


def cases() -> Iterator[tuple[str, str, bytes, int]]:
    """Name, file name, bytes, exit code; the readers' own tests have many more."""
    weights = safetensors_of(WEIGHTS)
    w = entry("F32", (2, 3), 0, 24)
    yield "empty", "m.safetensors", b"", 10
    yield "html", "m.safetensors", b"<!DOCTYPE html><html></html>", 14
    yield "zeros", "m.safetensors", bytes(4096), 10
    yield "lfs pointer", "m.gguf", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 14
    yield "other extension", "m.xyz", b"?" * 100, 10
    yield "truncated header", "m.safetensors", weights[:100], 11
    yield "truncated data", "m.safetensors", weights[:-1], 11
    yield "lying length", "m.safetensors", safetensors({"w": w}, bytes(24), length=99_999_999), 11
    yield "lying shape", "m.safetensors", safetensors({"w": {**w, "shape": [2, 4]}}, bytes(24)), 11
    yield "overlapping", "m.safetensors", safetensors({"v": w, "w": w}, bytes(24)), 11
    yield "appended", "m.safetensors", weights + b"PK", 11
    yield "unknown type", "m.safetensors", safetensors({"w": {**w, "dtype": "F7"}}, bytes(24)), 12
    yield "gguf truncated", "m.gguf", b.small_gguf()[:100], 11
    yield "gguf of version 1", "m.gguf", b.small_gguf(version=1), 12
    yield "gguf lying count", "m.gguf", gguf([ARCH], n_tensors=1 << 40), 11
    yield "gguf overlapping", "m.gguf", gguf([], [tensor(name, (8,), T_F32, 0) for name in "ab"], bytes(32)), 11
    shard = gguf([pair("split.no", b.U16, 0), pair("split.count", b.U16, 2)])
    yield "gguf missing shard", "m-00001-of-00002.gguf", shard, 14


@pytest.mark.parametrize(("name", "content", "code"), [case[1:] for case in cases()], ids=[case[0] for case in cases()])
def test_files(tmp_path: Path, fails: Run, name: str, content: bytes, code: int) -> None:
    (tmp_path / name).write_bytes(content)
    fails(tmp_path / name, code, re.escape(name), "--tensors-only")


def test_no_such_input(tmp_path: Path, fails: Run) -> None:
    fails(tmp_path / "absent.safetensors", 50, "No such file")


def test_inputs_that_are_no_files(tmp_path: Path, fails: Run) -> None:
    os.mkfifo(tmp_path / "fifo.gguf")
    fails(tmp_path / "fifo.gguf", 50, "not a regular file")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    fails(tmp_path / "zero.safetensors", 50, "not a regular file")
    (tmp_path / "folder").mkdir()
    fails(tmp_path / "folder", 10, "not a format that can be read")


def test_content_decides_the_format_not_the_extension(tmp_path: Path, out: Path) -> None:
    (tmp_path / "really.safetensors").write_bytes(b.small_gguf())
    assert main([str(tmp_path / "really.safetensors"), str(out.with_name("new.gguf"))]) == 0


def test_missing_shard(tmp_path: Path, fails: Run) -> None:
    names = list(WEIGHTS)
    halves = [{name: WEIGHTS[name] for name in names[:5]}, {name: WEIGHTS[name] for name in names[5:]}]
    folder = sharded(tmp_path / "model", halves)
    (folder / "model-00002-of-00002.safetensors").unlink()
    fails(folder, 14, "model-00002-of-00002.safetensors.*is not there; download it too")


def test_index_that_leads_out_of_the_folder(tmp_path: Path, fails: Run) -> None:
    (tmp_path / "secret.safetensors").write_bytes(safetensors_of(WEIGHTS))
    folder = sharded(tmp_path / "model", [WEIGHTS], dict.fromkeys(WEIGHTS, "../secret.safetensors"))
    fails(folder, 11, "leads out of the folder")


# ------------------------------------------------------------------------------------- model and config


def test_unknown_architecture(tmp_path: Path, fails: Run) -> None:
    folder = folder_with(tmp_path, architectures=["../../evil\n\x1b[2J"], model_type="evil")
    fails(folder, 20, r"no architecture answers to '\.\./\.\./evil.*`convert architectures` lists")


def test_no_config_beside_the_file(tmp_path: Path, fails: Run) -> None:
    (tmp_path / "alone.safetensors").write_bytes(safetensors_of(WEIGHTS))
    fails(tmp_path / "alone.safetensors", 20, "--config DIR.*--tensors-only")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"hidden_size": 64}, 23), ({"hidden_size": "32"}, 20), ({"hidden_size": [32]}, 20),
        ({"hidden_size": None}, 20), ({"hidden_size": 32.5}, 20), ({"hidden_size": -1}, 20),
        ({"hidden_size": True}, 20), ({"hidden_size": 2**63}, 20), ({"vocab_size": 513}, 23),
        ({"intermediate_size": 65}, 23), ({"num_hidden_layers": 2}, 22),
        ({"num_hidden_layers": 0}, 23), ({"num_hidden_layers": 10**9}, 22), ({"num_attention_heads": 0}, 20),
        ({"num_attention_heads": 5}, 23), ({"num_key_value_heads": 4}, 23), ({"num_key_value_heads": 0}, 23),
        ({"head_dim": 16}, 23), ({"rms_norm_eps": 1e300}, 20), ({"rms_norm_eps": "small"}, 20),
        ({"num_local_experts": 8}, 21), ({"rope_theta": {}}, 20),
        ({"rope_scaling": {"rope_type": "llama3", "factor": "x"}}, 20),
    ],
    ids=str,
)  # fmt: skip
def test_config_that_disagrees_with_the_weights(tmp_path: Path, fails: Run, changes: Any, code: int) -> None:
    fails(folder_with(tmp_path, **changes), code, "model")


def test_a_shape_the_config_contradicts_is_named(tmp_path: Path, fails: Run) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = llama_folder(tmp_path / "model", weights=WEIGHTS | {name: np.ones((3, 32), "<f4")}, tokenizer=False)
    fails(folder, 23, r"up_proj.weight is \[3, 32\], config.json makes it \[64, 32\]")


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "lm_head.weight"])
def test_missing_tensor(tmp_path: Path, fails: Run, name: str) -> None:
    kept = {key: array for key, array in WEIGHTS.items() if key != name}
    fails(llama_folder(tmp_path / "model", weights=kept, tokenizer=False), 22, f"{re.escape(name)}: not in the file")


def test_missing_head_of_a_model_that_is_not_tied(tmp_path: Path, fails: Run) -> None:
    kept = {key: array for key, array in WEIGHTS.items() if key != "lm_head.weight"}
    fails(llama_folder(tmp_path / "model", weights=kept, tokenizer=False), 22, "lm_head.weight: not in the file")


def test_tensor_no_rule_names(tmp_path: Path, fails: Run) -> None:
    extra = WEIGHTS | {"model.layers.0.self_attn.surprise": np.ones(3, "<f4")}
    fails(llama_folder(tmp_path / "model", weights=extra, tokenizer=False), 21, "self_attn.surprise: no rule")


@pytest.mark.parametrize("options", [(), ("--quant", "q8_0")])
def test_tokenizer_larger_than_the_embedding(tmp_path: Path, fails: Run, options: tuple[str, ...]) -> None:
    folder = llama_folder(tmp_path / "model", weights=llama_weights(500), vocab=500)
    fails(folder, 24, "512.*500|500.*512", *options)


@pytest.mark.parametrize(
    "content",
    [b"\x80\x02}", b"[]", b'{"model":', b'{"a":1,"a":2}', b'{"model":{"type":"BPE","vocab":[1],"merges":{}}}'],
)
def test_tokenizer_that_cannot_be_read(tmp_path: Path, fails: Run, content: bytes) -> None:
    folder = llama_folder(tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(content)
    fails(folder, 24, "tokenizer")


def test_token_ids_that_would_fill_the_memory(tmp_path: Path, fails: Run) -> None:
    folder = llama_folder(tmp_path / "model")
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["model"]["vocab"]["bomb"] = 10**12
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    fails(folder, 24, "'bomb' has no id|1000000000000")


# ------------------------------------------------------------------------------------- numbers


def not_finite(folder: Path, dtype: str = "<f4") -> Path:
    weights = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
    weights["model.layers.0.mlp.up_proj.weight"][1, 3:5] = [np.nan, -np.inf]
    weights["model.norm.weight"][7] = np.inf
    return llama_folder(folder / "model", weights=weights, tokenizer=False)


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
@pytest.mark.parametrize("options", [(), ("--quant", "q8_0"), ("--quant", "q4_0"), ("--quant", "f32")])
def test_nan_and_infinity_are_told(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], dtype: str, options: tuple[str, ...]
) -> None:
    folder = not_finite(tmp_path, dtype)
    assert main([str(folder), str(out), "--force", "--no-tokenizer", *options]) == 0
    errors_ = capsys.readouterr().err
    assert "warning: blk.0.ffn_up.weight: 2 values are NaN or infinite" in errors_
    assert "warning: output_norm.weight: 1 value is NaN or infinite" in errors_
    assert main([str(folder), str(out), "--force", "--no-tokenizer", "--json", *options]) == 0
    events = json.loads(capsys.readouterr().out)["events"]
    found = {event["tensor"]: event["count"] for event in events if event["kind"] == "NotFinite"}
    assert found == {"blk.0.ffn_up.weight": 2, "output_norm.weight": 1}


def test_nan_in_a_plain_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_of({"w": np.array([[1.0, np.nan]], "<f4"), "v": np.ones(3, "<f4")}))
    for options in ((), ("--dtype", "bf16")):
        assert main([str(path), str(tmp_path / "y.safetensors"), "--force", *options]) == 0
        assert "warning: w: 1 value is NaN or infinite" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--quant", "q8_0"), ("--quant", "f32")])
def test_nan_under_strict(tmp_path: Path, fails: Run, options: tuple[str, ...]) -> None:
    says = r"(ffn_up|output_norm)\.weight: \d values? (is|are) NaN or infinite\nrefused under --strict; nothing was"
    fails(not_finite(tmp_path), 40, says, "--no-tokenizer", "--strict", "-j", "1", *options)


def test_overflow_under_strict(tmp_path: Path, fails: Run) -> None:
    weights = WEIGHTS | {"model.embed_tokens.weight": np.full((512, 32), 1e30, "<f4")}
    folder = llama_folder(tmp_path / "model", weights=weights, tokenizer=False)
    says = r"token_embd\.weight: [\d,]+ values? (is|are) too large for F16"
    fails(folder, 40, says, "--no-tokenizer", "--strict", "--quant", "f16")


def test_a_fallback_under_strict(tmp_path: Path, fails: Run) -> None:
    fails(folder_with(tmp_path), 40, "do not fit Q[46]_K", "--no-tokenizer", "--strict", "--quant", "q4_k_m")


# ------------------------------------------------------------------------------------- options


def quantized(folder: Path) -> Path:
    path = folder / "quantized.gguf"
    pairs = [*b.LLAMA_PAIRS, pair("llama.attention.head_count_kv", b.U32, 4)]
    path.write_bytes(gguf(pairs, [tensor("token_embd.weight", (32, 16), T_Q8_0, 0)], bytes(16 * 34)))
    return path


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--quant", "q9_z"), 2, "q9_z"),
        (("--quant", ""), 2, "''"),
        (("--quant", "q8_0", "--tensor-type", "no_such_tensor=q4_0"), 2, "no_such_tensor"),
        (("--quant", "q8_0", "--tensor-type", "(=q4_0"), 2, r"\("),
        (("--quant", "q8_0", "--tensor-type", "ffn_up=q9_z"), 2, "q9_z"),
        (("--quant", "q8_0", "--tensor-type", "ffn_up"), 2, "PATTERN=TYPE"),
        (("--quant", "q8_0", "--output-type", "x"), 2, "x"),
        (("--quant", "q4_k_m", "--no-fallback"), 30, "rows of 32"),
        (("--dtype", "bf16"), 2, "--quant bf16"),
        (("--arch", "no_such"), 20, "no_such"),
        (("--split-max-size", "0"), 2, "positive"),
        (("--split-max-size", "lots"), 2, "lots"),
        (("--split-max-tensors", "-1"), 2, "-1"),
        (("--threads", "0"), 2, "positive"),
        (("--from", "no_such"), 10, "no such format"),
        (("--to", "no_such"), 10, "no such format"),
        (("--from", "gguf"), 50, "not a regular file"),
        (("--config", "no_such_folder"), 2, "no_such_folder"),
        (("--no-such-option",), 2, "--no-such-option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_options_that_cannot_be_meant(
    tmp_path: Path, fails: Run, options: tuple[str, ...], code: int, says: str
) -> None:
    fails(llama_folder(tmp_path / "model"), code, says, *options)


def test_quantizing_twice_has_to_be_asked_for(tmp_path: Path, fails: Run) -> None:
    fails(quantized(tmp_path), 30, "already quantized.*\n.*--allow-requantize", "--quant", "q4_0", "--pure")


def test_types_that_need_an_importance_matrix(tmp_path: Path, fails: Run) -> None:
    path = tmp_path / "in.gguf"
    path.write_bytes(gguf(b.LLAMA_PAIRS, [tensor("blk.0.ffn_up.weight", (256, 2), T_F32, 0)], bytes(2048)))
    fails(path, 31, "importance matrix", "--quant", "iq2_xxs")


# ------------------------------------------------------------------------------------- the output


def test_output_equal_to_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_of({"w": np.ones(3, "<f4")}))
    before = path.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(path)
    os.link(path, tmp_path / "hard.safetensors")
    for name in ("m.safetensors", "link.safetensors", "hard.safetensors", "../" + tmp_path.name + "/m.safetensors"):
        _message(capsys, 51, "same file; choose another name", str(path), str(tmp_path / name), "--force")
        assert path.read_bytes() == before and (tmp_path / "link.safetensors").is_symlink()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_output_equal_to_a_file_of_the_input_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = llama_folder(tmp_path / "model")
    before = (folder / name).read_bytes()
    _message(capsys, 51, "same file", str(folder), str(folder / name), "--force", "--to", "gguf")
    assert (folder / name).read_bytes() == before


def test_existing_output_asks_for_force(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path)
    _message(capsys, 53, "old.gguf: exists already; --force", str(folder), str(out), "--no-tokenizer")
    assert out.read_bytes() == OLD
    assert main([str(folder), str(out), "--no-tokenizer", "--force"]) == 0
    open_gguf(out).close()


def test_any_existing_shard_asks_for_force(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, target = folder_with(tmp_path), out.with_name("m.gguf")
    arguments = (str(folder), str(target), "--no-tokenizer", "--split-max-tensors", "5")
    third = out.with_name("m-00003-of-00003.gguf")
    third.write_bytes(OLD)
    _message(capsys, 53, third.name, *arguments)
    assert sorted(path.name for path in out.parent.iterdir()) == [third.name, "old.gguf"]
    assert main([*arguments, "--force"]) == 0
    with open_gguf(third) as checkpoint:
        assert len(checkpoint.tensors) == 12


@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_output_that_is_no_file(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    target = out.with_name("target.safetensors")
    {
        "folder": target.mkdir, "fifo": lambda: os.mkfifo(target), "device": lambda: target.symlink_to("/dev/null"),
    }[kind]()  # fmt: skip
    mode = target.stat().st_mode
    path = tmp_path / "in.safetensors"
    path.write_bytes(safetensors_of({"w": np.ones(3, "<f4")}))
    _message(capsys, 53, "target.safetensors: is a", str(path), str(target), "--to", "safetensors", "--force")
    assert target.stat().st_mode == mode
    assert sorted(entry_.name for entry_ in out.parent.iterdir()) == ["old.gguf", "target.safetensors"]


def test_no_folder_for_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.safetensors"
    path.write_bytes(safetensors_of({"w": np.ones(3, "<f4")}))
    _message(capsys, 50, "in.safetensors: is a file, not a folder", str(path), str(path / "x.safetensors"))
    assert [each.name for each in tmp_path.iterdir()] == ["in.safetensors"]


@pytest.mark.parametrize("name", ["out.xyz", "out"])
def test_no_writer_for_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = tmp_path / "in.safetensors"
    path.write_bytes(safetensors_of({"w": np.ones(3, "<f4")}))
    _message(capsys, 10, f"{name}: no writer for this extension", str(path), str(tmp_path / name))


def test_types_a_target_cannot_hold(tmp_path: Path, fails: Run) -> None:
    path = tmp_path / "in.safetensors"
    path.write_bytes(safetensors({"w": entry("C64", (2, 3), 0, 48)}, bytes(48)))
    fails(path, 12, "'w' is C64, which GGUF cannot hold", "--tensors-only", "--quant", "f16")


def test_names_out_of_a_file_never_become_paths(tmp_path: Path, out: Path) -> None:
    """A folder as output gets a name from the metadata, which a stranger wrote."""
    path = tmp_path / "in.gguf"
    pairs = [ARCH, pair("general.name", b.STR, "../../evil"), pair("general.basename", b.STR, "/abs/evil")]
    path.write_bytes(gguf(pairs, [tensor("../../evil", (8,), T_F32, 0)], bytes(32)))
    before = set(tmp_path.parent.rglob("*"))
    assert main([str(path), str(out.parent), "--to", "gguf", "--quiet"]) == 0
    (made,) = set(tmp_path.parent.rglob("*")) - before
    assert made.parent == out.parent and made.suffix == ".gguf"


# ------------------------------------------------------------------------------------- room on the disk


def test_no_room_is_found_by_the_plan(tmp_path: Path, fails: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr("converter.storage.disk.shutil.disk_usage", lambda folder: Usage)
    fails(folder_with(tmp_path), 52, "needs [0-9,]+ bytes, 100 are free", "--no-tokenizer")


COMMAND = [sys.executable, "-m", "converter"]


def test_file_size_limit(tmp_path: Path, out: Path) -> None:
    """RLIMIT_FSIZE is a disk that is full after some bytes, for one process alone."""
    resource = pytest.importorskip("resource")
    done = subprocess.run(
        [*COMMAND, folder_with(tmp_path), out, "--force", "--no-tokenizer"], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    assert done.returncode == 52
    assert "File too large; nothing was written" in done.stderr and "Traceback" not in done.stderr
    assert out.read_bytes() == OLD and [path.name for path in out.parent.iterdir()] == ["old.gguf"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux" or libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=64k") != 0:
        pytest.skip("this user may not mount a file system")
    yield folder
    libc.umount2(os.fsencode(folder), 2)


def test_a_disk_that_is_really_full(tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, target = folder_with(tmp_path), small_disk / "out.gguf"
    target.write_bytes(OLD)
    arguments = (str(folder), str(target), "--force", "--no-tokenizer")
    _message(capsys, 52, "needs [0-9,]+ bytes, [0-9,]+ are free", *arguments)
    with pytest.MonkeyPatch.context() as patch:  # as if another process took the room after the plan looked
        patch.setattr(Disk, "check_room", lambda disk: None)
        _message(capsys, 52, "No space left on device; nothing was written", *arguments)
        patch.delattr(os, "posix_fallocate")
        _message(capsys, 52, "No space left on device; nothing was written", *arguments)
    assert [path.name for path in small_disk.iterdir()] == ["out.gguf"] and target.read_bytes() == OLD


# ------------------------------------------------------------------------------------- signals


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 GB of zeros, sparse: seconds of work for nothing on the disk."""
    path = tmp_path_factory.mktemp("big") / "big.safetensors"
    size = 1 << 31
    head = safetensors({"w": entry("F16", (1 << 15, 1 << 15), 0, size)})
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_leave_nothing_behind(out: Path, big: Path, number: signal.Signals) -> None:
    options = ["--tensors-only", "--quant", "q8_0", "-j", "1", "--force"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*COMMAND, big, out, *options], **pipes)
    deadline = time.monotonic() + 30
    while not list(out.parent.glob(".*.part")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.1)
    assert process.poll() is None, process.stderr
    process.send_signal(number)
    printed = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in printed[1] and "Traceback" not in printed[1] and len(printed[1].splitlines()) <= 3
    assert [path.name for path in out.parent.iterdir()] == ["old.gguf"] and out.read_bytes() == OLD


# ------------------------------------------------------------------------------------- properties


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**66), 2**66) | st.integers(0, 64) | st.floats() | st.text(max_size=6)
    | st.sampled_from(["llama3", "yarn", "linear", "LlamaForCausalLM", "MixtralForCausalLM", "Qwen3ForCausalLM"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(CONFIG)), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
keys = st.sampled_from([
    *CONFIG, "rope_scaling", "rope_parameters", "head_dim", "num_local_experts", "num_experts_per_tok", "text_config",
    "sliding_window", "quantization_config", "bos_token_id", "eos_token_id", "layer_types", "num_experts",
])  # fmt: skip
rope = st.dictionaries(
    st.sampled_from([
        "rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
        "rope_theta", "attention_factor", "beta_fast",
    ]),
    anything | st.just("llama3"),
    max_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("plain"))


@examples(150)
@given(changes=st.dictionaries(keys, anything, max_size=3), scaling=st.none() | rope)
def test_any_config_converts_or_is_refused(plain: Path, changes: Mapping[str, Any], scaling: Any) -> None:
    config = CONFIG | dict(changes) | ({"rope_scaling": scaling} if scaling is not None else {})
    (plain / "config.json").write_text(json.dumps(config))
    try:
        make_plan(plain, plain / "out.gguf", Request(quant="q4_k_m")).checkpoint.close()
    except ConverterError as error:
        assert plain.name in str(error) and len(str(error).splitlines()) <= 3


numbers = st.sampled_from([b.U8, b.U32, b.I32, b.F32, b.BOOL, b.U64])
metadata_values = st.one_of(
    st.tuples(numbers, st.sampled_from([0, 1])), st.tuples(st.just(b.U32), st.integers(0, 2**32 - 1)),
    st.tuples(st.just(b.I32), st.integers(-(2**31), 2**31 - 1)), st.tuples(st.just(b.STR), st.text(max_size=5)),
    st.tuples(st.just(b.F32), st.floats(width=32)),
)  # fmt: skip
metadata_keys = st.sampled_from([
    "general.architecture", "general.file_type", "general.name", "llama.block_count", "llama.embedding_length",
    "llama.attention.head_count", "llama.attention.head_count_kv", "llama.expert_count", "llama.vocab_size",
    "llama.rope.freq_base", "llama.attention.key_length", "llama.rope.scaling.type", "split.count", "split.no",
    "tokenizer.ggml.tokens",
])  # fmt: skip


@examples(150)
@given(
    changes=st.dictionaries(metadata_keys, metadata_values, max_size=3),
    architecture=st.sampled_from(["llama", "qwen2", "qwen3moe", "nobody"]),
    target=st.sampled_from(
        [("out.gguf", Request(quant="q4_k_m")), ("out.gguf", Request()), ("out.safetensors", Request())]
    ),
)
def test_any_gguf_metadata_converts_or_is_refused(
    tmp_path: Path, changes: Mapping[str, Any], architecture: str, target: tuple[str, Request]
) -> None:
    base = {
        "general.architecture": (b.STR, architecture), "llama.block_count": (b.U32, 1),
        "llama.embedding_length": (b.U32, 32), "llama.feed_forward_length": (b.U32, 64),
        "llama.attention.head_count": (b.U32, 4),
    }  # fmt: skip
    pairs = [pair(key, kind, value) for key, (kind, value) in (base | dict(changes)).items()]
    lines = [tensor("token_embd.weight", (32, 16), T_F32, 0), tensor("blk.0.attn_q.weight", (32, 32), T_F32, 2048)]
    path = tmp_path / "in.gguf"
    path.write_bytes(gguf(pairs, lines, bytes(2048 + 4096)))
    try:
        make_plan(path, tmp_path / target[0], target[1]).checkpoint.close()
    except ConverterError as error:
        assert "in.gguf" in str(error) and len(str(error).splitlines()) <= 3


# ------------------------------------------------------------------------------------- exit codes and the API


def test_exit_codes_are_those_of_the_table() -> None:
    drawn = dict(re.findall(r"(\w+) +(\d+)(?: |$)", errors.__doc__ or "", re.MULTILINE))
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, ConverterError):
            assert drawn.pop(name) == str(kind.exit_code), name
    assert drawn == {}


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, tmp_path / "absent.gguf", tmp_path / "x.gguf", "--debug"], capture_output=True, text=True
    )
    assert done.returncode != 0 and "Traceback" in done.stderr and "OutputError" in done.stderr


def test_a_failed_call_of_the_api_closes_its_input(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, hidden_size=64)
    for _ in range(3):
        with pytest.raises(errors.ShapeMismatch):
            convert(folder, tmp_path / "x.gguf")
    if os.path.exists("/proc/self/maps"):
        assert str(folder) not in Path("/proc/self/maps").read_text()


def test_the_input_is_never_changed(tmp_path: Path, out: Path) -> None:
    folder = llama_folder(tmp_path / "model")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert main([str(folder), str(out), "--force", "--quiet", "--quant", "q8_0"]) == 0
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_a_gguf_of_no_known_architecture_keeps_its_names_in_a_plain_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.gguf", tmp_path / "out.safetensors"
    lines = [tensor("x.weight", (32, 2), T_Q8_0, 0), tensor("y", (4,), T_F32, 96)]
    content = (np.float16(0.5).tobytes() + bytes(range(32))) * 2
    source.write_bytes(gguf([pair("general.architecture", b.STR, "nobody")], lines, content + bytes(28) + bytes(16)))
    assert main([str(source), str(target)]) == 0
    errors_ = capsys.readouterr().err
    assert "warning: tensor names and shapes kept as in the source (no architecture answers to 'nobody'" in errors_
    assert "note: x.weight: Q8_0 decoded to F32" in errors_
    with open_safetensors(target) as checkpoint:
        decoded = checkpoint.tensors["x.weight"].array()
    assert np.array_equal(decoded, [np.arange(32) / 2] * 2)
    assert main([str(source), str(target), "--force", "--strict"]) == errors.LossyError.exit_code
    assert main([str(source), str(target), "--force", "--tensors-only", "--strict"]) == 0


def test_names_and_values_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\n\r\u202e"
    folder = llama_folder(tmp_path / "model", config={evil: evil, "model_type": evil}, tokenizer=False)
    path = tmp_path / "in.gguf"
    pairs = [pair("general.architecture", b.STR, evil), b.array_pair("list", b.STR, [evil])]
    path.write_bytes(gguf(pairs, [tensor("ü\u202ew", (8,), T_F32, 0)], bytes(32)))
    for arguments in (
        ["inspect", folder, "--all"], ["inspect", path, "--all"], ["plan", path, tmp_path / "x.gguf"],
        ["plan", folder, tmp_path / "x.gguf", "--arch", evil], [path, tmp_path / "x.safetensors"],
    ):  # fmt: skip
        main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert printed.out + printed.err
        assert not set(printed.out + printed.err) & set("\x1b\x07\r\u202e")
