"""The structure of HDF5 files: object headers, groups, types, attributes. No C library, nothing executed.

Source: the HDF5 File Format Specification 3.0. What reaches out of the file (external links, external storage, virtual
datasets) is refused wherever it stands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from converter.errors import short
from converter.formats.base import MAX_AXES, check_elements, check_name
from converter.formats.hdf5.file import Cursor, Hdf5File
from converter.formats.hdf5.heap import FractalHeap, tree_records
from converter.tensors.dtypes import DTYPES, DType

# Messages of object headers that are read, by their numbers.
SPACE, LINK_INFO, TYPE, OLD_FILL, FILL, LINK, EXTERNAL, LAYOUT, FILTERS, ATTRIBUTE = 1, 2, 3, 4, 5, 6, 7, 8, 11, 12
CONTINUATION, SYMBOL_TABLE, ATTRIBUTE_INFO = 16, 17, 21
KNOWN = frozenset(range(0x18))
READ = frozenset((SPACE, LINK_INFO, TYPE, OLD_FILL, FILL, LINK, EXTERNAL, LAYOUT, FILTERS, ATTRIBUTE, SYMBOL_TABLE))
SHARED, MUST_KNOW = 1 << 1, 1 << 7
_SHARED = "it has committed types or shared messages; `h5repack` does not help, save it anew"

# size, exponent location and size, mantissa location and size, exponent bias -> our type
FLOATS = {
    (2, 10, 5, 0, 10, 15): "F16",
    (2, 7, 8, 0, 7, 127): "BF16",
    (4, 23, 8, 0, 23, 127): "F32",
    (8, 52, 11, 0, 52, 1023): "F64",
}
INTEGERS = {(size, signed): f"{'UI'[signed]}{8 * size}" for size in (1, 2, 4, 8) for signed in (False, True)}
BOOLEAN = (b"FALSE", b"TRUE")
HARD_LINK, SOFT_LINK, EXTERNAL_LINK = 0, 1, 64
LINKS_BY_NAME, ATTRIBUTES_BY_NAME = 5, 8  # records of version 2 B-trees

# ------------------------------------------------------------------------------------------------- object headers

Messages = dict[int, list[bytes]]


def object_header(file: Hdf5File, address: int) -> Messages:
    """The messages of an object by their number, in order.

    Raises:
        CorruptFile, UnsupportedFeature
    """
    found: Messages = {}
    start = file.at(address, 6, "an object header")
    newer = start[:4] == b"OHDR"
    if (start[4] != 2) if newer else (start[0] != 1):
        raise file.corrupt(f"no object header at {address}; the file is damaged")
    if newer:
        ordered = bool(start[5] & 4)
        blocks = [_first_block(file, address, start[5])]
    else:
        ordered = False
        blocks = [(address + 16, file.cursor(address + 8, 4, "an object header").uint(4), 0)]
    for where, size, skip in blocks:  # grows by continuations
        file.once("an object header", where)
        data = file.at(where, size, "an object header")
        data = file.checked(data, "an object header")[skip:] if newer else data
        for kind, body in _block(file, data, newer, ordered):
            if kind == CONTINUATION:
                fields = Cursor(file, body, "a continuation")
                more, length = fields.address(), fields.length()
                if more is None:
                    raise file.corrupt("an object header continues nowhere")
                if newer and file.at(more, 4, "an object header") != b"OCHK":
                    raise file.corrupt(f"an object header does not continue at {more}")
                blocks.append((more, length, 4))
            else:
                found.setdefault(kind, []).append(body)
    return found


def _first_block(file: Hdf5File, address: int, flags: int) -> tuple[int, int, int]:
    """Start of the block with its checksum, its size, and where its messages begin in it."""
    skip = 6 + (16 if flags & 32 else 0) + (4 if flags & 16 else 0)
    width = 1 << (flags & 3)
    size = file.cursor(address + skip, width, "an object header").uint(width)
    return address, skip + width + size + 4, skip + width


def _block(file: Hdf5File, data: bytes, newer: bool, ordered: bool) -> Iterator[tuple[int, bytes]]:
    fields = Cursor(file, data, "an object header")
    prefix = (4 + 2 * ordered) if newer else 8
    while fields.left >= prefix:
        kind = fields.uint(1 if newer else 2)
        size, flags = fields.uint(2), fields.uint(1)
        fields.take(prefix - 4 if newer else 3)
        body = fields.take(size)
        if kind not in KNOWN and flags & MUST_KNOW:
            raise file.unsupported(f"an object header has message {kind}, which is unknown")
        if flags & SHARED and kind in READ:
            raise file.unsupported(_SHARED)
        yield kind, body


# ------------------------------------------------------------------------------------------------- groups


@dataclass(frozen=True)
class Link:
    """A name in a group: an object's address, or the path a soft link has; `order` counts where the file does."""

    name: str
    address: int | None
    soft: str | None = None
    order: int = 0


