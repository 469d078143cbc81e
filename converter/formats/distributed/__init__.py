"""Training shards: a model that lies in the files of several ranks, read as the one that it is."""

from collections.abc import Callable
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import UnknownFormat, UnsupportedFeature, short
from converter.formats.base import Format, child
from converter.formats.distributed import dcp, megatron, ranks, zero
from converter.formats.hub import has_weights
from converter.formats.torch.values import TYPES
from converter.tensors.dtypes import DTYPES

Opener = Callable[[Path, Path, str | None], Checkpoint]
# The folder of shards that a path means, if any; and how they are opened: path, folder, key.
LAYOUTS: tuple[tuple[Callable[[Path], Path | None], Opener], ...] = (
    (dcp.found, dcp.open_dcp),
    (ranks.found, ranks.open_ranks),
    (zero.found, zero.open_zero),
    (megatron.found, megatron.open_megatron),
)


def sniff(path: Path, start: bytes) -> bool:
    """A folder of shards, a shard of one, or a folder of such folders; with no finished model beside them."""
    return not has_weights(path) and bool(_here(path) or _within(path))


def _here(path: Path) -> tuple[Opener, Path] | None:
    ways = ((opened, found(path)) for found, opened in LAYOUTS)
    return next(((opened, folder) for opened, folder in ways if folder is not None), None)


def _within(path: Path) -> list[Path]:
    """The folders in a folder that hold shards (an actor beside its critic, a model beside its optimizer)."""
    return [each for each in sorted(path.iterdir()) if each.is_dir() and _here(each)] if path.is_dir() else []


def open_shards(path: Path) -> Checkpoint:
    """The model of a training run's shards, without its optimizer.

    Raises:
        UnknownFormat, CorruptFile, MissingPart, UnsupportedFeature
    """
    return _open(path, None)


def open_shards_key(path: Path, key: str) -> Checkpoint:
    """The tensors below `key` of what was saved; "." takes all.

    Raises:
        UsageError: there are none.
        UnknownFormat, CorruptFile, MissingPart, UnsupportedFeature
    """
    return _open(path, key)


def _open(path: Path, key: str | None) -> Checkpoint:
    if here := _here(path):
        opened, folder = here
        return opened(path, folder, key)
    inner = _within(path)
    if not inner:
        raise UnknownFormat(f"{path}: no shards of a training run are here")
    if len(inner) > 1:
        names = ", ".join(short(each.name)[1:-1] for each in inner[:4])
        raise UnsupportedFeature(f"{path}: holds several folders of training shards ({names})\ngive one of them")
    return _open(child(path, inner[0].name, path), key)


FORMATS = (
    Format(
        name="distributed",
        extensions=(".distcp",),
        dialect="hf",
        description="shards of a training run: torch.distributed.checkpoint (FSDP), verl, DeepSpeed, Megatron",
        dtypes=frozenset(DTYPES[ours].name for ours in TYPES.values()),
        sniff=sniff,
        open=open_shards,
        open_key=open_shards_key,
    ),
)
