"""What a run may do with the network, and where it keeps what it fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

_TRUE = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class Settings:
    """How addresses are read.

    Attributes:
        offline: ask no host; what the cache has is read.
        cache: a folder that keeps what was fetched, for the next run; None to keep nothing.
    """

    offline: bool = False
    cache: Path | None = None

    @classmethod
    def of_environment(cls) -> Settings:
        """As `HF_HUB_OFFLINE` and `CONVERTER_CACHE` say."""
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE
        folder = os.environ.get("CONVERTER_CACHE")
        return cls(offline, Path(folder) if folder else None)


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