def links(file: Hdf5File, messages: Messages) -> list[Link]:
    """What a group holds, in the order of the file; names are unique and plain.

    Raises:
        CorruptFile, UnsupportedFeature
    """
    found = [_link(file, Cursor(file, body, "a link")) for body in messages.get(LINK, [])]
    for body in messages.get(LINK_INFO, []):
        bodies = (body for body, _ in _dense(file, body, "links", LINKS_BY_NAME, 8))
        found += sorted((_link(file, Cursor(file, each, "a link")) for each in bodies), key=_in_order)
    for body in messages.get(SYMBOL_TABLE, []):
        fields = Cursor(file, body, "a symbol table")
        tree, heap = fields.address(), fields.address()
        found += _symbols(file, tree, _local_heap(file, heap))
    names = set()
    for link in found:
        if link.name in names or link.name in ("", ".", "..") or "/" in link.name:
            raise file.corrupt(f"the link {short(link.name)} stands twice or is no plain name")
        check_name(file.path, link.name)
        names.add(link.name)
    return found


def _in_order(link: Link) -> tuple[int, str]:
    return link.order, link.name


def _dense(file: Hdf5File, body: bytes, what: str, kind: int, width: int) -> Iterator[tuple[bytes, bytes]]:
    """Messages that lie in a fractal heap, with their records in the tree of their names; none if there is no heap.

    `body` is the information message, `kind` that of the records, `width` the bytes of a count of the objects.
    """
    fields = Cursor(file, body, f"information on {what}")
    version, flags = fields.uint(1), fields.uint(1)
    if version:
        raise file.unsupported(f"information on {what} has version {version}; 0 can be read")
    fields.take(width if flags & 1 else 0)
    heap_address, tree = fields.address(), fields.address()
    if heap_address is None:
        return
    heap = FractalHeap(file, heap_address)
    start = 4 if kind == LINKS_BY_NAME else 0  # the hash of the name stands before
    for record in tree_records(file, tree, kind, heap.id_width + (4 if kind == LINKS_BY_NAME else 9)):
        yield heap.object(record[start : start + heap.id_width]), record


def _link(file: Hdf5File, fields: Cursor) -> Link:
    version, flags = fields.uint(1), fields.uint(1)
    if version != 1:
        raise file.unsupported(f"a link has version {version}; 1 can be read")
    kind = fields.uint(1) if flags & 8 else HARD_LINK
    order = fields.uint(8) if flags & 4 else 0
    fields.take(1 if flags & 16 else 0)
    name = text(file, fields.take(fields.uint(1 << (flags & 3))))
    if kind == HARD_LINK:
        return Link(name, fields.address(), None, order)
    if kind == SOFT_LINK:
        return Link(name, None, text(file, fields.take(fields.uint(2))), order)
    what = "leads to another file" if kind == EXTERNAL_LINK else f"is of kind {kind}"
    raise file.unsupported(f"the link {short(name)} {what}; that is not followed")


def text(file: Hdf5File, raw: bytes) -> str:
    """UTF-8, up to the first NUL."""
    try:
        return raw.split(b"\0", 1)[0].decode("utf-8")
    except UnicodeDecodeError:
        raise file.corrupt(f"the text {short(raw)} is not UTF-8") from None


def _local_heap(file: Hdf5File, address: int | None) -> bytes:
    fields = file.cursor(address, 8 + 2 * file.length_width + file.offset_width, "a local heap")
    if fields.take(8) != b"HEAP\0\0\0\0":
        raise file.corrupt(f"the local heap at {address} is damaged")
    size, _, data = fields.length(), fields.length(), fields.address()
    if data is not None:
        file.once("a local heap", data)
    return file.at(data, size, "a local heap")


def tree_nodes(file: Hdf5File, address: int | None, kind: int, key_width: int) -> Iterator[tuple[bytes, int]]:
    """The leaves' keys and children of a version 1 B-tree, from left to right."""
    stack: list[tuple[int | None, int | None]] = [(address, None)]
    while stack:
        where, expected = stack.pop()
        fields = file.cursor(where, 8 + 2 * file.offset_width, "a B-tree")
        magic, this, level, used = fields.take(4), fields.uint(1), fields.uint(1), fields.uint(2)
        if magic != b"TREE" or this != kind or expected not in (None, level):
            raise file.corrupt(f"the B-tree at {where} is damaged")
        assert where is not None  # `cursor` refuses it
        file.once("a B-tree", where)
        body = file.cursor(where + 8 + 2 * file.offset_width, used * (key_width + file.offset_width), "a B-tree")
        below = []
        for _ in range(used):
            key, child = body.take(key_width), body.address()
            if child is None:
                raise file.corrupt(f"the B-tree at {where} has a child without address")
            if level == 0:
                yield key, child
            below.append((child, level - 1))
        if level:
            stack += reversed(below)


