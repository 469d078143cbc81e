"""Outputs that are objects of stores: the bytes of files here, seen when all is there, whatever goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from support.hosts import Host, serving

from converter import ConverterError, convert
from converter.cli.main import main
from converter.errors import (
    Cancelled,
    CorruptFile,
    Interrupted,
    OutputError,
    OutputExists,
    SameFile,
    UnsupportedFeature,
    UsageError,
)
from converter.remote import uploads
from converter.remote.settings import Settings, using
from converter.request import Request
from converter.storage.layout import FileLayout, Slot
from converter.storage.slabs import Progress
from converter.tensors.dtypes import dtype
from converter.tensors.tensor import LazyTensor, TensorInfo

for package in ("obstore", "botocore", "google.auth", "azure.storage.blob"):
    pytest.importorskip(package)
STORES = ("s3", "gs", "az")
SECRET = "NobodysSecretKeyThatNobodyMaySee"
KINDS: dict[str, tuple[str, Request]] = {
    "gguf": ("model.gguf", Request(quant="q8_0")),
    "split": ("model.gguf", Request(quant="f16", split_max_size=4_000_000)),
    "folder": ("folder/", Request(split_max_size=4_000_000)),
    "torch": ("model.pt", Request(tensors_only=True)),
}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    """A store of each kind, with an empty bucket; parts are of a mebibyte."""
    monkeypatch.setattr(uploads, "PART", 1 << 20)
    (tmp_path / "stored/bucket").mkdir(parents=True)
    with serving(Host(tmp_path / "stored")) as host:
        for name, value in {
            "AWS_ENDPOINT_URL": host.url,
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "STORAGE_EMULATOR_HOST": host.url,
            "AZURE_STORAGE_ACCOUNT_NAME": "nobody",
            "AZURE_STORAGE_ACCOUNT_KEY": "Tm9ib2R5",
            "AZURE_STORAGE_ENDPOINT": host.url,
        }.items():
            monkeypatch.setenv(name, value)
        yield host


def stored(host: Host) -> dict[str, bytes]:
    bucket = host.root / "bucket"
    return {path.relative_to(bucket).as_posix(): path.read_bytes() for path in bucket.rglob("*") if path.is_file()}


def written(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def on(part: int, fault: str, times: int = 1) -> Callable[[str, int, int], str | None]:
    """A fault of the first requests for a part, by its number."""
    return lambda path, number, asked: fault if number == part and asked <= times else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", STORES)
def test_what_is_stored_is_what_is_written_here(
    scheme: str, kind: str, host: Host, model: Path, tmp_path: Path
) -> None:
    name, request = KINDS[kind]
    (tmp_path / "here").mkdir()
    convert(model, f"{tmp_path}/here/{name}", request)
    convert(model, f"{scheme}://bucket/{name}", request)
    expected = written(tmp_path / "here")
    assert stored(host) == expected
    assert not host.uploads
    assert sum(host.taken.values()) == sum(map(len, expected.values())), "every byte once"


def test_several_quants_at_once(host: Host, model: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    quants = "q4_k_m,q8_0"
    assert main([str(model), f"{tmp_path}/here/m-{{quant}}.gguf", "-q", quants, "--quiet"]) == 0
    assert main([str(model), "s3://bucket/m-{quant}.gguf", "-q", quants, "--quiet"]) == 0
    assert stored(host) == written(tmp_path / "here")


def test_a_name_by_the_convention_and_verify(host: Host, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model), "s3://bucket/models/", "-q", "q8_0", "--verify", "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["target"].startswith("s3://bucket/models/") and said["verification"]["passed"]
    assert [name for name in stored(host) if name.startswith("models/") and name.endswith("Q8_0.gguf")]


def test_nothing_is_seen_before_all_is_there(host: Host, model: Path) -> None:
    seen: list[int] = []

    def progress(now: Progress) -> None:
        seen.append(len(stored(host)))

    convert(model, "s3://bucket/folder/", Request(split_max_size=4_000_000), progress=progress)
    assert len(seen) > 10 and not any(seen)
    done = [
        urlsplit(path).path
        for path, headers in host.requests
        if "x-amz-content-sha256" in headers
        and (headers.get("content-length", "0") != "0")
        and "partNumber" not in path
        and "uploads" not in path
    ]
    assert done[-1].endswith("/model.safetensors.index.json"), "what leads to the others comes last"


@pytest.mark.parametrize("fault", ["drop", "429", "500", "503", "slow"])
@pytest.mark.parametrize("part", [2, -1])
def test_what_fails_is_sent_again(fault: str, part: int, host: Host, model: Path, tmp_path: Path) -> None:
    host.put_faults = on(part, fault)
    convert(model, tmp_path / "here.gguf")
    convert(model, "s3://bucket/model.gguf")
    assert stored(host) == {"model.gguf": (tmp_path / "here.gguf").read_bytes()}
    assert not host.uploads


@pytest.mark.parametrize("scheme", STORES)
def test_a_completion_whose_answer_is_lost(scheme: str, host: Host, model: Path, tmp_path: Path) -> None:
    host.put_faults = on(-1, "lost")
    convert(model, tmp_path / "here.gguf")
    convert(model, f"{scheme}://bucket/model.gguf")
    assert stored(host) == {"model.gguf": (tmp_path / "here.gguf").read_bytes()}


@pytest.mark.parametrize("part", [2, -1])
@pytest.mark.parametrize("fault", ["403", "500"])
def test_what_keeps_failing_leaves_nothing(fault: str, part: int, host: Host, model: Path) -> None:
    host.put_faults = on(part, fault, times=100)
    with pytest.raises(
        OutputError, match=r"s3://bucket/model\.gguf: .*(refuses to take it|could not be written)"
    ) as error:
        convert(model, "s3://bucket/model.gguf")
    assert SECRET not in str(error.value) and "127.0.0.1" not in str(error.value)
    assert stored(host) == {} and not host.uploads


def test_a_set_is_there_or_is_not(host: Host, model: Path) -> None:
    host.put_faults = lambda path, part, number: "403" if "00003" in path and part == -1 else None
    with pytest.raises(OutputError, match="refuses to take it"):
        convert(model, "s3://bucket/model.gguf", Request(quant="f16", split_max_size=4_000_000))
    assert stored(host) == {} and not host.uploads


def test_bytes_that_arrive_as_others(host: Host, model: Path) -> None:
    host.put_faults = on(2, "flip")
    with pytest.raises(CorruptFile, match="what arrived is not what was sent"):
        convert(model, "s3://bucket/model.gguf")
    assert stored(host) == {}


def test_an_object_at_once_that_arrives_as_another(host: Host, model: Path) -> None:
    host.put_faults = lambda path, part, number: "flip" if path.endswith("config.json") else None
    with pytest.raises(CorruptFile, match="what arrived is not what was sent"):
        convert(model, "s3://bucket/folder/")
    assert stored(host) == {}


def test_etags_that_are_no_checksums_are_settled_by_reading(host: Host, model: Path, tmp_path: Path) -> None:
    host.encrypts = True
    convert(model, tmp_path / "here.gguf")
    convert(model, "s3://bucket/model.gguf")
    expected = (tmp_path / "here.gguf").read_bytes()
    assert stored(host) == {"model.gguf": expected} and host.total == len(expected)
    host.put_faults = on(1, "flip", times=100)
    with pytest.raises(CorruptFile, match="what arrived is not what was sent"):
        convert(model, "s3://bucket/other.gguf")
    assert list(stored(host)) == ["model.gguf"]


def test_what_is_there_stays_without_force(host: Host, model: Path) -> None:
    (host.root / "bucket/model.gguf").write_bytes(b"good")
    with pytest.raises(OutputExists, match="exists already; --force replaces it"):
        convert(model, "s3://bucket/model.gguf")
    assert stored(host) == {"model.gguf": b"good"} and not host.taken
    convert(model, "s3://bucket/model.gguf", force=True)
    assert stored(host)["model.gguf"][:4] == b"GGUF"


def test_a_folder_that_is_not_empty(host: Host, model: Path) -> None:
    (host.root / "bucket/folder").mkdir()
    (host.root / "bucket/folder/notes.txt").write_bytes(b"notes")
    with pytest.raises(OutputExists, match="is not empty"):
        convert(model, "s3://bucket/folder/")
    convert(model, "s3://bucket/folder/", force=True)
    assert stored(host)["folder/notes.txt"] == b"notes" and "folder/config.json" in stored(host)


def test_an_old_object_stays_where_a_run_with_force_fails(host: Host, model: Path) -> None:
    (host.root / "bucket/model.gguf").write_bytes(b"good")
    host.put_faults = on(2, "403", times=100)
    with pytest.raises(OutputError):
        convert(model, "s3://bucket/model.gguf", force=True)
    assert stored(host) == {"model.gguf": b"good"}


@pytest.mark.parametrize("name", ["model.gguf", "small.safetensors"])
def test_what_comes_there_meanwhile_stays(name: str, host: Host, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith("small"):
        monkeypatch.setattr(uploads, "PART", 1 << 30)

    def progress(now: Progress) -> None:
        (host.root / "bucket" / name).write_bytes(b"theirs")

    with pytest.raises(OutputExists):
        convert(model, f"s3://bucket/{name}", progress=progress)
    assert stored(host) == {name: b"theirs"} and not host.uploads


@pytest.mark.parametrize("how", [Cancelled, Interrupted])
def test_stopped(how: type[ConverterError], host: Host, model: Path) -> None:
    def progress(now: Progress) -> bool:
        while now.done > now.total // 2 and not host.taken:
            time.sleep(0.01)
        if host.taken and how is Interrupted:
            raise KeyboardInterrupt
        return not host.taken

    with pytest.raises(how):
        convert(model, "s3://bucket/model.gguf", progress=progress)
    assert host.taken and stored(host) == {} and not host.uploads


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal")
def test_killed(host: Host, model: Path) -> None:
    host.put_faults = lambda path, part, number: "slow"
    code = (
        "from converter.cli.main import main; from converter.remote import uploads; uploads.PART = 1 << 20; "
        f"main([{str(model)!r}, 's3://bucket/model.gguf', '--quiet'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
    deadline = time.monotonic() + 60
    while not any(host.uploads.values()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert host.uploads and stored(host) == {}


def test_a_format_that_is_finished_where_it_begins(host: Host, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "HELD", 1 << 20)
    with pytest.raises(UnsupportedFeature, match="finished where it begins"):
        convert(model, "s3://bucket/model.pt", Request(tensors_only=True))
    assert not host.taken


def test_what_cannot_be_meant(host: Host, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="https is only read"):
        convert(model, "https://example.org/model.gguf?sig=hidden")
    assert main([str(model), "https://example.org/model.gguf?sig=hidden"]) == UsageError.exit_code
    assert "hidden" not in capsys.readouterr().err
    with pytest.raises(UsageError, match="leave --resume out"):
        convert(model, "hf://org/model/model.gguf", resume=True)
    with using(Settings(offline=True)), pytest.raises(OutputError, match="no host is asked"):
        convert(model, "s3://bucket/model.gguf")
    assert not host.requests
    convert(model, "s3://bucket/model.gguf")
    with pytest.raises(SameFile):
        convert("s3://bucket/model.gguf", "s3://bucket/model.gguf", force=True)


@pytest.mark.parametrize("scheme", STORES)
def test_no_key_is_told(scheme: str, host: Host, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = f"{scheme}://bucket/model.gguf"
    host.put_faults = on(2, "403", times=100)
    for arguments in ([], ["--json"], ["--debug"], ["--progress", "json"]):
        assert main([str(model), target, *arguments]) == OutputError.exit_code
    host.put_faults = lambda path, part, number: None
    assert main([str(model), target, "--json"]) == 0
    told = "".join(capfd.readouterr())
    assert target in told
    for secret in (SECRET, os.environ["AZURE_STORAGE_ACCOUNT_KEY"], "Signature", "Bearer", "SharedKey", "uploadId"):
        assert secret not in told
    assert all(SECRET.encode() not in data for data in stored(host).values())


def stream(size: int, offsets: list[tuple[int, int]], header: bytes) -> uploads._Stream:
    slots = []
    for offset, nbytes in offsets:
        info = TensorInfo(f"t{offset}", (nbytes,), dtype("I8"))
        slots.append(Slot(offset, LazyTensor(info, lambda start, stop: np.zeros((0, 0), np.uint8), "test")))
    object = uploads.StoredObject("s3://bucket/raw", "s3", "bucket", "raw")
    return uploads._Stream(object, FileLayout(Path("raw"), header, tuple(slots), size), keep=False, replace=False)


def test_pieces_in_any_order_and_what_lies_between(host: Host) -> None:
    """Slots are written out of order by one thread as far as there is room; gaps are zeros."""
    size = 5 << 20
    slots = [(1000, 1 << 20), (2 << 20, 1 << 20), (4 << 20, 100)]
    made = stream(size, slots, b"header")
    data = np.random.default_rng(1).integers(1, 256, size, np.uint8).tobytes()
    expected = bytearray(size)
    for offset, nbytes in [(4 << 20, 100), (2 << 20, 1 << 20), (1000, 1 << 20)]:
        expected[offset : offset + nbytes] = data[offset : offset + nbytes]
        made.write(offset, memoryview(data)[offset : offset + nbytes])
    expected[:6] = b"header"
    made.write(0, memoryview(b"header"))
    made.flush()
    made.complete()
    assert stored(host) == {"raw": bytes(expected)}


def test_who_writes_ahead_waits(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(uploads, "ROOM", 2 << 20)
    nbytes, count = 1 << 20, 8
    made = stream(nbytes * count, [(at * nbytes, nbytes) for at in range(count)], b"")
    threads = [
        threading.Thread(target=made.write, args=(at * nbytes, memoryview(bytes([at]) * nbytes)))
        for at in range(1, count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(0.05)
    assert sum(thread.is_alive() for thread in threads) == count - 1 - 2, "two pieces have room"
    made.write(0, memoryview(bytes(nbytes)))
    for thread in threads:
        thread.join(20)
    made.flush()
    made.complete()
    assert stored(host) == {"raw": b"".join(bytes([at]) * nbytes for at in range(count))}


def test_every_error_of_a_store_is_ours(host: Host, model: Path) -> None:
    host.put_faults = on(2, "404", times=100)
    with pytest.raises(ConverterError):
        convert(model, "s3://bucket/model.gguf")
    assert stored(host) == {}
