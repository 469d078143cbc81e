"""Metadata of one file changed: in place where that is one write that is done or not done, else by a file that takes
the place of the old one.

A header lies in front of the tensors, so a longer one moves them all. And a header that is only half written is no
header: what a crash must not break is either written at once, within one sector of a disk, or written elsewhere and
renamed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import OutputError, UnsupportedFeature, UsageError, about, short
from converter.formats import gguf, safetensors
from converter.formats.registry import source_format
from converter.housekeeping.rewrite import rewrite
from converter.housekeeping.values import Entry, parsed, shown, type_of
from converter.metadata import Value, array_of, number_of
from converter.request import PathLike
from converter.storage.disk import Disk
from converter.storage.files import Opened, remembering
from converter.storage.layout import Layout
from converter.storage.slabs import ProgressCallback

_SECTOR = 512  # bytes that disks write as one

How = Literal["in place", "rewritten", "nothing to do"]


class Set(NamedTuple):
    """A key that shall have a value, as text; without a type it keeps the one that it has."""

    key: str
    text: str
    type: str | None = None


@dataclass(frozen=True)
class KeyChange:
    """One key: its value before and after, None where it was or is not there."""

    key: str
    before: Entry | None
    after: Entry | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON; long values are cut."""
        values = (self.before, self.after)
        texts = [None if value is None else shown(value) for value in values]
        types = [None if value is None else type_of(value) for value in values]
        return {"key": self.key, "type": types[1] or types[0], "before": texts[0], "after": texts[1]}


@dataclass(frozen=True)
class Edited:
    """What was changed in which file, how, and how many bytes were written for it (or would be, on a dry run)."""

    path: Path
    changes: tuple[KeyChange, ...]
    how: How
    nbytes: int
    dry_run: bool
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        own = {"file": str(self.path), "how": self.how, "dry_run": self.dry_run, "written_bytes": self.nbytes}
        return own | {"changes": [change.as_dict() for change in self.changes], "seconds": round(self.seconds, 3)}


class _Form(NamedTuple):
    """How files of a format are opened one by one, where their texts are, and how they are laid out."""

    open: Callable[[Path], Checkpoint]
    field: Literal["config", "metadata"]
    layout: Callable[[Checkpoint, Path], Layout]


_FORMS = {
    "gguf": _Form(gguf.open_file, "config", gguf.file_layout),
    "safetensors": _Form(safetensors.open_file, "metadata", safetensors.file_layout),
}
# Keys that the rest of the file is written by: (pattern, why they stay).
_FIXED = (
    (r"general\.architecture", "says what all other keys and tensors mean; convert the model again"),
    (r"general\.alignment", "says where the tensors lie"),
    (r"split\..*", "says which part of a set the file is; `convert split` and `convert merge` change it"),
    (
        r"[^.]+\.(block_count|embedding_length|feed_forward_length|expert_count|expert_feed_forward_length"
        r"|attention\.(head_count|head_count_kv|key_length|value_length))",
        "is a size of the tensors, which stay as they are",
    ),
)
# Lists with an entry for every row of the embedding.
_OF_TOKENS = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")