def _symbols(file: Hdf5File, tree: int | None, heap: bytes) -> Iterator[Link]:
    width = 2 * file.offset_width + 24
    for _, address in tree_nodes(file, tree, 0, file.length_width):
        head = file.cursor(address, 8, "a symbol node")
        if head.take(6) != b"SNOD\1\0":
            raise file.corrupt(f"the symbol node at {address} is damaged")
        file.once("a symbol node", address)
        count = head.uint(2)
        fields = file.cursor(address + 8, count * width, "a symbol node")
        for _ in range(count):
            name, target, cached = fields.uint(file.offset_width), fields.address(), fields.uint(4)
            scratch = fields.take(20)
            soft = _heap_text(file, heap, int.from_bytes(scratch[4:8], "little")) if cached == 2 else None
            yield Link(_heap_text(file, heap, name), None if cached == 2 else target, soft)


def _heap_text(file: Hdf5File, heap: bytes, offset: int) -> str:
    end = heap.find(b"\0", offset)
    if offset >= len(heap) or end < 0:
        raise file.corrupt(f"a name lies at {offset} of a local heap of {len(heap)} bytes")
    return text(file, heap[offset:end])


# ------------------------------------------------------------------------------------------------- types and spaces


@dataclass(frozen=True)
class Type:
    """An element: `size` bytes, `dtype` where it is a plain number, and how its text is stored where it is text."""

    size: int
    label: str
    dtype: DType | None = None
    swapped: bool = False
    text: bool = False
    variable: bool = False
    opaque: bool = False


def datatype(file: Hdf5File, fields: Cursor) -> Type:
    """A datatype message.

    Raises:
        CorruptFile: cut off, or of size 0.
    """
    first, bits, size = fields.uint(1), fields.uint(3), fields.uint(4)
    kind, version = first & 15, first >> 4
    if not size or not 1 <= version <= 5:
        raise file.corrupt(f"a type of class {kind}, version {version} and {size} bytes")
    swapped = bool(bits & 1) and size > 1
    if kind == 0:
        offset, precision = fields.uint(2), fields.uint(2)
        name = INTEGERS.get((size, bool(bits & 8))) if (offset, precision) == (0, 8 * size) else None
        return Type(size, f"{size}-byte integers", DTYPES[name] if name else None, swapped)
    if kind == 1:
        return _float(fields, bits, size, swapped)
    if kind == 3:
        return Type(size, "text", text=True)
    if kind == 5:
        return Type(size, "opaque bytes", opaque=True)
    if kind == 8:
        return _enumeration(file, fields, bits & 0xFFFF, version)
    if kind == 9:
        return Type(size, "text" if bits & 15 == 1 else "lists", text=bits & 15 == 1, variable=True)
    names = {2: "times", 4: "bit fields", 6: "records", 7: "references", 10: "arrays"}
    return Type(size, names.get(kind, f"class {kind}"))


def _float(fields: Cursor, bits: int, size: int, swapped: bool) -> Type:
    offset, precision = fields.uint(2), fields.uint(2)
    shape = (size, fields.uint(1), fields.uint(1), fields.uint(1), fields.uint(1), fields.uint(4))
    # little- or big-endian, the highest bit of the mantissa implied, the sign on top
    plain = (offset, precision, bits & ~1) == (0, 8 * size, 0x20 | (8 * size - 1) << 8)
    name = FLOATS.get(shape) if plain else None
    return Type(size, f"{size}-byte floats", DTYPES[name] if name else None, swapped)


def _enumeration(file: Hdf5File, fields: Cursor, count: int, version: int) -> Type:
    """Its base type; BOOL where the names are h5py's for truth values."""
    if fields.left and fields.data[fields.position] & 15:
        raise file.corrupt("an enumeration of something that is no integer")
    base = datatype(file, fields)
    names = []
    for _ in range(count):
        end = fields.data.find(b"\0", fields.position)
        if end < 0:
            raise file.corrupt("an enumeration is cut off")
        name = fields.take(end + 1 - fields.position)[:-1]
        fields.take(-(len(name) + 1) % 8 if version < 3 else 0)
        names.append(name)
    values = fields.take(count * base.size)
    if tuple(names) == BOOLEAN and base.size == 1 and values == b"\0\1":
        return Type(1, "truth values", DTYPES["BOOL"])
    return base


def dataspace(file: Hdf5File, fields: Cursor) -> tuple[int, ...] | None:
    """A shape, None for the null space.

    Raises:
        CorruptFile, UnsupportedFeature
    """
    return extents(file, fields)[0]


