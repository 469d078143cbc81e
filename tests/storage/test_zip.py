"""Deflated members of archives: any view in any order gives the bytes, the sum is compared once all came out."""

from __future__ import annotations

import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from converter.errors import CorruptFile
from converter.storage.files import open_bytes
from converter.storage.zip import Archive, Inflated, open_archive

SIZE = 5_000_000


@pytest.fixture(scope="module")
def content() -> bytes:
    return np.random.default_rng(3).integers(0, 4, SIZE, np.uint8).tobytes()


def packed(path: Path, content: bytes) -> Archive:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x", content)
    return open_archive(open_bytes(path))


@pytest.mark.parametrize("seed", range(4))
def test_views_in_any_order(seed: int, content: bytes, tmp_path: Path) -> None:
    """Small ones back and forth, as a tree in the file is read, and long ones; then the sum of all is compared."""
    archive, rng = packed(tmp_path / "x.zip", content), np.random.default_rng(seed)
    record = archive.record("x")
    assert isinstance(record, Inflated)
    for _ in range(200):
        start = int(rng.integers(0, SIZE))
        length = int(rng.choice([0, 1, 100, 300_000, SIZE]))
        length = min(length, SIZE - start)
        assert record.view(start, length, "x").tobytes() == content[start : start + length]
    archive.check()
    archive.mapped.close()


def test_looking_about_inflates_little(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, came = packed(tmp_path / "x.zip", content), 0
    step = Inflated._step

    def counted(self: Inflated, *args: object) -> bytes:
        nonlocal came
        piece = step(self, *args)  # type: ignore[arg-type]
        came += len(piece)
        return piece

    monkeypatch.setattr(Inflated, "_step", counted)
    record = archive.record("x")
    for at in range(0, SIZE, 50_000):
        for back in (0, 40_000, 4_000):
            assert record.view(max(at - back, 0), 8, "x").tobytes() == content[max(at - back, 0) :][:8]
    assert came <= 2 * SIZE
    archive.mapped.close()


def test_a_flipped_bit_is_found_in_whatever_order(content: bytes, tmp_path: Path) -> None:
    packed(tmp_path / "x.zip", content).mapped.close()
    raw = bytearray((tmp_path / "x.zip").read_bytes())
    # Stored blocks of deflate keep the bytes as they are: one of them differs, and only the sum can tell.
    engine = zlib.compressobj(0, zlib.DEFLATED, -15)
    body = bytearray(engine.compress(content) + engine.flush())
    with zipfile.ZipFile(tmp_path / "y.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=0) as file:
        file.writestr("x", content)
    raw = bytearray((tmp_path / "y.zip").read_bytes())
    place = raw.index(bytes(body[:64])) + SIZE // 2
    raw[place] ^= 1
    (tmp_path / "y.zip").write_bytes(raw)
    for order in ([0, SIZE - 10], [SIZE - 10, 0], [SIZE // 3, 5, SIZE - 10]):
        archive = open_archive(open_bytes(tmp_path / "y.zip"))
        record = archive.record("x")
        with pytest.raises(CorruptFile, match="CRC-32"):
            for at in order:
                record.view(at, 10, "x")
            archive.check()
        archive.mapped.close()


def test_threads_share_a_member(content: bytes, tmp_path: Path) -> None:
    archive = packed(tmp_path / "x.zip", content)
    record, wrong = archive.record("x"), []

    def read(start: int) -> None:
        for at in range(start, start + SIZE // 4 - 70_000, 70_000):
            if record.view(at, 70_000, "x").tobytes() != content[at : at + 70_000]:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(i * SIZE // 4,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    archive.check()
    assert wrong == []
    archive.mapped.close()
