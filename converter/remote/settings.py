"""What a run may do with the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from converter.errors import OutputError

_TRUE = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class Settings:
    """How addresses are read.

    Attributes:
        offline: ask no host; to reach for an address is an error, but for what is in the cache.
        cache: a folder that keeps what is fetched for other runs; it is made where it is not there.
    """

    offline: bool = False
    cache: Path | None = None

    @classmethod
    def of_environment(cls) -> Settings:
        """As `HF_HUB_OFFLINE` and `CONVERTER_CACHE` say."""
        folder = os.environ.get("CONVERTER_CACHE")
        return cls(os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE, Path(folder) if folder else None)


_settings: ContextVar[Settings | None] = ContextVar("settings", default=None)


def settings() -> Settings:
    """Those of `using`, or else of the environment."""
    return _settings.get() or Settings.of_environment()


@contextmanager
def using(chosen: Settings) -> Iterator[None]:
    """What is reached for meanwhile is read so."""
    token = _settings.set(chosen)
    try:
        yield
    finally:
        _settings.reset(token)


def online(name: str, instead: str) -> None:
    """Refuse to reach for an address where no host may be asked; `instead` is what to do then.

    Raises:
        OutputError: as said.
    """
    if settings().offline:
        raise OutputError(f"{name}: lies elsewhere, and no host is asked (--offline, HF_HUB_OFFLINE)\n{instead}")
