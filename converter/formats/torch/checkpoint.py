"""PyTorch files, `.pt .pth .bin .ckpt .pt2`: zip archives, streams of before 1.6, programs, sharded sets; no torch.

A pickle in them is read as data by a machine of our own with a table of names (`pickle`, `values`); nothing in
a file is imported, looked up or called. Tensors stay in the file until they are asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint, Part, Structure
from converter.errors import CorruptFile, UsageError, short
from converter.events import Event, Note
from converter.formats.base import INDEX
from converter.formats.hub import check_index, folder_assets, read_config, whole_set
from converter.formats.torch.exported import ScriptedProgram
from converter.formats.torch.files import open_file
from converter.formats.torch.tree import grow, listed, select
from converter.storage.files import Bytes, open_bytes, peek
from converter.storage.zip import LOCAL, LOCAL_HEADER
from converter.tensors.tensor import LazyTensor

EXTENSIONS = (".pt", ".pth", ".bin", ".ckpt")
# pytorch_model.bin.index.json, and what our writer names after any of the extensions.
INDEX_SUFFIXES = tuple(extension + INDEX for extension in EXTENSIONS)
# Protocol, then an opcode; a number in a binary header (640 is 80 02 00 00) has a zero there.
_PICKLE = re.compile(rb"\x80[\x01-\x05][^\x00]", re.DOTALL)
_TAR_MAGIC = 257
HEAD = "lm_head.weight"


def sniff(path: Path, start: bytes) -> bool:
    """A pickle, a zip archive of one folder, a tar file of the oldest kind, or an index of shards."""
    if path.name.endswith(INDEX_SUFFIXES):
        return start.lstrip()[:1] == b"{"
    if start[:4] == LOCAL:
        return b"/" in _first_member(path) and not _first_member(path).endswith(b".npy")
    if path.suffix.lower() in EXTENSIONS and not path.is_dir():
        if peek(path, 5, _TAR_MAGIC) == b"ustar":
            return True
    return _PICKLE.match(start) is not None


def _first_member(path: Path) -> bytes:
    header = peek(path, LOCAL_HEADER.size)
    return peek(path, LOCAL_HEADER.unpack(header)[9], len(header)) if len(header) == LOCAL_HEADER.size else b""


def open_torch(path: Path) -> Checkpoint:
    """A file, or a sharded set by its index or any of its shards: the model's tensors, by their path in what was saved.

    Of a checkpoint with several parts the model is taken (`MODEL_KEYS` of `tree`); events tell what is left.
    Config and tokenizer come from the file's own folder; with a config.json the names are Hugging Face's.

    Raises:
        CorruptFile, MissingPart, UnsupportedFeature, OutputError
    """
    said, files, expected = whole_set(path)
    return _open(said, files, expected, None).replace(path=path)


def open_torch_key(path: Path, key: str) -> Checkpoint:
    """The tensors below `key`, with what follows it as their names; "." takes all.

    Raises:
        UsageError: there are none.
        CorruptFile, MissingPart, UnsupportedFeature, OutputError
    """
    if path.name.endswith(INDEX_SUFFIXES):
        raise UsageError(f"--key {key}: {path.name} is the index of a set that holds one model")
    return _open(path, [path], None, key)


def _open(path: Path, files: Iterable[Path], expected: Mapping[str, Path] | None, key: str | None) -> Checkpoint:
    maps: list[Bytes] = []
    tensors: dict[str, LazyTensor] = {}
    owner: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    tied: dict[str, str] = {}
    events: list[Event] = []
    checks = []
    structure: Structure | None = None
    chosen: Counter[str] = Counter()
    rest: Counter[str] = Counter()
    try:
        assets = folder_assets(path.parent)
        for name in files:
            maps.append(open_bytes(name))
            file = open_file(maps[-1])
            found = select(file, grow(file), key)
            for twice in found.tensors.keys() & tensors.keys():
                raise CorruptFile(f"{name}: tensor {short(twice)} is also in {owner[twice].name}")
            tensors.update(found.tensors)
            tied.update(found.tied)
            owner.update(dict.fromkeys(found.tensors, name))
            metadata.update(found.metadata)
            events.extend(found.events)
            chosen[found.chosen] += len(found.tensors)
            rest += found.rest
            checks.append(file.check)
            structure = file.program or (ScriptedProgram() if file.script else None)
        if expected is not None:
            check_index(path, expected, owner)
        config, dialect = read_config(assets)
        events.extend(_untie(tensors, tied, config))
    except BaseException:
        for mapped in maps:
            mapped.close()
        raise
    return Checkpoint(
        format="torch",
        path=path,
        dialect=dialect,
        tensors=tensors,
        config=config,
        metadata=metadata,
        assets=assets,
        events=tuple(events),
        files=tuple(mapped.path for mapped in maps),
        closers=tuple(mapped.close for mapped in maps),
        checks=tuple(checks),
        structure=structure if dialect is None else None,
        parts=_parts(chosen, rest),
    )


def _parts(chosen: Counter[str], rest: Counter[str]) -> tuple[Part, ...]:
    """What was taken, then what was not; nothing where all was taken."""
    shown = (Part(name, count, shown=True) for name, count in chosen.items())
    return (*shown, *(Part(name, count) for name, count in rest.items())) if rest else ()


def _untie(tensors: dict[str, LazyTensor], tied: dict[str, str], config: Mapping[str, Any]) -> Iterator[Event]:
    """Tied tensors are written under each of their names, but for a head that config.json says is the embedding.

    That is also what transformers leaves out when it writes safetensors.
    """
    if HEAD in tied and config.get("tie_word_embeddings") is True:
        yield Note(f"{HEAD}: left out, it is {tied.pop(HEAD)} (tie_word_embeddings)")
        del tensors[HEAD]
    if tied:
        pairs = [f"{name} = {first}" for name, first in tied.items()]
        yield Note(f"tied tensors, written under each of their names: {listed(pairs)}")