def extents(file: Hdf5File, fields: Cursor) -> tuple[tuple[int, ...] | None, tuple[int | None, ...]]:
    """A shape, None for the null space, and the sizes it may grow to, None where there is no limit.

    Raises:
        CorruptFile, UnsupportedFeature
    """
    version, rank, flags = fields.uint(1), fields.uint(1), fields.uint(1)
    if version not in (1, 2):
        raise file.unsupported(f"a dataspace has version {version}; 1 and 2 can be read")
    kind = fields.uint(1)
    fields.take(4 if version == 1 else 0)
    if rank > MAX_AXES or flags & 2:
        raise file.corrupt(f"a dataspace of {rank} axes")
    shape = tuple(fields.length() for _ in range(rank))
    unlimited = (1 << 8 * file.length_width) - 1
    most = tuple(fields.length() for _ in range(rank)) if flags & 1 else shape
    if any(size > limit for size, limit in zip(shape, most, strict=True)):
        raise file.corrupt(f"a dataspace of {list(shape[:8])} that may have {list(most[:8])} at most")
    limits = tuple(None if size == unlimited else size for size in most)
    return (None if version == 2 and kind == 2 else shape), limits


# ------------------------------------------------------------------------------------------------- attributes

Value = str | int | float | bool | list[str] | list[int] | list[float] | list[bool]


@dataclass(frozen=True)
class Attributes:
    """Those of one object that are text or numbers; `left` counts the others."""

    values: dict[str, Value]
    left: int

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        return value if isinstance(value, str) else None


def as_text(value: Value) -> str:
    """An attribute as metadata: texts as they are, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def attributes(file: Hdf5File, messages: Messages) -> Attributes:
    """What is attached to an object.

    Raises:
        CorruptFile, UnsupportedFeature
    """
    values: dict[str, Value] = {}
    left = 0
    bodies = list(messages.get(ATTRIBUTE, []))
    for information in messages.get(ATTRIBUTE_INFO, []):
        bodies += _dense_attributes(file, information)
    for body in bodies:
        file.count_text(len(body))
        name, value = _attribute(file, Cursor(file, body, "an attribute"))
        check_name(file.path, name)
        if name in values:
            raise file.corrupt(f"the attribute {short(name)} stands twice")
        if value is None:
            left += 1
        else:
            values[name] = value
    return Attributes(values, left)


def _dense_attributes(file: Hdf5File, information: bytes) -> list[bytes]:
    """Attributes in a fractal heap, in the order they were made where the file counts them."""
    found = []
    for body, record in _dense(file, information, "attributes", ATTRIBUTES_BY_NAME, 2):
        if record[-9] & SHARED:
            raise file.unsupported(_SHARED)
        found.append((int.from_bytes(record[-8:-4], "little"), body))
    return [body for _, body in sorted(found)]


def _attribute(file: Hdf5File, fields: Cursor) -> tuple[str, Value | None]:
    version, flags = fields.uint(1), fields.uint(1)
    if version not in (1, 2, 3) or (version > 1 and flags & 3):
        raise file.unsupported(f"an attribute has version {version} and flags {flags}")
    sizes = [fields.uint(2) for _ in range(3)]
    fields.take(1 if version == 3 else 0)
    parts = []
    for size in sizes:
        parts.append(fields.take(size))
        fields.take(-size % 8 if version == 1 else 0)
    name = text(file, parts[0])
    what = f"the attribute {short(name)}"
    kind, shape = datatype(file, Cursor(file, parts[1], what)), dataspace(file, Cursor(file, parts[2], what))
    if shape is None:
        return name, None
    check_elements(file.path, name, shape)
    count = math.prod(shape)
    if count * kind.size > fields.left:
        raise file.corrupt(f"{what} is cut off")
    elements = [fields.take(kind.size) for _ in range(count)]
    return name, _value(file, kind, shape, elements)


def _value(file: Hdf5File, kind: Type, shape: tuple[int, ...], elements: list[bytes]) -> Value | None:
    if kind.text:
        texts = [_element_text(file, kind, element) for element in elements]
        return texts if shape else texts[0]
    if kind.dtype is None or kind.dtype.numpy is None:
        return [] if not elements else None
    array = np.frombuffer(b"".join(elements), kind.dtype.numpy)
    listed: list[int] | list[float] = (array.byteswap() if kind.swapped else array).tolist()
    return listed if shape else listed[0]


def _element_text(file: Hdf5File, kind: Type, element: bytes) -> str:
    if not kind.variable:
        return text(file, element)
    fields = Cursor(file, element, "a string")
    length, address, index = fields.uint(4), fields.address(), fields.uint(4)
    if not length:
        return ""
    if address is None:
        raise file.corrupt("a string has no address")
    file.count_text(length)
    data = file.heap_object(address, index)
    if length > len(data):
        raise file.corrupt(f"a string of {length} bytes lies in an object of {len(data)}")
    return text(file, data[:length])
