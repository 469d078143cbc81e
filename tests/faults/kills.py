"""Runs are killed at random moments and gone on with: what is there in between, and after the end?

    python tests/faults/kills.py [--tries 1000] [--seed 0] [KIND...]

prints a table, kind by kind: how many were killed in the middle, how many of them ended otherwise than promised, and
the bytes that a run writes with its kills over those of one without. Promised is what sweep.py promises: no
file that looks finished and is wrong, no good one lost; and the same command makes the same bytes in the end.

Linux alone: runs are forks of a process that has everything loaded, so that kills come in the middle of the work.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parent.parent))
from faults import forks
from faults.forks import Snapshot

SIZES = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
         "intermediate_size": 1536, "vocab_size": 512}  # fmt: skip
# What would take a fork long to load.
LOADED = ("converter.cli.main", "converter.cli.commands.convert", "converter.pipeline", "converter.batch.run",
          "converter.tensors.kernels", "converter.remote.uploads", "obstore", "botocore.session", "google.auth",
          "azure.storage.blob")  # fmt: skip
STORE = """
import sys
from pathlib import Path
from support.hosts import Host, serving
with serving(Host(Path(sys.argv[1]))) as host:
    print(host.url, flush=True)
    for asked in sys.stdin:
        if asked.strip() == "anew":
            host.uploads.clear()
        print(sum(host.taken.values()), sum(map(len, host.uploads.values())), flush=True)
