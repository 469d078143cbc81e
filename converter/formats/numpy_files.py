"""NumPy's `.npy`, one array, and `.npz`, a zip archive of them.

Source: numpy/lib/format.py (NEP 1) for the header, a Python dict of three keys written as text. It is parsed here by a
few regular expressions, never evaluated; arrays of objects, which are pickles, are not read at all.

What numpy has no type for is ambiguous in its files. The rule: two bytes of void ("V2") are BF16, as ml_dtypes saves
it; "f1" is F8_E5M2; one byte of void may be any of several 8-bit floats and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UnsupportedFeature, UsageError, said_of, short
from converter.events import Dropped
from converter.formats.base import MAX_AXES, Format, WriteOptions, check_elements, check_name
from converter.storage.files import Bytes, open_bytes
from converter.storage.layout import FileLayout, Layout, Slot
from converter.storage.zip import DEFLATED, open_archive
from converter.storage.zip_writer import ALIGNMENT, Member, Style, archive
from converter.tensors.dtypes import DTYPES, DType
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

MAGIC = b"\x93NUMPY"
SUFFIX = ".npy"
MAX_HEADER = 10_000  # numpy's own limit
MAX_NAME = 0xFFFF
# Digits that numpy leaves room for, so that the first axis can grow in place.
GROWTH_DIGITS = 21
# Padded by the extra field of Android's tools, which begins with the alignment.
_STYLE = Style((0xD935, ALIGNMENT.to_bytes(2, "little"), b"\0"))

# numpy's kind and size -> our type.
TYPES = {
    "f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "c16": "C128",
    "b1": "BOOL", "V2": "BF16", "f1": "F8_E5M2",
    "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64", "u1": "U8", "u2": "U16", "u4": "U32", "u8": "U64",
}  # fmt: skip
WRITTEN = {ours: theirs for theirs, ours in TYPES.items() if theirs != "f1"}


@dataclass(frozen=True)
class _Header:
    """An array's header; its data begin at `start`."""

    dtype: DType
    shape: tuple[int, ...]
    fortran: bool
    swapped: bool
    start: int


# ------------------------------------------------------------------------------------------------- reading


def sniff_npy(path: Path, start: bytes) -> bool:
    """The magic."""
    return start[:6] == MAGIC


def sniff_npz(path: Path, start: bytes) -> bool:
    """A zip archive whose first member is a `.npy`, as far as its name can be seen."""
    if start[:4] != b"PK\x03\x04" or len(start) < 31:
        return False
    length = int.from_bytes(start[26:28], "little")
    name = start[30 : 30 + length]
    return name.endswith(SUFFIX.encode()) if len(name) == length else path.suffix.lower() == ".npz"


def open_npy(path: Path) -> Checkpoint:
    """One array, under the name of its file.

    Raises:
        CorruptFile: truncated, contradictory, or with a header that numpy would not write.
        UnsupportedFeature: a type that is not plain numbers.
    """
    mapped = open_bytes(path)
    try:
        check_name(path, path.stem)
        tensor = _tensor(mapped, path.stem, "the array", deflated=False)
    except BaseException:
        mapped.close()
        raise
    return Checkpoint(
        format="npy", path=path, dialect=None, tensors={tensor.name: tensor}, files=(path,), closers=(mapped.close,)
    )


def open_npz(path: Path) -> Checkpoint:
    """The arrays of an archive, stored or deflated, under their names without `.npy`.

    Raises:
        CorruptFile: an archive or an array that contradicts itself, or there is none.
        UnsupportedFeature: not one array of plain numbers; others, and what is no array, are left out and told.
    """
    mapped = open_bytes(path)
    try:
        archive = open_archive(mapped, paths=False)
        tensors: dict[str, LazyTensor] = {}
        left_out: dict[str, UnsupportedFeature] = {}
        for member, entry in archive.entries.items():
            name, what = member.removesuffix(SUFFIX), f"member {short(member)}"
            try:
                if name == member:
                    raise UnsupportedFeature(f"{path}: {what} is no {SUFFIX}")
                tensors[name] = _tensor(archive.record(member), name, what, deflated=entry.method == DEFLATED)
            except UnsupportedFeature as error:
                left_out[member] = error
        if not tensors:
            raise next(iter(left_out.values()), CorruptFile(f"{path}: not one array in it"))
    except BaseException:
        mapped.close()
        raise
    return Checkpoint(
        format="npz",
        path=path,
        dialect=None,
        tensors=tensors,
        events=tuple(
            Dropped(member, said_of(path, error).removeprefix(f"member {short(member)} "))
            for member, error in left_out.items()
        ),
        files=(path,),
        closers=(mapped.close,),
        checks=(archive.check,),
    )


