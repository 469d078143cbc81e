"""What hosts say that files hash to is compared with what was read of them, before an output appears."""

from __future__ import annotations

import hashlib
import shutil
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.hosts import Host, named, serving
from support.paths import FIXTURES

from converter import Source, convert
from converter.errors import CorruptFile
from converter.inspection.describe import inspect
from converter.remote import blocks, whole
from converter.remote.digests import Digest, said
from converter.remote.settings import Settings, using
from converter.request import Request
from converter.storage.checksums import CRC32C

pytest.importorskip("obstore")
MODEL = FIXTURES / "stories260K"
WEIGHTS = (MODEL / "model.safetensors").read_bytes()
HUB, S3, WEB = "hf://org/stories", "s3://bucket/stories/model.safetensors", "{host}/files/org/stories/model.safetensors"


def b64(data: bytes) -> str:
    return b64encode(data).decode()


SHA, MD5, CRC = hashlib.sha256(WEIGHTS).digest(), hashlib.md5(WEIGHTS).digest(), CRC32C.of(WEIGHTS).to_bytes(4, "big")
HEADERS = {
    "repr-digest": ("Repr-Digest", f"sha-256=:{b64(SHA)}:", "sha256"),
    "digest": ("Digest", f"MD5={b64(MD5)},SHA-256={b64(SHA)}", "sha256"),
    "artifactory": ("X-Checksum-Sha256", SHA.hex(), "sha256"),
    "azure": ("x-ms-blob-content-md5", b64(MD5), "md5"),
    "google": ("x-goog-hash", f"crc32c={b64(CRC)},md5={b64(MD5)}", "crc32c"),
}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    for name in ("org/stories", "bucket/stories"):
        shutil.copytree(MODEL, tmp_path / "hosted" / name)
    monkeypatch.setattr(whole, "_doubted", set())
    with serving(Host(tmp_path / "hosted")) as served:
        named(served, monkeypatch)
        yield served


