"""TensorFlow without TensorFlow: checkpoints of version 2 and 1, a SavedModel's variables, constants of frozen graphs.

Source: tensorflow/core/protobuf/tensor_bundle.proto, tensorflow/core/util/saved_tensor_slice.proto and
tensorflow/core/framework/{graph,node_def,attr_value,function}.proto. A graph is data and never run; of a SavedModel
only `variables/` is opened. Names stay TensorFlow's, without the suffix that object-based checkpoints give variables.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, MissingPart, UnsupportedFeature, short
from converter.events import Dropped, Event, Note
from converter.formats.base import check_name, child
from converter.formats.tensorflow.sstable import Entry, is_table, masked, read_table
from converter.formats.tensorflow.values import (
    NO_NUMBERS,
    TYPES,
    Box,
    Slice,
    assemble,
    box,
    proto_tensor,
    slice_key,
    stored,
    tensor_proto,
    tensor_shape,
    tensor_slice,
    tensor_type,
)
from converter.storage.checksums import CRC32C
from converter.storage.files import Bytes, expands_too_far, local, open_bytes, regular_size
from converter.storage.protobuf import BYTES, FIXED32, VARINT, Field, fields, text
from converter.storage.windows import Windows
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
EVERYTHING = "_all_variables/"
STATE, SAVED_MODEL, VARIABLES = "checkpoint", "saved_model.pb", "variables"
DATA = re.compile(r"(?P<prefix>.*)\.data-\d{5}-of-\d{5}", re.DOTALL)
SHARD_V1 = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5}|\?{5})-of-(?P<count>\d{5})", re.DOTALL)
# Texts that describe objects and hold no weights.
DESCRIPTIONS = ("_CHECKPOINTABLE_OBJECT_GRAPH", "/.ATTRIBUTES/OBJECT_CONFIG_JSON")
VERSION = 1
_MAX_STATE = 1 << 20
_MAX_NAME = 1 << 16
_PIECE = 16 << 20
_STATE_LINE = re.compile(rb'^\s*model_checkpoint_path\s*:\s*"([^"\r\n]*)"\s*$', re.MULTILINE)


def sniff(path: Path, start: bytes) -> bool:
    """A table by its last bytes, a state file by its text, a folder of either kind by what is in it."""
    if path.is_dir():
        return (path / SAVED_MODEL).is_file() or (path / STATE).is_file()
    if path.name == SAVED_MODEL:
        return start[:3] == b"\x08\x01\x12"
    if path.name == STATE:
        return start.lstrip().startswith(b"model_checkpoint_path")
    return DATA.fullmatch(path.name) is not None or path.suffix == ".index" or is_table(path)


def open_tensorflow(path: Path) -> Checkpoint:
    """A checkpoint by its index, one of its data files, its `checkpoint` state file or its folder, or a SavedModel.

    Raises:
        CorruptFile, MissingPart, UnsupportedFeature, OutputError
    """
    notes: list[Event] = []
    table = path
    if path.is_dir():
        table = child(path, SAVED_MODEL if (path / SAVED_MODEL).is_file() else STATE, path)
    if table.name == SAVED_MODEL:
        folder = table.parent
        notes.append(Note(f"{SAVED_MODEL}: the graph is not converted, only the variables beside it"))
        table = child(folder, f"{VARIABLES}/{VARIABLES}.index", table)
        if not table.is_file():
            raise MissingPart(f"{path}: no {VARIABLES}/{VARIABLES}.index in it, so there are no weights to convert")
    elif table.name == STATE and not is_table(table):
        table = _named_in_state(table, notes)
    elif match := DATA.fullmatch(table.name):
        table = child(table.parent, f"{match['prefix']}.index", table)
        if not table.is_file():
            raise MissingPart(f"{table}: the index of {path.name} is not there; download it too")
    return _open_table(path, table, tuple(notes))


def _named_in_state(state: Path, notes: list[Event]) -> Path:
    """The index, or the file of version 1, that a `checkpoint` file names."""
    if regular_size(state) > _MAX_STATE:
        raise CorruptFile(f"{state}: larger than {_MAX_STATE} bytes, that is no state file")
    found = _STATE_LINE.findall(local(state).read_bytes())
    try:
        (name,) = [each.decode("utf-8") for each in found]
    except ValueError:
        raise CorruptFile(f"{state}: does not name one model_checkpoint_path") from None
    if name.startswith("/"):  # where it was saved; what lies beside the state file is what was moved with it
        notes.append(Note(f"{STATE}: names {short(name)}, the file of that name beside it is read"))
        name = name.rpartition("/")[2]
    match = SHARD_V1.fullmatch(name)
    names = [f"{name}.index", name] if match is None else [f"{match['prefix']}-00000-of-{match['count']}"]
    for each in names:
        if (path := child(state.parent, each, state)).is_file():
            return path
    raise MissingPart(f"{state}: names {short(name)}, and there is no {short(names[0])} beside it; download it too")


def _open_table(path: Path, table: Path, notes: tuple[Event, ...]) -> Checkpoint:
    maps = [open_bytes(table)]
    try:
        entries = read_table(maps[0])
        if not entries or entries[0].key:
            raise CorruptFile(f"{table}: has no header entry")
        first = next(fields(entries[0].data, entries[0].start, entries[0].stop), None)
        if first is not None and first.number == 1 and first.wire == BYTES:
            tensors, events = _slices_v1(table, maps, entries)
        else:
            tensors, events = _bundle(table, maps, entries)
        if not tensors and events:
            raise UnsupportedFeature(f"{table}: holds no tensors of numbers, only texts and the like")
    except BaseException:
        for mapped in maps:
            mapped.close()
        raise
    return Checkpoint(
        format="tensorflow",
        path=path,
        dialect=None,
        tensors=tensors,
        events=(*notes, *events),
        files=tuple(mapped.path for mapped in maps),
        closers=tuple(mapped.close for mapped in maps),
    )


def _skipped(name: str, kind: str) -> Event:
    if name.endswith(DESCRIPTIONS):
        return Note(f"{name}: holds {kind} that describe the model's objects, no weights; left out")
    return Dropped(name, f"{kind}, not numbers")


def _name(path: Path, raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise CorruptFile(f"{path}: the tensor name {short(raw)} is not UTF-8") from None
    if not 0 < len(raw) <= _MAX_NAME:
        raise CorruptFile(f"{path}: a tensor name of {len(raw)} bytes")
    check_name(path, name)
    return name


# --------------------------------------------------------------------------------------------- version 2


@dataclass(frozen=True)
class _Stored:
    """A BundleEntryProto."""

    name: str
    type: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    slices: tuple[Slice, ...]


def _bundle(index: Path, maps: list[Bytes], entries: Sequence[Entry]) -> tuple[dict[str, LazyTensor], list[Event]]:
    if index.suffix != ".index":
        raise CorruptFile(f"{index}: the index of a checkpoint, and not called NAME.index; rename it")
    entries[0].block.verify()
    shards = _header(index, entries[0])
    items: dict[bytes, _Stored] = {}
    for entry in entries[1:]:
        entry.block.verify()
        items[entry.key] = _entry(index, entry)
    files = _data_files(index, maps, items.values(), shards)
    tensors: dict[str, LazyTensor] = {}
    events: list[Event] = []
    used = set()
    copies = _copies(items.values())
    if copies:
        events.append(Note(f"{len(copies)} variables under {EVERYTHING} are those of other names again; left out"))
    for key, item in items.items():
        if key.startswith(b"\0") or item.name in copies:
            continue
        dtype = tensor_type(item.type, index, item.name)
        if dtype is None:
            events.append(_skipped(item.name, NO_NUMBERS[item.type % 100]))
            continue
        info = TensorInfo(item.name, item.shape, dtype)
        if not item.slices:
            tensors[item.name] = _read_verified(index, files, item, info)
            continue
        parts: list[tuple[Box, LazyTensor]] = []
        for part in item.slices:
            where = box(part, item.shape, index, item.name)
            own = slice_key(item.name, part)
            if own not in items or items[own].shape != where.shape or items[own].type != item.type or own in used:
                raise CorruptFile(f"{index}: a slice of tensor {short(item.name)} is not there, or not as it should be")
            used.add(own)
            parts.append((where, _read_verified(index, files, items[own], TensorInfo(item.name, where.shape, dtype))))
        tensors[item.name] = assemble(index, info, parts)
    if any(key.startswith(b"\0") and key not in used for key in items):
        raise CorruptFile(f"{index}: has slices that belong to no tensor")
    return _plain_names(tensors), events


def _copies(items: Iterable[_Stored]) -> set[str]:
    """The variables that stand under other names, too: Keras exports all of them once more in a list of its own.

    Which they are their sums tell; no value is read.
    """
    whole = [item for item in items if not item.slices and item.size]
    left = Counter(_content(item) for item in whole if not item.name.startswith(EVERYTHING))
    found = set()
    for item in whole:
        if item.name.startswith(EVERYTHING) and left[_content(item)]:
            left[_content(item)] -= 1
            found.add(item.name)
    return found


def _content(item: _Stored) -> tuple[int, tuple[int, ...], int]:
    return item.type, item.shape, item.crc


def _header(index: Path, entry: Entry) -> int:
    """How many shards there are."""
    shards, big_endian = 0, 0
    needs, refused = 0, False
    for field in fields(entry.data, entry.start, entry.stop):
        if field.number == 1 and field.wire == VARINT:
            shards = field.signed
        elif field.number == 2 and field.wire == VARINT:
            big_endian = field.value
        elif field.number == 3 and field.wire == BYTES:
            versions = list(fields(entry.data, field.start, field.stop))
            needs = max((each.signed for each in versions if each.number == 2), default=0)
            refused = any(each.number == 3 and each.wire == VARINT and each.value == VERSION for each in versions)
    if needs > VERSION or refused:
        raise UnsupportedFeature(f"{index}: needs a reader of version {needs}, this is one of version {VERSION}")
    if big_endian:
        raise UnsupportedFeature(f"{index}: the tensors are big-endian; save it on another machine")
    if not 0 < shards < 100_000:
        raise CorruptFile(f"{index}: says that it has {shards} data files")
    return shards


def _entry(index: Path, entry: Entry) -> _Stored:
    name = short(entry.key) if entry.key.startswith(b"\0") else _name(index, entry.key)
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    slices: list[Slice] = []
    for field in fields(entry.data, entry.start, entry.stop):
        if field.number in numbers and field.wire == (FIXED32 if field.number == 6 else VARINT):
            numbers[field.number] = field.signed
        elif field.number == 2 and field.wire == BYTES:
            shape = tensor_shape(entry.data, field.start, field.stop, name)
        elif field.number == 7 and field.wire == BYTES:
            slices.append(tensor_slice(entry.data, field.start, field.stop))
    return _Stored(name, numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6], tuple(slices))


def _data_files(index: Path, maps: list[Bytes], items: Iterable[_Stored], count: int) -> dict[int, Bytes]:
    """The data files that entries lie in, mapped; every entry inside its file and on bytes of its own."""
    files: dict[int, Bytes] = {}
    stored_items = sorted((item for item in items if not item.slices), key=lambda item: (item.shard, item.offset))
    shard, end = -1, 0
    for item in stored_items:
        what = f"tensor {short(item.name)}"
        if not 0 <= item.shard < count:
            raise CorruptFile(f"{index}: {what} is in data file {item.shard} of {count}")
        if item.shard not in files:
            path = child(index.parent, f"{index.name[:-6]}.data-{item.shard:05d}-of-{count:05d}", index)
            if not path.is_file():
                raise MissingPart(f"{path}: this data file of {index.name} is not there; download it too")
            maps.append(open_bytes(path))
            files[item.shard] = maps[-1]
        if item.offset < 0 or item.size < 0 or item.offset + item.size > files[item.shard].size:
            raise CorruptFile(
                f"{files[item.shard].path}: {what} needs {item.size} bytes at offset {item.offset}, the file has "
                f"{files[item.shard].size}\nthe file is truncated or {index.name} lies; download both again"
            )
        if item.shard == shard and item.size and item.offset < end:
            raise CorruptFile(f"{index}: {what} overlaps the one before it")
        shard, end = item.shard, max(item.offset + item.size, end if item.shard == shard else 0)
    return files


def _read_verified(index: Path, files: Mapping[int, Bytes], item: _Stored, info: TensorInfo) -> LazyTensor:
    if info.nbytes != item.size:
        raise CorruptFile(
            f"{index}: tensor {short(info.name)} of {list(info.shape)} {info.dtype} needs {info.nbytes} bytes, "
            f"it has {item.size}"
        )
    mapped = files[item.shard]
    tensor = stored(mapped, item.offset, info)
    verify = _Verify(mapped, item)

    def read(first: int, last: int) -> Rows:
        verify()
        return tensor.rows(first, last)

    return tensor.derived(read=read)


class _Verify:
    """Compares a tensor's bytes with their CRC-32C before the first of them is used."""

    def __init__(self, mapped: Bytes, item: _Stored) -> None:
        self._mapped, self._item = mapped, item
        self._lock = threading.Lock()
        self._done = False

    def __call__(self) -> None:
        with self._lock:
            if self._done:
                return
            crc, item = 0, self._item
            for at in range(0, item.size, _PIECE):
                piece = self._mapped.view(item.offset + at, min(_PIECE, item.size - at), item.name)
                crc = CRC32C.of(piece.data, crc)
            if masked(crc) != item.crc:
                raise CorruptFile(
                    f"{self._mapped.path}: tensor {short(item.name)} does not have its CRC-32C\n"
                    "the file is damaged; download it again"
                )
            self._done = True


