"""How far numbers may be from what stored codes say that they are: not at all, or by which share of what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import ml_dtypes

from converter.tensors.dtypes import DType

_WIDE = ("F32", "F64")


class Share(NamedTuple):
    """A number moves by this share of something at most."""

    share: float
    of: str

    def __str__(self) -> str:
        inverse = 1 / self.share
        whole = f"1/{inverse:.0f}" if abs(inverse - round(inverse)) < 1e-9 * inverse else f"{self.share:.2g}"
        return f"{whole} of {self.of}"


@dataclass(frozen=True)
class Bound:
    """The most that numbers move.

    Attributes:
        shares: which all come on top of each other.
        again: a type of blocks that they are encoded in after that, whose own bound comes on top (docs/bounds.md).
        but: what is excepted, in words.
    """

    shares: tuple[Share, ...] = ()
    again: str = ""
    but: str = ""

    @property
    def exact(self) -> bool:
        return not (self.shares or self.again)

    def __add__(self, other: Bound) -> Bound:
        """One after the other."""
        but = "; ".join(dict.fromkeys(each for each in (self.but, other.but) if each))
        return Bound(self.shares + other.shares, other.again or self.again, but)

    def __str__(self) -> str:
        within = "within " + " + ".join(map(str, self.shares)) if self.shares else ""
        again = f"encoded again as {self.again}" if self.again else ""
        said = ", ".join(filter(None, (within, again))) or "exact"
        return f"{said} ({self.but})" if self.but else said

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "exact": self.exact,
            "bound": str(self),
            "shares": [share._asdict() for share in self.shares],
            "encoded_again": self.again or None,
        }


EXACT = Bound()


def within(*shares: tuple[float, str]) -> Bound:
    """A bound of these shares of what is named; a share of zero is none."""
    return Bound(tuple(Share(share, of) for share, of in shares if share))


def rounding(dtype: DType) -> Bound:
    """Of a number to a plain type: half a unit in the last place, below the least normal number half of the least."""
    limits = ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]
    return within((float(limits.eps) / 2, "itself"))


def loosest(bounds: Sequence[Bound]) -> Bound:
    """The one of these that allows most."""
    return max(bounds, key=lambda bound: (bound.again, sum(share.share for share in bound.shares), bound.but))


@dataclass(frozen=True)
class Codes:
    """What became of a weight that arrived in codes, when these were decoded or kept.

    Attributes:
        bound: how far its numbers are from what its codes say.
        holds: a type of 16 bits that holds all of these numbers, if there is one.
    """

    bound: Bound = EXACT
    holds: DType | None = None

    def by_way_of(self, types: Iterable[DType]) -> Bound:
        """How far the numbers are once they went through these types; the first is the one that they are in."""
        bound = self.bound
        for given, wanted in pairwise(types):
            if wanted is given or wanted is self.holds or wanted.name in _WIDE:
                continue
            bound += Bound(again=wanted.name) if wanted.quantized else rounding(wanted)
        return bound
