"""GGUF versions 2 and 3, single files and `-00001-of-0000N` sets.

Source: the GGUF specification (docs/gguf.md of ggml) and the checks of its reference reader. Sizes are computed
in unbounded integers and compared with the file before anything is made of them. GGUF's reversed axis order
exists only in this file.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter import _native
from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, MissingPart, QuantizationError, UnsupportedFeature, UsageError, short
from converter.formats.base import Format, WriteOptions, check_elements, check_name, child, split_evenly
from converter.metadata import ARRAY_GGUF, TYPES, Array, Metadata, Strings, Value, number_of, text_or_bytes
from converter.metadata import BY_GGUF as VALUE_TYPES
from converter.storage.files import Bytes, extent_of, open_bytes
from converter.storage.layout import FileLayout, Layout, Slot
from converter.storage.windows import WINDOW, Cursor
from converter.tensors.dtypes import BY_GGUF, DType
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
MAX_NESTING = 4
MAX_DIMS = 4
MAX_NAME = 64  # with the NUL, as llama.cpp is compiled; others (stable-diffusion.cpp) write longer ones
MAX_NAME_READ = 1024
MAX_KEY = 65535
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
ARCHITECTURE = "general.architecture"
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
MAX_SHARDS = 65535  # split.count is a u16
REMOVED = frozenset((4, 5, 31, 32, 33, 36, 37, 38))

_STEP = 1 << 12  # texts of an array that are looked for at once
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class _Reader(Cursor):
    """A cursor that knows GGUF's texts."""

    def string(self, what: str) -> str | bytes:
        return text_or_bytes(bytes(self.take(self.u64(what), what)))

    def name(self, what: str, longest: int) -> str:
        """A key or a tensor's name."""
        text = self.string(what)
        if not isinstance(text, str):
            raise CorruptFile(f"{self.path}: {what} {short(text)} is not UTF-8")
        if not 0 < len(text.encode()) <= longest:
            raise CorruptFile(f"{self.path}: {what} {short(text)} is not of 1 to {longest} bytes")
        check_name(self.path, text)
        return text

    def strings(self, count: int, what: str) -> Strings:
        """An array of texts, whose end nobody knows before it is reached.

        Every text that is left takes 8 bytes at least, so as many can be asked for without leaving the header.
        """
        begin, left, longest = self.position, count, 0
        while left:
            window = self.ahead(WINDOW + 8 * left + longest, what)
            end, whole = _fitting(window, left)
            if not whole and len(window) == self.left:
                self.skip(self.left + 1, what)  # raises: it is cut off
            longest = 0 if whole else _U64.unpack_from(window)[0]
            self.skip(end, what)
            left -= whole
        size, self.position = self.position - begin, begin
        raw = self.ahead(size, what)
        self.skip(size, what)
        return Strings(raw, count)


def _fitting(window: memoryview, count: int) -> tuple[int, int]:
    """Where in `window` the last of the next `count` texts ends that are there as a whole, and how many these are."""
    end, whole, step = 0, 0, _STEP
    while step:
        stop = _native.skip_strings(window, end, step) if whole + step <= count else -1
        if stop >= 0:
            end, whole = stop, whole + step
        else:
            step //= 2
    return end, whole


@dataclass(frozen=True)
class _Entry:
    info: TensorInfo
    offset: int


@dataclass(frozen=True)
class _Part:
    """One file of a set."""

    mapped: Bytes
    metadata: Metadata
    tensors: dict[str, LazyTensor]


def sniff(path: Path, start: bytes) -> bool:
    """The magic."""
    return start[:4] == MAGIC


