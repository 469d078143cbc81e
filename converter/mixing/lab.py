"""Where groups of tensors are probed and candidates are measured: on one text, against one reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from converter import pipeline
from converter.calibration import texts
from converter.errors import Cancelled
from converter.mixing.groups import Group
from converter.mixing.probes import Reference, bench
from converter.mixing.results import Costs, Probed
from converter.mixing.space import TYPES, Space
from converter.request import OWN, Request
from converter.storage.slabs import Progress, ProgressCallback

#: What a group is harmed with to see what it costs: low enough to be seen, not so low that it is another model.
PROBE = "Q3_K"
#: Text that is read: chunks of so many tokens.
CONTEXT, CHUNKS = 256, 8


@dataclass(frozen=True)
class Lab:
    """Where probes are made, and with what."""

    space: Space
    folder: Path
    text: Path | None
    threads: int
    progress: ProgressCallback | None

    def said(self, done: int, total: int, what: str) -> None:
        if self.progress is not None and self.progress(Progress(done, total, what)) is False:
            raise Cancelled("cancelled")

    def chunks(self, model: Path) -> texts.Text:
        """What is read: the text that was given, or one that the model writes."""
        context = texts.usual_context(model, CONTEXT)
        return texts.read(model, self.text or OWN, context, CHUNKS, threads=self.threads, progress=self.progress)

    def costs(self, groups: Sequence[Group]) -> Costs:
        """Disk: the source in its own precision, and the logits of half the text."""
        vocabulary = max(step.shape[0] for step in self.space.plans[TYPES[0]].steps if step.shape)
        source = sum(step.intermediate.info.nbytes for step in self.space.plans[TYPES[0]].steps)
        return Costs(len(groups), source + 4 * CHUNKS * CONTEXT // 2 * vocabulary)

    def probed(self, groups: Sequence[Group]) -> tuple[Probed, Reference]:
        """KL divergence of the model with each group harmed."""
        harm = self.space.plans[PROBE]
        steps = {step.name: step for step in harm.steps}
        with bench(self.space.source, self.space.request, self.folder, self.threads) as file:
            read = self.chunks(file.path)
            reference, size = Reference(file.path, read.chunks, self.folder, self.threads), file.path.stat().st_size
            found: dict[str, float] = {}
            for at, group in enumerate(groups, 1):
                with file.harmed({name: steps[name] for name in group.names}):
                    found[group.label] = reference.kl(file.path)
                self.said(at * size, len(groups) * size, group.label)
            file.path.unlink()
        return Probed(found, reference.runtime, read.name, read.tokens), reference

    def measured(self, reference: Reference, request: Request) -> float:
        """KL divergence of what a request makes of the source."""
        path = self.folder / "candidate.gguf"
        pipeline.convert(self.space.source, path, request.replace(strict=False), threads=self.threads)
        try:
            return reference.kl(path)
        finally:
            path.unlink()
