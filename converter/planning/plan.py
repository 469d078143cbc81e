"""Plan: the target checkpoint, still unread, with the reason for every choice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter import __version__, workers
from converter.address import own
from converter.checkpoint import Checkpoint
from converter.errors import UnknownArchitecture
from converter.events import Report
from converter.formats.base import Format
from converter.formats.torch.exported import ExportedProgram
from converter.mapping.detect import detect
from converter.quant.recipes import Choice
from converter.request import Request, Source
from converter.storage import output
from converter.storage.json import finite
from converter.storage.layout import FileLayout, Layout
from converter.tensors.bound import Bound
from converter.tensors.dtypes import dtype
from converter.tensors.encode import Feedback, Importance, Watch
from converter.tensors.tensor import LazyTensor, TensorInfo
from converter.text import counted, human_bytes

# Resident memory of the interpreter with numpy and this package before anything is opened.
BASE_MEMORY = 60 << 20


@dataclass(frozen=True)
class Route:
    """The stages between a checkpoint and a target format.

    N readers and M writers around one hub type give every route: Map where the dialects differ (Hugging Face names <->
    GGUF names, through the architecture), Encode where types change. `map` is the direction of renaming, "hf->gguf" or
    "gguf->hf", or None where the dialects agree.
    """

    source: str
    target: str
    map: str | None

    @property
    def stages(self) -> tuple[str, ...]:
        return ("open", *(("map " + self.map,) if self.map else ()), "encode", "save")


WRITTEN, TRACED = "written", "traced"


def graph_way(checkpoint: Checkpoint, target: Format, request: Request) -> str | None:
    """How the graph comes to be, where the target runs: written of what a GGUF says, where architecture data describes
    how the model computes (or the user says which it is), else traced by torch; None where there is none to be made."""
    model = request.model
    if isinstance(checkpoint.structure, ExportedProgram) and target.runs and not model.tensors_only:
        return TRACED
    known = checkpoint.dialect in ("hf", "gguf") and checkpoint.structure is None and not model.tensors_only
    if not (target.runs and known):
        return None
    return WRITTEN if checkpoint.dialect == "gguf" or model.arch or _is_described(checkpoint) else TRACED


def _is_described(checkpoint: Checkpoint) -> bool:
    try:
        traits = detect(checkpoint.config)[0].traits
    except UnknownArchitecture:
        return False
    return traits.decoder is not None or traits.encoder is not None


def target_dialect(checkpoint: Checkpoint, target: Format, request: Request) -> str | None:
    """The names and keys of the output: the format's own, or ggml's where a graph is written of them."""
    return "gguf" if graph_way(checkpoint, target, request) == WRITTEN else target.dialect


def route(checkpoint: Checkpoint, target: Format, request: Request) -> Route:
    """The one route from a checkpoint to `target`."""
    dialect = None if request.model.tensors_only else checkpoint.dialect
    wanted = target_dialect(checkpoint, target, request)
    renames = dialect is not None and wanted is not None and dialect != wanted
    return Route(checkpoint.format, target.name, f"{dialect}->{wanted}" if renames else None)


@dataclass(frozen=True, eq=False)
class Step:
    """One tensor of the output: where it comes from, what it becomes, and why. Two that say the same are equal.

    Attributes:
        read: the tensor as it was read, under its new name.
        intermediate: the same in the type of the implied intermediate file; the same object where there is none.
        choice: the type that it gets, and the rule that chose it.
        weights: the entry of the importance matrix that its encoder follows, or that of a calibration, if any.
        effort: how hard its encoder tries.
        bound: how far its numbers are from those of the codes that it arrived in, or is packed in; None where it is
            neither.
    """

    read: LazyTensor
    intermediate: LazyTensor
    choice: Choice
    weights: Importance | None = None
    effort: int = 0
    bound: Bound | None = None

    @property
    def info(self) -> TensorInfo:
        """The tensor of the output."""
        return TensorInfo(self.name, self.shape, dtype(self.choice.type))

    @property
    def name(self) -> str:
        return self.read.name

    @property
    def sources(self) -> tuple[str, ...]:
        return self.read.parts or (self.name,)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.read.info.shape

    @property
    def source_type(self) -> str:
        """The type that it is encoded from: that of the intermediate."""
        return self.intermediate.info.dtype.name

    @property
    def type(self) -> str:
        return self.choice.type

    @property
    def bytes(self) -> int:
        return self.info.nbytes

    @property
    def rule(self) -> str:
        return self.choice.reason

    @property
    def imatrix(self) -> bool:
        """Whether its encoder follows an entry of the importance matrix."""
        return self.weights is not None and not self.calibrated

    @property
    def calibrated(self) -> bool:
        """Whether the errors of its columns are spread by a calibration."""
        return isinstance(self.weights, Feedback)

    def as_dict(self) -> dict[str, Any]:
        """The step as JSON."""
        return {
            "name": self.name,
            "sources": list(self.sources),
            "shape": list(self.shape),
            "source_type": self.source_type,
            "type": self.type,
            "bytes": self.bytes,
            "rule": self.rule,
            "imatrix": self.imatrix,
            "calibrated": self.calibrated,
            "codes": self.bound.as_dict() if self.bound is not None else None,
        }

    def __eq__(self, other: object) -> bool:
        return self.as_dict() == other.as_dict() if isinstance(other, Step) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.info, self.rule))


@dataclass(frozen=True, eq=False)
class Plan:
    """A conversion that can be printed, compared and run. Holds no data; two with the same fingerprint are equal.

    Attributes:
        source, target, request: what was asked for, the target's name and format settled; `converter.plan` of the three
            makes the plan again, in another process, too.
        route: the stages in words.
        steps: one for each tensor of the output.
        checkpoint: the target's content, still unread; it keeps the source open.
        layout: the files to be.
        report: what is lost, and what the user should know.
        watch: counts, while the plan is carried out, what its casts lose.
        n_parameters: numbers that the output holds, in codes or not.
        prepare: what takes its time before the first byte is written.
    """

    source: Source
    target: Path
    request: Request
    route: Route
    steps: tuple[Step, ...]
    checkpoint: Checkpoint
    layout: Layout
    report: Report
    watch: Watch = field(repr=False)
    n_parameters: int
    prepare: Callable[[], None] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        size, count = human_bytes(self.total_bytes), counted(len(self.steps), "tensor")
        return f"<Plan {str(self.source.path)!r} to {str(self.target)!r}: {count}, {size}>"

    @property
    def written(self) -> Path:
        """What to open of the output: its folder, or the file that leads to all others."""
        runs = self.checkpoint.structure is not None and self.layout.folder is not None
        return own(self.layout.files[0].path if runs or self.layout.folder is None else self.layout.folder)

    @property
    def total_bytes(self) -> int:
        return self.layout.size

    @property
    def bits_per_weight(self) -> float:
        stored = sum(step.bytes for step in self.steps)
        return 8 * stored / self.n_parameters if self.n_parameters else 0.0

    @property
    def wanted_bits_per_weight(self) -> float:
        """What it would be, had all rows fitted the types that were wanted."""
        bits = 0.0
        for step in self.steps:
            wanted = step.choice.fallback_from
            bits += 8 * step.bytes if wanted is None else step.info.n_elements * dtype(wanted).bits_per_weight
        return bits / self.n_parameters if self.n_parameters else 0.0

    def memory(self, threads: int | None = None) -> int:
        """Peak resident bytes that running the plan should need."""
        working = output.working_nbytes(self.layout, threads or workers.default_threads())
        header = sum(len(file.header) for file in self.layout.files)
        return BASE_MEMORY + 4 * header + working + (64 << 20)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "source": str(self.checkpoint.path),
            "target": str(self.target),
            "format": self.route.target,
            "quant": self.request.types.quant,
            "stages": list(self.route.stages),
            "tensors": [step.as_dict() for step in self.steps],
            "files": [{"path": str(file.path), "bytes": file.size} for file in self.layout.files],
            "parameters": self.n_parameters,
            "total_bytes": self.total_bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "memory_bytes": self.memory(),
            "events": self.report.as_json(),
        }

    def fingerprint(self) -> str:
        """What tells this plan from any other, in every process: SHA-256 in hex.

        It covers the source and the target as they were named (their paths or addresses, not the bytes in them), the
        request, every step, the layout down to the bytes of headers, and the version of this package. A source that
        changed under its name has another fingerprint only where that changes names, types, shapes or metadata.
        """
        said = {
            "version": __version__,
            "source": self.source.as_dict(),
            "target": str(self.target),
            "request": self.request.as_dict(),
            "stages": self.route.stages,
            "steps": [step.as_dict() for step in self.steps],
            "files": [_identity(file) for file in self.layout.files],
        }
        # A path that stands for an address is another one in every process.
        return hashlib.sha256(json.dumps(finite(said), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def key(self) -> str:
        """What tells a run of this plan from any other: its fingerprint, and the files that it reads as they are."""
        said = [self.fingerprint(), *(f"{path}: {identity}" for path, identity in self.checkpoint.opened.identities())]
        return hashlib.sha256("\n".join(said).encode(errors="surrogateescape")).hexdigest()

    def __eq__(self, other: object) -> bool:
        return self.fingerprint() == other.fingerprint() if isinstance(other, Plan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __str__(self) -> str:
        return json.dumps(self.as_dict(), indent=1)


def _identity(file: FileLayout) -> dict[str, Any]:
    return {
        "path": str(file.path),
        "size": file.size,
        "header": hashlib.sha256(file.header).hexdigest(),
        "slots": [(slot.offset, slot.tensor.name, slot.tensor.info.nbytes) for slot in file.slots],
    }
