"""Units as tasks of Dask's distributed scheduler."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from converter import workers
from converter.engines.base import Engine, Results
from converter.engines.units import Filled, Work, fill
from converter.errors import ConverterError, EngineError
from converter.extras import package
from converter.storage.slabs import Slab


def start(address: str | None, count: int | None) -> DaskEngine:
    """Connect to the scheduler at `address` (tcp://HOST:PORT), or begin one with `count` processes here."""
    return DaskEngine(package("distributed", "--engine dask"), address, count)


class DaskEngine(Engine):
    """Tasks that the scheduler gives out again where a worker was lost, as often as its `allowed-failures` says."""

    def __init__(self, distributed: Any, address: str | None, count: int | None) -> None:
        self._distributed, self._cluster = distributed, None
        try:
            if address is None:
                self._cluster = distributed.LocalCluster(
                    n_workers=count or workers.default_threads(), threads_per_worker=1, dashboard_address=None,
                    silence_logs=logging.CRITICAL,
                )  # fmt: skip
            self._client = distributed.Client(self._cluster or address, timeout=10)
        except (OSError, ValueError) as error:
            raise EngineError(f"--engine dask:{address}: {str(error).splitlines()[0]}") from error

    def results(self, work: Work, units: Sequence[Sequence[Slab]]) -> Results:
        """As of `Engine`."""
        futures = [self._client.submit(fill, work, unit, pure=False) for unit in units]
        waiting = {future.key: number for number, future in enumerate(futures)}
        try:
            for future in self._distributed.as_completed(futures):
                yield waiting[future.key], self._get(future)
        finally:
            self._client.cancel(futures, force=True)

    def _get(self, future: Any) -> Filled:
        try:
            filled: Filled = future.result()
            return filled
        except ConverterError:
            raise
        except self._distributed.KilledWorker as error:
            raise EngineError(f"workers were lost again and again: {str(error).splitlines()[0]}") from error
        except Exception as error:
            raise EngineError(f"a worker failed: {error!r}") from error

    def close(self) -> None:
        """As of `Engine`."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()
