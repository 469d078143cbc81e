"""Which rows and columns of a weight share a scale: all, each row, groups of columns, blocks of both; read by rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.quant.sources.floats import E8M0, MICRO
from converter.quant.sources.scheme import Module

EXPONENTS = ("F8_E8M0", "U8")


@dataclass(frozen=True)
class Grid:
    """The scales in the tensor `suffix`, one to `tall` rows and `wide` columns of matrices of `rows` rows.

    The last of either may be fewer. `across` are the scales beside each other.
    """

    module: Module
    suffix: str
    rows: int
    tall: int
    wide: int
    across: int

    def stored(self, start: int, stop: int) -> NDArray[Any]:
        """What is stored for rows [start, stop), (n, across); of more than one axis only these are read."""
        at = np.arange(start, stop)
        which = at // self.rows * -(-self.rows // self.tall) + at % self.rows // self.tall
        shape, first = self.module.shape(self.suffix), int(which[0]) if len(which) else 0
        if len(shape) > 1 and shape[-1] == self.across:
            stored = self.module.rows(self.suffix, first, int(which[-1]) + 1 if len(which) else 0)
        else:
            stored, first = self.module.array(self.suffix).reshape(-1, self.across), 0
        chosen: NDArray[Any] = stored[which - first]
        return chosen

    def numbers(self, start: int, stop: int) -> NDArray[np.float32]:
        """The same as scales in F32; bytes are exponents, 2^(b - 127)."""
        stored = self.stored(start, stop)
        numbers: NDArray[np.float32] = E8M0[stored] if stored.dtype == np.uint8 else stored.astype(np.float32)
        return numbers


def grid(module: Module, suffix: str, shape: tuple[int, ...], said: Iterable[tuple[int, int]] = ()) -> Grid:
    """The grid of a weight of this shape, as the shape of its scales has it.

    Args:
        module: the weight.
        suffix: of its scales.
        shape: of the weight, (..., rows, row).
        said: rows and columns to a scale that may be meant where neither is the whole of its axis.

    Raises:
        CorruptFile: the scales fit no part of the weight.
    """
    *outer, rows, row = shape
    given = module.shape(suffix)
    if math.prod(given) == 1:
        return Grid(module, suffix, math.prod(shape[:-1]), math.prod(shape[:-1]), row, 1)
    own = given[len(outer) :] if given[: len(outer)] == tuple(outer) else ()
    if len(own) == 4 and own[1] == own[3] == 1:  # blocks, with the axes that they are broadcast along
        own = (own[0], own[2])
    own = own if len(own) == 2 else (*own, 1, 1)[:2]
    micro = ((1, MICRO),) if module[suffix].info.dtype.name in EXPONENTS else ()
    sizes = tuple(said)
    for tall, wide in (*sizes, (rows, row), (1, row), *micro):
        if own == (-(-rows // tall), -(-row // wide)) and math.prod(given) == math.prod(outer) * math.prod(own):
            return Grid(module, suffix, rows, tall, wide, own[1])
    if sizes:
        module.expect(suffix, *((*outer, -(-rows // tall), -(-row // wide)) for tall, wide in sizes))
    raise module.corrupt(f"{suffix.lstrip('._')} is {list(given)}, which fits no part of {list(shape)}")
