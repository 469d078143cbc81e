"""Codes whose matrix was cut along its first axis into equal parts that share words: part k in some bits of each word.

HQQ, quanto and BitNet pack so. The last part may be short; its words are whole all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.quant.sources.scheme import Module


@dataclass(frozen=True)
class Parts:
    """A matrix of codes, (rows, width).

    Attributes:
        module, suffix: the tensor that holds it; its type and shape do not count, only its bytes.
        shifts: the lowest bit of each part.
        bits: of a code.
        rows, width: of the matrix.
        size: bytes of a word, 1 or 4.
    """

    module: Module
    suffix: str
    shifts: tuple[int, ...]
    bits: int
    rows: int
    width: int
    size: int = 1

    @property
    def step(self) -> int:
        """Rows of a part."""
        return -(-self.rows // len(self.shifts))

    def check(self) -> None:
        """Raises CorruptFile where the tensor is not that large."""
        given, wanted = self.module[self.suffix].info.nbytes, self.step * self.width * self.size
        if given != wanted:
            raise self.module.corrupt(f"{self.suffix.lstrip('._')} has {given} bytes, the others make it {wanted}")

    def flat(self, low: int, high: int) -> NDArray[np.uint8]:
        """Codes [low, high) of the flat matrix, uint8."""
        made, at = [], low
        while at < high:
            end = (at // self.width // self.step + 1) * self.step * self.width  # of the part that begins with `at`
            made.append(self._cut(at, min(high, end)))
            at = end
        return np.concatenate(made)

    def _cut(self, low: int, high: int) -> NDArray[np.uint8]:
        """The same, all of one part."""
        part = low // self.width // self.step
        before = part * self.step * self.width
        octets = self.module.octets(self.suffix, (low - before) * self.size, (high - before) * self.size)
        words = octets.view("<u4") if self.size == 4 else octets
        shift, mask = words.dtype.type(self.shifts[part]), words.dtype.type((1 << self.bits) - 1)
        return (words >> shift & mask).astype(np.uint8)
