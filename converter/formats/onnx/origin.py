"""What a graph was written of: the keys and tensors of a GGUF, as a text of the model; and how they are read back.

The text is JSON: `keys` as [type, value], lists as ["array", type, values]; `tensors` by ggml's names, each with the
initializers that hold it, in which form, or with its values where the graph has only what follows from them.
Everything in it is a stranger's word and is compared with the initializers before it is used.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import CorruptFile, ShapeMismatch, UnsupportedFeature, short
from converter.formats.base import check_elements, check_name
from converter.formats.onnx.model import MAX_NAME, MAX_TEXT, SUFFIX
from converter.metadata import TYPES, Array, Metadata, Scalar, Value
from converter.storage.files import expands_too_far
from converter.storage.json import parse_json
from converter.storage.transposed import transposed
from converter.tensors import int8
from converter.tensors.dtypes import DTYPES, F16, F32, INT8
from converter.tensors.operands import KINDS, Inexact, Kind, Unpacked, apart, numbers
from converter.tensors.ops import Rope, Stack
from converter.tensors.streams import compose
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo, from_array

KEY = "converter.gguf"
VERSION = 1
#: Numbers that the text itself may have of a tensor: a graph has angles, and no table of their factors.
MAX_VALUES = 4096
MAX_NESTING = 4
MAX_KEY = 65535
#: Types whose scales F16 does not hold: products of two numbers, and powers of two of all sizes.
_FINER = {"MXFP4", *(name for name, kind in KINDS.items() if DTYPES[name].block_size > kind.block)}
_BYTES = "bytes"  # a text that is not UTF-8, in hex


@dataclass(frozen=True)
class Form:
    """How a graph has a tensor of a GGUF.

    Attributes:
        stored: its initializers; several where each expert has its own.
        type: of its codes, whose scales and minima are called like the codes and `.scales`, `.minima`; "" for numbers.
        transposed: whether the axes of the numbers, of the codes of INT8, or of the minima are exchanged.
        heads: for each `Rope` that the GGUF has in its rows and the graph has not, the heads, how many rows of each
            rotate, and whether it goes the other way.
        values: its numbers, where it has no initializer.
    """

    stored: tuple[str, ...] = ()
    type: str = ""
    transposed: bool = False
    heads: tuple[tuple[int, int | None, bool], ...] = ()
    values: tuple[float, ...] | None = None


# ------------------------------------------------------------------------------------------------- writing


def written(keys: Mapping[str, Value | Array], forms: Mapping[str, Form]) -> str:
    """The text.

    Raises:
        UnsupportedFeature: keys that are too long.
    """
    told = {name: {key: value for key, value in vars(form).items() if value not in ((), "", False, None)}
            for name, form in forms.items()}  # fmt: skip
    said = {"version": VERSION, "keys": {key: _said(value) for key, value in keys.items()}, "tensors": told}
    made = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    if len(made.encode()) > MAX_TEXT:
        raise UnsupportedFeature(f"its keys take more than {MAX_TEXT} bytes as text, which no reader takes")
    return made


def _said(entry: Value | Array) -> list[Any]:
    if isinstance(entry, Value):
        return [_BYTES, entry.value.hex()] if isinstance(entry.value, bytes) else [entry.type, entry.value]
    values = entry.values.tolist() if isinstance(entry.values, np.ndarray) else list(entry.values)
    if entry.type == "array":
        return ["array", "array", [_said(each) for each in values if isinstance(each, Array)]]
    if any(isinstance(each, bytes) for each in values):
        raw = (each if isinstance(each, bytes) else str(each).encode() for each in values)
        return ["array", _BYTES, [each.hex() for each in raw]]
    return ["array", entry.type, values]


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Origin:
    """Keys, tensors under ggml's names, and the initializers beside codes whose types are no choice."""

    keys: Metadata
    tensors: Mapping[str, LazyTensor]
    beside: Set[str]


