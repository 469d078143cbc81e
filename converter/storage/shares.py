"""Which files of a layout go to which disk, and whether there is room for them."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from converter.storage.folders import nearest
from converter.storage.layout import Layout


@dataclass(frozen=True)
class Share:
    """What of a layout goes to one folder.

    Attributes:
        folder: where it goes.
        files: by their numbers in the layout.
        names: of them, in the same order.
        nbytes: of them together.
        free: bytes for them: what is free there for this user, less what goes to other folders on the same disk.
    """

    folder: Path
    files: tuple[int, ...]
    names: tuple[str, ...]
    nbytes: int
    free: int


def place_of(layout: Layout) -> Path:
    """The folder that a layout is built in, or what is there of the way to it.

    Files that come into a folder which is there are built in it: it may be another disk than what it lies in.

    Raises:
        OutputError: there is a file on the way.
    """
    folder = layout.folder
    return nearest(layout.files[0].path.parent if folder is None else folder if folder.is_dir() else folder.parent)


def shares(layout: Layout, given: Mapping[int, Path] | None = None) -> list[Share]:
    """What goes where: to `layout.spread` and the folder that it is built in; shards to each disk by its free room.

    Args:
        given: the folders of shards that lie outside of the layout's, by their numbers, where that is settled.

    Raises:
        OSError: a folder cannot be looked at.
        OutputError: as `place_of`.
    """
    place = place_of(layout)
    folders = {place.resolve(): place}
    for folder in layout.spread:
        folders.setdefault(folder.resolve(), folder)
    disks = {folder: os.stat(folder).st_dev if layout.spread else 0 for folder in folders.values()}
    free = {disk: shutil.disk_usage(folder).free for folder, disk in disks.items()}
    taken, filled = Counter[Path](), Counter[int]()
    files: dict[Path, list[int]] = {folder: [] for folder in disks}

    def put(number: int, folder: Path) -> None:
        files[folder].append(number)
        taken[folder] += layout.files[number].size
        filled[disks[folder]] += layout.files[number].size

    shards = set() if given is not None else set(movable(layout))
    for number in range(len(layout.files)):
        if number not in shards:
            put(number, place if given is None else given.get(number, place))
    for number in sorted(shards, key=lambda number: (-layout.files[number].size, number)):
        size = layout.files[number].size
        # The disk that is then the least full of what it has free; of folders on one disk, that with the least.
        fullness = {folder: (filled[disk] + size) / max(free[disk], 1) for folder, disk in disks.items()}
        put(number, min(disks, key=lambda folder: (fullness[folder], taken[folder])))
    return [_share(layout, folder, sorted(files[folder]), free[disk] - filled[disk]) for folder, disk in disks.items()]


def _share(layout: Layout, folder: Path, files: list[int], left: int) -> Share:
    chosen = [layout.files[number] for number in files]
    nbytes = sum(file.size for file in chosen)
    return Share(folder, tuple(files), tuple(file.path.name for file in chosen), nbytes, left + nbytes)


def movable(layout: Layout) -> list[int]:
    """The files that may lie on another disk: those with tensors in the layout's own folder, by their numbers."""
    if not layout.spread:
        return []
    folder = layout.files[0].path.parent if layout.folder is None else layout.folder
    return [number for number, file in enumerate(layout.files) if file.slots and file.path.parent == folder]
