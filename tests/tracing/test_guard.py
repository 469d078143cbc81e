"""The process that traces: what it may not do, and what is read of its answers."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from converter import errors
from converter.errors import UnsupportedFeature
from converter.tracing import tracer
from converter.tracing.answer import Answer, Computed, Filled, Traced, received, send, send_error

TRIED = {
    "the network": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "a name": "import socket; socket.getaddrinfo('example.org', 80)",
    "a program": "import subprocess; subprocess.run(['true'])",
    "a shell": "import os; os.system('true')",
    "a file": "open('made', 'w')",
    "a file, by its number": "import os; os.open('made', os.O_CREAT | os.O_WRONLY)",
    "a folder": "import os; os.mkdir('made')",
    "a removal": "import os; os.remove('there')",
    "a pickle": "import pickle, io, os; pickle.loads(b'cos\\ngetcwd\\n)R.')",
}


@pytest.mark.parametrize("name", TRIED)
def test_doors_are_closed(name: str, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    code = f"from converter.tracing.guard import close_doors\nclose_doors()\n{TRIED[name]}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1 and "PermissionError" in done.stderr.splitlines()[-1], done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_reading_is_not_writing(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("text")
    code = "from converter.tracing.guard import close_doors\nclose_doors()\nassert open('there').read() == 'text'"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


ANSWER = Answer(
    "traced",
    (
        Traced("one", b"head", b"graph", {"a": Filled("model.a", "F32")}, {"t": Computed("I64", (2,), bytes(16))}),
        Traced("two", b"", b"", {}, {"u": Computed("F32", (), bytes(4)), "v": Computed("U8", (0,), b"")}),
    ),
    ("left",),
)


def test_an_answer_comes_back() -> None:
    stream = io.BytesIO()
    send(ANSWER, stream)
    assert received(stream.getvalue()) == ANSWER
    with pytest.raises(ValueError, match="cut short"):
        received(stream.getvalue()[:-1])


def test_an_error_comes_back_as_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, made in (("MissingTensor", errors.MissingTensor), ("short", UnsupportedFeature)):
        stream = io.BytesIO()
        send_error(kind, "no tensor", stream)
        done = subprocess.CompletedProcess([], 0, stream.getvalue(), b"")
        monkeypatch.setattr(tracer.subprocess, "run", lambda *_, done=done, **__: done)
        with pytest.raises(made, match="model: no tensor"):
            tracer.trace(Path("model"), {}, {}, "F32")


def test_modules_that_lie_where_one_stands_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numpy", "torch"):
        (tmp_path / f"{name}.py").write_text("open('run', 'w').close()\nraise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.ConverterError, match="model: "):
        tracer.trace(Path("model"), {"model_type": "none"}, {}, "F32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["numpy.py", "torch.py"]


@pytest.mark.parametrize("out", [b"", b"[", b'{"way": "x", "models": [], "unused": ["'])
def test_a_process_that_dies_is_an_error(out: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], -9, out, b"first\nKilled\x1b[0m")
    monkeypatch.setattr(tracer.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(UnsupportedFeature, match=r"ended with -9; its last words: 'Killed\\x1b") as caught:
        tracer.trace(Path("model"), {}, {}, "F32")
    assert str(caught.value).isprintable()