def _plain_names(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Without the suffix that every variable has; with it where two would then be the same."""
    plain = [name.removesuffix(SUFFIX) for name in tensors]
    if len(set(plain)) != len(plain) or "" in plain:
        return tensors
    pairs = zip(plain, tensors.values(), strict=True)
    return {name: tensor.derived(TensorInfo(name, tensor.info.shape, tensor.info.dtype)) for name, tensor in pairs}


# --------------------------------------------------------------------------------------------- version 1


@dataclass
class _Sliced:
    """A SavedSliceMeta, and the slices that were found."""

    type: int
    shape: tuple[int, ...]
    slices: list[Slice]
    found: dict[bytes, tuple[Entry, Field]]


def _slices_v1(table: Path, maps: list[Bytes], entries: Sequence[Entry]) -> tuple[dict[str, LazyTensor], list[Event]]:
    match = SHARD_V1.fullmatch(table.name)
    tables = [(maps[0], entries)]
    if match is not None:
        for number in range(int(match["count"])):
            path = child(table.parent, f"{match['prefix']}-{number:05d}-of-{match['count']}", table)
            if path.name == table.name:
                continue
            if not path.is_file():
                raise MissingPart(f"{path}: this part of the checkpoint is not there; download it too")
            maps.append(open_bytes(path))
            tables.append((maps[-1], read_table(maps[-1])))
    sliced: dict[str, _Sliced] = {}
    for mapped, found in tables:
        _declared_v1(mapped.path, found, sliced)
        for entry in found[1:]:
            _found_v1(entry, sliced)
    tensors: dict[str, LazyTensor] = {}
    events: list[Event] = []
    declared, given = 0, sum(mapped.size for mapped in maps)
    for name, item in sliced.items():
        dtype = tensor_type(item.type, table, name)
        if dtype is None:
            events.append(_skipped(name, NO_NUMBERS[item.type % 100]))
            continue
        info = TensorInfo(name, item.shape, dtype)
        declared += info.nbytes
        if expands_too_far(declared, given):
            raise CorruptFile(f"{table}: tensor {short(name)} of {list(item.shape)} is far larger than the file")
        tensors[name] = assemble(table, info, [_part_v1(table, info, item, part) for part in item.slices])
        if item.found:
            raise CorruptFile(f"{table}: has slices of tensor {short(name)} that the header does not list")
    return tensors, events


def _declared_v1(path: Path, entries: Sequence[Entry], sliced: dict[str, _Sliced]) -> None:
    """The tensors that the entry without a key lists."""
    if not entries or entries[0].key:
        raise CorruptFile(f"{path}: has no header entry")
    head = entries[0]
    head.block.verify()
    metas = [each for each in fields(head.data, head.start, head.stop) if each.number == 1 and each.wire == BYTES]
    for meta in metas:
        for each in fields(head.data, meta.start, meta.stop):
            if each.number != 1 or each.wire != BYTES:
                continue
            name, item = _meta_v1(path, head.data, each)
            known = sliced.setdefault(name, item)
            if known is item:
                continue
            if (known.type, known.shape) != (item.type, item.shape):
                raise CorruptFile(f"{path}: tensor {short(name)} is described in two ways")
            known.slices += item.slices


def _meta_v1(path: Path, data: Windows, field: Field) -> tuple[str, _Sliced]:
    raw, item = b"", _Sliced(0, (), [], {})
    for each in fields(data, field.start, field.stop):
        if each.number == 1 and each.wire == BYTES:
            raw = bytes(data.at(each.start, each.stop - each.start, "a name"))
        elif each.number == 2 and each.wire == BYTES:
            item.shape = tensor_shape(data, each.start, each.stop, repr(raw[:80]))
        elif each.number == 3 and each.wire == VARINT:
            item.type = each.signed
        elif each.number == 4 and each.wire == BYTES:
            item.slices.append(tensor_slice(data, each.start, each.stop))
    return _name(path, raw), item


def _found_v1(entry: Entry, sliced: dict[str, _Sliced]) -> None:
    """Note where the values of one slice are; nothing of them is read."""
    path, data = entry.data.path, entry.data
    for saved in fields(data, entry.start, entry.stop):
        if saved.number != 2 or saved.wire != BYTES:
            continue
        raw, part, values = b"", None, None
        for each in fields(data, saved.start, saved.stop):
            if each.number == 1 and each.wire == BYTES:
                raw = bytes(data.at(each.start, each.stop - each.start, "a name"))
            elif each.number == 2 and each.wire == BYTES:
                part = tensor_slice(data, each.start, each.stop)
            elif each.number == 3 and each.wire == BYTES:
                values = each
        name = _name(path, raw)
        if name not in sliced or part is None or values is None or slice_key(name, part) != entry.key:
            raise CorruptFile(f"{path}: the entry for tensor {short(name)} is none that the header lists")
        if entry.key in sliced[name].found:
            raise CorruptFile(f"{path}: a slice of tensor {short(name)} stands twice")
        sliced[name].found[entry.key] = (entry, values)


def _part_v1(table: Path, info: TensorInfo, item: _Sliced, part: Slice) -> tuple[Box, LazyTensor]:
    where = box(part, info.shape, table, info.name)
    place = item.found.pop(slice_key(info.name, part), None)
    if place is None:
        raise CorruptFile(f"{table}: a slice of tensor {short(info.name)} is not there, or is wanted twice")
    entry, values = place
    proto = tensor_proto(entry.data, values.start, values.stop, info.name)
    tensor = proto_tensor(entry.data.source, proto, TensorInfo(info.name, where.shape, info.dtype))

    def read(first: int, last: int) -> Rows:
        entry.block.verify()
        return tensor.rows(first, last)

    return where, tensor.derived(read=read)


# --------------------------------------------------------------------------------------------- frozen graphs


def sniff_graph(path: Path, start: bytes) -> bool:
    """A first field that is a node: its name, then its operation."""
    if start[:1] != b"\x0a" or path.is_dir():
        return False
    at = 1
    while at < len(start) and start[at] >= 0x80:
        at += 1
    at += 1
    if start[at : at + 1] != b"\x0a" or len(start) < at + 2:
        return False
    length = start[at + 1]
    after = at + 2 + length
    return length < 0x80 and start[at + 2 : at + 3] != b"\x0a" and start[after : after + 1] in (b"", b"\x12")


def open_graph(path: Path) -> Checkpoint:
    """The constants of a GraphDef and of its functions (`function/node`).

    Raises:
        CorruptFile, UnsupportedFeature, OutputError
    """
    mapped = open_bytes(path)
    try:
        tensors: dict[str, LazyTensor] = {}
        events: list[Event] = [Note("the graph is not converted, only its constants")]
        declared = 0
        seen: set[str] = set()
        data = Windows(mapped)
        for name, value in _constants(data):
            if name in seen:
                raise CorruptFile(f"{path}: two constants are called {short(name)}")
            seen.add(name)
            tensor = _constant(data, name, value, events)
            if tensor is None:
                continue
            declared += tensor.info.nbytes
            if expands_too_far(declared, mapped.size):
                raise CorruptFile(
                    f"{path}: tensor {short(name)} of {list(tensor.info.shape)} is far larger than the file"
                )
            tensors[name] = tensor
        if not seen:
            raise CorruptFile(f"{path}: a graph without constants; freeze it, or give the checkpoint of its variables")
    except BaseException:
        mapped.close()
        raise
    return Checkpoint(
        format="tf-graph",
        path=path,
        dialect=None,
        tensors=tensors,
        events=tuple(events),
        files=(path,),
        closers=(mapped.close,),
    )


def _constants(data: Windows) -> Iterator[tuple[str, Field]]:
    """The constants' names and where their TensorProtos are."""
    for top in fields(data, 0, data.size):
        if top.number == 1 and top.wire == BYTES:
            yield from _node(data, top, "")
        elif top.number == 2 and top.wire == BYTES:
            for function in fields(data, top.start, top.stop):
                if function.number == 1 and function.wire == BYTES:
                    yield from _function(data, function)
        elif (top.number, top.wire) not in ((2, BYTES), (3, VARINT), (4, BYTES), (5, BYTES)):
            raise CorruptFile(f"{data.path}: field {top.number} at offset {top.start} is none of a graph's")


def _function(data: Windows, function: Field) -> Iterator[tuple[str, Field]]:
    parts = list(fields(data, function.start, function.stop))
    signatures = [part for part in parts if part.number == 1 and part.wire == BYTES]
    names = [
        text(data, each) for part in signatures for each in fields(data, part.start, part.stop) if each.number == 1
    ]
    for part in parts:
        if part.number == 3 and part.wire == BYTES:
            yield from _node(data, part, f"{names[-1] if names else ''}/")


def _node(data: Windows, node: Field, prefix: str) -> Iterator[tuple[str, Field]]:
    name, operation = "", ""
    attributes: list[Field] = []
    for field in fields(data, node.start, node.stop):
        if field.number == 1:
            name = text(data, field)
        elif field.number == 2:
            operation = text(data, field)
        elif field.number == 5 and field.wire == BYTES:
            attributes.append(field)
    if operation != "Const":
        return
    values = [value for attribute in attributes for value in _tensor_values(data, attribute)]
    if len(values) != 1 or not name:
        raise CorruptFile(f"{data.path}: the constant {short(name)} has {len(values)} values")
    check_name(data.path, prefix + name)
    yield prefix + name, values[0]


def _tensor_values(data: Windows, attribute: Field) -> Iterator[Field]:
    """The tensor of an attribute that is called `value`."""
    parts = list(fields(data, attribute.start, attribute.stop))
    keys = (part for part in parts if part.number == 1 and part.stop - part.start == len(b"value"))
    if not any(bytes(data.at(key.start, len(b"value"), "a key")) == b"value" for key in keys):
        return
    for part in parts:
        if part.number == 2 and part.wire == BYTES:
            yield from (f for f in fields(data, part.start, part.stop) if f.number == 8 and f.wire == BYTES)


def _constant(data: Windows, name: str, value: Field, events: list[Event]) -> LazyTensor | None:
    proto = tensor_proto(data, value.start, value.stop, name)
    dtype = tensor_type(proto.type, data.path, name)
    if dtype is None:
        events.append(Note(f"{name}: holds {NO_NUMBERS[proto.type % 100]}, no numbers; left out"))
        return None
    return proto_tensor(data.source, proto, TensorInfo(name, proto.shape or (), dtype))


DTYPES = frozenset(dtype.name for dtype in TYPES.values())
