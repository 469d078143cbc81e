"""What SECURITY.md promises, for every format that is registered; and that the tests it names are there."""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fuzz import targets
from support import samples
from support.packages import HEAVY
from support.paths import ROOT

from converter import errors, pipeline
from converter.errors import ConverterError
from converter.formats.base import Format
from converter.formats.registry import readers
from converter.request import FIELDS, Request, Source

PAGE = (ROOT / "SECURITY.md").read_text()
PROMISES = re.findall(r"^\| (\d+) \|(.*)\|(.*)\|$", PAGE, re.MULTILINE)
PLAIN = Request(tensors_only=True)
every_reader = pytest.mark.parametrize("reader", readers(), ids=lambda reader: reader.name)


def convert(source: Path, target: Path, reader: Format) -> None:
    pipeline.convert(Source(source, reader.name), target, PLAIN, force=True, threads=1)


# ------------------------------------------------------------------------------------------------- the page


def test_the_promises_are_numbered_without_a_gap() -> None:
    assert [int(number) for number, _, _ in PROMISES] == list(range(1, len(PROMISES) + 1))
    assert len(PROMISES) >= 24


@pytest.mark.parametrize(("number", "kept"), [(number, kept) for number, _, kept in PROMISES])
def test_every_promise_names_tests_that_exist(number: str, kept: str) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", kept)
    assert named, f"promise {number} names no test"
    for file, test in named:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"


def test_every_fuzz_target_is_in_the_table_of_runs() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \|", PAGE, re.MULTILINE))
    assert rows.keys() == targets.TARGETS.keys()
    assert all(int(count.replace(",", "")) > 0 for count in rows.values())


# ------------------------------------------------------------------------- nothing runs, nothing is opened elsewhere

