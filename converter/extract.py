"""A LoRA adapter out of a fine-tuned model and its base.

found = extract_lora("base/", "tuned/", "adapter/", rank=16)
found.relative_error
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter import pipeline
from converter.adapters.extract import Fit, extracted
from converter.checkpoint import Checkpoint
from converter.errors import about
from converter.formats.peft import ADAPTER
from converter.formats.registry import open_checkpoint
from converter.planning.build import build
from converter.planning.plan import Plan
from converter.quant.sources import unpacked
from converter.request import PathLike, Request, Source
from converter.storage.slabs import ProgressCallback


@dataclass(frozen=True)
class Extraction:
    """What was written, and how near each pair of factors is to the difference that it stands for."""

    plan: Plan
    rank: int
    fits: tuple[Fit, ...]

    @property
    def relative_error(self) -> float:
        """Length of what all factors together miss, as part of the length of what they stand for."""
        return math.sqrt(sum(fit.noise for fit in self.fits) / sum(fit.energy for fit in self.fits))

    def as_dict(self) -> dict[str, Any]:
        """As JSON: the plan's, and the modules."""
        modules = [
            {"name": fit.module, "shape": list(fit.shape), "rank": fit.rank, "relative_error": fit.relative_error}
            for fit in self.fits
        ]
        return self.plan.as_dict() | {"rank": self.rank, "relative_error": self.relative_error, "modules": modules}


def extract_lora(
    base: PathLike | Source,
    tuned: PathLike | Source,
    target: PathLike,
    rank: int,
    request: Request | None = None,
    *,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Extraction:
    """Write the adapter of a rank that makes of `base`, nearly, what `tuned` is.

    Args:
        base, tuned: Hugging Face models of one kind, of any format that is read; packed weights count as decoded.
        target: the folder to write, as PEFT has it.
        rank: of each pair of factors.
        request: its `dtype` and `strict` count.
        force: replace files of the same names.
        threads: workers; by default as many as there are processors.
        progress: called after every matrix, and after every slab that is written.

    Raises:
        ConverterError: as `adapters.extract.extracted` and `pipeline.run`; nothing is written then.
    """
    base, tuned, target = Source.of(base), Source.of(tuned), Path(target)
    pipeline.refuse_filled(target, force)
    with about(tuned.path), open_checkpoint(base) as own, open_checkpoint(tuned) as other:
        found = extracted(unpacked(own), unpacked(other), rank, threads=threads, progress=progress)
        adapter = Checkpoint(
            format="peft",
            path=other.path,
            dialect="peft",
            tensors=found.tensors,
            config=found.config,
            events=(*own.events, *other.events, *found.events),
            files=(*own.files, *other.files),
            checks=(own.check, other.check),
        )
        made = build(adapter, target, ADAPTER, request or Request(), source=tuned)
        pipeline.run(made, force=force, threads=threads, progress=progress)
    return Extraction(made, rank, found.fits)
