"""Lazy tensors: what a tensor that is read through another one keeps of it."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from converter.tensors.dtypes import DTYPES
from converter.tensors.encode import Watch, encoded
from converter.tensors.streams import compose, decoded
from converter.tensors.tensor import LazyTensor, TensorInfo

INFO = TensorInfo("w", (4, 32), DTYPES["F16"])
DATA = np.arange(4 * 64, dtype=np.uint8).reshape(4, 64)


def tensor() -> LazyTensor:
    return LazyTensor(INFO, lambda start, stop: DATA[start:stop], "file@8", ("a", "b"), 999, 4)


def test_what_is_not_given_stays() -> None:
    """Every field, those that come later included."""
    base = tensor()
    assert base.derived() == base
    for field in fields(LazyTensor):
        assert getattr(base.derived(read=base.read), field.name) == getattr(base, field.name)


def test_what_is_given_is_taken() -> None:
    info = replace(INFO, name="v")
    made = tensor().derived(info, lambda start, stop: DATA[:0], parts=(), work_nbytes=0, grain=1)
    assert (made.info, made.source, made.parts, made.work_nbytes, made.grain) == (info, "file@8", (), 0, 1)
    assert made.rows(0, 4).shape == (0, 64)


def test_a_row_takes_as_much_memory_under_a_narrower_type() -> None:
    """What is read through a tensor takes what that takes, also where nobody has said how much."""
    plain = replace(tensor(), work_nbytes=None)
    assert plain.row_work == 64
    assert plain.derived(TensorInfo("w", (4, 32), DTYPES["U8"])).row_work == 64


def test_wrappers_keep_source_parts_and_what_is_computed_whole() -> None:
    for made in (
        decoded(tensor()),
        encoded(tensor(), DTYPES["Q8_0"], Watch()),
        encoded(tensor(), DTYPES["F16"], Watch()),
        *compose((), [tensor()], ["w"]),
        tensor().renamed("v"),
    ):
        assert (made.source, made.parts, made.grain) == ("file@8", ("a", "b"), 4)
        assert made.row_work >= 999
