"""What a verification found: values that print, go to JSON and are judged by the gate.

`Fidelity` is one tensor's numbers, `Verification` all of them together with what two runtimes did with the same text
(`runtimes.behaviour`) and the findings. Nothing here computes; the reports only read these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from converter.findings import CHECKS, Finding
from converter.runtimes.behaviour import Behaviour
from converter.storage.json import finite
from converter.verify.provenance import Provenance

#: Version of the JSON report's schema (docs/verify.md); raised when a field changes its meaning or goes away.
SCHEMA = 1


#: Values of a tensor before and after: bin edges (n + 1, rising), counts of the source's and of the target's (n each).
Histogram = tuple[Sequence[float], Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Block:
    """Where a tensor is worst: one block of the stored type, or 32 elements of a plain one."""

    row: int
    column: int
    rmse: float


@dataclass(frozen=True)
class Fidelity:
    """How far one tensor's stored values are from the reference's.

    `noise` is the sum of squared errors, `energy` that of squared reference values; from them follow `rmse`, `nmse`
    (noise over energy) and `sqnr_db` (-10 log10 of it; infinite when exact). They, `cosine` and the largest errors are
    those of `measured` elements: all, but in large tensors whose bytes are proven about a quarter. `p999` is the 99.9th
    percentile of the absolute error, exact to 3 %, of every fourth 256 of these. What is not finite is left out.

    `reproduced` says whether encoding the reference again gives the stored bytes (None: not tried, or it needs an
    importance matrix that is not there); `differing` counts the blocks where it does not. `bound` is the nmse that a
    correct encoder reaches on this very data; where it was not encoded again, the most that the type may have on it
    (docs/bounds.md).
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    type: str
    reference_type: str
    elements: int
    exact: bool
    reproduced: bool | None
    blocks: int
    differing: int
    max_abs: float
    max_rel: float
    measured: int
    noise: float
    energy: float
    cosine: float
    p999: float
    worst: Block | None
    bound: float | None
    nonfinite: int
    reference_nonfinite: int
    zero: bool
    reference_zero: bool
    bytes: int
    #: counts of the absolute error: (upper edge, count) in ascending order, for plots
    histogram: tuple[tuple[float, int], ...] = field(default=(), repr=False)

    @property
    def rmse(self) -> float:
        return math.sqrt(self.noise / self.measured) if self.measured else 0.0

    @property
    def nmse(self) -> float:
        return self.noise / self.energy if self.energy else 0.0 if not self.noise else math.inf

    @property
    def sqnr_db(self) -> float:
        return sqnr_db(self.nmse)

    def as_dict(self) -> dict[str, Any]:
        """As JSON; infinities and NaN are null."""
        own = {key: value for key, value in vars(self).items() if key not in ("histogram", "noise", "energy")}
        own |= {"rmse": self.rmse, "nmse": self.nmse, "sqnr_db": self.sqnr_db}
        own["worst"] = vars(self.worst) if self.worst else None
        as_json: dict[str, Any] = finite(own)
        return as_json


@dataclass(frozen=True)
class Verification:
    """Everything one run of the verifier found about `target`, measured against `source`."""

    source: str
    target: str
    tensors: tuple[Fidelity, ...]
    findings: tuple[Finding, ...]
    behaviour: Behaviour | None = None
    seconds: float = 0.0
    #: values of the worst tensors, by name and the worst first, for plots
    distributions: Mapping[str, Histogram] = field(default_factory=dict, repr=False)
    #: the recipe that the target names, in capitals
    quant: str | None = None
    #: that were read of both sides
    files: tuple[Path, ...] = ()
    #: the gate, a line for each threshold
    thresholds: tuple[str, ...] = ()
    #: whether an earlier report was compared
    baseline: bool = False
    #: whether an attestation was checked, and nothing else
    attested: bool = False
    #: whether both sides could be read
    read: bool = True
    provenance: Provenance | None = None

    @property
    def passed(self) -> bool:
        return not any(finding.failed for finding in self.findings)

    @property
    def checks(self) -> list[str]:
        """The checks that were made, of all that there are."""
        if self.attested:
            return ["attestation"]
        found = {finding.check for finding in self.findings}
        asked = {
            "attestation": False,
            "probe": self.behaviour is not None,
            "behaviour": self.behaviour is not None,
            "threshold": bool(self.thresholds),
            "baseline": self.baseline,
        }
        return [name for name in CHECKS if name in found or (self.read and asked.get(name, True))]

    def strict(self) -> Verification:
        """The same, with everything that is worth knowing as a failure."""
        return replace(self, findings=tuple(replace(finding, failed=True) for finding in self.findings))

    @property
    def worst_first(self) -> list[Fidelity]:
        """Tensors, the largest nmse first."""
        return sorted(self.tensors, key=lambda tensor: (-tensor.nmse, tensor.name))

    def failed_tensors(self) -> set[str]:
        names = {tensor.name for tensor in self.tensors}
        return {finding.subject for finding in self.findings if finding.failed and finding.subject in names}

    def summary(self) -> dict[str, Any]:
        """Aggregates of the whole model: errors weighted by elements, counts of tensors."""
        elements = sum(tensor.elements for tensor in self.tensors)
        shares = [(t, t.elements / t.measured) for t in self.tensors if t.measured]
        noise, energy = sum(t.noise * share for t, share in shares), sum(t.energy * share for t, share in shares)
        nmse = noise / energy if energy else 0.0 if not noise else math.inf
        return {
            "tensors": len(self.tensors),
            "exact": sum(t.exact for t in self.tensors),
            "reproduced": sum(t.reproduced is True for t in self.tensors),
            "failed": len(self.failed_tensors()),
            "elements": elements,
            "bytes": sum(t.bytes for t in self.tensors),
            "bits_per_weight": 8 * sum(t.bytes for t in self.tensors) / elements if elements else 0.0,
            "nmse": nmse,
            "sqnr_db": sqnr_db(nmse),
            "max_abs": max((t.max_abs for t in self.tensors), default=0.0),
            "worst_tensor": self.worst_first[0].name if self.tensors else None,
        }

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON, schema `SCHEMA`."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "target": self.target,
            "quant": self.quant,
            "passed": self.passed,
            "seconds": round(self.seconds, 3),
            "summary": finite(self.summary()),
            "thresholds": list(self.thresholds),
            "provenance": self.provenance.as_dict() if self.provenance else None,
            "findings": [finding.as_dict() for finding in self.findings],
            "behaviour": self.behaviour.as_dict() if self.behaviour else None,
            "tensors": [tensor.as_dict() for tensor in self.tensors],
        }


def sqnr_db(nmse: float) -> float:
    """Signal over quantization noise in decibels; infinite where there is no error, NaN where that is NaN."""
    return math.inf if nmse == 0 else -10 * math.log10(nmse)
