"""Hugging Face folders: which weights are taken, and that nothing else is opened or run."""

from __future__ import annotations

import builtins
import errno
import io
import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.audited import AUDITED, TRAP
from support.builders import CONFIG, llama_folder, llama_weights, safetensors_of, sharded

from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, ConverterError, CorruptFile, MissingPart, OutputError, TokenizerError
from converter.formats.base import head
from converter.formats.hf_folder import open_folder, sniff
from converter.formats.hub import TEMPLATES
from converter.formats.registry import open_checkpoint, source_format
from converter.pipeline import convert
from converter.verify import verify

WEIGHTS = llama_weights()
NAMES = list(WEIGHTS)
HALVES = [{name: WEIGHTS[name] for name in NAMES[:5]}, {name: WEIGHTS[name] for name in NAMES[5:]}]


def names(checkpoint: Checkpoint) -> list[str]:
    with checkpoint:
        return sorted(checkpoint.tensors)


def test_a_single_file(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "m")
    with open_folder(folder) as checkpoint:
        assert checkpoint.format == "hf" and checkpoint.dialect == "hf" and checkpoint.path == folder
        assert checkpoint.config["hidden_size"] == 32
        assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= set(checkpoint.assets)
        assert np.array_equal(checkpoint.tensors[NAMES[0]].array(), WEIGHTS[NAMES[0]])


def test_shards_with_an_index(tmp_path: Path) -> None:
    assert names(open_folder(sharded(tmp_path, HALVES))) == sorted(NAMES)


@pytest.mark.parametrize("name", ["weights.safetensors", "consolidated.safetensors"])
def test_a_single_file_of_any_name(tmp_path: Path, name: str) -> None:
    folder = llama_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / name)
    assert names(open_folder(folder)) == sorted(NAMES)


def test_an_index_of_any_name(tmp_path: Path) -> None:
    folder = sharded(tmp_path, HALVES)
    (folder / "model.safetensors.index.json").rename(folder / "other.safetensors.index.json")
    assert names(open_folder(folder)) == sorted(NAMES)


def test_model_safetensors_goes_before_everything_else(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path)
    (folder / "adapter.safetensors").write_bytes(safetensors_of({"other": np.zeros(1, "<f4")}))
    assert names(open_folder(folder)) == sorted(NAMES)


def test_a_second_copy_of_the_model_is_told(tmp_path: Path) -> None:
    """What transformers takes is taken: safetensors before PyTorch, one file before a set."""
    weights = llama_weights()
    names_ = sorted(weights)
    folder = sharded(tmp_path / "m", [{name: weights[name]} for name in names_])
    with open_folder(folder) as checkpoint:
        assert checkpoint.events == ()
    (folder / "pytorch_model.bin").write_bytes(b"older")
    with open_folder(folder) as checkpoint:
        (event,) = checkpoint.events
        assert len(checkpoint.files) == len(names_)
    taken = "is taken, as transformers does; also there, and left out: "
    assert str(event) == f"model.safetensors.index.json {taken}pytorch_model.bin"
    (folder / "model.safetensors").write_bytes(safetensors_of(weights))
    with open_folder(folder) as checkpoint:
        (event,) = checkpoint.events
        assert [file.name for file in checkpoint.files] == ["model.safetensors"]
    assert str(event).startswith(
        f"model.safetensors {taken}model.safetensors.index.json, pytorch_model.bin, model-00001-of"
    )


