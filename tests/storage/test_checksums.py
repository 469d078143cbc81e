"""Checksums: by every instruction set, in any pieces and in any order."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter import _native
from converter.storage.checksums import CRC32, CRC32C, Checksum, Crc, Pieces

BOTH = pytest.mark.parametrize("kind", [CRC32, CRC32C], ids=["crc32", "crc32c"])
# What is before and after each edge of the kernel: words of 8 bytes, three lanes of 8 KiB.
SIZES = (0, 1, 7, 8, 9, 15, 16, 17, 255, 8_191, 8_192, 24_575, 24_576, 24_577, 24_583, 49_151, 49_152, 49_160, 100_003)


@pytest.fixture(params=_native.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.isa()
    _native.select_isa(request.param)
    yield request.param
    _native.select_isa(before)


def bitwise(data: bytes, polynomial: int) -> int:
    """The definition: a division, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
    return value ^ 0xFFFFFFFF


# iSCSI's Read (10) command, RFC 3720 B.4
READ_10 = bytes.fromhex("01c00000" + "00" * 12 + "1400000000000400000000140000001828" + "00" * 7 + "02" + "00" * 7)
assert len(READ_10) == 48


@pytest.mark.parametrize(
    "data, crc",
    [
        (b"123456789", 0xE3069283),  # the check value of the CRC catalogue
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (READ_10, 0xD9963A56),
    ],
)
def test_vectors_of_rfc_3720(isa: str, data: bytes, crc: int) -> None:
    assert CRC32C.of(data) == crc


def test_the_reference_is_that_of_zlib() -> None:
    data = np.random.default_rng(1).bytes(3_000)
    assert bitwise(data, CRC32.polynomial) == zlib.crc32(data) == CRC32.of(data)


@pytest.fixture(scope="module")
def random_sums() -> tuple[bytes, dict[int, int]]:
    """Random bytes and the CRC-32C of as many of them as SIZES say."""
    data = np.random.default_rng(3).bytes(max(SIZES))
    sums, value = {}, 0xFFFFFFFF
    for at in range(len(data) + 1):
        if at in SIZES:
            sums[at] = value ^ 0xFFFFFFFF
        for _ in range(8 if at < len(data) else 0):
            bit = (value ^ data[at] >> _) & 1
            value = value >> 1 ^ (CRC32C.polynomial if bit else 0)
    return data, sums


def test_random_bytes_of_many_sizes(isa: str, random_sums: tuple[bytes, dict[int, int]]) -> None:
    data, sums = random_sums
    assert sorted(sums) == sorted(SIZES)
    for size, crc in sums.items():
        assert CRC32C.of(data[:size]) == crc, size
        for shift in (1, 3, 8):  # at any address
            moved = (bytes(shift) + data[:size])[shift:]
            assert CRC32C.of(memoryview(bytes(shift) + data[:size])[shift:]) == crc == CRC32C.of(moved), size


def test_in_pieces(isa: str, random_sums: tuple[bytes, dict[int, int]]) -> None:
    data, sums = random_sums
    view = memoryview(data)
    for middle in SIZES:
        assert CRC32C.of(view[middle:], CRC32C.of(view[:middle])) == sums[len(data)], middle


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=600), st.lists(st.integers(0, 600), max_size=6), st.sampled_from([CRC32, CRC32C]))
def test_any_split_gives_the_same(data: bytes, cuts: list[int], kind: Crc) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    parts = [data[a:b] for a, b in pairwise(edges)]
    expected = bitwise(data, kind.polynomial)
    running = 0
    for part in parts:
        running = kind.of(part, running)
    assert running == kind.of(data) == expected
    assert kind.combine_all((kind.of(part), len(part)) for part in parts) == expected


@BOTH
@pytest.mark.parametrize("nbytes", [0, 1, 2, 255, 256, 65_537, (1 << 20) + 3])
def test_combining_with_zeros(kind: Crc, nbytes: int) -> None:
    assert kind.combine(kind.of(b"head"), kind.of(bytes(nbytes)), nbytes) == kind.of(b"head" + bytes(nbytes))


def test_combining_what_no_memory_holds() -> None:
    """A terabyte, twice as two halves and once in four."""
    for kind in (CRC32, CRC32C):
        half = kind.combine(0x12345678, 0x9ABCDEF0, 1 << 39)
        quarter = kind.combine_all([(0x12345678, 1 << 38), (0, 1 << 38), (0x9ABCDEF0, 1 << 39)])
        zeros = kind.combine(kind.combine(0x12345678, 0, 1 << 38), 0x9ABCDEF0, 1 << 39)
        assert quarter == zeros != half


def test_what_is_no_bytes_is_refused() -> None:
    for wrong in ("text", np.zeros(4, np.float32), np.zeros((4, 4), np.uint8)[:, ::2]):
        with pytest.raises(TypeError):
            _native.crc32c(wrong)  # type: ignore[arg-type]


@BOTH
@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(max_size=400),
    pieces=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=12),
    wrong=st.booleans(),
)
def test_checksums_of_pieces(kind: Crc, data: bytes, pieces: list[tuple[int, int]], wrong: bool) -> None:
    checksum = Checksum(len(data), kind.of(data) ^ (wrong and bool(data)), kind)
    verdicts = [checksum.add(a, data[a:b]) for a, b in pieces if a <= b <= len(data)]
    verdicts += [checksum.add(a, data[a:b]) for a, b in checksum.gaps(0, len(data))]
    assert all(verdicts) == (not wrong or not data)
    assert checksum.complete == all(verdicts)


def test_pieces_count_once() -> None:
    pieces, data = Pieces(), bytes(range(100))
    assert pieces.crc == 0 and pieces.gaps(0, 0) == [] and pieces.gaps(0, 9) == [(0, 9)]
    for start, stop in ((60, 100), (0, 40), (10, 30), (0, 40), (30, 70)):
        pieces.add(start, stop, CRC32.of(data[start:stop]))
    assert pieces.gaps(0, 100) == [(40, 60)] and pieces.crc == CRC32.of(data[:40])
    pieces.add(40, 60, CRC32.of(data[40:60]))
    assert pieces.gaps(0, 100) == [] and pieces.crc == CRC32.of(data)
