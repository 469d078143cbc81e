"""Finite numbers that a type cannot hold: its blocks are the reference's, and it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from support import builders

import converter
from converter.errors import LossyError, QuantizationError
from converter.events import BlocksOverflow, NotFinite, Overflow
from converter.request import Request
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES, F32
from converter.tensors.encode import Alike, Watch, encoded
from converter.tensors.scales import broken_blocks
from converter.tensors.tensor import from_array

ENCODED = [name for name, (block, _, encodes, _) in kernels.TYPES.items() if encodes and block > 1]
DENSE = {"F16": 65520.0, "BF16": 3.4e38, "F8_E4M3": 465.0, "F8_E5M2": 61440.0}  # the smallest that is lost, or nearly
COLUMNS = 512
PLACES = ((0, 0), (4, 300), (4, 301), (7, COLUMNS - 1))  # two of them in one block


@dataclass(frozen=True)
class Own:
    """Importance of the columns, of one matrix."""

    columns: NDArray[np.float32]
    matrix: str = "own.imatrix"

    def __len__(self) -> int:
        return 1

    def __getitem__(self, matrix: int) -> NDArray[np.float32]:
        return self.columns


def numbers(rows: int = 8) -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(size=(rows, COLUMNS)).astype(np.float32)


def weights_of(name: str) -> Alike | None:
    return Alike(COLUMNS) if kernels.needs_importance(DTYPES[name]) else None


def told(x: NDArray[np.float32], name: str, weights: Alike | Own | None, slab: int = 3) -> tuple[list[object], bytes]:
    """The events of encoding, slab by slab, and the bytes."""
    watch = Watch()
    tensor = encoded(from_array("w", x, F32, "test"), DTYPES[name], watch, weights)
    data = b"".join(bytes(tensor.rows(at, min(len(x), at + slab))) for at in range(0, len(x), slab))
    return list(watch.events()), data


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("large", [1e38, 7e4 * 127])
def test_numbers_beyond_the_scales(name: str, large: float) -> None:
    """Each block once, whether it became infinite, NaN or nothing; the bytes stay those of the encoder."""
    x, dtype = numbers(), DTYPES[name]
    for row, column in ((0, 0), (4, 300), (4, 301), (7, COLUMNS - 1)):  # two of them in one block
        x[row, column] = large
    events, data = told(x, name, weights_of(name))
    plain = kernels.encode(x, dtype, weights=None if weights_of(name) is None else np.ones(COLUMNS, np.float32))
    assert data == bytes(plain)
    peaks = np.abs(kernels.decode(plain, dtype).reshape(-1, dtype.block_size)).max(axis=1)
    places = (0, 4 * COLUMNS + 300, 8 * COLUMNS - 1)
    inside = peaks[[place // dtype.block_size for place in places]]
    count = sum(not large / 2000 < peak < np.inf for peak in inside)
    assert count in (0, 3)
    assert count == 3 or large < 1e38 or name == "MXFP4"
    assert events == ([BlocksOverflow("w", name, 3)] if count else [])


@pytest.mark.parametrize("name", ENCODED)
def test_ordinary_numbers_are_held_by_every_type(name: str) -> None:
    """What lets the common case off: nothing up to 448 is lost, however mixed, and nothing is said of it."""
    rng = np.random.default_rng(6)
    shape = (128, COLUMNS)
    tiny = 10.0 ** rng.uniform(-37, -30, shape)
    kinds = [10.0 ** rng.uniform(-37, 2.65, shape), np.where(rng.random(shape) < 0.01, 448, tiny), np.full(shape, 448)]
    kinds += [rng.normal(size=shape) * 10.0**power for power in (-36, -20, 0, 2)]
    for kind in kinds:
        x = np.clip(kind * rng.choice([-1, 1], shape), -448, 448).astype(np.float32)
        columns = np.ones(COLUMNS, np.float32) if kernels.needs_importance(DTYPES[name]) else None
        data = kernels.encode(x, DTYPES[name], weights=columns)
        assert not len(broken_blocks(data, DTYPES[name]))
        assert np.isfinite(kernels.decode(data, DTYPES[name])).all()
        assert told(x, name, weights_of(name))[0] == []


def test_a_scale_that_wraps_around() -> None:
    """MXFP4 as the reference writes it: a block of nothing but numbers near 0 gets the scale that means NaN."""
    x = np.full((2, 64), 1.0, np.float32)
    x[1, 32:] = 2e-38
    assert told(x, "MXFP4", None)[0] == [BlocksOverflow("w", "MXFP4", 1)]


@pytest.mark.parametrize("name", DENSE)
def test_casts_that_overflow(name: str) -> None:
    x = numbers()
    x[1, 7], x[6, 8] = DENSE[name], -DENSE[name]
    assert told(x, name, None)[0] == [Overflow("w", name, 2)]
    x[1, 7], x[6, 8] = 440, -440
    assert told(x, name, None)[0] == []


def test_what_was_not_finite_before_is_not_told_twice() -> None:
    x = numbers()
    x[0, 0], x[1, 5], x[2, 3] = np.inf, np.nan, 1e38
    assert told(x, "Q8_0", None)[0] == [NotFinite("w", 2), BlocksOverflow("w", "Q8_0", 1)]


KINDS = {
    "huge": np.full(COLUMNS, 3e38),
    "mixed": 10.0 ** np.random.default_rng(7).uniform(-45, 38, COLUMNS),
    "tiny": np.full(COLUMNS, 1e-45),
    "large": 10.0 ** np.random.default_rng(7).uniform(-24, 24, COLUMNS),
}


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_never_spoils_blocks_in_silence(name: str, kind: str) -> None:
    """Refused by name where the type follows it and its blocks were finite; other types are encoded."""
    columns, x = KINDS[kind].astype(np.float32), numbers()
    made = kernels.encode(x, DTYPES[name], weights=columns)
    if not np.isfinite(kernels.decode(made, DTYPES[name])).all():
        assert kind in ("huge", "mixed")
        with pytest.raises(QuantizationError, match=rf"w: own\.imatrix makes \d+ blocks of {name} that do not hold"):
            told(x, name, Own(columns))
    elif kind in ("tiny", "large"):
        assert told(x, name, Own(columns)) == ([], bytes(made))


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "IQ1_S", "IQ1_M"])
def test_a_huge_matrix_is_refused(name: str) -> None:
    """Also where its blocks come out as zeros."""
    with pytest.raises(QuantizationError, match=rf"own\.imatrix makes \d+ blocks of {name} .*\n--exclude-weights w "):
        told(numbers(), name, Own(KINDS["huge"].astype(np.float32)))


def test_numbers_that_are_too_large_are_not_the_matrix_s_fault() -> None:
    x = numbers()
    x[3, 3] = 1e38
    assert told(x, "Q4_K", Own(np.ones(COLUMNS, np.float32)))[0] == [BlocksOverflow("w", "Q4_K", 1)]


def test_a_conversion_tells_and_strict_refuses(tmp_path: Path) -> None:
    folder = builders.llama_folder(tmp_path / "in")
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = "model.layers.0.mlp.down_proj.weight"
    changed = tensors[name].astype(np.float32)
    changed[0, 0] = 1e38
    safetensors.numpy.save_file({**tensors, name: changed}, path)
    plan = converter.convert(folder, tmp_path / "out.gguf", Request(quant="q8_0"))
    expected = BlocksOverflow("blk.0.ffn_down.weight", "Q8_0", 1)
    assert [event for event in plan.report.events if event.loss] == [expected]
    with pytest.raises(LossyError, match=r"ffn_down\.weight: 1 block of Q8_0 does not hold"):
        converter.convert(folder, tmp_path / "strict.gguf", Request(quant="q8_0", strict=True))
    assert not (tmp_path / "strict.gguf").exists()
