"""What all engines have: a conversion in units, given out, counted once each, and ended as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from converter.address import is_elsewhere
from converter.engines.units import Filled, Work
from converter.errors import Cancelled, ConverterError, UsageError
from converter.pipeline import Asked
from converter.planning.plan import Plan
from converter.storage.disk import Disk
from converter.storage.output import Prepared
from converter.storage.slabs import Progress, ProgressCallback, Slab

#: Bytes of the output in a unit: enough that planning it again and the way there do not count, few enough that little
#: is done twice when a worker is lost, and that progress is seen.
UNIT = 64 << 20


Results = Generator[tuple[int, Filled]]


class Engine(ABC):
    """Gives units of a conversion to workers; a `Filler` of `converter.pipeline`."""

    @abstractmethod
    def results(self, work: Work, units: Sequence[Sequence[Slab]]) -> Results:
        """What each unit, by its number, came to, as they end. When it is closed, no unit is begun any more.

        Raises:
            EngineError: workers were lost again and again.
            ConverterError: what a unit raised.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of workers; of a cluster that was started here, end it."""

    def fill(
        self,
        asked: Asked,
        plans: Sequence[Plan],
        prepared: Prepared,
        progress: ProgressCallback | None,
        stop: Callable[[], ConverterError | None],
    ) -> None:
        """Fill all files of `prepared`; arguments and errors as of `storage.output.fill`.

        Raises:
            UsageError: a conversion that has a part which is done here alone.
        """
        paths = _paths(asked, plans, prepared)
        units = list(units_of(prepared))
        sizes = [sum((slab.stop - slab.start) * prepared.jobs[slab.job].row_nbytes for slab in unit) for unit in units]
        done, total = 0, sum(sizes)
        with closing(self.results(Work.of(asked, plans, paths), units)) as results:
            for number, filled in results:
                prepared.take(filled.pieces)
                for plan, lost in zip(plans, filled.lost, strict=True):
                    plan.watch.add(lost)
                if (error := stop()) is not None:
                    raise error
                done += sizes[number]
                job = prepared.jobs[units[number][-1].job]
                if progress is not None and progress(Progress(done, total, job.tensors[0].name, job.file)) is False:
                    raise Cancelled("cancelled")


def units_of(prepared: Prepared) -> Iterator[list[Slab]]:
    """All slabs in order, about as many bytes of them together as suit a worker."""
    unit: list[Slab] = []
    size = 0
    for slab in prepared.slabs():
        unit.append(slab)
        size += (slab.stop - slab.start) * prepared.jobs[slab.job].row_nbytes
        if size >= UNIT:
            yield unit
            unit, size = [], 0
    if unit:
        yield unit


def _paths(asked: Asked, plans: Sequence[Plan], prepared: Prepared) -> Sequence[Path]:
    """The temporary files, on storage that workers see."""
    if not isinstance(prepared.output, Disk) or is_elsewhere(asked.source.path):
        raise UsageError("--engine: workers share files, not addresses; name a file or a folder that all of them see")
    if any(plan.prepare is not None for plan in plans):
        raise UsageError("--engine: calibration runs the whole model on one machine; leave --engine out")
    return prepared.output.paths