class Changed(Exception):
    """The graph has other tensors than the text says: it was changed since."""


def read(said: str, path: Path, tensors: Mapping[str, LazyTensor]) -> Origin:
    """What the text says of a model at `path`, whose initializers are `tensors`.

    Raises:
        CorruptFile: it is not such a text, or contradicts the initializers.
        Changed: a tensor is not there.
    """
    found = parse_json(said.encode(), f"{path}: {KEY}", python=True)
    if found.get("version") != VERSION or found.keys() != {"version", "keys", "tensors"}:
        raise CorruptFile(f"{path}: {KEY} is not of version {VERSION}; a newer version of this program may read it")
    return _Reader(path, tensors).origin(found)


class _Reader:
    def __init__(self, path: Path, tensors: Mapping[str, LazyTensor]) -> None:
        self._path = path
        self._tensors = tensors
        self._taken: set[str] = set()
        self._beside: set[str] = set()

    def _corrupt(self, what: str) -> CorruptFile:
        return CorruptFile(f"{self._path}: {KEY}: {what}")

    def origin(self, found: Mapping[str, Any]) -> Origin:
        keys, tensors = self._object(found["keys"], MAX_KEY), self._object(found["tensors"], MAX_NAME)
        made = {name: self._tensor(name, self._form(name, said)) for name, said in tensors.items()}
        declared = sum(tensor.info.nbytes for tensor in made.values())
        if expands_too_far(declared, sum(tensor.info.nbytes for tensor in self._tensors.values())):
            raise self._corrupt(f"its tensors declare {declared} bytes")
        return Origin({key: self._entry(key, value) for key, value in keys.items()}, made, self._beside)

    def _object(self, value: Any, longest: int) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._corrupt("keys or tensors are no object")
        for name in value:
            if not 0 < len(name.encode()) <= longest:
                raise self._corrupt(f"the name {short(name)} is not of 1 to {longest} bytes")
            check_name(self._path, name)
        return value

    # -- keys

    def _entry(self, key: str, value: Any, depth: int = 0) -> Value | Array:
        if isinstance(value, list) and len(value) == 2:
            type_, (one,) = value[0], self._scalars(key, value[0], [value[1]])
            return Value("str" if type_ == _BYTES else type_, one)
        if not (isinstance(value, list) and len(value) == 3 and value[0] == "array" and isinstance(value[2], list)):
            raise self._corrupt(f"{short(key)} is no type and value")
        _, type_, values = value
        if type_ == "array":
            if depth >= MAX_NESTING:
                raise self._corrupt(f"{short(key)}: lists in lists, more than {MAX_NESTING} deep")
            return Array("array", [self._list(key, each, depth + 1) for each in values])
        made = self._scalars(key, type_, values)
        if type_ in ("str", _BYTES):
            return Array("str", made)
        return Array(type_, np.array(made, np.dtype(TYPES[type_].struct)))

    def _list(self, key: str, value: Any, depth: int) -> Array:
        found = self._entry(key, value, depth)
        if not isinstance(found, Array):
            raise self._corrupt(f"{short(key)}: a list of lists has something else in it")
        return found

    def _scalars(self, key: str, type_: Any, values: Sequence[Any]) -> list[Scalar]:
        try:
            return list(_checked(type_, values))
        except (ValueError, TypeError, KeyError, OverflowError, struct.error):
            raise self._corrupt(f"{short(key)} is not of type {short(str(type_))}") from None

    # -- tensors

    def _form(self, name: str, said: Any) -> Form:
        types = {*KINDS, INT8.name}
        known = {"stored": _is_names, "type": types.__contains__, "transposed": _is_true, "heads": _is_heads,
                 "values": _is_values}  # fmt: skip
        if not isinstance(said, dict) or not said.keys() <= known.keys() or ("stored" in said) == ("values" in said):
            raise self._corrupt(f"tensor {short(name)} is said in no form that is known")
        for key, value in said.items():
            if isinstance(value, dict) or not known[key](value if key != "type" else str(value)):
                raise self._corrupt(f"tensor {short(name)}: {key} is {short(str(value))}")
        heads = tuple((n, n_rot, undo) for n, n_rot, undo in said.get("heads", ()))
        values = tuple(said["values"]) if "values" in said else None
        return Form(tuple(said.get("stored", ())), said.get("type", ""), "transposed" in said, heads, values)

    def _tensor(self, name: str, form: Form) -> LazyTensor:
        if form.values is not None:
            if form != Form(values=form.values):
                raise self._corrupt(f"tensor {short(name)} has values and a form")
            with np.errstate(over="ignore"):
                return from_array(name, np.array(form.values, np.float32), F32, str(self._path))
        reader = self._numbers if not form.type else self._coded if form.type == INT8.name else self._blocks
        made = [reader(stored, form) for stored in form.stored]
        chain = (
            *((Stack(len(made)),) if len(made) > 1 else ()),
            *(Rope(n, undo, n_rot) for n, n_rot, undo in form.heads),
        )
        if len({each.info for each in (tensor.renamed(name) for tensor in made)}) > 1:
            raise self._corrupt(f"tensor {short(name)} is of parts of several shapes")
        if 0 in made[0].info.shape:
            raise self._corrupt(f"tensor {short(name)} is empty")
        try:
            tensor = compose(chain, made, [name])[0] if chain else made[0].renamed(name)
        except ShapeMismatch as error:
            raise self._corrupt(f"tensor {short(name)}: {str(error).splitlines()[0]}") from None
        check_elements(self._path, name, tensor.info.shape)
        return tensor

    def _initializer(self, name: str) -> LazyTensor:
        """One of the graph's tensors, which may lie under another name since its type changed; each is taken once."""
        found = self._tensors.get(name) or self._tensors.get(name + SUFFIX.decode())
        if found is None:
            raise Changed(name)
        if name in self._taken:
            raise self._corrupt(f"tensor {short(name)} is used twice")
        self._taken.add(name)
        return found

    def _numbers(self, stored: str, form: Form) -> LazyTensor:
        found = self._initializer(stored)
        if found.info.dtype.gguf is None:
            raise self._corrupt(f"tensor {short(stored)} is {found.info.dtype}, which no GGUF has")
        if form.transposed and len(found.info.shape) != 2:
            raise self._corrupt(f"tensor {short(stored)} has {len(found.info.shape)} axes, and none to exchange")
        return transposed(found) if form.transposed else found

    def _coded(self, stored: str, form: Form) -> LazyTensor:
        """Rows of INT8 again."""
        codes, scales = self._initializer(stored), self._initializer(f"{stored}.scales")
        if len(codes.info.shape) == 2 and form.transposed:
            codes = transposed(codes)
        n_rows = codes.info.shape[0] if codes.info.shape else 0
        fits = len(codes.info.shape) == 2 and codes.info.dtype is DTYPES["U8"] and 0 not in codes.info.shape
        if not fits or scales.info.dtype is not F32 or scales.info.shape != (n_rows,):
            raise self._corrupt(f"tensor {short(stored)} is not what {form.type} has as codes and scales")
        self._beside.add(scales.name)
        return _rows(TensorInfo(stored, codes.info.shape, INT8), codes, scales)

    def _blocks(self, stored: str, form: Form) -> LazyTensor:
        """ggml's blocks again; as numbers where scales are F16 and the type's own are finer."""
        kind, codes = KINDS[form.type], self._initializer(stored)
        scales = self._initializer(f"{stored}.scales")
        minima = self._initializer(f"{stored}.minima") if kind.minima else None
        if minima is not None:
            self._beside.add(minima.name)
            minima = transposed(minima) if form.transposed and len(minima.info.shape) == 2 else minima
        shape, beside = codes.info.shape, [each for each in (scales, minima) if each is not None]
        fits = len(shape) == 3 and shape[2] == kind.nbytes and codes.info.dtype is DTYPES["U8"] and 0 not in shape
        fits &= all(each.info.shape == shape[:2] and each.info.dtype in (F32, F16) for each in beside)
        if not fits:
            raise self._corrupt(f"tensor {short(stored)} is not what {form.type} has as codes, scales and minima")
        row, ggml = shape[1] * kind.block, DTYPES[form.type]
        exact = all(each.info.dtype is F32 for each in beside) or form.type not in _FINER
        if exact and not ggml.fits(row):
            raise self._corrupt(f"tensor {short(stored)}: rows of {row} do not divide into blocks of {form.type}")
        info = TensorInfo(stored, (shape[0], row), ggml if exact else F32)
        return _joined(self._path, info, kind, codes, scales, minima)