def _tensor(source: Bytes, name: str, what: str, deflated: bool) -> LazyTensor:
    path, header = source.path, _header(source, what)
    info = TensorInfo(name, header.shape, header.dtype)
    check_elements(path, name, info.shape)
    if header.start + info.nbytes != source.size:
        raise CorruptFile(
            f"{path}: {what} is {info.dtype}{list(info.shape[:8])} but has {source.size - header.start} bytes\n"
            "the file is truncated or damaged; download it again"
        )
    if header.fortran and len(info.shape) > 1 and info.nbytes:
        return _columns(source, info, header, deflated)
    row, start_at = info.row_nbytes, header.start

    def read(start: int, stop: int) -> Rows:
        data = source.view(start_at + start * row, (stop - start) * row, what)
        return _native(data, header).reshape(stop - start, row)

    return LazyTensor(info, read, f"{path}@{name}", work_nbytes=2 * row if header.swapped else None)


def _native(data: Rows, header: _Header) -> Rows:
    """The same numbers in little-endian order."""
    assert header.dtype.numpy is not None  # only dense types are in the table
    return data.view(header.dtype.numpy).byteswap().view(np.uint8) if header.swapped else data


def _columns(source: Bytes, info: TensorInfo, header: _Header, deflated: bool) -> LazyTensor:
    """An array in Fortran order: rows are picked out of the map where they are, or out of the inflated whole."""
    numpy = info.dtype.numpy
    assert numpy is not None  # only dense types are in the table

    def read(start: int, stop: int) -> Rows:
        data = source.view(header.start, info.nbytes, f"tensor {short(info.name)}")
        whole = data.view(numpy).reshape(info.shape[::-1]).transpose()
        rows = whole[np.unravel_index(np.arange(start, stop), info.shape[:-1])]
        return _native(np.ascontiguousarray(rows).reshape(-1).view(np.uint8), header).reshape(
            stop - start, info.row_nbytes
        )

    work = 3 * info.row_nbytes + 8 * len(info.shape) + (info.row_nbytes if deflated else 0)
    return LazyTensor(info, read, f"{source.path}@{info.name}", work_nbytes=work, grain=info.n_rows if deflated else 1)


# ------------------------------------------------------------------------------------------------- headers


def _header(source: Bytes, what: str) -> _Header:
    """The header at the beginning of `source`.

    Raises:
        CorruptFile, UnsupportedFeature
    """
    path, start = source.path, _take(source, 0, 8, what)
    if start[:6] != MAGIC:
        raise CorruptFile(f"{path}: {what} is no array of numpy's")
    major, minor = start[6:]
    if major not in (1, 2, 3) or minor:
        raise UnsupportedFeature(f"{path}: {what} has version {major}.{minor} of numpy's format; 1 to 3 can be read")
    width = 2 if major == 1 else 4
    length = int.from_bytes(_take(source, 8, width, what), "little")
    if length > MAX_HEADER:
        raise CorruptFile(f"{path}: {what} has a header of {length} bytes, numpy reads at most {MAX_HEADER}")
    raw = _take(source, 8 + width, length, what)
    try:
        text = raw.decode("utf-8" if major == 3 else "latin-1")
    except UnicodeDecodeError:
        raise CorruptFile(f"{path}: {what} has a header that is not UTF-8") from None
    return _parsed(path, text, what, 8 + width + length)


def _take(source: Bytes, start: int, nbytes: int, what: str) -> bytes:
    if start + nbytes > source.size:
        raise CorruptFile(f"{source.path}: {what} ends within its header; it is truncated")
    return source.view(start, nbytes, what).tobytes()


_ENTRY = re.compile(
    r"""\s*(?P<quote>['"])(?P<key>descr|fortran_order|shape)(?P=quote)\s*:\s*"""
    r"""(?:(?P<text>'[^'\\]*'|"[^"\\]*")|(?P<flag>True|False)|\((?P<sizes>[\s\d,L]*)\)|(?P<list>\[))\s*,?"""
)
_SIZE = re.compile(r"\s*(\d{1,20})L?\s*")
_DESCR = re.compile(r"([<>|])([a-zA-Z]\d{1,2})")


def _parsed(path: Path, text: str, what: str, start: int) -> _Header:
    """The dict that the text is: three keys, each once, in any order."""
    bad = CorruptFile(f"{path}: {what} has a header that numpy would not write: {short(text.strip())}")
    body = text.strip()
    if body[:1] != "{" or body[-1:] != "}":
        raise bad
    found: dict[str, re.Match[str]] = {}
    position, end = 1, len(body) - 1
    while position < end and body[position:end].strip():
        match = _ENTRY.match(body, position, end)
        if match is None or match["key"] in found:
            raise bad
        if match["list"] and match["key"] == "descr":
            raise UnsupportedFeature(f"{path}: {what} is an array of records, not of plain numbers")
        found[match["key"]] = match
        position = match.end()
    if len(found) != 3 or found["descr"]["text"] is None or found["fortran_order"]["flag"] is None:
        raise bad
    shape = _sizes(found["shape"]["sizes"])
    if shape is None:
        raise bad
    if len(shape) > MAX_AXES:
        raise CorruptFile(f"{path}: {what} has {len(shape)} axes, at most {MAX_AXES} are possible")
    dtype, swapped = _dtype(path, found["descr"]["text"][1:-1], what)
    return _Header(dtype, shape, found["fortran_order"]["flag"] == "True", swapped, start)