def edit(
    source: PathLike,
    target: PathLike | None = None,
    *,
    set: Iterable[Set] = (),
    rename: Iterable[tuple[str, str]] = (),
    remove: Iterable[str] = (),
    dry_run: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Edited:
    """Change the key/values of a GGUF, or the texts of a safetensors file; first renames, then removals, then values.

    Args:
        source: one file; of a split GGUF the first one.
        target: where the result goes; by default it takes the place of the source.
        set: keys and their values.
        rename: (old, new) keys.
        remove: keys.
        dry_run: say what would be done, and do nothing.
        force: replace a target that is there.
        threads, progress: as for `convert`.

    Raises:
        UsageError: a key that is not there, is there already or must stay; a value that is none of its type.
        UnsupportedFeature: another format.
        ConverterError: as `rewrite`.
    """
    started, path, opened = time.monotonic(), Path(source), Opened()
    with about(path):
        form = _form(path)
        with remembering(opened):
            checkpoint = form.open(path)
        with checkpoint.replace(opened=opened) as checkpoint:
            old = _entries(checkpoint, form)
            new = _changed(path, old, set, rename, remove, texts_only=form.field == "metadata")
            _check(path, old, new)
            changes = tuple(_changes(old, new))
            config = new if form.field == "config" else {key: _text(value) for key, value in new.items()}
            edited = checkpoint.replace(**{form.field: config})
            layout = form.layout(edited, path if target is None else Path(target))
            span = _span(checkpoint, layout) if target is None else None
            how: How = "rewritten" if target is not None else "nothing to do" if not changes else "rewritten"
            nbytes = 0 if how == "nothing to do" else layout.size
            if how == "rewritten" and span is not None:
                how, nbytes = "in place", len(span[1])
            if not dry_run and how == "in place" and span is not None:
                _overwrite(edited, layout, *span)
            elif not dry_run and how == "rewritten":
                rewrite(edited, layout, in_place=target is None, force=force, threads=threads, progress=progress)
    place = layout.files[0].path
    return Edited(place, changes, how, nbytes, dry_run, time.monotonic() - started)


def _form(path: Path) -> _Form:
    name = source_format(path).name
    if name not in _FORMS or path.name.endswith(safetensors.INDEX_SUFFIX):
        raise UnsupportedFeature(f"{path}: metadata of {' and '.join(_FORMS)} files can be edited; give one such file")
    return _FORMS[name]


def _entries(checkpoint: Checkpoint, form: _Form) -> dict[str, Entry]:
    if number_of(checkpoint.config, "split.no"):
        raise UsageError(f"{checkpoint.path}: the metadata of a set is in its first shard; give that one")
    found: Mapping[str, Any] = getattr(checkpoint, form.field)
    return {key: Value("str", value) if isinstance(value, str) else value for key, value in found.items()}


def _text(value: Entry) -> str:
    assert isinstance(value, Value) and isinstance(value.value, str)  # `_changed` takes no others
    return value.value


def _changed(
    path: Path,
    old: Mapping[str, Entry],
    values: Iterable[Set],
    renames: Iterable[tuple[str, str]],
    removed: Iterable[str],
    *,
    texts_only: bool,
) -> dict[str, Entry]:
    """The entries after all changes; a key keeps its place, a new one comes last."""
    new = dict(old)
    for before, after in renames:
        _known(path, new, before)
        if after in new:
            raise UsageError(f"{path}: {short(after)} is there already; remove it first")
        new = {after if key == before else key: value for key, value in new.items()}
    for key in removed:
        _known(path, new, key)
        del new[key]
    for key, text, kind in values:
        kind = kind or (type_of(new[key]) if key in new else "str" if texts_only else None)
        if kind is None:
            raise UsageError(f"{short(key)} is not there yet: say its type, as in {key}:str=VALUE")
        if texts_only and kind != "str":
            raise UsageError(f"{short(key)}: a safetensors file has texts alone, no {kind}")
        new[key] = parsed(key, kind, text)
    for key in new.keys() - old.keys():
        if not 0 < len(key.encode()) <= gguf.MAX_KEY or not key.isprintable():
            raise UsageError(f"{short(key)} cannot be a key: 1 to {gguf.MAX_KEY} bytes without control characters")
    return new


def _known(path: Path, entries: Mapping[str, Entry], key: str) -> None:
    if key not in entries:
        raise UsageError(f"{path}: has no {short(key)}; `convert inspect` lists what it has")


def _changes(old: Mapping[str, Entry], new: Mapping[str, Entry]) -> Iterable[KeyChange]:
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if before is not after and before != after:  # a list with NaN in it is unlike itself
            yield KeyChange(key, before, after)


def _check(path: Path, old: Mapping[str, Entry], new: Mapping[str, Entry]) -> None:
    """Refuse what the tensors, or those who load the file, would not go with.

    Raises:
        UsageError: as said.
    """
    for change in _changes(old, new):
        for pattern, why in _FIXED:
            if re.fullmatch(pattern, change.key):
                raise UsageError(f"{path}: {change.key} stays: it {why}")
    if "format" in old and "format" not in new:
        raise UsageError(f"{path}: format stays: transformers loads no safetensors file without it")
    for key in _OF_TOKENS:
        counts = [None if (found := array_of(entries, key)) is None else len(found) for entries in (old, new)]
        if counts[0] is not None and counts[0] != counts[1]:
            raise UsageError(f"{path}: {key} stays a list of {counts[0]}, one for each row of the embedding")
    tokens = array_of(new, _OF_TOKENS[0])
    for change in _changes(old, new):
        token = number_of(new, change.key) if change.key.endswith("_token_id") else None
        if token is not None and tokens is not None and not 0 <= token < len(tokens):
            raise UsageError(f"{path}: {change.key} cannot be {token}: there are {len(tokens)} tokens")


# --------------------------------------------------------------------------------------------------- in place


def _span(checkpoint: Checkpoint, layout: Layout) -> tuple[int, bytes] | None:
    """The only bytes of the file that would change, where one write within a sector does it; else None.

    A file that has other names, or that a link leads to, is somebody else's, too, and stays as it is.
    """
    (file,), path = layout.files, checkpoint.path
    status = os.lstat(path)
    stays = all(slot.tensor.extent == (path, slot.offset) for slot in file.slots if slot.tensor.info.nbytes)
    if path.is_symlink() or status.st_nlink != 1 or not stays or status.st_size != file.size:
        return None
    with open(path, "rb") as source:
        old, new = (np.frombuffer(data, np.uint8) for data in (source.read(len(file.header)), file.header))
    differing = np.flatnonzero(old != new) if len(old) == len(new) else np.empty(0, np.int64)
    if not len(differing) or differing[0] // _SECTOR != differing[-1] // _SECTOR:
        return None
    return int(differing[0]), new[differing[0] : differing[-1] + 1].tobytes()


def _overwrite(checkpoint: Checkpoint, layout: Layout, offset: int, data: bytes) -> None:
    """The one write, under the lock of whoever writes this file."""
    (file,), output = layout.files, Disk(layout)
    try:
        output.claim()
        checkpoint.check()
        checkpoint.close()
        with open(file.path, "r+b", buffering=0) as out:
            out.seek(offset)
            if out.write(data) != len(data):
                raise OutputError(f"{file.path}: was not written")
            os.fsync(out.fileno())
    except OSError as error:
        raise OutputError(f"{file.path}: {error.strerror or error}; nothing was written") from error
    finally:
        output.abandon()