def open_gguf(path: Path) -> Checkpoint:
    """A single file, or any member of a split set, opened as one.

    Raises:
        CorruptFile, MissingPart, UnsupportedFeature, OutputError
    """
    parts = [_read(path)]
    try:
        count = _split(parts[0], "split.count", 1)
        if count < 2 and _split(parts[0], "split.no", 0):
            raise CorruptFile(f"{path}: split.no and split.count make no sense")
        if count > 1:
            parts += _others(path, parts[0], count)
            parts.sort(key=lambda part: _split(part, "split.no", 0))
        tensors, owner = dict[str, LazyTensor](), dict[str, str]()
        for part in parts:
            if part is not parts[0]:  # which a NaN among its values would make unlike itself
                _check_agreement(parts[0], part)
            for twice in part.tensors.keys() & tensors.keys():
                raise CorruptFile(f"{part.mapped.path}: tensor {short(twice)} is also in {owner[twice]}")
            tensors.update(part.tensors)
            owner.update(dict.fromkeys(part.tensors, part.mapped.path.name))
        total = _split(parts[0], "split.tensors.count", len(tensors))
        if count != 1 and total != len(tensors):  # 0: a set that llama.cpp's gguf-split has merged
            raise CorruptFile(f"{parts[0].mapped.path}: the set should hold {total} tensors, it holds {len(tensors)}")
    except BaseException:
        for part in parts:
            part.mapped.close()
        raise
    return Checkpoint(
        format="gguf",
        path=path,
        dialect="gguf",
        tensors=tensors,
        config={key: value for key, value in parts[0].metadata.items() if key not in SPLIT_KEYS},
        files=tuple(part.mapped.path for part in parts),
        closers=tuple(part.mapped.close for part in parts),
    )


def open_file(path: Path) -> Checkpoint:
    """One file alone, with everything that it says, be it a shard or not.

    Raises:
        CorruptFile, UnsupportedFeature, OutputError
    """
    part = _read(path)
    return Checkpoint(
        "gguf", path, "gguf", part.tensors, part.metadata, files=(path,), closers=(part.mapped.close,)
    )  # fmt: skip


def file_layout(checkpoint: Checkpoint, target: Path) -> Layout:
    """One file with everything that `open_file` found in another.

    Raises:
        CorruptFile: its alignment makes no sense.
    """
    metadata: Metadata = dict(checkpoint.config)
    alignment = _alignment(target, metadata)
    return Layout((_file(target, metadata, list(checkpoint.tensors.values()), alignment),))


def _check_agreement(first: _Part, part: _Part) -> None:
    """Refuse shards of different models: what two of them say they must say alike. Most say nothing but the first.

    Raises:
        CorruptFile: as said; it names both.
    """
    unlike = [key for key in part.metadata.keys() & first.metadata.keys() if part.metadata[key] != first.metadata[key]]
    unlike += [key for key in (ARCHITECTURE,) if key in part.metadata and key not in first.metadata]
    for key in sorted(set(unlike) - {"split.no"}):
        here, there = (_shown(each.metadata.get(key)) for each in (part, first))
        raise CorruptFile(
            f"{part.mapped.path}: its {key} is {here}, that of {first.mapped.path.name} {there}\n"
            "they are shards of different models, or of different downloads; get all of them from one place"
        )


def _shown(value: Value | Array | None) -> str:
    return "not there" if value is None else short(value.value) if isinstance(value, Value) else f"{len(value)} values"


def _split(part: _Part, key: str, default: int) -> int:
    if key not in part.metadata:
        return default
    value = number_of(part.metadata, key)
    if value is None or value < 0:
        raise CorruptFile(f"{part.mapped.path}: {key} is not a number")
    return value


def _others(path: Path, first: _Part, count: int) -> list[_Part]:
    match = SHARD.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise MissingPart(f"{path}: one of {count} shards, which should be named NAME-00001-of-{count:05d}.gguf")
    parts: list[_Part] = []
    try:
        for number in range(count):
            sibling = path.with_name(f"{match['stem']}-{number + 1:05d}-of-{count:05d}.gguf")
            part = first
            if sibling.name != path.name:
                child(path.parent, sibling.name, path)
                if not sibling.is_file():
                    raise MissingPart(f"{sibling}: this shard of the set is not there; download it too")
                parts.append(part := _read(sibling))
            if _split(part, "split.no", -1) != number or _split(part, "split.count", -1) != count:
                says = f"does not say that it is shard {number + 1} of {count}"
                raise CorruptFile(f"{sibling}: {says}, as {path.name if part is not first else 'its name'} has it")
    except BaseException:
        for part in parts:
            part.mapped.close()
        raise
    return parts


