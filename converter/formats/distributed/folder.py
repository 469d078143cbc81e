"""What all layouts share: files that are opened once and closed together, and the checkpoint that comes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, MissingPart, UnsupportedFeature, short
from converter.events import Event, MetadataLost
from converter.formats.base import check_name, child
from converter.formats.distributed.names import Steps, unwrapped
from converter.formats.hub import folder_assets, read_config
from converter.formats.torch.files import TorchFile, open_file
from converter.formats.torch.tree import MAX_NAME, MAX_NAMES, MAX_NODES, MAX_TENSORS
from converter.formats.torch.values import Refused, Tensor, refuse_unknown, some
from converter.storage.files import Bytes, expands_too_far, open_bytes
from converter.tensors.tensor import LazyTensor

# Beside verl's shards; what else is known of a model lies with the shards, or in the folder that was given.
HUGGINGFACE = "huggingface"
_MAX_STEPS = 16
_FLAT = "_flat_param"  # of FSDP 1: all weights of what it wraps
_COMPARED = 1 << 20  # bytes that are compared at once


@dataclass(frozen=True)
class Saved:
    """A file of `torch.save` of dictionaries within dictionaries: its tensors, and the keys that lead to them."""

    file: TorchFile
    tensors: dict[str, Tensor | Refused]
    steps: dict[str, Steps]
    others: int

    @property
    def path(self) -> Path:
        return self.file.mapped.path

    @classmethod
    def of(cls, file: TorchFile, root: Any) -> Saved:
        """The tensors below `root`, a value of the file.

        Raises:
            CorruptFile: too deep, too many, two of one name.
            UnsupportedFeature: Python objects are all that is there.
        """
        path, others, total = file.mapped.path, 0, 0
        tensors: dict[str, Tensor | Refused] = {}
        steps: dict[str, Steps] = {}
        waiting: list[tuple[Steps, Any]] = [((), root)]
        for count in range(MAX_NODES):
            if not waiting:
                break
            way, value = waiting.pop()
            if type(value) is dict:
                if len(way) > _MAX_STEPS or count + len(waiting) + len(value) > MAX_NODES:
                    raise CorruptFile(f"{path}: nested deeper than {_MAX_STEPS} levels, or without end")
                waiting += [((*way, key), each) for key, each in reversed(value.items()) if type(key) is str]
            elif isinstance(value, Tensor | Refused) and way:
                name = ".".join(way)
                total += len(name)
                if name in tensors or len(name) > MAX_NAME:
                    raise CorruptFile(f"{path}: two tensors are called {short(name)}, or too long a name")
                if len(tensors) == MAX_TENSORS or total > MAX_NAMES:
                    raise CorruptFile(f"{path}: more than {MAX_TENSORS} tensors, or names without end")
                check_name(path, name)
                tensors[name], steps[name] = value, way
            else:
                others += 1
        if not tensors:
            refuse_unknown(path, file.unknown)
        return cls(file, tensors, steps, others)

    def events(self) -> list[Event]:
        """What is lost besides tensors."""
        unknown = f", among them objects that are never loaded: {some(self.file.unknown)}" if self.file.unknown else ""
        said = f"{self.others} values that are no tensors{unknown}"
        return [*self.file.events, *([MetadataLost(self.path.name, said)] if self.others else [])]


class Files:
    """The files of a folder of shards, each opened when it is first asked for."""

    def __init__(self, folder: Path, of: Path) -> None:
        self.folder, self._of = folder, of
        self.maps: dict[str, Bytes] = {}
        self.checks: list[Callable[[], None]] = []

    def open(self, name: object) -> Bytes:
        """The file of this name.

        Raises:
            CorruptFile: the name leads out of the folder.
            MissingPart: it is not there.
        """
        if type(name) is not str or name not in self.maps:
            path = child(self.folder, name, self._of)
            if not path.is_file():
                raise MissingPart(f"{path}: this one of the shards is not there; copy it, too")
            self.maps[str(name)] = open_bytes(path)
        return self.maps[str(name)]

    def torch(self, name: str) -> TorchFile:
        """The file of `torch.save` of this name; its checksums are compared at the end.

        Raises:
            CorruptFile, MissingPart, UnsupportedFeature
        """
        file = open_file(self.open(name))
        self.checks.append(file.check)
        return file

    def saved(self, name: str) -> Saved:
        """The tensors of such a file; errors as `torch` and `Saved.of`."""
        file = self.torch(name)
        return Saved.of(file, file.root)

    def close(self) -> None:
        for mapped in self.maps.values():
            mapped.close()


def replicated(files: Files, copies: Sequence[LazyTensor]) -> LazyTensor:
    """What every rank has whole; that all have the same is checked at the end.

    Raises:
        CorruptFile: shapes or types differ.
    """
    first = copies[0]
    for copy in copies[1:]:
        if copy.info != first.info:
            raise CorruptFile(f"{copy.source}: tensor {short(first.name)} is another one than in {first.source}")

    def check() -> None:
        step = max(1, _COMPARED // max(1, first.info.row_nbytes))
        for copy in copies[1:]:
            for start in range(0, first.info.n_rows, step):
                stop = min(start + step, first.info.n_rows)
                if (copy.rows(start, stop) != first.rows(start, stop)).any():
                    raise CorruptFile(f"{copy.source}: tensor {short(first.name)} differs from that in {first.source}")

    files.checks.append(check)
    return first


def checkpoint(path: Path, files: Files, tensors: Mapping[str, LazyTensor], events: Iterable[Event]) -> Checkpoint:
    """The shards as one checkpoint, whose names have no wrappers; config and tokenizer lie beside them.

    Raises:
        UnsupportedFeature: there are no tensors, flat ones, or more bytes of them than the files can mean.
        CorruptFile: as `unwrapped` and `folder_assets`.
    """
    if not tensors:
        raise UnsupportedFeature(f"{path}: holds no tensors")
    if len(tensors) > MAX_TENSORS:
        raise CorruptFile(f"{path}: more than {MAX_TENSORS} tensors")
    if flat := next((name for name in tensors if name.endswith(_FLAT)), None):
        raise UnsupportedFeature(
            f"{path}: {short(flat)} is many weights in one, whose shapes nothing says (FSDP's local state dict)\n"
            "save a sharded or a full state dict: StateDictType.SHARDED_STATE_DICT or FULL_STATE_DICT"
        )
    given = sum(mapped.size for mapped in files.maps.values())
    declared = sum(tensor.info.nbytes for tensor in tensors.values())
    if expands_too_far(declared, given):
        raise UnsupportedFeature(f"{path}: {given} bytes that expand to {declared} are refused")
    named, notes = unwrapped(path, tensors)
    folders = dict.fromkeys((files.folder / HUGGINGFACE, files.folder, path if path.is_dir() else path.parent))
    assets = {name: file for folder in folders if folder.is_dir() for name, file in folder_assets(folder).items()}
    config, dialect = read_config(assets)
    return Checkpoint(
        format="distributed",
        path=path,
        dialect=dialect,
        tensors={name: tensor.renamed(name) if name != tensor.name else tensor for name, tensor in named.items()},
        config=config,
        metadata={"format": "pt"},
        assets=assets,
        events=(*events, *notes),
        files=tuple(mapped.path for mapped in files.maps.values()),
        closers=(files.close,),
        checks=tuple(files.checks),
    )