def forbid(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """No look into these, as for who has no right to; a superuser has every right, so the system's calls say so."""

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(path: Any, *args: Any, **options: Any) -> Any:
            given = Path(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else Path()
            if any(given.parent == each or (given == each and call is not os_stat) for each in paths):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(given))
            return call(path, *args, **options)

        return checked

    os_stat = os.stat
    for module, name in (
        (os, "stat"),
        (os, "scandir"),
        (os, "listdir"),
        (os, "open"),
        (io, "open"),
        (builtins, "open"),
    ):
        monkeypatch.setattr(module, name, guarded(getattr(module, name)))


@pytest.mark.parametrize(
    "name", ["", "config.json", "model.safetensors", "tokenizer.json", "additional_chat_templates"]
)
def test_what_may_not_be_read_is_said_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not "no format that can be read", nor a fault of a format."""
    folder = llama_folder(tmp_path / "m")
    (folder / TEMPLATES).mkdir()
    forbid(monkeypatch, folder / name)
    with warnings.catch_warnings(), pytest.raises((OutputError, TokenizerError), match=r"(?i)permission denied"):
        warnings.simplefilter("error")
        convert(folder, tmp_path / "x.gguf")


def test_several_files_without_an_index_are_a_question(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    with pytest.raises(MissingPart, match=r"found: a\.safetensors, b\.safetensors"):
        open_folder(folder)


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingPart, match="found: none"):
        open_folder(tmp_path)


@pytest.mark.parametrize("kind", ["absent", "folder", "dangling", "fifo"])
def test_no_config(tmp_path: Path, kind: str) -> None:
    folder = llama_folder(tmp_path)
    config = folder / "config.json"
    config.unlink()
    {
        "absent": lambda: None, "folder": config.mkdir, "dangling": lambda: config.symlink_to("nowhere"),
        "fifo": lambda: os.mkfifo(config),
    }[kind]()  # fmt: skip
    with pytest.raises(MissingPart, match=r"no config\.json"):
        open_folder(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"{", b"\xff{}", b'{"a":1,"a":2}', b'{"a":nan}', b'{"a":+Infinity}', b'{"a":"\\ud800"}',
        b'{"a":' + b"9" * 4000 + b"}", b'{"a":' * 100_000, b"\0" * 64,
    ],
    ids=lambda content: ascii(content[:20]),
)  # fmt: skip
def test_config_that_cannot_be_read_stops_only_who_asks_for_it(tmp_path: Path, content: bytes) -> None:
    folder = llama_folder(tmp_path / "model")
    (folder / "config.json").write_bytes(content)
    with open_folder(folder) as opened:
        for ask in (lambda: opened.config["model_type"], lambda: opened.config.get("a"), lambda: len(opened.config)):
            with pytest.raises(CorruptFile, match=r"config\.json: "):
                ask()
        tensors = {name: tensor.array() for name, tensor in opened.tensors.items()}
    for number, source in enumerate((folder, folder / "model.safetensors")):
        convert(source, tmp_path / f"{number}.npz")
        with open_checkpoint(tmp_path / f"{number}.npz") as made:
            assert made.tensors.keys() == tensors.keys()
            for name, values in tensors.items():
                np.testing.assert_array_equal(made.tensors[name].array(), values)
        with pytest.raises(CorruptFile, match=r"config\.json: "):
            convert(source, tmp_path / "out.gguf")


def test_python_s_own_words_in_a_config_are_numbers(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path)
    said = json.loads((folder / "config.json").read_text())
    text = json.dumps({**said, "time_step_limit": [0.0, math.inf], "low": -math.inf, "odd": math.nan})
    (folder / "config.json").write_text(text)
    with open_folder(folder) as opened:
        assert opened.config["time_step_limit"] == [0.0, math.inf] and opened.config["low"] == -math.inf
        assert math.isnan(opened.config["odd"])
    convert(folder, f"{tmp_path}/back/")
    assert json.dumps(json.loads((tmp_path / "back" / "config.json").read_text())) == text
    assert not verify(folder, tmp_path / "back").findings
    (folder / "config.json").write_text(json.dumps({**said, "rms_norm_eps": math.inf}))
    with pytest.raises(ArchitectureError, match="rms_norm_eps is 'inf', not a usable f32 value"):
        convert(folder, tmp_path / "out.gguf")


def test_config_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path)
    with open(folder / "config.json", "wb") as file:
        file.truncate(1 << 40)
    with open_folder(folder) as opened, pytest.raises(CorruptFile, match="larger than"):
        opened.config.get("a")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "README.md"])
def test_a_link_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """What a stranger's archive can hold; a file the user names may be a link, what lies in a folder may not."""
    folder = llama_folder(tmp_path / "model")
    secret = tmp_path / "secret"
    if (folder / name).exists():
        (folder / name).rename(secret)
    else:
        secret.write_text("secret")
    (folder / name).symlink_to(secret)
    with pytest.raises(CorruptFile, match="leads out of the folder"):
        open_folder(folder)


def test_a_template_that_is_a_link_out_of_the_folder(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "model")
    (tmp_path / "secret").write_text("secret")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "a.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptFile, match="leads out of the folder"):
        open_folder(folder)


def test_a_folder_of_weights_that_is_a_link_out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    folder = sharded(tmp_path / "model", HALVES, {name: "sub/x.safetensors" for name in NAMES})
    (tmp_path / "out" / "x.safetensors").write_bytes(safetensors_of(WEIGHTS))
    (folder / "sub").symlink_to(tmp_path / "out")
    with pytest.raises(CorruptFile, match="leads out of the folder"):
        open_folder(folder)


def test_links_inside_the_folder_are_fine(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "real")
    (folder / "model.safetensors").symlink_to("real")
    assert names(open_folder(folder)) == sorted(NAMES)


@pytest.mark.parametrize("kind", ["dangling", "loop", "folder", "fifo"])
def test_weights_that_are_no_file(tmp_path: Path, kind: str) -> None:
    folder = llama_folder(tmp_path)
    weights = folder / "model.safetensors"
    weights.unlink()
    {
        "dangling": lambda: weights.symlink_to("nowhere"), "loop": lambda: weights.symlink_to(weights.name),
        "folder": weights.mkdir, "fifo": lambda: os.mkfifo(weights),
    }[kind]()  # fmt: skip
    with pytest.raises(ConverterError, match=r"model\.safetensors"):
        open_folder(folder)


def test_the_hub_s_cache(tmp_path: Path) -> None:
    """snapshots/<revision>/file -> ../../blobs/<hash>, the layout of huggingface_hub."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(llama_folder(tmp_path / "source").iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert names(open_folder(snapshot)) == sorted(NAMES)
    assert names(source_format(snapshot / "model.safetensors").open(snapshot / "model.safetensors")) == sorted(NAMES)
    (tmp_path / "secret").write_bytes((blobs / "0").read_bytes())
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptFile, match="leads out"):
        open_folder(snapshot)


def test_content_decides_what_a_folder_is(tmp_path: Path) -> None:
    assert not sniff(tmp_path, head(tmp_path))
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert sniff(tmp_path, head(tmp_path))
    assert not sniff(tmp_path / "x.safetensors", b"")
    assert source_format(llama_folder(tmp_path / "m")).name == "hf"


def test_only_weights_config_and_tokenizer_are_opened_and_nothing_is_run(tmp_path: Path) -> None:
    """The interpreter's own audit hooks tell what a conversion opens, imports, compiles and starts."""
    folder = llama_folder(tmp_path / "model", config={"auto_map": {"AutoConfig": "evil.Config"}})
    marker = tmp_path / "marker"
    for name in ("evil.py", "modeling_llama.py", "conftest.py", "sitecustomize.py", "__init__.py"):
        (folder / name).write_text(TRAP)
    for name in ("training_args.bin", "rng_state.pth", "pytorch_model.bin", "optimizer.pt", "model.pkl"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch \"$MARKER\"'\ntR.")
    (folder / "chat_template.jinja").write_text("{{ cycler.__init__.__globals__.os.system('touch $MARKER') }}")
    script = tmp_path / "audited.py"
    script.write_text(AUDITED)
    environment = os.environ | {"MARKER": str(marker)}
    done = subprocess.run(
        [sys.executable, script, folder, tmp_path / "out.gguf"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] == 0 and not marker.exists()
    allowed = {
        "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "chat_template.jinja",
        "generation_config.json", "README.md",
    }  # fmt: skip
    assert "model.safetensors" in result["inside"] and set(result["inside"]) <= allowed
    assert result["called"] == []
    assert b"cycler" in (tmp_path / "out.gguf").read_bytes()  # carried as it is, never rendered
    assert json.loads((folder / "config.json").read_text())["model_type"] == CONFIG["model_type"]
