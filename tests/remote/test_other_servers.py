"""In and out of stores that others have written, on loopback (`make remote`, which installs them): moto's server for
S3, and for Google's XML API, which speaks the same protocol, and Azurite for Azure."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request as Asked
from urllib.request import urlopen

import pytest

from converter import convert
from converter.address import parse
from converter.errors import Cancelled, OutputError, OutputExists
from converter.remote import azure, multipart, stores, uploads
from converter.remote.attempts import Transient
from converter.remote.objects import StoredObject
from converter.remote.parts import Begun, Ended
from converter.request import Request
from converter.storage.slabs import Progress

MOTO, AZURITE = (os.environ.get(f"CONVERTER_{name}", "") for name in ("MOTO", "AZURITE"))  # the programs
pytestmark = pytest.mark.slow
obstore = pytest.importorskip("obstore")
KEY = "NobodysSecretKeyThatNobodyMaySee"
# Of the account that every Azurite has; Microsoft's documents have both.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def running(command: list[str], port: int, ready: Callable[[str], object]) -> Iterator[str]:
    """A server, as soon as `ready` with its URL no longer fails."""
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    ready(url)
                    break
                except (URLError, ConnectionError):
                    assert time.monotonic() < deadline and process.poll() is None
                    time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    if not MOTO:
        pytest.skip("CONVERTER_MOTO does not say where moto_server is (make remote)")
    port = free_port()

    def ready(url: str) -> None:
        urlopen(Asked(f"{url}/bucket", method="PUT")).close()

    with running([MOTO, "-H", "127.0.0.1", "-p", str(port)], port, ready) as url:
        yield url


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not AZURITE:
        pytest.skip("CONVERTER_AZURITE does not say where azurite-blob is (make remote, with npm)")
    blob = pytest.importorskip("azure.storage.blob")
    core = pytest.importorskip("azure.core.exceptions")
    port = free_port()

    def ready(url: str) -> None:
        client = blob.BlobServiceClient(f"{url}/{ACCOUNT}", ACCOUNT_KEY, retry_total=0)
        try:
            client.create_container("bucket")
        except core.ServiceRequestError as error:
            raise ConnectionError from error

    where = str(tmp_path_factory.mktemp("azurite"))
    quiet = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location", where]
    with running([AZURITE, "--blobHost", "127.0.0.1", "--blobPort", str(port), *quiet], port, ready) as url:
        yield f"{url}/{ACCOUNT}"


@pytest.fixture(params=["s3", "gs", "az"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty bucket of each store."""
    url = request.getfixturevalue("azurite" if request.param == "az" else "moto")
    for name, value in {
        "s3": {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": KEY},
        "gs": {"STORAGE_EMULATOR_HOST": url},
        "az": {
            "AZURE_STORAGE_ENDPOINT": url,
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
        },
    }[request.param].items():
        monkeypatch.setenv(name, value)
    return f"{request.param}://bucket/{request.param}/{request.node.originalname}"


def got(address: str) -> bytes:
    found = parse(address)
    return bytes(obstore.get(stores.store_of(found.scheme, found.where), "/".join(found.parts)).bytes())


def test_out_and_in_again(bucket: str, model: Path, tmp_path: Path) -> None:
    request = Request(quant="f32")
    convert(model, tmp_path / "here.gguf", request)
    convert(model, f"{bucket}/there.gguf", request)
    expected = (tmp_path / "here.gguf").read_bytes()
    assert len(expected) > 2 * uploads.PART and got(f"{bucket}/there.gguf") == expected
    convert(f"{bucket}/there.gguf", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == expected
    with pytest.raises(OutputExists):
        convert(model, f"{bucket}/there.gguf", request)


def test_a_folder_out_and_in_again(bucket: str, model: Path, tmp_path: Path) -> None:
    request = Request(split_max_size=9_000_000)
    convert(model, f"{tmp_path}/here/", request)
    convert(model, f"{bucket}/here/", request)
    for path in (tmp_path / "here").iterdir():
        assert got(f"{bucket}/here/{path.name}") == path.read_bytes()
    convert(f"{bucket}/here/", tmp_path / "there.gguf")
    convert(tmp_path / "here", tmp_path / "here.gguf")
    assert (tmp_path / "there.gguf").read_bytes() == (tmp_path / "here.gguf").read_bytes()


def begun(address: str) -> list[Begun]:
    return multipart.begun(parse(address))


def test_stopped(bucket: str, model: Path) -> None:
    """Nothing is to be seen, and nothing is left where there is a way to have it forgotten."""

    def progress(now: Progress) -> bool:
        return now.done < now.total

    with pytest.raises(Cancelled):
        convert(model, f"{bucket}/stopped.gguf", Request(quant="f32"), progress=progress)
    with pytest.raises(FileNotFoundError):
        got(f"{bucket}/stopped.gguf")
    assert all(each.until is not None for each in begun(bucket))


def test_a_stopped_upload_goes_on(bucket: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another server says of uploads and parts, and takes for one that is completed from two runs."""
    monkeypatch.setattr(uploads, "PART", 5 << 20)
    target, sent = f"{bucket}/there.gguf", list[int]()
    store = multipart.STORES[parse(target).scheme]
    send = store.send

    def counted(object: StoredObject, upload: str, number: int, data: bytes, md5: str) -> str:
        name = send(object, upload, number, data, md5)
        sent.append(number)
        return name

    def progress(now: Progress) -> bool:
        deadline = time.monotonic() + 30
        while now.done > now.total * 3 // 4 and len(sent) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        return len(sent) < 3

    monkeypatch.setattr(store, "send", counted)
    with pytest.raises(Cancelled):
        convert(model, target, Request(quant="f32"), progress=progress, resume=True)
    (left,) = begun(bucket)
    assert left.name == target and left.stays and len(left.parts) == len(sent)
    sent.clear()
    convert(model, tmp_path / "here.gguf", Request(quant="f32"))
    convert(model, target, Request(quant="f32"))
    expected = (tmp_path / "here.gguf").read_bytes()
    assert got(target) == expected and begun(bucket) == []
    part = len(expected) // (len(expected) // uploads.PART)
    assert len(sent) == -(-len(expected) // part) - len(left.parts)


def test_what_comes_there_meanwhile_stays(bucket: str, model: Path) -> None:
    target = f"{bucket}/there.gguf"
    found = parse(target)
    store = stores.store_of(found.scheme, found.where)

    def progress(now: Progress) -> None:
        obstore.put(store, "/".join(found.parts), b"theirs")

    with pytest.raises(OutputExists):
        convert(model, target, Request(quant="f32"), progress=progress)
    assert got(target) == b"theirs"


def test_an_upload_is_aborted(bucket: str) -> None:
    address = parse(f"{bucket}/there.gguf")
    object = StoredObject(f"{bucket}/there.gguf", address.scheme, address.where, "/".join(address.parts))
    store = multipart.STORES[address.scheme]
    upload = store.begin(object)
    store.send(object, upload, 1, b"bytes", md5(b"bytes", usedforsecurity=False).hexdigest())
    (left,) = begun(bucket)
    assert left.name == object.name and left.nbytes == 5 and left.parts.keys() == {1}
    multipart.abort(left)
    multipart.abort(left)  # it is gone already
    assert len(begun(f"{bucket}/")) == (0 if left.until is None else 1)


def test_azure_takes_no_other_bytes_and_replaces_nothing(azurite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ENDPOINT", azurite), ("ACCOUNT_NAME", ACCOUNT), ("ACCOUNT_KEY", ACCOUNT_KEY)):
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    object, store = StoredObject("az://bucket/one", "az", "bucket", "one"), azure.STORE
    with pytest.raises((Transient, OutputError)):
        store.send(object, store.begin(object), 1, b"bytes", "0" * 32)
    sums = {data: md5(data, usedforsecurity=False).hexdigest() for data in (b"old", b"new")}
    names = {data: store.send(object, store.begin(object), 1, data, sum) for data, sum in sums.items()}
    assert len(store.begun(object, below=False)) == 2
    store.complete(object, "", {1: names[b"old"]}, replace=False)
    with pytest.raises(Ended):
        store.complete(object, "", {1: names[b"new"]}, replace=True)
    name = store.send(object, store.begin(object), 1, b"new", sums[b"new"])
    with pytest.raises(OutputExists):
        store.complete(object, "", {1: name}, replace=False)
    assert got("az://bucket/one") == b"old"
    store.complete(object, "", {1: name}, replace=True)
    assert got("az://bucket/one") == b"new"
    other = StoredObject("az://bucket/two", "az", "bucket", "two")
    azure.service().get_blob_client("bucket", "two").stage_block("short", b"of another program")
    assert store.begun(other, below=False) == []
    with pytest.raises(OutputError, match="another program began an upload to it"):
        store.send(other, store.begin(other), 1, b"new", sums[b"new"])
