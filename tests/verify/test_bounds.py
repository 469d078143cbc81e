"""Bounds known before anything is encoded: no correct encoder exceeds them, and what is wrong does."""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType

import numpy as np
import pytest
from support.kernel_samples import SHAPES, sample, weightings
from support.paths import ROOT

from converter.quant.imatrix import WEIGHTED
from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES, DType
from converter.tensors.scales import SCALES
from converter.verify.bounds import TYPES, Blocks, Cast, expected_noise, noise_bound

ENCODED = [name for name in TYPES if kernels.encodable(DTYPES[name]) and name != "F8_E8M0"]
BLOCKED = [name for name in ENCODED if DTYPES[name].quantized]


def heavy() -> np.ndarray:
    return np.random.default_rng(3).standard_t(3, (16, 1024)).astype(np.float32)


def decoded(x: np.ndarray, dtype: DType, weights: np.ndarray | None = None) -> np.ndarray:
    if weights is None and kernels.needs_importance(dtype):
        weights = np.ones(x.shape[1], np.float32)
    return kernels.decode(kernels.encode(x, dtype, weights=weights), dtype)


def noise(x: np.ndarray, y: np.ndarray) -> float:
    """Of the values that are finite, as the verifier sums them up."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = y.astype(np.float64) - x
    return float(np.square(difference[np.isfinite(difference)]).sum())


def test_every_type_has_a_bound() -> None:
    assert set(TYPES) == {each.name for each in DTYPES.values() if each.floating} - {"F64"}
    for name, facts in TYPES.items():
        if isinstance(facts, Blocks):
            dtype = DTYPES[name]
            assert not facts.n if dtype.scale_nbytes else dtype.block_size % facts.n == 0


@pytest.mark.parametrize("name", ENCODED)
def test_no_correct_encoder_exceeds_its_bound(name: str) -> None:
    dtype = DTYPES[name]
    cases = list(weightings(dtype)) if name in WEIGHTED else [("plain", None)]
    for shape in (*SHAPES, "student"):
        x = sample(shape, 34) if shape in SHAPES else heavy()
        for label, weights in cases:
            own = None if weights is None else np.resize(weights, x.shape[1])
            found, most = noise(x, decoded(x, dtype, own)), noise_bound(x, dtype, weighted=weights is not None)
            assert found <= most, (shape, label, found / most)


@pytest.mark.parametrize("name", ENCODED)
def test_single_blocks_and_values_are_bounded(name: str) -> None:
    """A sum may hide one bad block: every block of mixed data by itself."""
    dtype = DTYPES[name]
    size = max(dtype.block_size, 32)
    for shape in ("mixed", "sparse", "half-flat", "ties"):
        x = sample(shape, 12).reshape(-1, size)
        y = decoded(x, dtype, np.ones(size, np.float32))
        weighted = name in WEIGHTED
        for before, after in zip(x, y, strict=True):
            assert noise(before, after) <= noise_bound(before[None], dtype, weighted=weighted), shape


@pytest.mark.parametrize("name", [name for name in ENCODED if name != "F32"])
def test_weights_have_about_the_expected_noise(name: str) -> None:
    dtype = DTYPES[name]
    for x in (sample("normal", 64) * np.float32(32), heavy()):
        ratio = noise(x, decoded(x, dtype)) / expected_noise(x, dtype)
        assert 0.15 < ratio < 1.5, ratio


LOWER = [
    ("Q8_0", "Q6_K"), ("Q6_K", "Q5_K"), ("Q5_K", "Q4_K"), ("Q4_K", "Q3_K"), ("Q3_K", "Q2_K"), ("Q5_0", "Q4_0"),
    ("Q5_1", "Q4_1"), ("Q4_0", "Q3_K"), ("Q4_1", "Q3_K"), ("IQ4_NL", "Q3_K"), ("IQ4_XS", "IQ3_S"),
    ("IQ3_S", "IQ2_S"), ("IQ3_XXS", "IQ2_XS"), ("IQ2_S", "IQ1_M"), ("NVFP4", "Q2_K"), ("MXFP4", "Q2_K"),
    ("F16", "BF16"), ("BF16", "Q8_0"), ("F8_E4M3", "F8_E5M2"),
]  # fmt: skip


@pytest.mark.parametrize(("claimed", "stored"), LOWER)
def test_a_type_lower_than_said_is_beyond_what_is_expected(claimed: str, stored: str) -> None:
    x = sample("normal", 64) * np.float32(32)
    once, twice = DTYPES[claimed], decoded(decoded(x, DTYPES[stored]), DTYPES[claimed])
    expected = expected_noise(x, once)
    assert noise(x, twice) > 2 * expected > 1.3 * noise(x, decoded(x, once))


@pytest.mark.parametrize(
    "name", [name for name in BLOCKED if DTYPES[name].bits_per_weight > 4 and SCALES[name][0].kind == "F16"]
)
def test_a_flipped_bit_in_every_scale_is_beyond_the_bound(name: str) -> None:
    x, dtype = sample("normal", 64), DTYPES[name]
    data = kernels.encode(x, dtype)
    data.reshape(-1, dtype.type_size)[:, SCALES[name][0].offset + 1] ^= 0x02  # the highest bit of the significand
    assert noise(x, kernels.decode(data, dtype)) > noise_bound(x, dtype)


@pytest.mark.parametrize("name", ENCODED)
def test_what_is_not_finite_has_no_bound_and_zero_no_noise(name: str) -> None:
    x = sample("normal", 2)
    assert noise_bound(np.zeros_like(x), DTYPES[name]) == 0
    for bad in (np.nan, np.inf, -np.inf):
        x[0, 5] = bad
        assert noise_bound(x, DTYPES[name]) == np.inf


# ---- the points of the lattice types, as the decoder has them ----

POINTS = {"IQ3_XXS": (4, 4, 62), "IQ3_S": (4, 1, 15), "IQ2_XXS": (8, 8, 43), "IQ2_XS": (8, 8, 43), "IQ2_S": (8, 8, 43)}
PARITY = {"IQ3_XXS": 8, "IQ2_XXS": 8, "IQ2_XS": 8}  # values that share an even number of minus signs


def points(name: str) -> np.ndarray:
    """Magnitudes of all points, (count, width), in units of which the smallest level is `least`."""
    width, least, top = POINTS[name]
    dtype, facts = DTYPES[name], TYPES[name]
    data = np.random.default_rng(0).integers(0, 256, (2000, dtype.type_size), np.uint8)
    data[:, :2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    blocks = np.abs(kernels.decode(data, dtype).astype(np.float64)).reshape(-1, facts.n)
    blocks /= blocks.min(axis=1, keepdims=True) / least
    whole = np.unique(np.round(blocks[blocks.max(axis=1) <= top + 0.5]).reshape(-1, width), axis=0)
    return whole[np.isclose(whole.max(axis=1), whole.max(axis=1).round())]


@cache
def distances(name: str) -> tuple[float, float]:
    """Covering radius and second moment of the points in their box, per value and relative to the box."""
    width, _, top = POINTS[name]
    all_points, rng = points(name), np.random.default_rng(1)

    def far(x: np.ndarray) -> np.ndarray:
        squares = (x**2).sum(axis=1)[:, None] - 2 * x @ all_points.T + (all_points**2).sum(axis=1)
        return np.sqrt(np.maximum(squares.min(axis=1), 0) / width) / top

    corners = np.stack(np.meshgrid(*[[0.0, top]] * width), axis=-1).reshape(-1, width)
    inside = rng.random((3000, width)) * top
    tried = np.concatenate([corners, inside])
    best = tried[np.argsort(-far(tried))[:32]]
    for step in np.geomspace(0.3 * top, 0.002 * top, 150):
        moved = np.clip(best + rng.normal(0, step, best.shape), 0, top)
        best = np.where((far(moved) > far(best))[:, None], moved, best)
    return float(far(best).max()), float(np.sqrt((far(inside) ** 2).mean()))


@pytest.mark.parametrize("name", POINTS)
def test_lattice_facts_follow_from_the_points(name: str) -> None:
    _, least, top = POINTS[name]
    facts = TYPES[name]
    assert isinstance(facts, Blocks)
    radius, moment = distances(name)
    # Turning the sign of one of eight values, where it is largest and its level least, adds 4 x level to the square.
    parity = 4 * least / top / PARITY[name] if name in PARITY else 0.0
    assert (radius**2 + parity) ** 0.5 == pytest.approx(facts.half, rel=0.02)
    assert moment <= facts.mean <= 1.2 * moment


# ---- docs/bounds.md ----


@cache
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bounds_benchmark", ROOT / "benchmarks" / "bounds.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table() -> dict[str, list[str]]:
    lines = (ROOT / "docs" / "bounds.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {cells[0]: cells for cells in rows if cells[0] in DTYPES}


@pytest.mark.parametrize("name", [each.name for each in program().types()])
def test_documented_numbers_are_the_programs(name: str) -> None:
    cells, dtype = table()[name], DTYPES[name]
    facts = TYPES[name]
    assert cells[1] == f"{dtype.bits_per_weight:.4g}"
    assert (cells[2] == "yes") == (not isinstance(facts, Cast) and facts.searched)
    for column, tensors in zip((3, 6), program().drawn().values(), strict=True):
        written = [float(cell) for cell in cells[column : column + 3]]
        found = [float(each) for each in program().derived(tensors, dtype)]
        assert written[1:] == pytest.approx(found, abs=0.11)
        assert written[0] >= written[2], "measured is worse than the bound"
    assert cells[9] == "exact" or float(cells[9]) >= float(cells[11])


def test_the_table_has_every_type() -> None:
    assert list(table()) == [each.name for each in program().types()]
