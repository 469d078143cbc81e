"""Uploads that were begun by a run before: what is there is not sent again, and nothing else ends up in them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hosts import Host, named, serving

from converter import convert
from converter.cli.main import main
from converter.errors import Cancelled, ConverterError, OutputError, UsageError
from converter.pipeline import plan
from converter.remote import multipart, s3, uploads
from converter.remote.objects import PartDigest, StoredObject
from converter.request import Request
from converter.storage.slabs import Progress

for package in ("obstore", "botocore", "google.auth", "azure.storage.blob"):
    pytest.importorskip(package)
PART, AT_ONCE = 1 << 20, 4
SCHEMES = ("s3", "gs", "az")  # where what was sent is kept
SPLIT = Request(quant="f16", split_max_size=4_000_000)
RUN = (
    "import sys; from converter.cli.main import main; from converter.remote import uploads; "
    f"uploads.PART, uploads.IN_FLIGHT = {PART}, {PART * AT_ONCE}; raise SystemExit(main(sys.argv[1:]))"
)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    """A store with an empty bucket; parts are of a mebibyte, four of them on their way."""
    monkeypatch.setattr(uploads, "PART", PART)
    monkeypatch.setattr(uploads, "IN_FLIGHT", PART * AT_ONCE)
    (tmp_path / "stored/bucket").mkdir(parents=True)
    with serving(Host(tmp_path / "stored")) as host:
        named(host, monkeypatch)
        yield host


@pytest.fixture(params=SCHEMES)
def target(request: pytest.FixtureRequest) -> str:
    """Of every store, for which the same is promised."""
    return f"{request.param}://bucket/model.gguf"


@pytest.fixture
def here(model: Path, tmp_path: Path) -> bytes:
    """What is to be there in the end."""
    convert(model, tmp_path / "here.gguf")
    return (tmp_path / "here.gguf").read_bytes()


def stored(host: Host) -> dict[str, bytes]:
    bucket = host.root / "bucket"
    return {path.relative_to(bucket).as_posix(): path.read_bytes() for path in bucket.rglob("*") if path.is_file()}


def there(host: Host) -> int:
    """Parts of all uploads."""
    return sum(map(len, host.uploads.values()))


def killed(host: Host, *words: str, parts: int = 6) -> None:
    """Kill a run when so many parts are there, or more; before any of its uploads is completed."""
    host.put_faults = lambda path, part, number: "503" if part < 0 else "slow"
    process = subprocess.Popen([sys.executable, "-c", RUN, *words, "--quiet"], env=os.environ)
    deadline = time.monotonic() + 60
    while there(host) < parts and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = -1
    while before != (before := there(host)):  # what was on its way may arrive still
        time.sleep(0.7)
    host.put_faults = lambda path, part, number: None


def stopped(host: Host, source: Path, target: str, parts: int = 6) -> None:
    """A run that ends when so many parts are there, which stay."""

    def progress(now: Progress) -> bool:
        while now.done > now.total * 3 // 4 and there(host) < parts:
            time.sleep(0.01)
        return there(host) < parts

    with pytest.raises(Cancelled, match="the same command goes on with it"):
        convert(source, target, progress=progress, resume=True)
    assert there(host) >= parts and stored(host) == {}


def changed(model: Path, folder: Path, where: float) -> Path:
    """The same model, with one weight changed so far in its file."""
    shutil.copytree(model, folder)
    (weights,) = folder.glob("*.safetensors")
    with weights.open("rb+") as file:
        file.seek(int(weights.stat().st_size * where) & ~1)
        old = file.read(2)
        file.seek(-2, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 1, old[1]]))
    return folder


def left_alone(target: str) -> int:
    """How many uploads of one are there after another one to the object; Azure has one list of blocks."""
    return 0 if target.startswith("az:") else 1


def notes(source: Path, target: str, **how: bool) -> str:
    made = convert(source, target, **how)
    return "\n".join(str(event) for event in made.report.events)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal")
def test_a_killed_upload_goes_on(host: Host, target: str, model: Path, here: bytes) -> None:
    killed(host, str(model), target)
    left = sum(len(part) for parts in host.uploads.values() for part in parts.values())
    assert stored(host) == {} and left >= 6 * PART
    before = host.taken["bucket/model.gguf"]
    assert f"an upload was begun, {left:,} bytes in" in notes(model, target)
    assert stored(host) == {"model.gguf": here} and not host.uploads
    sent = host.taken["bucket/model.gguf"]
    assert sent - before == len(here) - left, "what was there is not sent again"
    assert sent <= len(here) + AT_ONCE * PART, "twice at most what was on its way"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal")
def test_a_killed_set_goes_on(host: Host, target: str, model: Path, tmp_path: Path) -> None:
    """Each of its files is an upload, and some may not have begun."""
    folder = tmp_path / "here"
    folder.mkdir()
    convert(model, folder / "model.gguf", SPLIT)
    killed(host, str(model), target, "-q", "f16", "--split-max-size", "4M", parts=5)
    left = sum(len(part) for parts in host.uploads.values() for part in parts.values())
    before = sum(host.taken.values())
    convert(model, target, SPLIT)
    assert stored(host) == {path.name: path.read_bytes() for path in folder.iterdir()} and not host.uploads
    assert sum(host.taken.values()) - before <= sum(map(len, stored(host).values())) - left + AT_ONCE * PART


def test_a_stopped_upload_stays_with_resume(host: Host, target: str, model: Path, here: bytes) -> None:
    stopped(host, model, target)
    stopped(host, model, target, parts=8)
    assert len(host.uploads) == 1, "the second run went on with the first one's"
    convert(model, target)
    assert stored(host) == {"model.gguf": here} and not host.uploads
    assert host.taken["bucket/model.gguf"] == len(here), "every byte once"


def test_an_upload_that_is_gone_on_with_fails_and_is_aborted(host: Host, target: str, model: Path) -> None:
    stopped(host, model, target)
    host.put_faults = lambda path, part, number: "403" if part == 10 else None
    with pytest.raises(OutputError, match=r"refuses to take it \("):
        convert(model, target)
    assert stored(host) == {} and bool(host.uploads) == target.startswith("az:"), "where they can be aborted, they are"


@pytest.mark.parametrize(("where", "again"), [(0.02, None), (0.3, 1), (0.98, 0)])
def test_a_source_that_changed_in_between(
    where: float, again: int | None, host: Host, target: str, model: Path, tmp_path: Path
) -> None:
    """Parts that differ are sent again; those that are the same are not, but where the first one differs."""
    other = changed(model, tmp_path / "llama3-256", where)
    convert(other, tmp_path / "other.gguf")
    expected = (tmp_path / "other.gguf").read_bytes()
    convert(model, tmp_path / "old.gguf")
    assert expected != (tmp_path / "old.gguf").read_bytes()
    stopped(host, model, target)
    left = sum(len(part) for parts in host.uploads.values() for part in parts.values())
    before = host.taken["bucket/model.gguf"]
    convert(other, target)
    assert stored(host)["model.gguf"] == expected
    sent = host.taken["bucket/model.gguf"] - before
    if again is None:
        assert sent == len(expected) and len(host.uploads) == left_alone(target)
    else:
        assert sent == len(expected) - left + again * (len(expected) // (len(expected) // PART)) and not host.uploads


def test_what_another_request_began_is_left_alone(host: Host, target: str, model: Path, here: bytes) -> None:
    stopped(host, model, target)
    ((upload, parts),) = host.uploads.items()
    before = {upload: dict(parts)}
    assert "uploads of something else were begun: 1" in notes(model, target, quant="q8_0")
    assert host.uploads == (before if left_alone(target) else {})
    host.uploads |= before
    assert "what is the same is not sent again" in notes(model, target, force=True)
    assert stored(host) == {"model.gguf": here} and not host.uploads


@pytest.mark.parametrize("fault", ["drop", "429", "500", "503", "slow", "lost"])
@pytest.mark.parametrize("part", [7, 9, -1])
def test_what_fails_is_sent_again(fault: str, part: int, host: Host, target: str, model: Path, here: bytes) -> None:
    stopped(host, model, target)
    host.put_faults = lambda path, number, asked: fault if number == part and asked <= 2 else None
    convert(model, target)
    assert stored(host) == {"model.gguf": here} and not host.uploads


@pytest.mark.parametrize("status", [403, 500, 501, 404])
def test_a_store_that_does_not_list(status: int, host: Host, target: str, model: Path, here: bytes) -> None:
    stopped(host, model, target)
    before, host.lists = host.taken["bucket/model.gguf"], status
    told = notes(model, target)
    assert "whether an upload was begun is not known; all is sent" in told
    assert stored(host) == {"model.gguf": here}
    assert host.taken["bucket/model.gguf"] - before == len(here)
    assert len(host.uploads) == left_alone(target), "nobody sees the old one"


@pytest.mark.parametrize("target", ["s3", "gs"], indirect=True)  # a block of Azure's is in no other's place
def test_tags_that_are_no_checksums(host: Host, target: str, model: Path, here: bytes) -> None:
    """As where the store encrypts with keys of its own: nothing is known of a part, so it is sent."""
    host.encrypts = True
    stopped(host, model, target)
    convert(model, target)
    assert stored(host) == {"model.gguf": here} and len(host.uploads) == 1


@pytest.mark.parametrize("where", [None, 0.98])
def test_two_runs_at_once(
    where: float | None, host: Host, target: str, model: Path, here: bytes, tmp_path: Path
) -> None:
    """The one that ends first goes on with the other's upload: there is one whole file, whichever it is."""
    other = model if where is None else changed(model, tmp_path / "llama3-256", where)
    convert(other, tmp_path / "other.gguf")
    whole = (tmp_path / "other.gguf").read_bytes()
    begun: list[bool] = []

    def progress(now: Progress) -> None:
        if not begun and there(host) >= 6:
            begun.append(True)
            convert(other, target, force=True)
            assert stored(host) == {"model.gguf": whole}
        while now.done > now.total * 3 // 4 and not begun and there(host) < 6:
            time.sleep(0.01)

    try:
        convert(model, target, force=True, progress=progress)
        assert where is None
    except ConverterError as error:
        assert "somebody else completed or aborted the upload" in str(error)
    assert begun and stored(host) == {"model.gguf": whole}
    assert not host.uploads or target.startswith("az:"), "blocks that came later stay a week"


