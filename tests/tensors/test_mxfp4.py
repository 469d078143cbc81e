"""MXFP4 in two tensors and in one: the same numbers, and the same bytes again."""

from __future__ import annotations

import numpy as np
import pytest

from converter.tensors import kernels
from converter.tensors.dtypes import DTYPES
from converter.tensors.mxfp4 import joined, parted
from converter.tensors.tensor import LazyTensor, from_array

U8, MXFP4 = DTYPES["U8"], DTYPES["MXFP4"]
# The values that a code of four bits stands for (OCP microscaling formats, E2M1).
LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def pair(*outer: int, blocks: int) -> dict[str, LazyTensor]:
    rng = np.random.default_rng(3)
    arrays = {
        "w_blocks": rng.integers(0, 256, (*outer, blocks, 16), np.uint8),
        "w_scales": rng.integers(100, 150, (*outer, blocks), np.uint8),
    }
    return {name: from_array(name, array, U8, "here") for name, array in arrays.items()}


def test_the_numbers_are_those_of_the_format() -> None:
    given = pair(3, 5, blocks=2)
    (made,) = joined(given).values()
    assert (made.name, made.info.shape, made.info.dtype) == ("w_blocks", (3, 5, 64), MXFP4)
    assert made.parts == ("w_blocks", "w_scales")
    codes, scales = given["w_blocks"].array(), given["w_scales"].array()
    nibbles = np.stack((codes & 15, codes >> 4), axis=-1).reshape(3, 5, 2, 32)
    wanted = LEVELS[nibbles] * np.exp2(scales.astype(np.float32) - 127)[..., None]
    assert np.array_equal(kernels.decode(made.rows(0, 15), MXFP4).reshape(3, 5, 2, 32), wanted)


def test_back_to_the_same_bytes_whatever_rows_are_asked_for() -> None:
    given = pair(2, 7, blocks=3)
    back = parted(joined(given))
    assert list(back) == ["w_blocks", "w_scales"]
    for name, tensor in back.items():
        assert tensor.info == given[name].info
        rows = given[name].array().reshape(tensor.info.n_rows, -1)
        for start, stop in ((0, tensor.info.n_rows), (1, 2), (2, 8), (5, 13), (4, 4)):
            assert np.array_equal(tensor.rows(start, stop), rows[start:stop])


@pytest.mark.parametrize("change", ["no scales", "another count", "another type"])
def test_what_is_no_pair_stays(change: str) -> None:
    given = pair(2, 2, blocks=2)
    if change == "no scales":
        del given["w_scales"]
    elif change == "another count":
        given["w_scales"] = pair(2, 2, blocks=3)["w_scales"]
    else:
        given["w_scales"] = from_array("w_scales", given["w_scales"].array().astype(np.int8), DTYPES["I8"], "here")
    assert dict(joined(given)) == given and parted(given) == given
