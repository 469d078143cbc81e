"""The ops contract: shapes, inverses and reach of every op, on numbers and on packed quantized bytes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import ShapeMismatch
from converter.tensors import kernels, ops
from converter.tensors.dtypes import BF16, DTYPES, F16, F32, DType, dtype
from converter.tensors.ops import (
    Add,
    At,
    Chain,
    Concat,
    Factors,
    FromPlace,
    LogNeg,
    Mul,
    NegExp,
    Op,
    PermuteColumns,
    PermuteRows,
    Pick,
    Product,
    Reshape,
    Rope,
    Row,
    Rows,
    Shape,
    Softplus,
    Split,
    Stack,
    Sum,
    Transpose,
    Unpick,
    Unstack,
    inverse,
)
from converter.tensors.streams import _row_map, compose
from converter.tensors.tensor import LazyTensor, TensorInfo, from_array

PACKED = ("Q8_0", "Q4_0", "Q5_1", "Q4_K")
SIZES = {"n_head": 6, "n_head_kv": 2, "head_dim": 4, "n_expert": 3}


@dataclass(frozen=True)
class Case:
    """An op or chain with shapes it fits and one set that it must refuse; the reach that it should claim."""

    chain: Chain
    shapes: tuple[Shape, ...]
    reach: str
    results: tuple[Shape, ...]
    misfit: tuple[Shape, ...] | None = None

    @property
    def bound(self) -> Chain:
        return tuple(op.bind(SIZES) for op in self.chain)

    def __str__(self) -> str:
        return f"{'+'.join(type(op).__name__ for op in self.chain)} {' '.join(map(str, self.shapes))}"


def case(
    chain: Op | Chain,
    *shapes: Shape,
    reach: str,
    gives: Sequence[Shape] | None = None,
    misfit: Shape | Sequence[Shape] | None = None,
) -> Case:
    refused = None if misfit is None else (misfit,) if all(isinstance(n, int) for n in misfit) else tuple(misfit)
    return Case(
        chain if isinstance(chain, tuple) else (chain,),
        shapes,
        reach,
        tuple(gives or shapes),
        refused,  # type: ignore[arg-type]
    )


CASES = (
    case(Rope("n_head"), (24, 256), reach="rows", misfit=(25, 256)),
    case(Rope("n_head_kv"), (8, 256), reach="rows", misfit=(6, 256)),
    case(Rope("n_head", undo=True), (24, 256), reach="rows", misfit=(6, 256)),
    case(Rope("n_head"), (24,), reach="whole", misfit=()),
    case(
        Rope(2), (12, 256), reach="rows", misfit=(10, 256)
    ),  # with three pairs a head, unlike with two, undoing differs
    case(Rope(2, undo=True), (12, 256), reach="rows", misfit=(10, 256)),
    case(Rope(2, True, "n_head"), (16, 256), reach="rows", misfit=(10, 256)),  # six of eight rows a head
    case(Rope(2, n_rot=4), (10,), reach="whole", misfit=(6,)),
    case(PermuteRows(("n_head_kv", 3, 2), (1, 2, 0)), (12, 256), reach="rows", misfit=(13, 256)),
    case(PermuteRows((2, 3), (1, 0)), (6,), reach="whole", misfit=(7,)),
    case(PermuteColumns((4, 64), (1, 0)), (3, 256), reach="outer", misfit=(3, 255)),
    case(PermuteColumns((2, 3, 2), (2, 0, 1)), (12,), reach="whole", misfit=(3, 11)),
    case(Transpose(), (5, 256), reach="whole", gives=[(256, 5)], misfit=(5,)),
    case(Transpose((1, 0, 2)), (5, 3, 256), reach="rows", gives=[(3, 5, 256)], misfit=(5, 256)),
    case(Transpose((2, 0, 1)), (5, 3, 4), reach="whole", gives=[(4, 5, 3)], misfit=(5, 3)),
    case(Transpose((0, 3, 1, 2)), (5, 3, 4, 2), reach="outer", gives=[(5, 2, 3, 4)], misfit=(5, 3, 4)),
    case(
        Reshape(("n_head * head_dim", "row"), ("n_head", "head_dim", "row")),
        (24, 256),
        reach="rows",
        gives=[(6, 4, 256)],
        misfit=(23, 256),
    ),
    case(Reshape((6, 4), (24,)), (6, 4), reach="whole", gives=[(24,)], misfit=(4, 6)),
    case(Split(0, (2, 1, 1)), (8, 256), reach="rows", gives=[(4, 256), (2, 256), (2, 256)], misfit=(9, 256)),
    case(Split(1, (1, 1)), (3, 4, 256), reach="rows", gives=[(3, 2, 256)] * 2, misfit=(3, 5, 256)),
    case(Split(-2, (1, 3)), (3, 4, 256), reach="rows", gives=[(3, 1, 256), (3, 3, 256)], misfit=(7,)),
    case(Split(-1, (1, 1)), (3, 8), reach="outer", gives=[(3, 4)] * 2, misfit=(3, 7)),
    case(Split(0, ("n_head", 2)), (8,), reach="whole", gives=[(6,), (2,)], misfit=(9,)),
    case(Split(0, (1, 1)), (4, 256), reach="rows", gives=[(2, 256)] * 2, misfit=[(4, 256), (4, 256)]),
    case(Concat(0, (4, 2)), (4, 256), (2, 256), reach="rows", gives=[(6, 256)], misfit=[(2, 256), (4, 256)]),
    case(Concat(0, (1, 1)), (4, 256), (4, 256), reach="rows", gives=[(8, 256)], misfit=[(4, 256), (4, 224)]),
    case(Concat(0, (1, 1)), (4, 256), (4, 256), reach="rows", gives=[(8, 256)], misfit=[(4, 256)]),
    case(Concat(1, (1, 1)), (3, 4), (3, 4), reach="outer", gives=[(3, 8)], misfit=[(3, 4), (2, 4)]),
    case(Concat(2, (1, 2)), (3, 5, 4), (3, 5, 8), reach="outer", gives=[(3, 5, 12)], misfit=[(3, 5, 4), (3, 5, 4)]),
    case(Concat(0, (1, 1)), (4,), (4,), reach="whole", gives=[(8,)], misfit=[(4,), (5,)]),
    case(Stack("n_expert"), *[(4, 256)] * 3, reach="rows", gives=[(3, 4, 256)], misfit=[(4, 256)] * 2),
    case(Stack("n_expert"), *[(256,)] * 3, reach="rows", gives=[(3, 256)], misfit=[(4,), (4,), (5,)]),
    case(Pick((3, 1), "n_head"), (6, 256), reach="rows", gives=[(2, 256)], misfit=(5, 256)),
    case(Unpick((3, 1), "n_head"), (2, 256), reach="rows", gives=[(6, 256)], misfit=(3, 256)),
    case(Pick((0, 5), "n_head", beside=True), (6, 256), reach="rows", gives=[(6, 256), (2, 256)], misfit=(5, 256)),
    case(Rows("n_head", 4, front=True), (6, 256), reach="rows", gives=[(4, 256)], misfit=(5, 256)),
    case(Rows(4, "n_head", front=True), (4, 256), reach="rows", gives=[(6, 256)], misfit=(5, 256)),
    case(Rows("n_head", 4), (6, 256), reach="rows", gives=[(4, 256)], misfit=(5, 256)),
    case(Unstack("n_expert"), (3, 4, 256), reach="rows", gives=[(4, 256)] * 3, misfit=(4, 4, 256)),
    case(Unstack(3), (3, 256), reach="rows", gives=[(256,)] * 3, misfit=(3,)),
    case(Rows("n_head", 9), (6, 256), reach="rows", gives=[(9, 256)], misfit=(5, 256)),
    case(Rows(3, 5), (3,), reach="whole", gives=[(5,)], misfit=(4,)),
    case(Add(1.0), (4, 256), reach="values"),
    case(Add(1.0), (7,), reach="values"),
    case(NegExp(), (4, 256), reach="values"),
    case(LogNeg(), (4, 256), reach="values"),
    case(FromPlace(), (7,), reach="whole", misfit=(3, 4)),
    case(FromPlace(undo=True), (7,), reach="whole", misfit=(3, 4)),
    case(Softplus(), (4, 256), reach="values"),
    case(Mul("1 / n_head"), (4, 256), reach="values"),
    case(Mul(0.3, undo=True), (7,), reach="values"),
    case(At(1, Rope(2)), (8, 256), (8, 256), reach="rows", misfit=[(8, 256)]),
    case(
        At(1, Concat(0, (4, 2)), takes=2),
        (8, 256),
        (4, 256),
        (2, 256),
        reach="rows",
        gives=[(8, 256), (6, 256)],
        misfit=[(8, 256), (4, 256)],
    ),
    case(
        At(0, Split(0, (2, 1)), makes=2),
        (6, 256),
        (2, 256),
        reach="rows",
        gives=[(4, 256), (2, 256), (2, 256)],
        misfit=[(5, 256), (2, 256)],
    ),
    case(At(1, Mul(0.5), takes=2, makes=2), (4, 256), (4, 256), (4, 256), reach="values"),
    case(At(1, Rope(2)), (8, 256), (8, 256), reach="rows", misfit=[(8, 256), (7, 256)]),
    case(At(0, Add(1.0)), (4, 256), (4, 256), reach="values"),
)

KV = "n_head_kv * head_dim"
QUERIES = "n_head // n_head_kv"
CHAINS = {
    # Falcon: per group its queries, one key, one value -> all queries, all keys, all values.
    "falcon": case(
        (
            Reshape(("(n_head + 2 * n_head_kv) * head_dim", "row"), ("n_head_kv", QUERIES + " + 2", "head_dim", "row")),
            Split(1, (QUERIES, 1, 1)),
            At(0, Reshape(("n_head_kv", QUERIES, "head_dim", "row"), ("n_head * head_dim", "row"))),
            At(1, Reshape(("n_head_kv", 1, "head_dim", "row"), (KV, "row"))),
            At(2, Reshape(("n_head_kv", 1, "head_dim", "row"), (KV, "row"))),
            Concat(0, ("n_head * head_dim", KV, KV)),
        ),
        (40, 256), reach="rows", misfit=(36, 256),
    ),
    "gpt2": case(Transpose(), (32, 96), reach="whole", gives=[(96, 32)], misfit=(32,)),
    "experts": case(Stack("n_expert"), *[(8, 256)] * 3, reach="rows", gives=[(3, 8, 256)], misfit=[(8, 256)]),
    "fused gate_up": case(Split(1, (1, 1)), (3, 8, 256), reach="rows", gives=[(3, 4, 256)] * 2, misfit=(3, 7, 256)),
    # DeepSeek: one projection of the compressed KV into keys (transposed) and values.
    "deepseek": case(
        (
            Reshape(("n_head * (head_dim + 2)", "row"), ("n_head", "head_dim + 2", "row")),
            Split(1, ("head_dim", 2)),
            At(0, Transpose((0, 2, 1))),
        ),
        (36, 64), reach="outer", gives=[(6, 64, 4), (6, 2, 64)], misfit=(35, 64),
    ),
    "split, then rope one": case(
        (Split(0, (2, 1, 1)), At(0, Rope(4)), At(1, Rope(2))),
        (32, 256), reach="rows", gives=[(16, 256), (8, 256), (8, 256)], misfit=(33, 256),
    ),
}  # fmt: skip
ALL = (*CASES, *CHAINS.values())
ROW_MOVES = tuple(each for each in ALL if each.reach == "rows")


def ids(cases: Sequence[Case]) -> list[str]:
    return [str(each) for each in cases]


def numbers(shapes: Sequence[Shape], seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """Float32 arrays; negative, so that LogNeg is defined everywhere."""
    rng = np.random.default_rng(seed)
    return [-np.abs(rng.standard_normal(shape, np.float32)) - np.float32(0.01) for shape in shapes]


def lazy(arrays: Sequence[np.ndarray[Any, Any]], kind: DType = F32) -> list[LazyTensor]:
    return [from_array(f"t{i}", array, kind, "test") for i, array in enumerate(arrays)]


def packed(array: np.ndarray[Any, Any], kind: DType, name: str = "t") -> LazyTensor:
    """The array quantized, as a tensor that lies in a file."""
    info = TensorInfo(name, array.shape, kind)
    data = kernels.encode(array.reshape(info.n_rows, info.row), kind)
    return LazyTensor(info, lambda start, stop: data[start:stop], "test")


def stored(tensor: LazyTensor) -> bytes:
    """All bytes, asked for in pieces of three rows as the engine might."""
    rows = tensor.info.n_rows
    return b"".join(tensor.rows(at, min(rows, at + 3)).tobytes() for at in range(0, rows, 3))


def test_every_op_has_a_case() -> None:
    concrete = {
        each for _, each in inspect.getmembers(ops, inspect.isclass)
        if issubclass(each, Op) and each is not Op and not each.__name__.startswith("_")
    }  # fmt: skip
    # A row and a sum have no way back, a product one to other factors: they have tests of their own.
    assert {type(op) for each in CASES for op in each.chain} == concrete - {Row, Sum, Product, Factors}


@pytest.mark.parametrize("each", ALL, ids=ids(ALL))
def test_infer_is_the_shape_of_apply(each: Case) -> None:
    results = ops.apply(each.bound, numbers(each.shapes))
    assert tuple(array.shape for array in results) == each.results
    assert tuple(ops.infer(each.bound, each.shapes)) == each.results


def test_distances_become_places() -> None:
    given = np.array([0, 2, 2, 40], np.int64)
    (ids,) = ops.apply((FromPlace(),), [given])
    assert ids.dtype == np.int64 and ids.tolist() == [0, 3, 4, 43]


@pytest.mark.parametrize("each", ALL, ids=ids(ALL))
def test_the_inverse_undoes_it(each: Case) -> None:
    arrays = numbers(each.shapes)
    if any(isinstance(op, FromPlace) for op in each.chain):  # which is for whole numbers
        arrays = [np.rint(array * 1000).astype(np.int64) for array in arrays]
    back = ops.apply(inverse(each.bound), ops.apply(each.bound, arrays))
    assert tuple(ops.infer(inverse(each.bound), each.results)) == each.shapes
    for op in each.bound:
        if isinstance(op, Rows) and int(op.want) < int(op.have):  # of these rows nothing comes back
            for array in arrays:
                gone = int(op.have) - int(op.want)
                array[slice(gone) if op.front else slice(-gone, None)] = 0
        elif isinstance(op, Pick) and not op.beside:
            for array in arrays:
                array[[row for row in range(len(array)) if row not in op.rows]] = 0
    for array, again in zip(arrays, back, strict=True):
        if all(getattr(op, "op", op).exact for op in each.chain):
            assert np.array_equal(array, again)
        else:
            np.testing.assert_allclose(again, array, rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("each", ALL, ids=ids(ALL))
def test_binding_the_inverse_is_inverting_the_bound(each: Case) -> None:
    assert tuple(op.bind(SIZES) for op in inverse(each.chain)) == inverse(each.bound)
    assert inverse(inverse(each.bound)) == each.bound


@pytest.mark.parametrize("each", ALL, ids=ids(ALL))
def test_reach(each: Case) -> None:
    assert ops.reach(each.bound, each.shapes) == each.reach


@pytest.mark.parametrize("each", [each for each in ALL if each.misfit is not None], ids=str)
def test_misfits_are_refused(each: Case) -> None:
    assert each.misfit is not None
    with pytest.raises(ShapeMismatch, match="does not fit"):
        ops.infer(each.bound, each.misfit)
    tensors = lazy(numbers(each.misfit))
    with pytest.raises(ShapeMismatch):
        compose(each.bound, tensors, [f"r{i}" for i in range(len(each.results))])


@pytest.mark.parametrize("each", ALL, ids=ids(ALL))
@pytest.mark.parametrize("kind", [F32, F16, BF16], ids=str)
def test_compose_is_apply(each: Case, kind: DType) -> None:
    """Lazily, in pieces of rows, the same values as on arrays in memory; row moves keep the stored type.

    What is stored in F16 is calculated in F16.
    """
    tensors = lazy(numbers(each.shapes), kind)
    wide = [tensor.array().astype(np.float32) for tensor in tensors]
    expected = ops.apply(each.bound, wide, half=kind is F16)
    names = [f"result {i}" for i in range(len(expected))]
    results = compose(each.bound, tensors, names)
    assert [result.name for result in results] == names
    for result, array in zip(results, expected, strict=True):
        assert result.info.shape == array.shape
        assert result.info.dtype in (kind, F32)
        assert each.reach == "values" or result.info.dtype is kind
        assert stored(result) == np.ascontiguousarray(array.astype(result.info.dtype.numpy)).tobytes()
        assert set(result.parts) <= {tensor.name for tensor in tensors}


@pytest.mark.parametrize("each", ROW_MOVES, ids=ids(ROW_MOVES))
@pytest.mark.parametrize("kind", PACKED)
def test_row_moves_act_on_packed_bytes(each: Case, kind: str) -> None:
    """Quantizing and then moving rows gives the bytes of moving rows and then quantizing, but that zeros are zeros."""
    arrays = numbers(each.shapes)
    moved = ops.apply(each.bound, arrays)
    tensors = [packed(array, dtype(kind), f"t{i}") for i, array in enumerate(arrays)]
    results = compose(each.bound, tensors, [f"r{i}" for i in range(len(moved))])
    for result, array in zip(results, moved, strict=True):
        assert result.info.dtype.name == kind
        quantized = packed(np.ascontiguousarray(array), dtype(kind))
        nonzero = np.flatnonzero(array.reshape(quantized.info.n_rows, -1).any(axis=1))
        assert result.take(nonzero).tobytes() == quantized.take(nonzero).tobytes()
        assert stored(result) == result.rows(0, quantized.info.n_rows).tobytes()


@pytest.mark.parametrize("each", [each for each in ALL if each.reach != "rows"], ids=str)
def test_other_ops_decode_packed_bytes(each: Case) -> None:
    shapes = [(*shape[:-1], shape[-1] * 32) for shape in each.shapes]
    try:
        expected_shapes = ops.infer(each.bound, shapes)
    except ShapeMismatch:
        shapes, expected_shapes = list(each.shapes), list(each.results)
    if any(shape[-1] % 32 for shape in shapes):
        pytest.skip("rows without whole blocks cannot be packed")
    tensors = [packed(array, dtype("Q8_0"), f"t{i}") for i, array in enumerate(numbers(shapes))]
    decoded = [kernels.decode(t.rows(0, t.info.n_rows), t.info.dtype).reshape(t.info.shape) for t in tensors]
    with np.errstate(divide="ignore"):  # log of a weight that Q8_0 rounded to zero
        expected = ops.apply(each.bound, decoded)
    results = compose(each.bound, tensors, [f"r{i}" for i in range(len(expected_shapes))])
    for result, array in zip(results, expected, strict=True):
        untouched = result.info.dtype.name == "Q8_0"
        data = kernels.decode(result.rows(0, result.info.n_rows), result.info.dtype) if untouched else result.array()
        assert np.array_equal(data.reshape(array.shape), array)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("kind", [F32, BF16, DTYPES["Q4_0"]], ids=str)
def test_chains_round_trip_through_compose(name: str, kind: DType) -> None:
    each = CHAINS[name]
    if kind.quantized and each.reach != "rows":
        pytest.skip("only row moves keep packed bytes")
    arrays = numbers(each.shapes)
    tensors = [packed(array, kind) for array in arrays] if kind.quantized else lazy(arrays, kind)
    there = compose(each.bound, tensors, [f"r{i}" for i in range(len(each.results))])
    back = compose(inverse(each.bound), there, [tensor.name for tensor in tensors])
    for tensor, again in zip(tensors, back, strict=True):
        assert again.info == tensor.info
        assert stored(again) == stored(tensor)


@pytest.mark.parametrize("kind", ["F32", "BF16", *PACKED])
def test_rows_that_are_cut_off_come_back_as_zeros(kind: str) -> None:
    (array,) = numbers([(6, 256)])
    tensor = packed(array, dtype(kind)) if dtype(kind).quantized else lazy([array], dtype(kind))[0]
    chain = (Rows("n_head", "n_head_kv").bind(SIZES),)
    (cut,) = compose(chain, [tensor], ["cut"])
    assert cut.info.shape == (2, 256) and stored(cut) == tensor.rows(0, 2).tobytes()
    (again,) = compose(inverse(chain), [cut], ["t"])
    assert stored(again) == stored(cut) + bytes(4 * tensor.info.row_nbytes)
    values = kernels.decode(again.rows(0, 6), again.info.dtype)
    assert values.any(axis=1).tolist() == [True, True, False, False, False, False]


def test_values_before_and_after_moves_and_on_one_tensor() -> None:
    """Order matters here: `At` counts the tensors in flight at its place in the chain."""
    chain = (Add(2.0), Split(0, (1, 1)), At(1, NegExp()), At(0, Rope(1)), Concat(0, (1, 1)), Add(-0.5))
    (array,) = numbers([(8, 16)])
    (result,) = compose(chain, lazy([array], BF16), ["r"])
    wide = lazy([array], BF16)[0].array().astype(np.float32)
    assert result.info.dtype is F32
    assert np.array_equal(result.array(), ops.apply(chain, [wide])[0])


@pytest.mark.parametrize(
    "last", [(), (PermuteColumns((2, 8), (1, 0)),), (Transpose(),)], ids=["by rows", "outer", "whole"]
)
def test_values_of_f16_are_those_of_torch(last: Chain) -> None:
    """Each op rounds to F16: not what F32 rounded once gives."""
    (array,) = numbers([(8, 16)])
    (tensor,) = lazy([array], F16)
    (result,) = compose((Add(1.0), Mul(0.3), *last), [tensor], ["r"])
    stored_values = tensor.array()
    assert stored_values.dtype == np.float16
    theirs = (stored_values + np.float16(1)).astype(np.float32) * np.float32(0.3)
    (theirs,) = ops.apply(last, [theirs.astype(np.float16).astype(np.float32)])
    assert result.info.dtype is F32 and np.array_equal(result.array(), theirs)
    once = (stored_values.astype(np.float32) + 1) * np.float32(0.3)
    assert not np.array_equal(np.sort(result.array(), None), np.sort(once, None))


def test_what_torch_calculates_wide_is_not_rounded_to_f16() -> None:
    (tensor,) = lazy(numbers([(8, 16)]), F16)
    wide, half = (compose((NegExp(wide),), [tensor], ["r"])[0].array() for wide in (True, False))
    assert np.array_equal(wide, NegExp().apply([tensor.array().astype(np.float32)])[0])
    assert np.array_equal(half, wide.astype(np.float16).astype(np.float32)) and not np.array_equal(half, wide)
    assert NegExp(wide=True).inverse().inverse() == NegExp(wide=True)


def test_nothing_is_multiplied_by_zero() -> None:
    with pytest.raises(ShapeMismatch, match="does not fit"):
        compose((Mul("n - 6").bind({"n": 6}),), lazy(numbers([(2, 2)])), ["r"])


def test_mixed_types_meet_in_f32() -> None:
    first, second = numbers([(4, 32), (4, 32)])
    tensors = [*lazy([first], F16), packed(second, dtype("Q8_0"), "q")]
    (result,) = compose((Stack(2),), tensors, ["r"])
    assert result.info.dtype is F32
    assert np.array_equal(result.array()[0], first.astype(np.float16).astype(np.float32))
    assert np.array_equal(result.array()[1], kernels.decode(tensors[1].rows(0, 4), dtype("Q8_0")))


def test_row_moves_read_only_what_they_need() -> None:
    asked: list[tuple[int, int]] = []
    (base,) = lazy(numbers([(64, 8)]))

    def read(start: int, stop: int) -> Any:
        asked.append((start, stop))
        return base.rows(start, stop)

    source = LazyTensor(base.info, read, "test")
    first, second = compose((Split(0, (3, 1)),), [source], ["a", "b"])
    assert asked == []
    second.rows(2, 5)
    assert asked == [(50, 53)]
    first.rows(0, 48)
    assert asked[1:] == [(0, 48)]


def test_whole_ops_say_that_they_cannot_be_cut() -> None:
    (base,) = lazy(numbers([(16, 8)]))
    (turned,) = compose((Transpose(),), [base], ["t"])
    assert turned.grain == turned.info.n_rows == 8
    (moved,) = compose((Rope(2),), [turned], ["m"])
    assert moved.grain == 8
    assert compose((Rope(2),), [base], ["r"])[0].grain == 1


#: Chains in which something is done within each index of the first axis; how many rows of each result belong together.
OUTER = {
    "columns of a matrix": ((PermuteColumns((2, 4), (1, 0)),), [(16, 8)], [1]),
    "columns of stacked matrices": ((PermuteColumns((2, 4), (1, 0)),), [(5, 3, 8)], [3]),
    "one of two": (CHAINS["deepseek"].bound, [(36, 64)], [64, 1]),
    "joined again": (inverse(CHAINS["deepseek"].bound), [(6, 64, 4), (6, 2, 64)], [4]),
    "turned, then halves": ((Transpose((0, 2, 1)), Split(1, (1, 1))), [(5, 4, 6)], [3, 3]),
    "turned, then every second row": (
        (
            Transpose((0, 2, 1)), Reshape((5, 6, "row"), (5, 3, 2, "row")), Split(2, (1, 1)),
            Reshape((5, 3, 1, "row"), (5, 3, "row")),
        ),
        [(5, 4, 6)], [3, 3],
    ),
    "turned, then apart": ((Transpose((0, 2, 1)), Unstack(3)), [(3, 4, 6)], [6, 6, 6]),
    "turned twice": ((Transpose((0, 2, 1)), PermuteColumns((2, 2), (1, 0))), [(5, 4, 6)], [6]),
    "of what is whole": ((Transpose((0, 2, 1)), Transpose((1, 0, 2)), Transpose((2, 1, 0))), [(5, 4, 6)], [20]),
    "halves of columns": ((Split(-1, (1, 1)),), [(5, 4, 6)], [4, 4]),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTER)
def test_rows_that_belong_together(name: str) -> None:
    chain, shapes, grains = OUTER[name]
    results = compose(chain, lazy(numbers(shapes)), [f"r{i}" for i in range(len(grains))])
    assert [result.grain for result in results] == grains
    for result, array in zip(results, ops.apply(chain, numbers(shapes)), strict=True):
        assert np.array_equal(result.array(), array)


@pytest.mark.parametrize("each", [each for each in CASES if each.reach == "outer"], ids=str)
def test_an_outer_op_does_the_same_to_every_index(each: Case) -> None:
    """To any number of them, too, and nothing of one index comes into another."""
    arrays = numbers(each.shapes)
    expected = ops.apply(each.bound, arrays)
    for cuts in ((1,), (2,), (1, 2)):
        slices = zip(*(np.split(array, cuts) for array in arrays), strict=True)
        parts = [ops.apply(each.bound, part) for part in slices]
        for index, array in enumerate(expected):
            assert np.array_equal(np.concatenate([part[index] for part in parts]), array)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_op_that_claims_to_be_outer_is(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    inner = data.draw(st.integers(1, 3))
    op = data.draw(
        st.one_of(
            st.permutations(range(len(shape))).map(lambda axes: Transpose(tuple(axes))),
            st.permutations(range(2)).map(lambda order: PermuteColumns((shape[-1], inner), tuple(order))),
            st.just(Split(axis, (inner, shape[axis]))),
            st.just(PermuteRows((shape[0],), (0,))),
            st.just(Rope(1)),
        )
    )
    sizes = list(shape)
    if isinstance(op, PermuteColumns):
        sizes[-1] *= inner
    if isinstance(op, Split):
        sizes[axis] += inner
    if op.reach(len(sizes)) != "outer":
        return
    (array,) = numbers([tuple(sizes)])
    cut = data.draw(st.integers(0, sizes[0]))
    low, high = op.apply([array[:cut]]), op.apply([array[cut:]])
    for part, rest, all_of_it in zip(low, high, op.apply([array]), strict=True):
        assert np.array_equal(np.concatenate((part, rest)), all_of_it)


def test_what_an_outer_op_leaves_alone_stays_packed() -> None:
    """The values beside the keys that are turned: their rows are those of the file, bit for bit."""
    (array,) = numbers([(36, 64)])
    keys, values = compose(CHAINS["deepseek"].bound, [packed(array, dtype("Q8_0"))], ["k", "v"])
    assert (keys.info.dtype.name, values.info.dtype.name) == ("F32", "Q8_0")
    rows = array.reshape(6, 6, 64)[:, 4:].reshape(12, 64)
    assert stored(values) == stored(packed(np.ascontiguousarray(rows), dtype("Q8_0")))


def test_outer_ops_read_only_the_indexes_that_they_need() -> None:
    asked: list[tuple[int, int]] = []
    (base,) = lazy(numbers([(36, 64)]))

    def read(start: int, stop: int) -> Any:
        asked.append((start, stop))
        return base.rows(start, stop)

    keys, values = compose(CHAINS["deepseek"].bound, [LazyTensor(base.info, read, "test")], ["k", "v"])
    keys.rows(64, 192)
    assert asked == [(6, 16)]  # two heads of six rows, without the last two, which are values
    values.rows(2, 4)
    assert asked[1:] == [(10, 12)]


@pytest.mark.parametrize(
    ("chain", "shapes", "together"),
    [
        ((Stack(3),), [(8, 4)] * 3, 8),
        ((Unstack(3),), [(3, 8, 4)], 8),
        ((Unstack(3), Stack(3)), [(3, 2, 8, 4)], 16),
        ((Split(0, (1, 1)),), [(4, 5, 8)], 5),
        ((Split(-2, (1, 1)),), [(4, 4, 8)], 1),  # of (4, 32) it would split another axis
        ((Concat(-2, (1, 1)),), [(4, 1, 8)] * 2, 1),
        ((Split(1, (1, 1)),), [(4, 4, 8)], 1),
        ((Transpose((1, 0, 2)),), [(4, 4, 8)], 1),
        ((Rope(2),), [(8, 4)], 1),
        ((Rope(2),), [(8, 3, 4)], 3),
        ((Rows(3, 5),), [(3, 2, 4)], 2),
        ((Stack(2),), [(4,)] * 2, 1),
    ],
    ids=str,
)
def test_rows_that_always_move_together_are_counted_once(chain: Chain, shapes: list[Shape], together: int) -> None:
    """Their map is as much shorter, and says the same."""
    count, maps = _row_map(chain, tuple(shapes))
    assert count == together
    for result, rows in zip(ops.infer(chain, shapes), maps, strict=True):
        assert len(rows) * together == int(np.prod(result[:-1]))
    arrays = numbers(shapes)
    expected = ops.apply(chain, arrays)
    results = compose(chain, lazy(arrays), [f"r{i}" for i in range(len(expected))])
    for result, array in zip(results, expected, strict=True):
        assert stored(result) == np.ascontiguousarray(array).tobytes()


def test_no_rows_is_no_bytes() -> None:
    tensors = lazy(numbers([(0, 8), (0, 8)]))
    (result,) = compose((Stack(2),), tensors, ["r"])
    assert result.array().shape == (2, 0, 8)


@pytest.mark.parametrize(
    "op",
    [
        Rope(1), PermuteRows((2,), (0,)), PermuteColumns((2,), (0,)), Transpose((0,)), Reshape((2,), (2,)),
        Split(0, (1, 1)), Unstack(1), At(0, Rope(1)),
    ],
    ids=str,
)  # fmt: skip
def test_a_scalar_has_no_axis_to_move(op: Op) -> None:
    with pytest.raises(ShapeMismatch, match="does not fit"):
        op.infer([()])


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (Rope(0), [(4, 4)]),
        (Reshape((6, 4), (25,)), [(6, 4)]),
        (Split(2, (1, 1)), [(4, 4)]),
        (Split(-3, (1, 1)), [(4, 4)]),
        (Split(0, (0, 0)), [(4, 4)]),
        (Concat(2, (1, 1)), [(4, 4), (4, 4)]),
        (Concat(-3, (1, 1)), [(4, 4), (4, 4)]),
        (Concat(0, (1, 1, 1)), [(4, 4), (4, 4)]),
        (Concat(0, (1, 1)), [(), ()]),
        (Concat(1, (1, 1)), [(4, 4), (4,)]),
        (Concat(0, (1, 1)), [(4, 4), (4, 4, 1)]),
        (Concat(0, (1, 1)), [(4, 4), (4, 5)]),
        (Concat(0, (1, 2)), [(4, 4), (4, 4)]),
        (Unstack(4), [(4, 4), (4, 4)]),
    ],
    ids=str,
)
def test_sizes_that_fit_nothing_are_refused(op: Op, shapes: list[Shape]) -> None:
    with pytest.raises(ShapeMismatch, match="does not fit"):
        op.infer(shapes)


def test_ends_of_the_axes_that_fit() -> None:
    assert Split(-2, (1, 1)).infer([(4, 3)]) == [(2, 3), (2, 3)]
    assert Split(1, (1, 1)).infer([(4, 2)]) == [(4, 1), (4, 1)]
    assert Split(0, (1,)).infer([(4, 3)]) == [(4, 3)]
    assert Concat(-2, (1, 1)).infer([(2, 3), (2, 3)]) == [(4, 3)]
    assert Concat(1, (1, 1)).infer([(2, 3), (2, 3)]) == [(2, 6)]
    assert Unstack(1).infer([(1, 2)]) == [(2,)]
    assert Stack(1).infer([(2,)]) == [(1, 2)]


def test_a_number_is_a_list_of_one_and_back() -> None:
    to_list = Reshape((), (1,))
    assert (to_list.reach(0), to_list.infer([()])) == ("whole", [(1,)])
    assert to_list.apply([np.float32(5)])[0].tolist() == [5.0]
    assert to_list.inverse().apply([np.ones(1)])[0].shape == () and to_list.inverse().infer([(1,)]) == [()]
    with pytest.raises(ShapeMismatch):
        to_list.infer([(1,)])


def test_a_reshape_moves_rows_only_where_both_shapes_end_in_the_row() -> None:
    assert Reshape((2, "row"), (2, 1, "row")).reach(2) == "rows"
    assert Reshape((2, "row"), (24,)).reach(2) == "whole"
    assert Reshape((24,), (2, "row")).reach(1) == "whole"


@pytest.mark.parametrize("op", [Split, Concat])
def test_only_the_last_axis_is_cut_within_rows(op: type[Split] | type[Concat]) -> None:
    def reach(axis: int, ndim: int) -> str:
        return op(axis, (1, 1)).reach(ndim)

    assert [reach(axis, 3) for axis in (-3, -2, -1, 0, 1, 2)] == ["rows", "rows", "outer", "rows", "rows", "outer"]
    assert reach(0, 1) == "whole"


def test_the_ops_that_lose_something() -> None:
    assert {type(op) for each in CASES for op in each.chain if not op.exact} == {Add, Mul, NegExp, LogNeg, Softplus}


def test_values_of_ops_on_numbers() -> None:
    (array,) = numbers([(3, 5)])
    assert Add(1.5).apply([array])[0].tolist() == (array + np.float32(1.5)).tolist()
    assert NegExp().apply([array])[0].tolist() == (-np.exp(array.astype(np.float64))).astype(np.float32).tolist()
    assert LogNeg().apply([array])[0].tolist() == np.log(-array.astype(np.float64)).astype(np.float32).tolist()


def test_misfits_of_stacks_name_few_shapes() -> None:
    """A model of 256 experts would fill the screen."""
    with pytest.raises(ShapeMismatch) as caught:
        Stack(9).infer([(size, 2) for size in range(1, 9)])
    assert "(4, 2)" in str(caught.value) and "(5, 2)" not in str(caught.value)


def test_an_unknown_size_is_named() -> None:
    with pytest.raises(Exception, match="no n_heads"):
        Rope("n_heads").bind(SIZES)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_permutation_of_rows_has_its_inverse(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    columns = data.draw(st.integers(1, 4))
    (array,) = numbers([(int(np.prod(shape)), columns)])
    op = PermuteRows(shape, order)
    (result,) = compose((op, op.inverse()), lazy([array]), ["r"])
    assert np.array_equal(result.array(), array)
    turned = PermuteColumns(shape, order)
    assert np.array_equal(turned.apply([array.T])[0], op.apply([array])[0].T)


@settings(max_examples=60, deadline=None)
@given(heads=st.integers(1, 6), half=st.integers(1, 6), columns=st.integers(1, 5))
def test_rope_interleaves_the_halves_of_each_head(heads: int, half: int, columns: int) -> None:
    (array,) = numbers([(heads * 2 * half, columns)])
    (result,) = Rope(heads).apply([array])
    for head in range(heads):
        own = array[head * 2 * half : (head + 1) * 2 * half]
        out = result[head * 2 * half : (head + 1) * 2 * half]
        assert np.array_equal(out[0::2], own[:half])
        assert np.array_equal(out[1::2], own[half:])


def test_rope_leaves_what_does_not_rotate() -> None:
    array = np.arange(14, dtype=np.float32)
    assert Rope(2, n_rot=4).apply([array])[0].tolist() == [0, 2, 1, 3, 4, 5, 6, 7, 9, 8, 10, 11, 12, 13]
    assert Rope(2, True, 6).apply([array])[0].tolist() == [0, 2, 4, 1, 3, 5, 6, 7, 9, 11, 8, 10, 12, 13]
    assert Rope(2, n_rot=0).apply([array])[0].tolist() == array.tolist()
    with pytest.raises(ShapeMismatch):
        Rope(2, n_rot=3).infer([(14,)])


def test_a_row_of_a_matrix() -> None:
    """Of numbers and of packed bytes alike; there is no way back."""
    matrix = np.arange(24, dtype=np.float32).reshape(6, 4)
    (found,) = Row("n_head_kv").bind(SIZES).apply([matrix])
    assert np.array_equal(found, matrix[2:3]) and Row(2).infer([(6, 4)]) == [(1, 4)]
    (lazy,) = compose((Row(5), Reshape((1, ops.ROW), (ops.ROW,))), [from_array("m", matrix, F32, "made")], ["r"])
    assert lazy.info.shape == (4,) and np.array_equal(lazy.array(), matrix[5])
    for index, shape in ((6, (6, 4)), (-1, (6, 4)), (0, (4,)), (0, (2, 3, 4))):
        with pytest.raises(ShapeMismatch):
            Row(index).infer([shape])
    with pytest.raises(ShapeMismatch, match="no way back"):
        Row(1).inverse()


@pytest.mark.parametrize("kind", [F32, F16, BF16], ids=str)
def test_a_product_comes_back_as_ones_and_itself(kind: DType) -> None:
    """Calculated in F32 whatever the factors are stored in, as torch does where it is asked to widen them."""
    product = Product((("n_head",), (1, "n_head"))).bind(SIZES)
    tensors = lazy(numbers([(6,), (1, 6)]), kind)
    (made,) = compose((product,), tensors, ["p"])
    one, other = (tensor.array().astype(np.float32) for tensor in tensors)
    assert made.info == TensorInfo("p", (6,), F32) and np.array_equal(made.array(), one * other[0])
    ones, again = compose(inverse((product,)), [made], ["one", "other"])
    assert (ones.info.shape, again.info.shape) == ((6,), (1, 6)) and product.inverse().inverse() == product
    assert np.array_equal(ones.array(), np.ones(6)) and np.array_equal(again.array()[0], made.array())
    for op, misfit in ((product, [(6,), (6,)]), (product, [(6,)]), (product.inverse(), [(5,)])):
        with pytest.raises(ShapeMismatch, match="does not fit"):
            op.infer(misfit)
    with pytest.raises(ShapeMismatch, match="does not fit"):
        Product(((2,), (3,))).infer([(2,), (3,)])


def test_a_sum_of_packed_numbers_is_one_of_numbers() -> None:
    (array,) = numbers([(4, 2, 256)])
    source = packed(array.reshape(8, 256), dtype("Q8_0")).derived(TensorInfo("t", (4, 2, 256), dtype("Q8_0")))
    for each in (from_array("t", array, F32, "made"), source):
        (made,) = compose((Sum(1),), [each], ["s"])
        assert made.info == TensorInfo("s", (4, 256), F32)
        wanted = kernels.decode(source.array(), dtype("Q8_0")).reshape(array.shape) if each is source else array
        assert np.array_equal(made.array(), wanted[:, 0] + wanted[:, 1])
    with pytest.raises(ShapeMismatch):
        Sum(1).infer([(3, 4)])
    with pytest.raises(ShapeMismatch, match="no way back"):
        Sum(0).inverse()