@pytest.mark.parametrize("target", ["s3", "gs"], indirect=True)  # a block of Azure's is in no other's place
def test_who_overwrites_a_part_spoils_no_file(host: Host, target: str, model: Path, here: bytes) -> None:
    """An upload is completed by the MD5s of its parts; a part of somebody else's is none of them."""
    seen: list[int] = []

    def progress(now: Progress) -> None:
        while now.done > now.total * 3 // 4 and there(host) < 6:
            time.sleep(0.01)
        if there(host) >= 6 and not seen:
            seen.append(now.done)
            ((_, parts),) = host.uploads.items()
            parts[3] = bytes(len(parts[3]))

    with pytest.raises(OutputError, match=r"answers 400 \(InvalidPart\)"):
        convert(model, target, progress=progress)
    assert seen and stored(host) == {}


@pytest.mark.parametrize("at_work", [True, False])
def test_an_upload_that_another_run_sends_to(
    at_work: bool, host: Host, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left alone; one that got what a killed run had on its way, and nothing more, is gone on with."""
    scheme = target.partition(":")[0]
    object, store = StoredObject(target, scheme, "bucket", "model.gguf"), multipart.STORES[scheme]
    pieces = [bytes([number]) * PART for number in range(1, 6)]
    digest = PartDigest(PART)
    digest.add(b"".join(pieces))
    theirs = store.begin(object)

    def sent(number: int) -> None:
        store.send(object, theirs, number, pieces[number - 1], digest.of(number))

    sent(1)
    ours = multipart.Multipart(object, 5 * PART, PART, 2, keep=False, replace=False)
    assert "an upload was begun" in ours.begun()[0]
    sent(2)
    monkeypatch.setattr("time.sleep", lambda seconds: sent(3) if seconds == multipart.MOMENT and at_work else None)
    before = host.taken["bucket/model.gguf"]
    ours.send(pieces, digest)
    assert stored(host) == {"model.gguf": b"".join(pieces)}
    assert host.taken["bucket/model.gguf"] - before == (6 if at_work else 3) * PART
    if at_work and left_alone(target):
        assert there(host) == 3, "theirs are all there"


def test_nothing_is_seen_before_all_is_there(host: Host, target: str, model: Path) -> None:
    stopped(host, model, target)
    seen: list[int] = []
    convert(model, target, progress=lambda now: seen.append(len(stored(host))))
    assert len(seen) > 10 and not any(seen)


def test_other_places_keep_nothing(host: Host, model: Path) -> None:
    with pytest.raises(UsageError, match="leave --resume out"):
        convert(model, "hf://org/model/model.gguf", resume=True)
    assert not host.taken


def aged(host: Host) -> None:
    """All uploads are of long ago."""
    host.begun = {upload: (path, "2026-01-01T00:00:00.000Z") for upload, (path, _) in host.begun.items()}


def test_clean(host: Host, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def clean(*words: str) -> list[dict[str, object]]:
        capsys.readouterr()
        assert main(["clean", *words, "--json"]) == 0
        left = json.loads(capsys.readouterr().out)["left"]
        assert isinstance(left, list)
        return left

    for name in ("a/model.gguf", "a/other.gguf", "ab/model.gguf"):
        stopped(host, model, f"s3://bucket/{name}", parts=there(host) + 6)
    assert [each["path"] for each in clean("s3://bucket/a")] == [
        "s3://bucket/a/model.gguf",
        "s3://bucket/a/other.gguf",
    ]
    assert len(host.uploads) == 3, "they may be at work"
    assert main(["clean", "s3://bucket/"]) == 0
    assert "may be at work" in capsys.readouterr().out
    aged(host)
    (row,) = clean("s3://bucket/a/model.gguf", "--dry-run")
    assert not row["running"] and len(host.uploads) == 3
    nbytes = next(sum(map(len, host.uploads[each].values())) for each, at in host.begun.items() if "a/model" in at[0])
    assert row["bytes"] == nbytes
    assert len(clean("s3://bucket/a/")) == 2
    assert [host.begun[each][0] for each in host.uploads] == ["bucket/ab/model.gguf"]
    host.lists = 403
    assert main(["clean", "s3://bucket/"]) == OutputError.exit_code
    assert "refuses to list it" in capsys.readouterr().err
    assert main(["clean", "hf://org/model"]) == UsageError.exit_code


def test_settings_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that obstore knows."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    made = s3.client("bucket")
    assert made.meta.region_name == "eu-west-3" and made.meta.endpoint_url == "https://s3.eu-west-3.amazonaws.com"
    s3.client.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT", "https://bucket.store.example")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    assert s3.client("bucket").meta.endpoint_url == "https://store.example"
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("AWS_SSE_KMS_KEY_ID", "ours")
    monkeypatch.setenv("AWS_REQUEST_PAYER", "true")
    assert s3._settings("upload_part") == {"RequestPayer": "requester"}
    assert s3._settings("create_multipart_upload") == {
        "RequestPayer": "requester", "ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "ours",
    }  # fmt: skip
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "sse-c")
    monkeypatch.setenv("AWS_SSE_CUSTOMER_KEY_BASE64", "MDEyMzQ1Njc=")
    assert s3._settings("upload_part")["SSECustomerKey"] == b"01234567"
    assert "SSECustomerKey" not in s3._settings("list_multipart_uploads")


def test_a_plan_begins_nothing(host: Host, target: str, model: Path) -> None:
    plan(model, target).checkpoint.close()
    assert not host.uploads


def test_a_plan_for_an_address_is_the_same_in_every_process(host: Host, model: Path) -> None:
    address = "s3://bucket/model.gguf"
    code = "import sys, converter; print(converter.plan(*sys.argv[1:]).fingerprint())"
    done = subprocess.run([sys.executable, "-c", code, str(model), address], capture_output=True, text=True, check=True)
    with (made := plan(model, address)).checkpoint:
        assert done.stdout.strip() == made.fingerprint() != plan(model, "s3://bucket/other.gguf").fingerprint()