AUDITED = """
import json, os, sys

events, inside = [], False
PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "os.startfile")

def hook(event, args):
    if not inside:
        return
    if event == "open" and not isinstance(args[0], int):
        writes = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(args[2], int) else False
        events.append(["write" if writes else "read", os.path.realpath(os.fsdecode(args[0]))])
    elif event.split(".")[0] in ("socket", "subprocess", "ctypes", "pty", "urllib", "ftplib", "smtplib"):
        events.append(["call", event])
    elif event in PROCESSES or event in ("exec", "compile", "import", "marshal.loads", "pickle.find_class"):
        events.append(["call", f"{event} {str(args[0])[:100]}"])

from converter.formats.registry import readers
from converter.pipeline import convert
from converter.request import Request, Source

jobs = json.loads(sys.argv[1])
assert {reader.name for reader in readers()} == jobs.keys()
sys.addaudithook(hook)
found = {}
for name, (source, target) in jobs.items():
    for inside in (False, True):  # the first run imports what it needs of ours
        events = []
        convert(Source(source, name), target, Request(tensors_only=True), force=True, threads=1)
    inside = False
    found[name] = events
print(json.dumps({"events": found, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


@dataclass(frozen=True)
class Audit:
    """What the interpreter's own audit hooks saw while a sample of one format was converted."""

    events: list[tuple[str, str]]  # "call", "read" or "write", and what
    source: Path
    output: Path


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Audit]:
    folder = tmp_path_factory.mktemp("audited").resolve()
    jobs = {}
    for reader in readers():
        (folder / reader.name / "in").mkdir(parents=True)
        (folder / reader.name / "out").mkdir()
        source = samples.sample(reader, folder / reader.name / "in")
        jobs[reader.name] = [str(source), str(folder / reader.name / "out" / "out.safetensors")]
    command = [sys.executable, "-c", AUDITED, json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert not HEAVY & set(result["modules"])
    return {
        name: Audit([(kind, what) for kind, what in events], folder / name / "in", folder / name / "out")
        for name, events in result["events"].items()
    }


@every_reader
def test_nothing_is_run_imported_or_sent(audits: dict[str, Audit], reader: Format) -> None:
    events = audits[reader.name].events
    assert any(kind == "read" for kind, _ in events)  # the hook was on
    assert [what for kind, what in events if kind == "call"] == []


@every_reader
def test_only_the_model_is_read_and_only_the_output_is_written(audits: dict[str, Audit], reader: Format) -> None:
    audit = audits[reader.name]
    read = {Path(what) for kind, what in audit.events if kind == "read"}
    written = {Path(what) for kind, what in audit.events if kind == "write"}
    assert read and all(path.is_relative_to(audit.source) or path.is_relative_to(audit.output) for path in read)
    assert written and all(path.parent == audit.output for path in written)
    assert [path.name for path in audit.output.iterdir()] == ["out.safetensors"]


def test_reading_needs_no_framework(audits: dict[str, Audit]) -> None:
    """The fixture has converted a sample of every format, and none of the heavy packages was loaded."""
    assert audits.keys() == {reader.name for reader in readers()}


def test_no_switch_turns_safety_off() -> None:
    """Neither the command line nor the API has an option that trusts a file."""
    source = "".join(path.read_text() for path in (ROOT / "converter").rglob("*.py"))
    options = set(re.findall(r'"--([a-z-]+)"', source)) | {*FIELDS, *Source.__dataclass_fields__}
    assert "force" in options and "key" in options  # the pattern finds them
    assert not [each for each in options if re.search("trust|unsafe|allow-code|remote|pickle|insecure", each)]
    assert not re.search(r"weights_only\s*=\s*False|trust_remote_code\s*=\s*True", source)


# ------------------------------------------------------------------------------------- sizes that are not there


def structured(path: Path) -> Path:
    """The file of a sample that says where what is."""
    files = [*sorted(path.rglob("*.safetensors")), path / ".metadata"] if path.is_dir() else [path]
    return files[0]


def lies(data: bytes) -> Iterator[bytes]:
    """The file with each field of its head and of its tail, in turn, as large as it can be, or negative."""
    places = [*range(0, min(len(data), 256), 4), *range(max(0, len(data) - 64), len(data) - 3, 4)]
    for at in places:
        for value in (b"\xff\xff\xff\x7f", b"\xff" * 8):
            yield data[:at] + value + data[at + len(value) :]


@every_reader
def test_lying_sizes_are_compared_before_anything_is_allocated(tmp_path: Path, reader: Format) -> None:
    """Within little memory, in linear time, and always a clean error: the fuzzer's rules hold for each of the lies."""
    path = samples.sample(reader, tmp_path)
    weights = structured(path)
    data = weights.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    target = targets.Target(reader.name, (path.name,), ())
    for lie in lies(data):
        weights.write_bytes(lie)
        refused += bool(targets.attempt(target, path))
    assert refused > 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10


# --------------------------------------------------------------------------------------------- failing, and repeating


@every_reader
def test_a_failure_leaves_the_old_output_and_nothing_else(tmp_path: Path, reader: Format) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path = samples.sample(reader, tmp_path / "in")
    weights = structured(path)
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    before = {file: file.read_bytes() for file in (tmp_path / "in").rglob("*") if file.is_file()}
    old = tmp_path / "out" / "old.safetensors"
    old.write_bytes(b"an old output")
    with pytest.raises(ConverterError) as caught:
        convert(path, old, reader)
    lines = str(caught.value).splitlines()
    assert path.name in lines[0] and len(lines) <= 3 and all(line.isprintable() for line in lines)
    assert caught.value.exit_code in {each.exit_code for each in errors_of_the_table()}
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["old.safetensors"]
    assert old.read_bytes() == b"an old output"
    assert {file: file.read_bytes() for file in (tmp_path / "in").rglob("*") if file.is_file()} == before


def errors_of_the_table() -> list[type[ConverterError]]:
    found = [ConverterError]
    for each in found:
        found.extend(each.__subclasses__())
    return [each for each in found if each.__module__ == errors.__name__]


@every_reader
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, reader: Format) -> None:
    path = samples.sample(reader, tmp_path)
    outputs = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    for output in outputs:
        convert(path, output, reader)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


# ------------------------------------------------------------------------------------------------ a corpus of bad files


@pytest.fixture(scope="module")
def corpus() -> Path:
    folder = Path(os.environ.get("CONVERTER_BAD_FILES", ROOT / "badfiles"))
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no corpus of damaged files at {folder}; CONVERTER_BAD_FILES says where it is")
    return folder


def test_a_corpus_of_damaged_files(corpus: Path, tmp_path: Path) -> None:
    """What must be refused is refused, what is valid is read, and nothing ends in any other way."""
    wrong = []
    for entry in json.loads((corpus / "manifest.json").read_text())["files"]:
        output = tmp_path / f"out.{entry.get('out', 'safetensors')}"
        try:
            pipeline.convert(corpus / entry["file"], output, Request(), force=True, threads=1)
            outcome = "accept"
        except ConverterError:
            outcome = "reject"
        if entry["expect"] not in (outcome, "either"):
            wrong.append((entry["file"], outcome, entry["why"]))
    assert not wrong
