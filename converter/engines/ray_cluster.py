"""Units as tasks of Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from converter import workers
from converter.engines.base import Engine, Results
from converter.engines.units import Filled, Work, fill
from converter.errors import ConverterError, EngineError
from converter.extras import package
from converter.storage.slabs import Slab

RETRIES = 3  # of a unit whose worker was lost


def start(address: str | None, count: int | None) -> RayEngine:
    """Connect to the cluster at `address`, or begin one of `count` processes here."""
    return RayEngine(package("ray", "--engine ray"), address, count)


class RayEngine(Engine):
    """Tasks that Ray gives out again where a worker was lost."""

    def __init__(self, ray: Any, address: str | None, count: int | None) -> None:
        self._ray = ray
        here = {} if address else {"num_cpus": count or workers.default_threads(), "include_dashboard": False}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **here)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise EngineError(f"--engine ray:{address}: {str(error).splitlines()[0]}") from error
        self._fill = ray.remote(num_cpus=1, max_retries=RETRIES)(fill)

    def results(self, work: Work, units: Sequence[Sequence[Slab]]) -> Results:
        """As of `Engine`."""
        ray, shared = self._ray, self._ray.put(work)
        waiting = {self._fill.remote(shared, unit): number for number, unit in enumerate(units)}
        try:
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                yield waiting.pop(done), self._get(done)
        finally:
            for each in waiting:
                ray.cancel(each, force=True)

    def _get(self, done: Any) -> Filled:
        try:
            filled: Filled = self._ray.get(done)
            return filled
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ConverterError):
                raise error.cause from None
            raise EngineError(f"a worker failed: {error.cause!r}") from error
        except self._ray.exceptions.RayError as error:
            raise EngineError(f"a worker was lost {RETRIES + 1} times: {str(error).splitlines()[0]}") from error

    def close(self) -> None:
        """As of `Engine`."""
        self._ray.shutdown()
