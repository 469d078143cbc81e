"""What a run may do with the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_TRUE = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class Settings:
    """How addresses are read.

    Attributes:
        offline: ask no host; to reach for an address is an error.
    """

    offline: bool = False

    @classmethod
    def of_environment(cls) -> Settings:
        """As `HF_HUB_OFFLINE` says."""
        return cls(os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE)


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