def _read(path: Path) -> _Part:
    mapped = open_bytes(path)
    try:
        cursor = _Reader(mapped)
        n_tensors, n_pairs = _header(cursor)
        metadata: Metadata = {}
        for _ in range(n_pairs):
            key = cursor.name("a metadata key", MAX_KEY)
            if key in metadata:
                raise CorruptFile(f"{path}: metadata key {short(key)} stands twice")
            metadata[key] = _value(cursor, cursor.u32(f"the type of {short(key)}"), key, 0)
        alignment = _alignment(path, metadata)
        entries = [_entry(cursor) for _ in range(n_tensors)]
        start = -(-cursor.position // alignment) * alignment
        _check_entries(path, entries, alignment, mapped.size - start)
        mapped.forward(start + entry.offset for entry in entries)
        tensors = {entry.info.name: _tensor(mapped, entry, start) for entry in entries}
        if len(tensors) != len(entries):
            raise CorruptFile(f"{path}: two tensors have the same name")
        return _Part(mapped, metadata, tensors)
    except BaseException:
        mapped.close()
        raise


def _header(cursor: _Reader) -> tuple[int, int]:
    if bytes(cursor.take(4, "the magic")) != MAGIC:
        raise CorruptFile(f"{cursor.path}: not a GGUF file")
    version = cursor.u32("the version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        reason = "big-endian files are not supported" if swapped in (2, 3) else "versions 2 and 3 can be read"
        raise UnsupportedFeature(f"{cursor.path}: GGUF version {version}; {reason}")
    n_tensors = cursor.count(8 + 4 + 4 + 8, "the number of tensors")
    return n_tensors, cursor.count(8 + 4 + 1, "the number of metadata keys")


def _value(cursor: _Reader, code: int, key: str, depth: int) -> Value | Array:
    if code == ARRAY_GGUF:
        return _array(cursor, key, depth)
    kind = VALUE_TYPES.get(code)
    if kind is None:
        raise CorruptFile(f"{cursor.path}: metadata {short(key)} has unknown type {code}")
    if kind.name == "str":
        return Value("str", cursor.string(f"metadata {short(key)}"))
    data = cursor.take(kind.size, f"metadata {short(key)}")
    if kind.name == "bool" and data[0] > 1:
        raise CorruptFile(f"{cursor.path}: metadata {short(key)} is a bool of value {data[0]}")
    return Value(kind.name, struct.unpack(kind.struct, data)[0])


def _array(cursor: _Reader, key: str, depth: int) -> Array:
    what = f"metadata {short(key)}"
    code = cursor.u32(f"the element type of {what}")
    if code == ARRAY_GGUF:
        if depth >= MAX_NESTING:
            raise CorruptFile(f"{cursor.path}: {what} is nested too deeply")
        count = cursor.count(4 + 8, f"the length of {what}")
        return Array("array", [_array(cursor, key, depth + 1) for _ in range(count)])
    kind = VALUE_TYPES.get(code)
    if kind is None:
        raise CorruptFile(f"{cursor.path}: {what} has unknown element type {code}")
    count = cursor.count(kind.size or 8, f"the length of {what}")
    if kind.name == "str":
        return Array("str", cursor.strings(count, what))
    data = np.frombuffer(cursor.take(count * kind.size, what), np.uint8)
    if kind.name == "bool" and bool((data > 1).any()):
        raise CorruptFile(f"{cursor.path}: {what} has a bool that is neither 0 nor 1")
    return Array(kind.name, data.view(np.dtype(kind.struct)))


def _alignment(path: Path, metadata: Metadata) -> int:
    if "general.alignment" not in metadata:
        return ALIGNMENT
    value = number_of(metadata, "general.alignment", "u32")
    if value is None:
        raise CorruptFile(f"{path}: general.alignment is not a u32")
    if value <= 0 or value & (value - 1):
        raise CorruptFile(f"{path}: general.alignment is {value}, not a power of two")
    return value


def _entry(cursor: _Reader) -> _Entry:
    name = cursor.name("a tensor name", MAX_NAME_READ)
    what = f"tensor {short(name)}"
    n_dims = cursor.u32(what)
    if n_dims > MAX_DIMS:
        raise CorruptFile(f"{cursor.path}: {what} has {n_dims} axes, at most {MAX_DIMS} are possible")
    shape = tuple(reversed([cursor.u64(what) for _ in range(n_dims)]))
    dtype = _dtype(cursor.path, what, cursor.u32(what))
    check_elements(cursor.path, name, shape)
    info = TensorInfo(name, shape, dtype)
    try:
        info.nbytes  # noqa: B018 - raises where the row does not divide
    except QuantizationError as error:
        raise CorruptFile(f"{cursor.path}: {what}: {error}") from None
    return _Entry(info, cursor.u64(what))


def _dtype(path: Path, what: str, code: int) -> DType:
    dtype = BY_GGUF.get(code)
    if dtype is None:
        reason = "which ggml has removed" if code in REMOVED else "which is unknown"
        raise UnsupportedFeature(f"{path}: {what} has type {code}, {reason}")
    return dtype


def _check_entries(path: Path, entries: list[_Entry], alignment: int, available: int) -> None:
    """Every tensor aligned, inside the file, after the one before it; only padding between them and after the last."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.info.nbytes)):
        name, nbytes = entry.info.name, entry.info.nbytes
        if entry.offset % alignment:
            raise CorruptFile(f"{path}: tensor {short(name)} at offset {entry.offset} is not aligned to {alignment}")
        if entry.offset + nbytes > available:
            raise CorruptFile(
                f"{path}: tensor {short(name)} needs bytes {entry.offset} to {entry.offset + nbytes} of the data, "
                f"the file has {max(available, 0)}\nthe file is truncated; download it again"
            )
        if entry.offset != end:
            relation = "overlaps" if entry.offset < end else "leaves a hole after"
            raise CorruptFile(f"{path}: tensor {short(name)} at offset {entry.offset} {relation} the one before it")
        end = -(-(entry.offset + nbytes) // alignment) * alignment
    if available > end:
        raise CorruptFile(
            f"{path}: {available - end} bytes follow the last tensor\n"
            "something was appended to the file, or its header is damaged; download it again"
        )


def _tensor(mapped: Bytes, entry: _Entry, start: int) -> LazyTensor:
    offset, row_nbytes = start + entry.offset, entry.info.row_nbytes

    def read(first: int, last: int) -> Rows:
        data = mapped.view(offset + first * row_nbytes, (last - first) * row_nbytes, f"tensor {short(entry.info.name)}")
        return data.reshape(last - first, row_nbytes)

    return LazyTensor(entry.info, read, f"{mapped.path}@{offset}", extent=extent_of(mapped, offset))


def layout(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """GGUF v3: metadata in the first file, tensors in the order given, aligned to `general.alignment`.

    Raises:
        UnsupportedFeature: a tensor GGUF cannot hold.
    """
    tensors = list(checkpoint.tensors.values())
    for tensor in tensors:
        _check_writable(target, tensor)
    metadata: Metadata = dict(checkpoint.config)
    alignment = _alignment(target, metadata)
    shards = split_evenly([tensor.info.nbytes for tensor in tensors], options)
    if len(shards) == 1:
        return Layout((_file(target, metadata, tensors, alignment),))
    return _shards(target, metadata, [[tensors[index] for index in indices] for indices in shards], SPLIT_KEYS)


def split_layout(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """The shards that llama.cpp's gguf-split makes of a file, byte for byte.

    They differ from those of its converter and its quantizer, which are `layout`'s: padding counts for a shard's size,
    the number of shards is said last, and there may be one alone.

    Raises:
        UnsupportedFeature: a tensor GGUF cannot hold.
        UsageError: a limit that is not positive, or that makes too many shards.
    """
    tensors = list(checkpoint.tensors.values())
    for tensor in tensors:
        _check_writable(target, tensor)
    shards = split_evenly([-(-tensor.info.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors], options)
    number, count, total = SPLIT_KEYS
    grouped = [[tensors[index] for index in indices] for indices in shards]
    return _shards(target, dict(checkpoint.config), grouped, (number, total, count))


def _shards(target: Path, metadata: Metadata, shards: list[list[LazyTensor]], keys: tuple[str, ...]) -> Layout:
    """A file for each of `shards`; what they say of the set, in the order of `keys`, follows all else in the first."""
    count = len(shards)
    if count > MAX_SHARDS:
        raise UsageError(f"{target}: {count:,} shards are more than GGUF can number, {MAX_SHARDS:,}; allow larger ones")
    alignment, files = _alignment(target, metadata), []
    for number, tensors in enumerate(shards):
        said = {
            "split.no": Value("u16", number),
            "split.count": Value("u16", count),
            "split.tensors.count": Value("i32", sum(map(len, shards))),
        }
        own = {**(metadata if number == 0 else {}), **{key: said[key] for key in keys}}
        path = target.with_name(f"{target.stem}-{number + 1:05d}-of-{count:05d}.gguf")
        files.append(_file(path, own, tensors, alignment if number == 0 else ALIGNMENT))
    return Layout(tuple(files))


def _check_writable(target: Path, tensor: LazyTensor) -> None:
    info = tensor.info
    if info.dtype.gguf is None:
        raise UnsupportedFeature(f"{target}: tensor {short(info.name)} is {info.dtype}, which GGUF cannot hold")
    if len(info.shape) > MAX_DIMS or len(info.name.encode()) >= MAX_NAME:
        raise UnsupportedFeature(
            f"{target}: tensor {short(info.name)} {list(info.shape)}: GGUF holds names of up to {MAX_NAME - 1} bytes "
            f"and {MAX_DIMS} axes"
        )


def _file(path: Path, metadata: Metadata, tensors: list[LazyTensor], alignment: int) -> FileLayout:
    header = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        _put_string(header, key)
        _put_value(header, value)
    offset, offsets = 0, []
    for tensor in tensors:
        shape = tensor.info.shape or (1,)
        _put_string(header, tensor.name)
        header += struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), tensor.info.dtype.gguf, offset)
        offsets.append(offset)
        offset += -(-tensor.info.nbytes // alignment) * alignment
    header += bytes(-len(header) % alignment)
    slots = tuple(Slot(len(header) + start, tensor) for start, tensor in zip(offsets, tensors, strict=True))
    return FileLayout(path, header, slots, len(header) + offset)


def value_bytes(value: Value | Array) -> bytes:
    """A value as a header has it, its type in front."""
    out = bytearray()
    _put_value(out, value)
    return bytes(out)


def _put_string(out: bytearray, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    out += _U64.pack(len(data))
    out += data


def _put_value(out: bytearray, value: Value | Array) -> None:
    if isinstance(value, Array):
        out += _U32.pack(ARRAY_GGUF)
        _put_array(out, value)
    elif value.type == "str":
        out += _U32.pack(TYPES["str"].gguf)
        assert isinstance(value.value, str | bytes)
        _put_string(out, value.value)
    else:
        kind = TYPES[value.type]
        out += _U32.pack(kind.gguf) + struct.pack(kind.struct, value.value)


def _put_array(out: bytearray, array: Array) -> None:
    code = ARRAY_GGUF if array.type == "array" else TYPES[array.type].gguf
    out += struct.pack("<IQ", code, len(array))
    if isinstance(array.values, Strings):
        out += array.values.raw
    elif array.type in ("str", "array"):
        for item in array.values:
            if isinstance(item, Array):
                _put_array(out, item)
            else:
                assert isinstance(item, str | bytes)
                _put_string(out, item)
    else:
        out += np.asarray(array.values, TYPES[array.type].struct).tobytes()


FORMATS = (
    Format(
        name="gguf",
        extensions=(".gguf",),
        dialect="gguf",
        description="GGUF file of ggml and llama.cpp (v2 and v3 in, v3 out), single or split",
        dtypes=frozenset(dtype.name for dtype in BY_GGUF.values()),
        sniff=sniff,
        open=open_gguf,
        layout=layout,
        shards=True,
    ),
)