def _rows(info: TensorInfo, codes: LazyTensor, scales: LazyTensor) -> LazyTensor:
    def read(start: int, stop: int) -> Rows:
        own = np.ascontiguousarray(scales.rows(0, 1)).view("<f4")[0, start:stop]
        return int8.joined(own, codes.rows(start, stop))

    work = codes.row_work + 2 * info.row
    return codes.derived(info, read, parts=(codes.name, scales.name), work_nbytes=work)


def _joined(
    path: Path, info: TensorInfo, kind: Kind, codes: LazyTensor, scales: LazyTensor, minima: LazyTensor | None
) -> LazyTensor:
    inner = codes.info.shape[1]

    def of(tensor: LazyTensor, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        data = np.ascontiguousarray(tensor.rows(start, stop)).view(
            np.float16 if tensor.info.dtype is F16 else np.float32
        )
        return data.reshape(-1).astype(np.float32, copy=False)

    def read(start: int, stop: int) -> Rows:
        bytes_ = np.ascontiguousarray(codes.rows(start * inner, stop * inner))
        less = None if minima is None else of(minima, start, stop)
        blocks = Unpacked(apart(bytes_, kind.bits), of(scales, start, stop), less)
        try:
            made = kind.pack(blocks) if info.dtype.quantized else numbers(blocks, kind).view(np.uint8)
        except Inexact as error:
            rows = f"rows {start} to {stop - 1}"
            raise CorruptFile(
                f"{path}: tensor {short(info.name)}, {rows}: no blocks of {info.dtype}: {error}"
            ) from None
        return np.ascontiguousarray(made).reshape(stop - start, info.row_nbytes)

    parts = tuple(each.name for each in (codes, scales, minima) if each is not None)
    grain = max(1 if each.grain == 1 else info.n_rows for each in (codes, scales, *([minima] if minima else [])))
    return LazyTensor(info, read, codes.source, parts, work_nbytes=24 * info.row, grain=grain)


# ------------------------------------------------------------------------------------------------- values


def _checked(type_: Any, values: Sequence[Any]) -> Iterator[Scalar]:
    """Values of a type, each of which it can hold; raises where one is not."""
    for value in values:
        if type_ == _BYTES:
            yield bytes.fromhex(value)
        elif type_ == "str":
            if not isinstance(value, str):
                raise TypeError
            value.encode()
            yield value
        elif type_ == "bool":
            if not isinstance(value, bool):
                raise TypeError
            yield value
        else:
            kind = TYPES[type_]
            if isinstance(value, bool) or not isinstance(value, int if kind.struct[1] in "bBhHiIqQ" else int | float):
                raise TypeError
            struct.pack(kind.struct, value)
            yield value if kind.struct[1] in "bBhHiIqQ" else float(value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _is_true(value: Any) -> bool:
    return value is True


def _is_heads(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, list)
        and len(each) == 3
        and _is_size(each[0])
        and isinstance(each[2], bool)
        and (each[1] is None or _is_size(each[1]))
        for each in value
    )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _is_values(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MAX_VALUES and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38) or value == math.inf
