"""In and out of an S3 that others have written: moto's server, on loopback (`make remote`, which installs it)."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request as Asked
from urllib.request import urlopen

import pytest

from converter import convert
from converter.address import parse
from converter.errors import Cancelled, OutputExists
from converter.remote import multipart, s3, stores, uploads
from converter.remote.objects import StoredObject
from converter.remote.parts import Begun
from converter.request import Request
from converter.storage.slabs import Progress

SERVER = os.environ.get("CONVERTER_MOTO", "")  # the program
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SERVER, reason="CONVERTER_MOTO does not say where moto_server is (make remote)"),
]
obstore = pytest.importorskip("obstore")
KEY = "NobodysSecretKeyThatNobodyMaySee"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [SERVER, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urlopen(Asked(f"{url}/bucket", method="PUT")).close()
                    break
                except URLError:
                    assert time.monotonic() < deadline and process.poll() is None
                    time.sleep(0.2)
            yield url
        finally:
            process.terminate()


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    return server


def got(key: str) -> bytes:
    return bytes(obstore.get(stores.store_of("s3", "bucket"), key).bytes())


def test_out_and_in_again(url: str, model: Path, tmp_path: Path) -> None:
    request = Request(quant="f32")
    convert(model, tmp_path / "here.gguf", request)
    convert(model, "s3://bucket/models/there.gguf", request)
    expected = (tmp_path / "here.gguf").read_bytes()
    assert len(expected) > 2 * uploads.PART and got("models/there.gguf") == expected
    convert("s3://bucket/models/there.gguf", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == expected
    with pytest.raises(OutputExists):
        convert(model, "s3://bucket/models/there.gguf", request)


def test_a_folder_out_and_in_again(url: str, model: Path, tmp_path: Path) -> None:
    request = Request(split_max_size=9_000_000)
    convert(model, f"{tmp_path}/here/", request)
    convert(model, "s3://bucket/here/", request)
    for path in (tmp_path / "here").iterdir():
        assert got(f"here/{path.name}") == path.read_bytes()
    convert("s3://bucket/here/", tmp_path / "there.gguf")
    convert(tmp_path / "here", tmp_path / "here.gguf")
    assert (tmp_path / "there.gguf").read_bytes() == (tmp_path / "here.gguf").read_bytes()


def test_stopped(url: str, model: Path) -> None:
    def progress(now: Progress) -> bool:
        return now.done < now.total

    with pytest.raises(Cancelled):
        convert(model, "s3://bucket/stopped.gguf", Request(quant="f32"), progress=progress)
    for asked in ("?list-type=2", "?uploads"):
        with urlopen(f"{url}/bucket{asked}") as answer:
            assert b"stopped.gguf" not in answer.read()


def test_a_stopped_upload_goes_on(url: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another server says of uploads and parts, and takes for one that is completed from two runs."""
    monkeypatch.setattr(uploads, "PART", 5 << 20)
    target, asked = "s3://bucket/again/there.gguf", list[str]()
    ask = s3.ByParts._asked

    def counted(store: s3.ByParts, object: StoredObject, what: str, **given: object) -> object:
        asked.append(what)
        return ask(store, object, what, **given)

    def begun() -> list[Begun]:
        return multipart.begun(parse("s3://bucket/again/"))

    def progress(now: Progress) -> bool:
        deadline = time.monotonic() + 30
        while now.done > now.total * 3 // 4 and asked.count("upload_part") < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        return asked.count("upload_part") < 3

    monkeypatch.setattr(s3.ByParts, "_asked", counted)
    with pytest.raises(Cancelled):
        convert(model, target, Request(quant="f32"), progress=progress, resume=True)
    (left,) = begun()
    assert left.name == target and left.stays and len(left.parts) >= 2
    asked.clear()
    convert(model, tmp_path / "here.gguf", Request(quant="f32"))
    convert(model, target, Request(quant="f32"))
    expected = (tmp_path / "here.gguf").read_bytes()
    assert got("again/there.gguf") == expected and begun() == []
    part = len(expected) // (len(expected) // uploads.PART)
    assert asked.count("upload_part") == -(-len(expected) // part) - len(left.parts)
    assert "create_multipart_upload" not in asked


def test_an_upload_is_aborted(url: str) -> None:
    object = StoredObject("s3://bucket/left/there.gguf", "s3", "bucket", "left/there.gguf")
    s3.STORE.begin(object)
    (left,) = multipart.begun(parse("s3://bucket/left"))
    assert left.name == object.name and left.nbytes == 0
    multipart.abort(left)
    multipart.abort(left)  # it is gone already
    assert multipart.begun(parse("s3://bucket/left/")) == []