"""


class Kind(NamedTuple):
    """A command over {in}, {out} and {disk} (a folder on another disk), one that makes an older output, and files
    without which it is no model."""

    command: tuple[str, ...]
    older: tuple[str, ...]
    entries: tuple[str, ...]


def _convert(out: str, entry: str, *options: str, older: tuple[str, ...] = ("-q", "q8_0")) -> Kind:
    words = ("{in}", f"{{out}}/{out}")
    return Kind((*words, *options), (*words, *options, *older), (entry,))


def _upload(scheme: str) -> Kind:
    words = ("{in}", f"{scheme}://place/m.gguf", "-q")
    return Kind((*words, "q4_k_m"), (*words, "q8_0"), ("m.gguf",))


SPLIT = ("--split-max-tensors", "16")
THREE = ("{in}", "{out}/", "-q", "q4_k_m,q6_k,q8_0")
BATCH = ("batch", "{in}/../in*", "--out", "{out}/{name}-{quant}.gguf", "-q", "q4_k_m,q8_0")
OLDER = ("--embedding-type", "f16")
KINDS = {
    "single": _convert("m.gguf", "m.gguf", "-q", "q4_k_m"),
    "split": _convert("m.gguf", "m-00001-of-00005.gguf", "-q", "q4_k_m", *SPLIT),
    "sharded": _convert("m.safetensors", "m.safetensors.index.json", *SPLIT, older=("--dtype", "f16")),
    "folder": _convert("m/", "m/model.safetensors", older=("--dtype", "f16")),
    "several": Kind(THREE, (*THREE, *OLDER), ()),
    "batch": Kind(BATCH, (*BATCH, *OLDER), ()),
    "spread": _convert("m.gguf", "m-00001-of-00005.gguf", "-q", "q4_k_m", *SPLIT, "--spread", "{disk}"),
    "upload": _upload("s3"),
    "upload-gs": _upload("gs"),
    "upload-az": _upload("az"),
}


class Store:
    """A store of objects in a process of its own, whose bucket is the folder `place`."""

    def __init__(self, root: Path) -> None:
        paths = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-c", STORE, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": paths},
        )  # fmt: skip
        url = self._said()
        os.environ.update(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="nobody", AWS_SECRET_ACCESS_KEY="nothing")
        os.environ.update(STORAGE_EMULATOR_HOST=url, AZURE_STORAGE_ENDPOINT=url, AZURE_STORAGE_ACCOUNT_NAME="nobody")
        os.environ.update(AZURE_STORAGE_ACCOUNT_KEY="Tm9ib2R5")

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _ask(self, what: str) -> tuple[int, ...]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return tuple(map(int, self._said().split()))

    def taken(self) -> int:
        """Bytes that came so far."""
        return self._ask("taken")[0]

    def parts(self) -> int:
        """Parts of uploads that were not completed."""
        return self._ask("parts")[1]

    def anew(self) -> None:
        """Forget uploads."""
        self._ask("anew")

    def close(self) -> None:
        self._process.communicate()


class Run(NamedTuple):
    """How a run ended: its code (negative: by a signal), seconds, bytes that it wrote."""

    code: int
    seconds: float
    written: int


class Kills:
    """One kind of run, in a folder of its own."""

    def __init__(self, kind: Kind, scratch: Path, draw: random.Random) -> None:
        self.kind, self.scratch, self.place, self.draw = kind, scratch, scratch / "place", draw
        self.disk = Path(tempfile.mkdtemp(prefix="kills-disk-"))  # not where `scratch` is, as a rule
        self.store = Store(scratch) if any("://" in word for word in kind.command) else None
        for name in LOADED:
            with suppress(ImportError):  # of those that only uploads need
                importlib.import_module(name)
        self.source = _source(scratch / "in")
        if kind.command[0] == "batch":
            shutil.copytree(self.source, scratch / "in-2")
        self.old, _ = self._made(kind.older)
        for folder in (self.place, self.disk):
            shutil.copytree(folder, scratch / f"old-{folder.name}", symlinks=True)
        self._made(kind.command)  # everything is in the system's cache
        self.new, self.whole = self._made(kind.command)
        assert self.old.keys() == self.new.keys() >= set(kind.entries) and self.old != self.new, self.new.keys()

    def _made(self, command: tuple[str, ...]) -> tuple[Snapshot, Run]:
        self._empty(old=False)
        run = self.run(command)
        assert run.code == 0, (self.scratch / "said").read_text()
        return forks.seen(self.place), run

    def _empty(self, old: bool) -> None:
        forks.empty((self.place, self.disk), self.scratch if old else None)
        if self.store is not None:
            self.store.anew()

    def close(self) -> None:
        """Leave nothing."""
        shutil.rmtree(self.disk)
        if self.store is not None:
            self.store.close()

    def run(self, command: tuple[str, ...], *options: str, until: float | None = None) -> Run:
        """Run it in a fork, which is killed after `until` seconds."""
        places = {"{in}": self.source, "{out}": self.place, "{disk}": self.disk}
        words = [re.sub(r"\{(in|out|disk)\}", lambda found: str(places[found[0]]), word) for word in command]
        sent = 0 if self.store is None else self.store.taken()
        started = time.monotonic()
        child = forks.begun([*words, *options, "--quiet"], self.scratch / "said", _small_parts)
        if until is not None:
            time.sleep(until)
            os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        seconds = time.monotonic() - started
        counted = dict(line.split(": ") for line in Path(f"/proc/{child}/io").read_text().splitlines())
        _, status = os.waitpid(child, 0)
        written = int(counted["wchar"]) if self.store is None else self.store.taken() - sent
        return Run(os.waitstatus_to_exitcode(status), seconds, written)

    def once(self, replacing: bool) -> tuple[bool, int, list[str]]:
        """Kill a run once or twice, then let it end: whether it was amid its work, bytes written, faults."""
        self._empty(old=replacing)
        before = self.old if replacing else {}
        options = ["--force"] * replacing
        amid, written, faults = False, 0, []
        for _ in range(self.draw.choice((1, 1, 2))):
            run = self.run(self.kind.command, *options, until=self.draw.uniform(0, 1.05) * self.whole.seconds)
            written += run.written
            seen = forks.seen(self.place)
            if run.code == 0:
                break  # at its end
            amid |= seen != self.new
            faults += [f"killed: {words}" for words in self._between(seen, before)]
        else:
            # A run that was killed may have left a part of its set, and it is the same run that goes on.
            run = self.run(self.kind.command, *options)
            written += run.written
            whole = forks.seen(self.place) == self.new
            if run.code != 0 and not (run.code == 53 and whole):  # all was there already
                faults.append(f"the next run: {run.code}, {(self.scratch / 'said').read_text().strip()!r}")
        if forks.seen(self.place) != self.new:
            faults.append("other bytes at the end")
        if left := [path.name for path in self.place.rglob(".*.part")]:
            faults.append(f"left behind: {left}")
        if self.store is not None and (parts := self.store.parts()):
            faults.append(f"left at the store: {parts} parts")
        if lost := forks.unseen(self.place, self.disk):
            faults.append(f"left on the other disk: {lost}")
        return amid, written, faults

    def _between(self, seen: Snapshot, before: Snapshot) -> Iterator[str]:
        wrong = [name for name, content in seen.items() if content not in (before.get(name), self.new.get(name))]
        if wrong:
            yield f"a wrong file that looks finished: {wrong}"
        if self.kind.entries and seen not in (before, self.new):
            if not any(seen.items() <= whole.items() for whole in (before, self.new)):
                yield "old and new files of one model together"
            elif any(name in seen for name in self.kind.entries):
                yield "a part that looks finished"


def _small_parts() -> None:
    """Uploads in many parts, so that kills come between some."""
    from converter.remote import uploads

    uploads.PART, uploads.IN_FLIGHT = 1 << 18, 1 << 20


def _source(folder: Path) -> Path:
    """A Llama of 14 M parameters in BF16, seeded."""
    import numpy as np
    from support import paths, sparse

    sparse.folder(sparse.llama(**SIZES), folder, tokenizer=paths.ROOT / "fixtures" / "stories260K")
    path = folder / "model.safetensors"
    with open(path, "rb+") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        count = (path.stat().st_size - start) // 2
        values = np.random.default_rng(0).standard_normal(count, np.float32) * np.float32(0.02)
        file.seek(start)
        file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return folder


def main(words: list[str]) -> int:
    """Tries over kinds; the code says whether anything ended otherwise than promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--tries", type=int, default=1000, help="over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    kinds = args.kinds or list(KINDS)
    print(
        "| kind | one run | tries | amid its work | wrong | bytes written over one run's |\n|---|---|---|---|---|---|",
        flush=True,
    )
    bad = 0
    for name in kinds:
        with tempfile.TemporaryDirectory(prefix="kills-", dir=forks.scratch_in()) as scratch:
            kills = Kills(KINDS[name], Path(scratch), random.Random(f"{args.seed} {name}"))
            try:
                tries = [kills.once(replacing=bool(number % 2)) for number in range(-(-args.tries // len(kinds)))]
            finally:
                kills.close()
        amid = [each for each in tries if each[0]]
        wrong = sum(bool(faults) for _, _, faults in tries)
        share = sum(written for _, written, _ in amid) / max(len(amid) * kills.whole.written, 1)
        print(
            f"| {name} | {kills.whole.seconds:.2f} s | {len(tries)} | {len(amid)} | {wrong} | {share:.2f} |", flush=True
        )
        for number, (_, _, faults) in enumerate(tries):
            for fault in faults:
                print(f"{name} {number}: {fault}", file=sys.stderr)
        bad += wrong
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
