"""NVFP4 with what stands beside it: through the moves of rows, in a file and out of it, as numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from converter.errors import UnsupportedFeature
from converter.tensors.dtypes import DTYPES, F32
from converter.tensors.nvfp4 import joined, parted
from converter.tensors.ops import ROW, Chain, Concat, PermuteRows, Reshape, Split, Stack, Transpose
from converter.tensors.streams import compose, decoded, values
from converter.tensors.tensor import Beside, LazyTensor, TensorInfo, from_array

NVFP4 = DTYPES["NVFP4"]


def blocks(name: str, rows: int, scale: float | None, input_scale: float = 1.0, seed: int = 0) -> LazyTensor:
    data = np.random.default_rng(seed).integers(0, 0x70, (rows, NVFP4.row_nbytes(128)), np.uint8)
    beside = None if scale is None else Beside((scale,), (input_scale,))
    tensor = LazyTensor(TensorInfo(name, (rows, 128), NVFP4), lambda start, stop: data[start:stop], "here")
    return replace(tensor, beside=beside)


def numbers(tensor: LazyTensor) -> np.ndarray:
    return np.concatenate([values(tensor, at, at + 1) for at in range(tensor.info.n_rows)])


def test_numbers_have_the_scale_in_them() -> None:
    tensor = blocks("w", 4, 0.375)
    plain = values(replace(tensor, beside=None), 0, 4)
    assert plain.any() and np.array_equal(values(tensor, 0, 4), plain * np.float32(0.375))
    made = decoded(tensor)
    assert made.info.dtype is F32 and made.beside is None and np.array_equal(values(made, 1, 3), values(tensor, 1, 3))


ONE, OTHER = Beside((0.5,), (2.0,)), Beside((0.25,), (3.0,))
MOVES: dict[str, tuple[Chain, list[float], list[Beside | None]]] = {
    "experts": ((Stack(2),), [0.5, 0.25], [Beside((0.5, 0.25), (2.0, 3.0))]),
    "rows of one": ((PermuteRows((2, 2), (1, 0)),), [0.5], [ONE]),
    "parts of one": ((Split(0, (2, 2)),), [0.5], [ONE, ONE]),
    "gate and up": (
        (Stack(2), Reshape((2, 4, ROW), (2, 2, 2, ROW)), Split(1, (1, 1)), Reshape((2, 1, 2, ROW), (2, 2, ROW))),
        [0.5, 0.25],
        [Beside((0.5, 0.25), (2.0, 3.0))] * 2,
    ),
    "joined, alike": ((Concat(0, (1, 1)),), [0.5, 0.5], [ONE]),
    "joined, not alike": ((Concat(0, (1, 1)),), [0.5, 0.25], [None]),
    "columns": ((Transpose((1, 0)),), [0.5], [None]),
}


@pytest.mark.parametrize("move", MOVES)
def test_it_goes_where_the_rows_go(move: str) -> None:
    chain, scales, wanted = MOVES[move]
    inputs = {0.5: 2.0, 0.25: 3.0}
    sources = [blocks(f"w{at}", 4, scale, inputs[scale], at) for at, scale in enumerate(scales)]
    names = [f"out{at}" for at in range(len(wanted))]
    made = compose(chain, sources, names)
    plain = compose(chain, [decoded(source) for source in sources], names)
    assert [each.beside for each in made] == wanted
    assert [each.info.dtype for each in made] == [F32 if beside is None else NVFP4 for beside in wanted]
    for one, other in zip(made, plain, strict=True):
        assert one.info.shape == other.info.shape and np.array_equal(numbers(one), numbers(other))


def test_blocks_beside_some_that_have_nothing_become_numbers() -> None:
    sources = [blocks("a", 2, 0.5), blocks("b", 2, None)]
    (made,) = compose((Concat(0, (1, 1)),), sources, ["out"])
    assert made.info.dtype is F32
    assert np.array_equal(numbers(made), np.concatenate([numbers(source) for source in sources]))


def test_in_a_file_and_out_of_it() -> None:
    stack = compose((Stack(2),), [blocks("a", 4, 0.5, 2.0), blocks("b", 4, 0.25, 3.0)], ["blk.0.ffn_up_exps.weight"])[0]
    given = {
        "blk.0.attn_q.weight": blocks("blk.0.attn_q.weight", 4, 0.5),
        "output.weight": blocks("output.weight", 4, 1.0),
        stack.name: stack,
        "norm.weight": from_array("norm.weight", np.ones(4, np.float32), F32, "here"),
    }
    file = parted(given)
    small = {name: tensor.array().tolist() for name, tensor in file.items() if name.endswith("scale")}
    assert small == {
        "blk.0.attn_q.scale": [0.5],
        "blk.0.ffn_up_exps.scale": [0.5, 0.25],
        "blk.0.ffn_up_exps.input_scale": [2.0, 3.0],
    }
    assert all(tensor.beside is None for tensor in file.values())
    back = joined(file)
    assert set(back) == set(given)
    assert back[stack.name].beside == stack.beside and back["output.weight"].beside is None
    assert all(np.array_equal(numbers(back[name]), numbers(given[name])) for name in given)
    assert joined(file, set(file)) is file


@pytest.mark.parametrize("scale", [np.ones(3, np.float32), np.ones(1, np.float16), np.array([np.nan], np.float32)])
def test_what_is_no_scale_of_it_stays(scale: np.ndarray) -> None:
    other = from_array("w.scale", scale, DTYPES["F32" if scale.dtype == np.float32 else "F16"], "here")
    file = {"w.weight": blocks("w.weight", 4, None), "w.scale": other}
    assert joined(file) is file


def test_a_name_that_is_taken() -> None:
    taken = from_array("w.scale", np.ones(4, np.float32), F32, "here")
    with pytest.raises(UnsupportedFeature, match=r"w\.scale, which is another tensor"):
        parted({"w.weight": blocks("w.weight", 4, 0.5), "w.scale": taken})
