"""HDF5 out: groups of links, contiguous datasets, attributes of text; as libraries since 1.8 read them.

Source: the HDF5 File Format Specification 3.0. Version 2 of superblock and object headers, with their checksums. All
that describes stands before the values, which are aligned for mapping.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import UnsupportedFeature, short
from converter.formats.base import WriteOptions
from converter.formats.hdf5.file import SIGNATURE, lookup3
from converter.formats.hdf5.names import LAYER_NAMES, WEIGHT_NAMES, keras_paths, layer_groups, listed_weights, names_in
from converter.formats.hdf5.reader import (
    ATTRIBUTE,
    FILL,
    LAYOUT,
    LINK,
    LINK_INFO,
    SPACE,
    TYPE,
)
from converter.storage.layout import FileLayout, Layout, Slot
from converter.tensors.tensor import LazyTensor

ALIGNMENT = 64
MAX_AXES = 32  # of the library
MAX_NAME = 0x7FFF  # bytes; messages have at most 64 KiB
MAX_DEPTH = 128  # of groups in groups; the reader takes no more
MAX_LIST = 64512  # bytes of names in one attribute, as Keras has it: less than the 64 KiB of a message
MAX_TEXTS = 0xFFFF - 1  # objects of a global heap
UNDEFINED = bytes([255] * 8)
GROUP_INFO = 10
SUPERBLOCK_NBYTES = 48
# Keras' way for what HDF5 has no type for: opaque bytes, whose attribute `dtype` names them.
OPAQUE = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
_OPAQUE_NAMES = {ours: theirs for theirs, ours in OPAQUE.items()}
# exponent location and size, mantissa size, bias
_FLOATS = {"F16": (10, 5, 10, 15), "F32": (23, 8, 23, 127), "F64": (52, 11, 52, 1023)}
_INTEGERS = tuple(f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64))
WRITTEN = (*_FLOATS, *_INTEGERS, "BOOL", *OPAQUE.values())


def _u(value: int, nbytes: int) -> bytes:
    return value.to_bytes(nbytes, "little")


def _type(name: str, size: int) -> bytes:
    """The datatype message of one of `WRITTEN`."""
    if name in _FLOATS:
        location, exponent, mantissa, bias = _FLOATS[name]
        bits = _u(0x20 | (8 * size - 1) << 8, 3)
        parts = bytes((location, exponent, 0, mantissa))
        return b"\x11" + bits + _u(size, 4) + _u(0, 2) + _u(8 * size, 2) + parts + _u(bias, 4)
    if name in _OPAQUE_NAMES:
        return b"\x15" + _u(0, 3) + _u(size, 4)
    if name == "BOOL":  # as h5py writes it
        return b"\x38" + _u(2, 3) + _u(1, 4) + _type("I8", 1) + b"FALSE\0TRUE\0" + b"\0\1"
    return b"\x10" + _u(8 if name[0] == "I" else 0, 3) + _u(size, 4) + _u(0, 2) + _u(8 * size, 2)


def _space(shape: tuple[int, ...]) -> bytes:
    return bytes((2, len(shape), 0, 1 if shape else 0)) + b"".join(_u(size, 8) for size in shape)


# One text of variable length, in UTF-8.
_TEXT_TYPE = b"\x19" + _u(1 | 1 << 8, 3) + _u(16, 4) + b"\x10" + _u(0, 3) + _u(1, 4) + _u(0, 2) + _u(8, 2)


@dataclass
class _Texts:
    """The global heap, filled as attributes are made; it stands behind the superblock."""

    parts: list[bytes] = field(default_factory=list)

    def add(self, text: str) -> bytes:
        """What an attribute says of a text: length, heap, number in it."""
        raw = text.encode("utf-8")
        number = len(self.parts) + 1
        self.parts.append(_u(number, 2) + _u(1, 2) + bytes(4) + _u(len(raw), 8) + raw + bytes(-len(raw) % 8))
        return _u(len(raw), 4) + _u(SUPERBLOCK_NBYTES, 8) + _u(number, 4)

    def collection(self) -> bytes:
        """All of it; collections have at least 4096 bytes."""
        body = b"".join(self.parts)
        size = max(4096, 16 + len(body) + 16)
        free = size - 16 - len(body)
        return b"GCOL\1\0\0\0" + _u(size, 8) + body + _u(0, 8) + _u(free, 8) + bytes(free - 16)


@dataclass
class _Object:
    """A group (`tensor` is None) or a dataset, its attributes as messages."""

    tensor: LazyTensor | None = None
    below: dict[str, _Object] = field(default_factory=dict)
    attributes: list[bytes] = field(default_factory=list)
    address: int = 0
    data: int = 0

    def all(self) -> Iterable[_Object]:
        stack = [self]
        while stack:
            each = stack.pop()
            yield each
            stack += reversed(each.below.values())

    def header(self) -> bytes:
        """The object header."""
        messages = self._group() if self.tensor is None else self._dataset(self.tensor)
        messages += [(ATTRIBUTE, body) for body in self.attributes]
        body = b"".join(bytes((kind,)) + _u(len(data), 2) + b"\0" + data for kind, data in messages)
        raw = b"OHDR\2\2" + _u(len(body), 4) + body
        return raw + _u(lookup3(raw), 4)

    def _group(self) -> list[tuple[int, bytes]]:
        found = [(LINK_INFO, bytes(2) + 2 * UNDEFINED), (GROUP_INFO, bytes(2))]
        for name, each in self.below.items():
            raw = name.encode("utf-8")
            found.append((LINK, b"\1\x11\1" + _u(len(raw), 2) + raw + _u(each.address, 8)))
        return found

    def _dataset(self, tensor: LazyTensor) -> list[tuple[int, bytes]]:
        info = tensor.info
        place = _u(self.data, 8) if info.nbytes else UNDEFINED
        return [
            (SPACE, _space(info.shape)),
            (TYPE, _type(info.dtype.name, info.dtype.type_size)),
            (FILL, b"\3\x0a"),
            (LAYOUT, b"\3\1" + place + _u(info.nbytes, 8)),
        ]


def _attribute(name: str, kind: bytes, shape: tuple[int, ...], data: bytes) -> bytes:
    raw, space = name.encode("utf-8") + b"\0", _space(shape)
    sizes = _u(len(raw), 2) + _u(len(kind), 2) + _u(len(space), 2)
    return b"\3\0" + sizes + b"\1" + raw + kind + space + data


def _lists(name: str, items: list[str]) -> Iterator[bytes]:
    """A list of names, as Keras keeps it: texts of one length; name0, name1 ... where one attribute cannot hold it."""
    raw = [item.encode("utf-8") for item in items]
    width = max(map(len, raw), default=1) or 1
    kind = b"\x13" + _u(0x11, 3) + _u(width, 4)  # padded with zeros, UTF-8
    most = MAX_LIST // width
    for number in range(max(1, -(-len(raw) // most))):
        part = raw[number * most : (number + 1) * most]
        data = b"".join(item.ljust(width, b"\0") for item in part)
        yield _attribute(f"{name}{number}" if len(raw) > most else name, kind, (len(part),), data)


def layout(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """One file: names are split at slashes into groups, metadata are attributes.

    `path@name` becomes the attribute `name` of what lies at `path`, everything else one of the root. What came from
    Keras goes back to the groups that Keras looks for, with the lists that it reads.

    Raises:
        UnsupportedFeature: a type, a name or a rank that HDF5 cannot hold, or a split.
    """
    if options.split_max_size is not None or options.split_max_tensors is not None:
        raise UnsupportedFeature(f"{target}: splitting is for GGUF, safetensors and PyTorch output")
    places = _tree(target, checkpoint)
    texts = _Texts()
    for each in places.values():
        name = _OPAQUE_NAMES.get(each.tensor.info.dtype.name) if each.tensor is not None else None
        if name is not None:
            each.attributes.append(_attribute("dtype", _TEXT_TYPE, (), texts.add(name)))
    for key, text in checkpoint.metadata.items():
        _attach(target, places, key, text, texts)
    return _laid_out(target, places[""], texts)


def _attach(target: Path, places: dict[str, _Object], key: str, text: str, texts: _Texts) -> None:
    place, _, name = key.rpartition("@")
    each = _group(places, place) if place and name else None
    if each is None:
        each, name, place = places[""], key, ""
    if each.tensor is not None and name == "dtype" and text in OPAQUE:
        return  # of the type it had; the one it has now is there
    if not name or "\0" in name or len(name.encode("utf-8")) > MAX_NAME or len(texts.parts) >= MAX_TEXTS:
        raise UnsupportedFeature(f"{target}: {short(key)} cannot be the name of an attribute, or there are too many")
    stem = name.rstrip("0123456789")
    if stem not in (LAYER_NAMES, WEIGHT_NAMES):
        each.attributes.append(_attribute(name, _TEXT_TYPE, (), texts.add(text)))
        return
    items = names_in(text)
    if stem == WEIGHT_NAMES:  # of those that are still there
        items = [item for item in items if f"{place}/{item}".lstrip("/") in places]
    if any("\0" in item or len(item.encode("utf-8")) > MAX_NAME for item in items):
        raise UnsupportedFeature(f"{target}: {short(key)} lists what cannot be a name in HDF5")
    each.attributes += _lists(name, items)


def _plain(path: str) -> bool:
    """Whether it can be a path in HDF5."""
    parts = path.split("/")
    short_enough = len(path.encode("utf-8")) <= MAX_NAME and len(parts) <= MAX_DEPTH
    return short_enough and "\0" not in path and not any(part in ("", ".", "..") for part in parts)


def _group(places: dict[str, _Object], path: str) -> _Object | None:
    """What lies at a path, a new group if nothing does; None if nothing can, as within a dataset."""
    if path in places:
        return places[path]
    if not _plain(path):
        return None
    above, _, name = path.rpartition("/")
    holder = _group(places, above)
    if holder is None or holder.tensor is not None:
        return None
    places[path] = holder.below[name] = _Object()
    return places[path]


def _tree(target: Path, checkpoint: Checkpoint) -> dict[str, _Object]:
    """The groups and datasets by their paths; the root is at ""."""
    places = {"": _Object()}
    paths = keras_paths(checkpoint.tensors, checkpoint.metadata)
    listed = {each.place for each in listed_weights(checkpoint.metadata)}
    for tensor in checkpoint.tensors.values():
        path = paths[tensor.name]
        _check(target, tensor, path)
        if path in listed and tensor.info.dtype.name in _OPAQUE_NAMES:
            raise UnsupportedFeature(
                f"{target}: Keras reads no {tensor.info.dtype} from files that list their layers\n"
                "pass --dtype f16 or f32, or write another format"
            )
        above, _, name = path.rpartition("/")
        group = _group(places, above)
        if group is None or group.tensor is not None:
            raise UnsupportedFeature(f"{target}: {short(tensor.name)} would lie within another tensor")
        if path in places:
            raise UnsupportedFeature(f"{target}: other tensors would lie within {short(tensor.name)}")
        places[path] = group.below[name] = _Object(tensor)
    for layer in layer_groups(checkpoint.metadata):
        _group(places, layer)
    return places


def _check(target: Path, tensor: LazyTensor, path: str) -> None:
    info, name = tensor.info, short(tensor.name)
    if info.dtype.name not in WRITTEN:
        raise UnsupportedFeature(
            f"{target}: tensor {name} is {info.dtype}, which HDF5 cannot hold\n"
            "pass --dtype f16, bf16 or f32 to decode it"
        )
    if len(info.shape) > MAX_AXES:
        raise UnsupportedFeature(f"{target}: tensor {name} has {len(info.shape)} axes, HDF5 has at most {MAX_AXES}")
    if not _plain(path):
        raise UnsupportedFeature(f"{target}: {name} cannot be a path in HDF5; --rename changes it")


def _laid_out(target: Path, root: _Object, texts: _Texts) -> Layout:
    """Addresses given: superblock, texts, object headers, values."""
    collection = texts.collection() if texts.parts else b""
    position = SUPERBLOCK_NBYTES + len(collection)
    objects = list(root.all())
    for each in objects:
        each.address = position
        position += len(each.header())
        position += -position % 8
    objects_end = position
    slots = []
    for each in objects:
        if each.tensor is not None:
            position += -position % ALIGNMENT
            each.data = position
            slots.append(Slot(position, each.tensor))
            position += each.tensor.info.nbytes
    end = position
    superblock = SIGNATURE + b"\2\x08\x08\0" + _u(0, 8) + UNDEFINED + _u(end, 8) + _u(root.address, 8)
    header = bytearray(superblock + _u(lookup3(superblock), 4) + collection).ljust(objects_end, b"\0")
    for each in objects:
        raw = each.header()
        header[each.address : each.address + len(raw)] = raw
    return Layout((FileLayout(target, bytes(header), tuple(slots), end),))
