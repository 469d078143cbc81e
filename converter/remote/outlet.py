"""Where a layout goes: into a folder of this machine, a store's objects, or a commit on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from converter.address import STORES, Address, address_of, is_elsewhere
from converter.errors import UsageError
from converter.storage.disk import Disk
from converter.storage.layout import Layout
from converter.storage.output import Output

SCHEMES = ("hf", *STORES)


class Outlet(Output, Protocol):
    """An `Output` that has a place of its own, which it claims before anything is written.

    Attributes:
        lock: the file that stands for the claim, which is no part of what is there; None where there is none.
    """

    layout: Layout

    @property
    def lock(self) -> Path | None: ...

    def claim(self) -> list[str]:
        """Take the place; returns what was found of dead runs, for the report.

        Raises:
            ConverterError: it cannot be had.
        """


def outlet(layout: Layout, *, replace: bool, key: str | None = None, keep: bool = False) -> Outlet:
    """The outlet for the paths of a layout; arguments are those of `Disk`.

    Raises:
        UsageError: what is sent to a host cannot be kept for another run.
        UnsupportedFeature: the format cannot be sent there.
    """
    if not is_elsewhere(layout.files[0].path):
        return Disk(layout, replace=replace, key=key, keep=keep)
    found = address_of(layout.files[0].path)
    assert found is not None
    if keep and found[0].scheme not in STORES:
        raise UsageError(f"{found[0].shown}: what was sent is not kept for another run; leave --resume out")
    from converter.remote.commits import Commit
    from converter.remote.uploads import Upload

    return Commit(layout, replace=replace) if found[0].scheme == "hf" else Upload(layout, replace=replace, keep=keep)


def refuse_unwritable(address: Address) -> None:
    """Refuse to write where nothing can be.

    Raises:
        ValueError: as said.
    """
    if address.scheme not in SCHEMES:
        raise ValueError(
            f"{address.shown}: https is only read; what is written goes to a path, hf://, s3://, gs:// or az://"
        )