def _sizes(text: str | None) -> tuple[int, ...] | None:
    """The tuple of whole numbers that stands between parentheses; one number has a comma behind it."""
    if text is None:
        return None
    if not text.strip():
        return ()
    parts = text.split(",")
    if len(parts) == 1 or (len(parts) == 2 and parts[1].strip() and not parts[0].strip()):
        return None
    if not parts[-1].strip():
        parts.pop()
    matches = [_SIZE.fullmatch(part) for part in parts]
    return tuple(int(match[1]) for match in matches if match) if all(matches) else None


def _dtype(path: Path, descr: str, what: str) -> tuple[DType, bool]:
    match = _DESCR.fullmatch(descr)
    if match is None or match[2] not in TYPES or (match[1] == ">" and match[2] == "V2"):
        hint = "; it may be any 8-bit float: save it as uint8" if descr[1:] == "V1" else ""
        raise UnsupportedFeature(f"{path}: {what} has type {short(descr)}, which is not one of plain numbers{hint}")
    dtype = DTYPES[TYPES[match[2]]]
    return dtype, match[1] == ">" and dtype.type_size > 1


def _npy_header(info: TensorInfo) -> bytes:
    """The bytes that numpy.save puts before the data."""
    code = WRITTEN[info.dtype.name]
    order = "|" if code[0] != "V" and info.dtype.type_size == 1 else "<"
    text = f"{{'descr': '{order}{code}', 'fortran_order': False, 'shape': {info.shape!r}, }}"
    text += " " * (GROWTH_DIGITS - len(repr(info.shape[0])) if info.shape else 0)
    text += " " * (-(10 + len(text) + 1) % ALIGNMENT) + "\n"
    return MAGIC + b"\1\0" + len(text).to_bytes(2, "little") + text.encode("latin-1")


# ------------------------------------------------------------------------------------------------- writing


def layout_npy(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """One array, as numpy.save writes it.

    Raises:
        UsageError: there is more than one tensor.
        UnsupportedFeature: a type that numpy cannot hold, or a split.
    """
    tensors = list(checkpoint.tensors.values())
    _check(target, tensors, options)
    if len(tensors) != 1:
        raise UsageError(f"{target}: an .npy holds one array and there are {len(tensors)}; an .npz holds them all")
    return Layout((_npy(target, tensors[0]),))


def layout_npz(checkpoint: Checkpoint, target: Path, options: WriteOptions) -> Layout:
    """An archive of stored members whose data begin at multiples of 64, as if each were a file of its own.

    Raises:
        UsageError: there is no tensor.
        UnsupportedFeature: a type that numpy cannot hold, a name that is too long, or a split.
    """
    tensors = list(checkpoint.tensors.values())
    _check(target, tensors, options)
    if not tensors:
        raise UsageError(f"{target}: there is no tensor to write")
    members = [Member(f"{tensor.name}{SUFFIX}", _npy(target, tensor)) for tensor in tensors]
    for tensor, member in zip(tensors, members, strict=True):
        if len(member.name.encode()) > MAX_NAME:
            raise UnsupportedFeature(f"{target}: the name {short(tensor.name)} is too long for an archive")
    return Layout((archive(target, members, _STYLE),))


def _npy(path: Path, tensor: LazyTensor) -> FileLayout:
    header = _npy_header(tensor.info)
    return FileLayout(path, header, (Slot(len(header), tensor),), len(header) + tensor.info.nbytes)


def _check(target: Path, tensors: Sequence[LazyTensor], options: WriteOptions) -> None:
    if options.split_max_size is not None or options.split_max_tensors is not None:
        raise UnsupportedFeature(f"{target}: splitting is for GGUF, safetensors and PyTorch output")
    for tensor in tensors:
        if tensor.info.dtype.name not in WRITTEN:
            raise UnsupportedFeature(
                f"{target}: tensor {short(tensor.name)} is {tensor.info.dtype}, which numpy cannot hold; "
                "pass --dtype f16, bf16 or f32 to decode it"
            )
        if len(tensor.info.shape) > MAX_AXES:
            raise UnsupportedFeature(f"{target}: tensor {short(tensor.name)} has more than {MAX_AXES} axes")


FORMATS = (
    Format(
        name="npy",
        extensions=(SUFFIX,),
        dialect=None,
        description="NumPy array, one per file",
        dtypes=frozenset(WRITTEN),
        sniff=sniff_npy,
        open=open_npy,
        layout=layout_npy,
    ),
    Format(
        name="npz",
        extensions=(".npz",),
        dialect=None,
        description="NumPy arrays in a zip archive, stored or deflated",
        dtypes=frozenset(WRITTEN),
        sniff=sniff_npz,
        open=open_npz,
        layout=layout_npz,
    ),
)
