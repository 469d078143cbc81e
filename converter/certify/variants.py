"""The known ways from a source to the bytes of a GGUF, as data: those of llama.cpp's tools of any age, and our own.

Types are taken from the file, so a mixture need not be known. What is left are the file in between that rounded the
numbers, whether the encoder followed the importance matrix, and how hard it tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from converter.request import EFFORTS
from converter.tensors.dtypes import dtype
from converter.tensors.encode import Feedback, Watch, encoded
from converter.verify.pairing import Pair


@dataclass(frozen=True)
class Detour:
    """A file in between.

    Attributes:
        name: as in attestations.
        via: the precision of the plan (`Request.via`).
        type: a quantized type that weights were in before they were encoded again; None where there was none.
        made_by: commands that go this way.
    """

    name: str
    via: str
    type: str | None
    made_by: str


#: In the order in which they are tried.
DETOURS = (
    Detour("source", "source", None, "convert; convert_hf_to_gguf.py in the source's own type, or F32"),
    Detour("f16", "f16", None, "convert_hf_to_gguf.py --outtype f16, and auto where weights are F32; convert.py"),
    Detour("bf16", "bf16", None, "convert_hf_to_gguf.py --outtype bf16"),
    Detour("q8_0", "source", "Q8_0", "--outtype q8_0, then llama-quantize --allow-requantize"),
)


@dataclass(frozen=True)
class Variant:
    """One way: the file in between, whether the importance matrix that was given was followed, and the effort."""

    detour: Detour
    matrix: bool
    effort: int

    @property
    def name(self) -> str:
        """`source`, `f16 + imatrix`, `source + effort 1`."""
        more = [*(["imatrix"] if self.matrix else []), *([f"effort {self.effort}"] if self.effort else [])]
        return " + ".join((self.detour.name, *more))

    def of(self, pair: Pair) -> Pair:
        """A pair that was planned by way of `detour.via`, with or without the matrix, as this variant makes it.

        Errors that a calibration spread are so in every way: the file says which one it was.
        """
        followed = self.matrix or isinstance(pair.weights, Feedback)
        pair = replace(pair, effort=self.effort, weights=pair.weights if followed else None)
        name, info = self.detour.type, pair.reference.info
        was_encoded = pair.candidate.info.dtype.quantized and len(info.shape) > 1 and info.dtype.floating
        if name is None or not was_encoded or not dtype(name).fits(info.row):
            return pair
        return replace(pair, rounded=encoded(pair.reference, dtype(name), Watch()))


def variants(matrix: bool, effort: int) -> Iterator[Variant]:
    """All ways, the likeliest first.

    Args:
        matrix: whether an importance matrix is at hand.
        effort: what the file says, or was asked for; tried before all others.
    """
    for tried in (effort, *(each for each in EFFORTS if each != effort)):
        for follows in (True, False) if matrix else (False,):
            for detour in DETOURS:
                yield Variant(detour, follows, tried)
