"""What a search for a mixture gives, and what it tells before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.mixture import Mixture
from converter.request import Request


@dataclass(frozen=True)
class Candidate:
    """A mixture or a quant: bytes of its file, and the KL divergence that was predicted and measured (None: not)."""

    name: str
    nbytes: int
    predicted: float
    measured: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "bytes": self.nbytes, "predicted": self.predicted, "measured": self.measured}


@dataclass(frozen=True)
class Probed:
    """What was found out about the groups: `kl` of each when it was harmed, and by what."""

    kl: Mapping[str, float]
    runtime: str
    text: str
    tokens: int


@dataclass(frozen=True)
class Found:
    """What came of a search.

    Attributes:
        mixture: what is to be given to `convert` as `recipe`.
        limit: bytes that the file may have; `parameters` numbers that it holds.
        candidates: the mixture, and the best quant that fits (where one does), with an importance matrix also both
            without it; `taken` is the name of what was taken.
        imatrix: whether the importance matrix that was given is to be followed: it is not where a mixture without it
            measured better.
        probed: None where sensitivities were assumed, for there was no runtime.
        seconds: that it took.
    """

    mixture: Mixture
    limit: int
    parameters: int
    candidates: tuple[Candidate, ...]
    taken: str
    probed: Probed | None
    seconds: float
    imatrix: bool = True

    @property
    def best(self) -> Candidate:
        """What was taken."""
        return next(each for each in self.candidates if each.name == self.taken)

    def settled(self, request: Request) -> Request:
        """What makes the file of this mixture, of what the search was asked with."""
        own = request.replace(recipe=self.mixture)
        return own if self.imatrix else without_imatrix(own)

    @property
    def how(self) -> str:
        """What it rests on, in words."""
        if self.probed is None:
            return "sensitivities assumed, nothing probed: no tensor is in a worse type than in the quant"
        return (
            f"{len(self.probed.kl)} probes by {self.probed.runtime}, {self.probed.tokens} tokens of {self.probed.text}"
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        probed = self.probed
        return {
            "limit": self.limit,
            "taken": self.taken,
            "imatrix": self.imatrix,
            "candidates": [each.as_dict() for each in self.candidates],
            "probes": None if probed is None else {**vars(probed), "kl": dict(probed.kl)},
            "recipe": self.mixture.as_dict(),
            "seconds": round(self.seconds, 3),
        }


def without_imatrix(request: Request) -> Request:
    """The same that follows no importance matrix."""
    return request.replace(imatrix=None, include_weights=(), exclude_weights=())


@dataclass(frozen=True)
class Costs:
    """Told before the work begins: groups that are probed, and bytes of disk that it takes meanwhile."""

    probes: int
    nbytes: int