@pytest.fixture
def scattered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is fetched where it is read, and so out of its order, and nothing is kept until its turn comes."""
    for name in ("SMALL", "AHEAD", "KEPT"):
        monkeypatch.setattr(blocks, name, 0)


def made(host: Host, given: str, tmp_path: Path) -> bytes:
    source = Source(given.format(host=host.url), config=MODEL)
    convert(source, tmp_path / "x.gguf", Request(quant="q8_0", name="s"), force=True)
    return (tmp_path / "x.gguf").read_bytes()


def damaged(host: Host, name: str = "org/stories") -> None:
    """Other bytes in the middle of the weights."""
    content = bytearray(WEIGHTS)
    content[len(content) // 2] ^= 1
    (host.root / name / "model.safetensors").write_bytes(content)


def lfs(body: dict[str, Any]) -> dict[str, Any]:
    """The Hub says of the weights what their hash was."""
    for each in body["siblings"]:
        if each["rfilename"] == "model.safetensors":
            each["lfs"]["sha256"] = SHA.hex()
    return body


@pytest.mark.parametrize(("header", "text", "kind"), HEADERS.values(), ids=HEADERS)
def test_headers_of_a_file(host: Host, tmp_path: Path, header: str, text: str, kind: str) -> None:
    expected = made(host, WEB, tmp_path)
    host.headers = lambda path: {header: text}
    assert made(host, WEB, tmp_path) == expected
    damaged(host)
    (tmp_path / "x.gguf").unlink()
    with pytest.raises(CorruptFile) as caught:
        made(host, WEB, tmp_path)
    words = str(caught.value)
    assert words.startswith(
        f"{WEB.format(host=host.url)}: its bytes are not those that its host says they are\n{kind} "
    )
    sums = {"sha256": SHA.hex(), "md5": MD5.hex(), "crc32c": CRC.hex()}
    assert f"by the host {sums[kind]}" in words and words.count("\n") == 1
    assert not (tmp_path / "x.gguf").exists()


def test_a_hash_of_the_hub(host: Host, tmp_path: Path) -> None:
    host.says = lfs
    made(host, HUB, tmp_path)
    damaged(host)
    (tmp_path / "x.gguf").unlink()
    with pytest.raises(CorruptFile, match=r"hf://org/stories/model\.safetensors: its bytes .*\nsha256 "):
        made(host, HUB, tmp_path)
    assert not (tmp_path / "x.gguf").exists()


def test_out_of_order_only_what_can_be_combined_is_compared(host: Host, tmp_path: Path, scattered: None) -> None:
    damaged(host)
    for name, fails in (("google", True), ("artifactory", False)):
        header, text, _ = HEADERS[name]
        host.headers = lambda path, header=header, text=text: {header: text}  # type: ignore[misc]
        if fails:
            with pytest.raises(CorruptFile, match="crc32c"):
                made(host, WEB, tmp_path)
        else:
            made(host, WEB, tmp_path)


def test_with_the_cache_all_is_compared_in_the_end(host: Host, tmp_path: Path, scattered: None) -> None:
    host.says = lfs
    cache = tmp_path / "cache"
    with using(Settings(cache=cache)):
        damaged(host)
        with pytest.raises(CorruptFile, match=r"model\.safetensors: its bytes .*\nsha256 "):
            made(host, HUB, tmp_path)
        assert not (tmp_path / "x.gguf").exists()
        assert not [path for path in cache.glob("*.data") if path.stat().st_size == len(WEIGHTS)], "it was removed"
        (host.root / "org/stories/model.safetensors").write_bytes(WEIGHTS)
        inspect(HUB)
        expected = made(host, HUB, tmp_path)
        assert len(list(cache.glob("*.proved"))) == len(list(cache.glob("*.data")))
        assert made(host, HUB, tmp_path) == expected


def test_an_etag_that_is_a_sum(host: Host, tmp_path: Path) -> None:
    for path in MODEL.iterdir():
        host.tags[f"bucket/stories/{path.name}"] = f'"{hashlib.md5(path.read_bytes()).hexdigest()}"'
    expected = made(host, S3, tmp_path)
    sent = host.sent["bucket/stories/model.safetensors"]
    assert sent == len(WEIGHTS), "nothing is fetched for it"
    faults = ["flip"]
    host.faults = lambda path, number: faults.pop() if faults and path.endswith(".safetensors") else None
    (tmp_path / "x.gguf").unlink()
    with pytest.raises(CorruptFile, match=rf"s3://bucket/stories/model\.safetensors: .*\nmd5 .*{MD5.hex()}"):
        made(host, S3, tmp_path)
    assert not (tmp_path / "x.gguf").exists()
    host.faults = lambda path, number: None
    assert made(host, S3, tmp_path) == expected


def test_an_etag_that_looks_like_a_sum_is_settled_by_reading_again_once(host: Host, tmp_path: Path) -> None:
    """Stores that encrypt with keys of their own give ETags that are none."""
    expected = made(host, WEB, tmp_path)
    assert made(host, S3, tmp_path) == expected
    assert "s3://bucket" in whole._doubted
    assert host.sent["bucket/stories/model.safetensors"] == len(WEIGHTS), "a small file beside them had shown it"
    host.sent.clear()
    assert made(host, S3, tmp_path) == expected
    assert host.sent["bucket/stories/model.safetensors"] == len(WEIGHTS)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"digest": "unixsum=30637"}, None),
        ({"digest": f"sha-256={b64(SHA)[:-4]}"}, None),
        ({"digest": "sha-256=!!"}, None),
        ({"x-checksum-sha256": SHA.hex().upper()}, Digest("sha256", SHA.hex())),
        ({"content-md5": b64(MD5)}, None),
        ({"x-goog-hash": f"crc32c={b64(CRC)}", "x-goog-stored-content-encoding": "gzip"}, None),
        (
            {"x-goog-hash": f"crc32c={b64(CRC)}", "x-goog-stored-content-encoding": "identity"},
            Digest("crc32c", CRC.hex()),
        ),
        ({"repr-digest": f"sha-512=:{b64(b'x' * 64)}:, md5=:{b64(MD5)}:"}, Digest("sha512", (b"x" * 64).hex())),
    ],
)
def test_what_a_range_says(headers: dict[str, str], expected: Digest | None) -> None:
    assert said(headers, False) == expected
    if "content-md5" in headers:
        assert said(headers, True) == Digest("md5", MD5.hex())


@pytest.mark.parametrize("kind", ["sha256", "sha512", "md5", "crc32c", "git"])
def test_sums_of_pieces(kind: str) -> None:
    """Each byte counts once; only CRC-32C knows those that come out of their order."""
    data = np.frombuffer(WEIGHTS[:100_000], np.uint8)
    blob = b"blob 100000\0" + data.tobytes()
    expected = {
        "crc32c": lambda: f"{CRC32C.of(data.tobytes()):08x}",
        "git": lambda: hashlib.sha1(blob).hexdigest(),
    }.get(kind, lambda: hashlib.new(kind, data.tobytes()).hexdigest())()
    made = Digest(kind, "").sum(len(data))
    for start, stop in ((0, 10), (50_000, 60_000), (5, 40_000), (30_000, 70_000), (0, 100_000)):
        assert not made.full
        made.add(start, data[start:stop])
    assert made.full and made.text == expected and made.next is None
    made = Digest(kind, "").sum(len(data))
    for start in range(90_000, -1, -10_000):
        made.add(start, data[start : start + 10_000])
    assert made.full == (kind == "crc32c")
    assert Digest("sha256", hashlib.sha256(b"ab").hexdigest()).of(2, [b"a", b"b"])
    assert not Digest("sha256", hashlib.sha256(b"ab").hexdigest()).of(2, [b"a", b"c"])
