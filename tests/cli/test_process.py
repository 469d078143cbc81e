"""The program as a process: signals from its first moment, streams that are closed or full, limits of the system."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from converter.cli.main import _failure

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals, limits and redirections of POSIX shells")
COMMAND = [sys.executable, "-m", "converter"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.safetensors"
    values = np.random.default_rng(1).normal(size=(64, 256)).astype(np.float32)
    safetensors.numpy.save_file({f"w{number:03}": values for number in range(200)}, path)
    return path


def shell(line: str, *args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """A line of sh in which $@ is the program with its arguments."""
    command = ["sh", "-c", line, "sh", *COMMAND, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"in.safetensors"}


# ----------------------------------------------------------------------------------------- signals

HELD = """
import os, signal, sys
from importlib import abc
class Hold(abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{number})
        return None
sys.meta_path.insert(0, Hold())
sys.argv = ["convert", *sys.argv[1:]]
from converter.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("module", ["converter.cli.main", "argparse", "numpy", "converter.planning.passes"])
def test_a_signal_while_modules_are_loaded(tmp_path: Path, source: Path, module: str, number: str) -> None:
    code = HELD.format(module=module, number=number)
    done = subprocess.run(
        [sys.executable, "-c", code, source, tmp_path / "out.npz"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130
    assert done.stderr in ("", "convert: interrupted\n")
    assert left(tmp_path) == set()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("target", ["out.npz", "out/"])
def test_signals_at_any_moment(tmp_path: Path, source: Path, target: str, number: signal.Signals) -> None:
    """Thirty of each: the code is 130 or what it would have been, there is no traceback, and nothing half.

    Before the interpreter has handed over to us, the system or the interpreter end the process: nothing is there yet.
    """
    options = ["--to", "hf", "--tensors-only"] if target.endswith("/") else []
    (tmp_path / "config.json").write_text("{}")
    command = [*COMMAND, source, str(tmp_path / "out") + target.removeprefix("out"), *options]
    whole = 0.0
    codes = []
    for part in (None, *np.linspace(0.02, 1.05, 30)):
        started = time.monotonic()
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if part is not None:
            time.sleep(whole * part)
            run.send_signal(number)
        _, said = run.communicate(timeout=60)
        whole = whole or time.monotonic() - started
        codes.append(run.returncode)
        early = part is not None and part < 0.3
        assert run.returncode in ((130, 0, -number, 1) if early else (130, 0)), (part, said)
        assert "Traceback" not in said or (early and "converter/cli" not in said), (part, said)
        assert left(tmp_path) - {"config.json"} == ({target.rstrip("/")} if run.returncode == 0 else set()), part
        out = tmp_path / target.rstrip("/")
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    assert codes[0] == 0 and codes.count(130) > 5, codes


# ----------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(tmp_path: Path, source: Path, closed: str) -> None:
    """The output gets none of their numbers, so that nothing is printed into it."""
    out = tmp_path / "out.npz"
    done = shell(f'"$@" {closed}', source, out)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert set(np.load(out).files) == {f"w{number:03}" for number in range(200)}
    failed = shell(f'"$@" {closed}', source, out)
    assert failed.returncode == 53
    assert failed.stdout == "" and ("exists already" in failed.stderr) == ("2>" not in closed)
    assert shell(f'"$@" {closed}', "--help").returncode == 0
    assert shell(f'"$@" {closed}', "inspect", out, "--json").returncode == 0


@pytest.mark.parametrize("verb", [["inspect"], ["inspect", "--json"], ["inspect", "--all"], ["check", "--json"]])
def test_a_reader_that_goes_away(source: Path, verb: list[str]) -> None:
    """Before or while the output is written: that is no fault, and nothing is said."""
    for reader in ("true", "head -c 100"):
        done = shell(f'{{ "$@"; echo $? >&2; }} | {reader}', *verb, source)
        assert done.stderr == "0\n"


def test_a_reader_of_errors_that_goes_away(tmp_path: Path, source: Path) -> None:
    done = shell('{ "$@" 2>&1 >/dev/null; echo $? >&3; } 3>&1 | true', source, tmp_path / "missing" / "out.npz")
    assert "Traceback" not in done.stderr
    run = subprocess.Popen([*COMMAND, "inspect", tmp_path / "none"], stderr=subprocess.PIPE)
    assert run.stderr is not None
    run.stderr.close()
    assert run.wait(60) == 50


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_place_for_messages_that_is_full(tmp_path: Path, source: Path) -> None:
    for options in ([], ["--json"], ["--all"]):
        done = shell('"$@" >/dev/full', "inspect", source, *options)
        assert (done.returncode, done.stderr) == (
            50, "convert: the output could not be printed: No space left on device\n"
        )  # fmt: skip
    assert shell('"$@" 2>/dev/full', "inspect", tmp_path / "none").returncode == 50
    done = shell('"$@" >/dev/full', source, tmp_path / "out.npz", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


# ----------------------------------------------------------------------------------------- names


EMPTY = ["{source}|", "|{out}", "inspect|", "check|", "verify||{out}", "plan|{source}|", "{source}|{out}|--config|"]


@pytest.mark.parametrize("args", EMPTY)
def test_an_empty_name(tmp_path: Path, source: Path, args: str) -> None:
    """It would mean this folder to the library."""
    (tmp_path / "here").mkdir()
    words = [arg.format(source=source, out=tmp_path / "out.npz") for arg in args.split("|")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=60, cwd=tmp_path / "here", env=environment
    )
    assert done.returncode == 2 and "an empty name is no file" in done.stderr
    assert left(tmp_path) == {"here"} and not list((tmp_path / "here").iterdir())


# ----------------------------------------------------------------------------------------- limits


def test_more_shards_than_open_files(tmp_path: Path, source: Path) -> None:
    """Written, read as shards again, and carried into one file."""
    shards, back = tmp_path / "shards", tmp_path / "back.npz"
    shards.mkdir()
    options = ["--split-max-tensors", "1", "-j", "8"]
    done = shell('ulimit -n 64; "$@"', source, shards / "out.safetensors", *options)
    assert done.returncode == 0, done.stderr
    files = sorted(shards.glob("*.safetensors"))
    assert len(files) == 200
    done = shell('ulimit -n 64; "$@"', files[0], back)
    assert done.returncode == 0, done.stderr
    with np.load(back) as arrays:
        original = safetensors.numpy.load_file(source)
        assert arrays.files and all(np.array_equal(arrays[name], original[name]) for name in original)


@pytest.mark.parametrize("limit", ["-f 64", "-f 4000"])
def test_a_file_may_not_be_so_long(tmp_path: Path, source: Path, limit: str) -> None:
    done = shell(f'ulimit {limit}; "$@"', source, tmp_path / "out.npz")
    assert done.returncode in (50, 52) and "nothing was written" in done.stderr and "Traceback" not in done.stderr
    assert left(tmp_path) == set()


@pytest.mark.parametrize("megabytes", [120, 200, 300, 400, 600, 900])
def test_little_memory(tmp_path: Path, source: Path, megabytes: int) -> None:
    """It is enough, or that is said."""
    done = shell(f'ulimit -v {megabytes * 1024}; "$@"', source, tmp_path / "out.npz", "-j", "4")
    if done.returncode == 0:
        assert left(tmp_path) == {"out.npz"}
    else:
        assert done.returncode in (50, 71), done.stderr
        assert "Traceback" not in done.stderr and "memory" in done.stderr
        assert left(tmp_path) == set()


class Unfinished(SourceFileLoader):
    """What it loads is a tree that the compiler did not finish, as it happens where memory runs out meanwhile."""

    def get_data(self, path: str) -> Any:
        if path.endswith(".pyc"):
            raise FileNotFoundError(path)
        return ast.Module([ast.Expr(value=None, lineno=1, col_offset=0)], [])  # type: ignore[arg-type]


def test_a_compiler_without_memory(tmp_path: Path) -> None:
    spec = spec_from_file_location("unfinished", tmp_path / "a.py", loader=Unfinished("unfinished", str(tmp_path)))
    assert spec is not None and spec.loader is not None
    with pytest.raises(ValueError, match="field 'value' is required") as caught:
        spec.loader.exec_module(module_from_spec(spec))
    assert _failure(caught.value).exit_code == 71
    assert _failure(ValueError("field 'value' is required")).exit_code == 70


def test_no_thread_to_be_had(tmp_path: Path, source: Path) -> None:
    code = (
        "import sys, threading\n"
        'def refuse(self): raise RuntimeError("can\'t start new thread")\n'
        "threading.Thread.start = refuse\n"
        "from converter.__main__ import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", code, source, tmp_path / "out.npz", "-j", "4", "--verify"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert left(tmp_path) == {"out.npz"}
