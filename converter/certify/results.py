"""What a derivation found: values that print, go to JSON and into attestations. Nothing here reads a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from converter.errors import FidelityError, NotFromSource, ProvenButFor
from converter.findings import Finding
from converter.storage.json import finite

Verdict = Literal["proven", "proven but for some blocks", "not from this source"]
PROVEN: Verdict = "proven"
BUT_FOR: Verdict = "proven but for some blocks"
NOT: Verdict = "not from this source"
#: The worst comes last.
VERDICTS = (PROVEN, BUT_FOR, NOT)


@dataclass(frozen=True)
class Differing:
    """What the blocks of a tensor look like that no variant makes.

    Attributes:
        blocks, count: blocks compared, and those that differ.
        first: the element that the first of these begins with; -1 where none differs.
        values: decoded values in them that differ.
        change: the largest difference of two values, over the largest value of its block.
        scale_steps: the largest difference of a block's scales, in units of their last place.
        worse: the largest squared error of such a block over that of the block that the encoder makes.
    """

    blocks: int = 0
    count: int = 0
    first: int = -1
    values: int = 0
    change: float = 0.0
    scale_steps: int = 0
    worse: float = 0.0

    @property
    def share(self) -> float:
        return self.count / self.blocks if self.blocks else 0.0

    def words(self, row: int) -> str:
        """For people; `row` is the length of the tensor's rows."""
        at = f"the first in row {self.first // max(1, row)}, column {self.first % max(1, row)}"
        looks = (
            f"{self.values:,} values by up to {self.change:.2%} of their block's largest"
            f", scales by up to {self.scale_steps:,} in the last place, error {self.worse:.3g} times the encoder's"
        )
        return f"{self.count:,} of {self.blocks:,} blocks ({self.share:.2%}) differ, {at}: {looks}"


@dataclass(frozen=True)
class TensorProof:
    """One tensor of the file, and whether its bytes follow from the source.

    `status` is a row of VERDICTS, `reason` says why it is not proven; `sha256` is of the `nbytes` stored bytes.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    sha256: str
    status: Verdict
    differing: Differing = field(default_factory=Differing)
    sources: tuple[str, ...] = ()
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        own = {"name": self.name, "type": self.type, "shape": list(self.shape), "bytes": self.nbytes}
        own |= {"sha256": self.sha256, "status": self.status, "sources": list(self.sources)}
        return finite(own | {"differing": self.differing_as_dict(), "reason": self.reason})  # type: ignore[no-any-return]

    def differing_as_dict(self) -> dict[str, Any] | None:
        """What differs, or None."""
        return dict(vars(self.differing)) if self.differing.count else None


@dataclass(frozen=True)
class Digest:
    """A file by its name and its SHA-256; `role` says what it is to the derivation."""

    name: str
    sha256: str
    role: str = ""


@dataclass(frozen=True)
class Certificate:
    """Everything that one derivation found.

    Attributes:
        source, target: as they were given.
        tensors: in the order of the file.
        findings: what else is part of the verdict: tensors that are missing or too many, keys, tokenizer, template;
            and what is only worth knowing.
        way: the variant that gives the bytes, or comes nearest.
        mixture: whose mixture of types the file has, in words.
        root, metadata_root: as `convert hash` has them.
        subjects, materials: the files of the model, and what it was derived from.
        request: what was asked for, less what is the default; no path in it.
    """

    source: str
    target: str
    tensors: tuple[TensorProof, ...]
    findings: tuple[Finding, ...]
    way: str
    mixture: str
    root: str
    metadata_root: str
    subjects: tuple[Digest, ...]
    materials: tuple[Digest, ...]
    request: Mapping[str, Any]
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        if any(finding.failed for finding in self.findings):
            return NOT
        return max((tensor.status for tensor in self.tensors), key=VERDICTS.index, default=PROVEN)

    @property
    def error(self) -> FidelityError | None:
        """What a verdict other than proven is as an error, for those who want to raise it."""
        kinds = {BUT_FOR: ProvenButFor, NOT: NotFromSource}
        kind = kinds.get(self.verdict)
        return None if kind is None else kind(f"{self.target}: {self.headline.lower()}, {self.source}")

    @property
    def unproven(self) -> tuple[TensorProof, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.status != PROVEN)

    @property
    def n_differing(self) -> int:
        return sum(tensor.differing.count for tensor in self.unproven)

    @property
    def headline(self) -> str:
        """`PROVEN`, `PROVEN BUT FOR 12 BLOCKS`, `NOT FROM THIS SOURCE`."""
        if self.verdict == BUT_FOR:
            return f"PROVEN BUT FOR {self.n_differing:,} BLOCK{'S' * (self.n_differing != 1)}"
        return self.verdict.upper()

    def summary(self) -> dict[str, Any]:
        """Counts of the whole model."""
        by_status = Counter(tensor.status for tensor in self.tensors)
        return {
            "tensors": len(self.tensors),
            "proven": by_status[PROVEN],
            "but_for": by_status[BUT_FOR],
            "not": by_status[NOT],
            "blocks": sum(tensor.differing.blocks for tensor in self.tensors),
            "differing": self.n_differing,
            "bytes": sum(tensor.nbytes for tensor in self.tensors),
        }

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "source": self.source,
            "target": self.target,
            "verdict": self.verdict,
            "headline": self.headline,
            "way": self.way,
            "mixture": self.mixture,
            "summary": self.summary(),
            "root": self.root,
            "metadata_root": self.metadata_root,
            "subjects": [vars(each) for each in self.subjects],
            "materials": [vars(each) for each in self.materials],
            "request": dict(self.request),
            "findings": [finding.as_dict() for finding in self.findings],
            "tensors": [tensor.as_dict() for tensor in self.tensors],
            "seconds": round(self.seconds, 3),
        }
