"""Outputs that are files of a model on the Hugging Face Hub: one commit, in which all of them appear.

The Hub wants to know a file's hash before its bytes, and its client a file or all of its bytes, so what will be
committed is written here first, into a temporary folder, and goes when that is done.

Sources: huggingface_hub, "Upload files" (`CommitOperationAdd`, `preupload_lfs_files`, `create_commit`).
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

from converter.address import address_of, base
from converter.errors import ConverterError, CorruptFile, MissingPart, OutputError, OutputExists
from converter.extras import package
from converter.remote import hub
from converter.remote.mirror import base_made
from converter.remote.settings import online
from converter.storage.disk import Disk
from converter.storage.layout import Layout

_PIECE = 1 << 20
_MAKE = "the model and its branch must be there: `hf repo create`, `hf repo branch create`"
_MESSAGE = "Add {} by model-converter"


class Commit:
    """An `Output` (storage/output.py) that is a commit.

    Args:
        layout: what will be written; its paths are those of an address.
        replace: whether files of the same names are replaced.
    """

    lock = None
    keeps = False

    def __init__(self, layout: Layout, *, replace: bool) -> None:
        found = address_of(layout.files[0].path)
        assert found is not None
        self.layout, self._replace = layout, replace
        self._address, self._top = found
        self._branch = self._address.revision or hub.MAIN
        self._own = base() / secrets.token_hex(8)
        self._names = [file.path.relative_to(self._top).as_posix() for file in layout.files]
        folder = self._own / "model"
        files = [replaced(file, path=folder / name) for file, name in zip(layout.files, self._names, strict=True)]
        self._disk = Disk(Layout(tuple(files), folder, together=layout.together))
        self._head = ""
        self._added: list[Any] = []

    def claim(self) -> list[str]:
        """See that the model is there, and nothing in the way.

        Raises:
            OutputExists: a file is there, and must not be replaced.
            ConverterError: there is no such model, or the Hub does not tell; no host may be asked.
        """
        online(self._address.shown, "write it to a file here")
        try:
            self._head, entries = hub.held(self._address, self._branch)
        except MissingPart as error:
            raise MissingPart(f"{error}\n{_MAKE}") from None
        there = {entry.name for entry in entries}
        if not self._replace and (both := there.intersection(self._names)):
            raise OutputExists(f"{self._address.top}/{min(both)}: exists already; --force replaces it")
        return []

    def check_room(self) -> None:
        base_made()
        self._own.mkdir(exist_ok=True)
        self._disk.check_room()

    def create(self) -> None:
        self._disk.create()

    def kept(self, file: int, offset: int, nbytes: int) -> memoryview | None:
        return None

    def write(self, file: int, offset: int, data: memoryview) -> None:
        self._disk.write(file, offset, data)

    def flush(self) -> None:
        """Send all that is large; the Hub shows it to nobody before the commit."""
        self._disk.flush()
        self._disk.publish()
        of = package("huggingface_hub", hub.WORK).CommitOperationAdd
        self._added = [of(name, self._own / "model" / name) for name in self._names]
        self._asked(lambda api: api.preupload_lfs_files(**self._where, additions=self._added, free_memory=False))

    def publish(self) -> None:
        says = _MESSAGE.format(Path(self._names[self.layout.entry]).name)
        made = self._asked(
            lambda api: api.create_commit(
                **self._where, operations=self._added, commit_message=says, parent_commit=self._head
            )
        )
        self._compare(str(made.oid))

    @property
    def _where(self) -> dict[str, Any]:
        return {"repo_id": self._address.where, "revision": self._branch}

    def _compare(self, commit: str) -> None:
        """Compare what the Hub says of the files with what was written.

        Raises:
            CorruptFile: it holds another one.
        """
        entries = {entry.name: entry for entry in hub.held(self._address, commit)[1]}
        for name, file in zip(self._names, self.layout.files, strict=True):
            entry = entries.get(name)
            pieces = _pieces(self._own / "model" / name)
            if entry is None or entry.size != file.size or (entry.digest and not entry.digest.of(file.size, pieces)):
                raise CorruptFile(
                    f"{self._address.top}/{name}: the Hub holds another file than was written (commit {commit})\n"
                    "revert the commit, and convert again"
                )

    def _asked(self, ask: Callable[[Any], Any]) -> Any:
        """What the Hub's client answers, its errors as ours: theirs have addresses with signatures in them."""
        quiet = package("huggingface_hub.utils", hub.WORK)
        api = package("huggingface_hub", hub.WORK).HfApi(endpoint=hub.endpoint(), library_name="model-converter")
        shows = not quiet.are_progress_bars_disabled()
        quiet.disable_progress_bars()
        try:
            return ask(api)
        except ConverterError:
            raise
        except Exception as error:
            raise self._refused(error) from None
        finally:
            if shows:
                quiet.enable_progress_bars()

    def _refused(self, error: Exception) -> OutputError:
        status = getattr(getattr(error, "response", None), "status_code", None)
        name = self._address.shown
        if status in (401, 403):
            return OutputError(f"{name}: the Hub refuses to take it ({status}); may the token write there?")
        if status in (409, 412):
            return OutputError(f"{name}: somebody wrote there meanwhile ({status}); nothing was committed, run again")
        said = f"answers {status}" if status is not None else f"cannot be asked ({type(error).__name__})"
        return OutputError(f"{name}: the Hub {said}; nothing was committed")

    def abandon(self) -> None:
        self._disk.abandon()
        shutil.rmtree(self._own, ignore_errors=True)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
