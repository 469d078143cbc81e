"""Every system call of a conversion fails once, or the process is killed at it: what is there afterwards?

    python tests/faults/sweep.py [TARGET...]

prints a table, target by call: how many tries, and how many of them ended otherwise than promised. Promised is:

- the old output is whole or the new one is, and no files of the two stand together; after a kill, a set may lack its
  entry file, so that nothing takes it for a model, and the next run has the old or the new one whole;
- an error says so with a documented code, and "nothing was written" only where that is true;
- nothing is left that nobody names; what a killed run leaves, the next one removes.

Linux alone: the faults come from a preloaded library (shim.c). Runs are forks of a process that has everything loaded.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parent.parent))
from faults import forks
from faults.forks import Snapshot

HERE = Path(__file__).parent

KILL = 0


class Target(NamedTuple):
    """What is written: its name in the folder, the file without which it is no model, and the options for it."""

    out: str
    entry: str
    options: tuple[str, ...] = ()
    source: str = "in.safetensors"
    older: tuple[str, ...] = ("--dtype", "f16")


SPLIT = ("--split-max-tensors", "1")
TARGETS = {
    "gguf": Target("out.gguf", "out.gguf", ("--tensors-only",), older=("--quant", "f16")),
    "safetensors": Target("out.safetensors", "out.safetensors"),
    "gguf split": Target("out.gguf", "out-00001-of-00002.gguf", ("--tensors-only", *SPLIT), older=("--quant", "f16")),
    "folder, shards": Target("out/", "out/model.safetensors.index.json", ("--to", "hf", "--tensors-only", *SPLIT)),
    "gguf, two disks": Target(
        "out.gguf",
        "out-00001-of-00004.gguf",
        ("--tensors-only", *SPLIT, "--spread", "{disk}"),
        "four.safetensors",
        ("--quant", "f16"),
    ),
    "folder, two disks": Target(
        "out/",
        "out/model.safetensors.index.json",
        ("--to", "hf", "--tensors-only", *SPLIT, "--spread", "{disk}"),
        "four.safetensors",
    ),
    "onnx, data": Target("out.onnx", "out.onnx", ("--external-data", "always")),
    "pt": Target("out.pt", "out.pt"),
    "npz": Target("out.npz", "out.npz"),
    "h5": Target("out.h5", "out.h5"),
    "keras": Target("out.keras", "out.keras", (), "in.keras"),
    "flax": Target("out.msgpack", "out.msgpack"),
}
CALLS = {
    "open": (errno.EACCES, errno.ENOSPC, errno.EMFILE, KILL),
    "mkdir": (errno.EACCES, errno.ENOSPC, KILL),
    "fallocate": (errno.ENOSPC, errno.EOPNOTSUPP, KILL),
    "ftruncate": (errno.ENOSPC, errno.EIO, KILL),
    "write": (errno.ENOSPC, errno.EIO, errno.EINTR, KILL),
    "pwrite": (errno.ENOSPC, errno.EIO, errno.EINTR, KILL),
    "fsync": (errno.EIO, KILL),
    "close": (errno.EIO, KILL),
    "rename": (errno.EACCES, errno.EIO, KILL),
    "link": (errno.EACCES, errno.EPERM, KILL),
    "symlink": (errno.EPERM, errno.ENOSPC, KILL),
    "unlink": (errno.EACCES, KILL),
    "rmdir": (errno.EACCES, KILL),
    "mmap": (errno.ENOMEM, KILL),
}


class Run(NamedTuple):
    """How a run ended: its code (negative: by a signal), what it said, and whether its fault came."""

    code: int
    said: str
    fired: bool


class Sweep:
    """The faults of one target, in a folder of its own."""

    def __init__(self, target: Target, scratch: Path) -> None:
        self.target, self.scratch, self.place = target, scratch, scratch / "place"
        self.disk = scratch / "place-disk"  # the faults of `place` are also for names that begin so
        self.source = _source(scratch, target.source)
        self._arm = ctypes.CDLL(os.environ["LD_PRELOAD"]).fault_arm
        self._empty()
        forks.program()([*self._command(), "--quiet"])  # loads all that the forks need
        self._empty()
        self.old = self._made(*target.older)
        for folder in (self.place, self.disk):
            shutil.copytree(folder, scratch / f"old-{folder.name}", symlinks=True)
        self._empty()
        self.new = self._made()
        assert self.old.keys() == self.new.keys() and self.old[target.entry] != self.new[target.entry]

    def _made(self, *options: str) -> Snapshot:
        run = self.run(*options)
        assert run.code == 0, run.said
        return forks.seen(self.place)

    def _command(self) -> list[str]:
        options = [str(self.disk) if word == "{disk}" else word for word in self.target.options]
        return [str(self.source), f"{self.place}/{self.target.out}", *options, "-j", "1"]

    def _empty(self, old: bool = False) -> None:
        forks.empty((self.place, self.disk), self.scratch if old else None)

    def hidden(self) -> set[str]:
        return {path.name for path in self.place.rglob("*") if forks.TEMPORARY.fullmatch(path.name)}

    def run(self, *options: str, fault: tuple[str, int, int] | None = None) -> Run:
        """Convert in a fork, where `fault` (call, which one, error) is armed."""
        out, marker = self.scratch / "said", self.scratch / "fired"
        marker.unlink(missing_ok=True)
        command = [*self._command(), *options]

        def armed() -> None:
            if fault is not None:
                kind, nth, error = fault
                self._arm(kind.encode(), nth, error, os.fsencode(self.place), os.fsencode(marker))

        child = forks.begun(command, out, armed)
        _, status = os.waitpid(child, 0)
        return Run(os.waitstatus_to_exitcode(status), out.read_text(errors="replace"), marker.exists())

    def tries(self, call: str, error: int, replacing: bool) -> Iterator[list[str]]:
        """One for each call of the kind: what is wrong afterwards."""
        for nth in range(1, 400):
            self._empty(old=replacing)
            run = self.run(*["--force"] * replacing, fault=(call, nth, error))
            before = self.old if replacing else {}
            if not run.fired:
                return
            name = f"{call} {nth} {errno.errorcode.get(error, 'KILL')}{', replacing' * replacing}"
            found = self.after_kill(run, before) if error == KILL else self.after_error(run, before)
            yield [f"{name}: {words} (code {run.code}: {run.said.strip()!r})" for words in found]

    def after_error(self, run: Run, before: Snapshot) -> Iterator[str]:
        seen, hidden = forks.seen(self.place), self.hidden()
        if run.code == 0:
            if seen != self.new:
                yield "success, and the new output is not there"
        elif seen not in (before, self.new):
            yield "neither the old nor the new output"
        if seen == self.new and "nothing was written" in run.said:
            yield "the new output is there, and the message denies it"
        if run.code and (not run.said.strip() or "Traceback" in run.said or "internal error" in run.said):
            yield "no message for people"
        if run.code not in _documented():
            yield "a code that is not documented"
        parts = [name for name in hidden if name.endswith(".part")]  # an empty lock is the next run's
        if parts and not any(name in run.said for name in parts):
            yield f"left behind: {sorted(parts)}"
        lost = forks.unseen(self.place, self.disk)
        if lost and not parts:
            yield f"left on the other disk: {lost}"
        if hidden or lost:
            yield from self.afterwards(before)

    def after_kill(self, run: Run, before: Snapshot) -> Iterator[str]:
        seen = forks.seen(self.place)
        if run.code != -9:
            yield "was not killed"
        if seen not in (before, self.new):
            parts = [whole for whole in (before, self.new) if seen.items() <= whole.items()]
            if not parts:
                yield "old and new files together"
            elif self.target.entry in seen:
                yield "a part that looks finished"
        yield from self.afterwards(before)

    def afterwards(self, before: Snapshot) -> Iterator[str]:
        """What the next runs make of it."""
        run = self.run()
        seen = forks.seen(self.place)
        if run.code not in (0, 53) or seen not in (before, self.new):
            yield f"the next run: {run.code}, {run.said.strip()!r}"
        if self.hidden():
            yield f"the next run leaves {sorted(self.hidden())}"
        run = self.run("--force")
        if run.code or forks.seen(self.place) != self.new or self.hidden():
            yield f"the next run with --force: {run.code}, {run.said.strip()!r}"
        if lost := forks.unseen(self.place, self.disk):
            yield f"the next run leaves on the other disk: {lost}"


def _documented() -> set[int]:
    from converter import errors

    kinds, codes = [errors.ConverterError], {0}
    while kinds:
        kind = kinds.pop()
        codes.add(kind.exit_code)
        kinds += kind.__subclasses__()
    return codes - {1, 70}


def _source(folder: Path, name: str) -> Path:
    import numpy as np
    from safetensors.numpy import save_file

    path = folder / "source" / name
    path.parent.mkdir()
    if name.endswith(".keras"):
        from support import samples

        return samples.MADE["keras"](path.parent)
    (path.parent / "config.json").write_text("{}")
    rng = np.random.default_rng(1)
    names = "abcd" if name.startswith("four") else "ab"
    save_file({name: rng.normal(size=(32, 64)).astype(np.float32) for name in names}, path)
    return path


def main(names: list[str]) -> int:
    """Sweep over targets, all by default; the code says whether anything ended otherwise than promised."""
    wrong_ones = 0
    print(f"| target | {' | '.join(CALLS)} | all |\n|---|{'---|' * (len(CALLS) + 1)}", flush=True)
    for name in names or TARGETS:
        with tempfile.TemporaryDirectory(prefix="faults-", dir=forks.scratch_in()) as scratch:
            sweep, tried, wrong, faults = Sweep(TARGETS[name], Path(scratch)), Counter[str](), Counter[str](), []
            for call, errors in CALLS.items():
                for error in errors:
                    for replacing in (False, True):
                        for found in sweep.tries(call, error, replacing):
                            tried[call] += 1
                            wrong[call] += bool(found)
                            faults += found
        cells = [f"{tried[call]}{f' ({wrong[call]})' if wrong[call] else ''}" for call in CALLS]
        print(f"| {name} | {' | '.join(cells)} | {tried.total()} ({wrong.total()}) |", flush=True)
        for fault in faults:
            print(f"{name}: {fault}", file=sys.stderr)
        wrong_ones += wrong.total()
    return 1 if wrong_ones else 0


if __name__ == "__main__":
    if "LD_PRELOAD" not in os.environ:
        library = os.path.join(tempfile.mkdtemp(prefix="faults-"), "shim.so")
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", HERE / "shim.c", "-o", library, "-ldl"], check=True)
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"LD_PRELOAD": library})
    sys.exit(main(sys.argv[1:]))
