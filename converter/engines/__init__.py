"""Work on other processes and machines: slabs of a conversion, given out to workers that see the same files.

`engines.opened("ray:ADDRESS")` connects to an engine; `converter.convert(..., engine=engine)` has it fill the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from converter.engines.base import Engine
from converter.errors import UsageError

#: Engines by name, and their modules.
ENGINES = {"ray": "converter.engines.ray_cluster", "dask": "converter.engines.dask_cluster"}
LOCAL = "local"


@contextmanager
def opened(name: str, workers: int | None = None) -> Iterator[Engine | None]:
    """The engine that `NAME[:ADDRESS]` says, for as long as it is needed; None for the threads of this process.

    Args:
        name: `local`, `ray` or `dask`; without an address, a cluster of worker processes is started on this machine.
        workers: how many of them; by default as many as there are processors.

    Raises:
        UsageError: there is no such engine.
        MissingDependency: its package is not installed.
        EngineError: nothing answers there.
    """
    kind, _, address = name.partition(":")
    if kind == LOCAL and not address:
        yield None
        return
    if kind not in ENGINES:
        raise UsageError(f"--engine {name}: there are {LOCAL}, {', '.join(f'{each}[:ADDRESS]' for each in ENGINES)}")
    engine: Engine = import_module(ENGINES[kind]).start(address or None, workers)
    try:
        yield engine
    finally:
        engine.close()
