"""Calibrations: how the inputs of each matrix go together, for error feedback (native/feedback.c), in a file.

One is a safetensors file, made by `converter.calibration.feedback` and good for every quant of its model:

- a factor of each input that matrices have: BF16 (matrices, row * (row + 1) / 2), upper triangles row by row. Tensors
  that share an input share it; a stack of experts has one for each expert that met tokens enough, and one for the rest.
- metadata: `converter.calibration`, the version of this form; what was read (`kind`, `text_sha256`, `tokens`,
  `context`), with what (`damping`, `tool`, `runtime`), and JSON: `tensors`, for each tensor the name of its factor and
  for each of its matrices which of it, and `digests`, the SHA-256 of each factor.

The digest of the metadata says which calibration it is: it covers all that is in the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFile, FormatError, QuantizationError, UsageError, short
from converter.events import Event, NoFeedback, Note
from converter.formats.safetensors import open_file, sniff
from converter.metadata import Metadata, Value, number_of, text_of, u32
from converter.request import TEXTS
from converter.storage.json import parse_json
from converter.tensors import kernels
from converter.tensors.dtypes import BF16
from converter.tensors.tensor import LazyTensor, Rows, TensorInfo

SUFFIX = ".calibration.safetensors"
FORM_KEY, FORM = "converter.calibration", "1"
KINDS = (*TEXTS, "text")
#: What a file says that was encoded with one.
KIND_KEY, SHA_KEY = "converter.calibration.kind", "converter.calibration.sha256"
TOKENS_KEY, DAMPING_KEY = "converter.calibration.tokens", "converter.calibration.damping"
KEYS = (KIND_KEY, SHA_KEY, TOKENS_KEY, DAMPING_KEY)
_CHECKED_AT_ONCE = 1 << 24  # bytes
_EXPONENT = 0x7F80  # of a BF16: all ones where it is no number


def triangle(row: int) -> int:
    """Numbers in the upper triangle of a square."""
    return row * (row + 1) // 2


@dataclass(frozen=True)
class Factor:
    """The factors of one input, looked at when the first is asked for."""

    path: Path
    tensor: LazyTensor
    row: int
    digest: str
    _checked: list[bool] = field(default_factory=list, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def rows(self, at: int) -> Rows:
        """The bytes of one of them.

        Raises:
            CorruptFile: they are not what was written, or no numbers.
        """
        with self._lock:
            if not self._checked:
                self._check()
                self._checked.append(True)
        found: Rows = self.tensor.rows(at, at + 1)[0]
        return found

    def diagonal(self, at: int) -> NDArray[np.float32]:
        """What remains of an error of each column, float32 (row,)."""
        column = np.arange(self.row, dtype=np.int64)
        numbers = self.rows(at).view(ml_dtypes.bfloat16)[self.row * column - column * (column - 1) // 2]
        found: NDArray[np.float32] = numbers.astype(np.float32)
        return found

    def _check(self) -> None:
        name, sha = short(self.tensor.name), hashlib.sha256()
        for at in range(self.tensor.info.n_rows):
            data = np.ascontiguousarray(self.tensor.rows(at, at + 1)[0])
            for start in range(0, len(data), _CHECKED_AT_ONCE):
                part = data[start : start + _CHECKED_AT_ONCE]
                sha.update(part.data)
                if ((part.view(np.uint16) & _EXPONENT) == _EXPONENT).any():
                    raise CorruptFile(f"{self.path}: factor {name} has numbers that are NaN or infinite; make it again")
        if sha.hexdigest() != self.digest:
            raise CorruptFile(f"{self.path}: factor {name} is not what was written (SHA-256 differs); make it again")


@dataclass(frozen=True)
class Spread:
    """What an error of a tensor's columns is worth in others: a `tensors.encode.Feedback`."""

    factors: Factor
    of: tuple[int, ...]
    matrix: str

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, matrix: int) -> NDArray[np.float32]:
        return self.factors.diagonal(self.of[matrix])

    def factor(self, matrix: int) -> Rows:
        """The factor of one of the tensor's matrices."""
        return self.factors.rows(self.of[matrix])


@dataclass(frozen=True)
class Calibration:
    """An open file: what every tensor's errors are worth, and what was read. `sha256` says which one it is."""

    path: Path
    tensors: Mapping[str, Spread]
    kind: str
    tokens: int
    damping: float
    sha256: str
    close: Callable[[], None]

    def __enter__(self) -> Calibration:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def metadata(self) -> Metadata:
        """What a file says that is encoded with it."""
        return {
            KIND_KEY: Value("str", self.kind),
            SHA_KEY: Value("str", self.sha256),
            TOKENS_KEY: u32(self.tokens),
            DAMPING_KEY: Value("f32", self.damping),
        }


# --------------------------------------------------------------------------------------------- reading


def is_calibration(path: Path) -> bool:
    """Whether a file is meant as one, by what it begins with; of a text, and of none, it says no."""
    try:
        with path.open("rb") as file:
            return sniff(path, file.read(9))
    except OSError:
        return False


def open_calibration(path: Path) -> Calibration:
    """The calibration in `path`; factors are read when they are used.

    Raises:
        CorruptFile: not one, truncated or contradictory.
        UsageError: of a form that this version does not know.
        OutputError: it cannot be read.
    """
    with ExitStack() as held:
        opened = held.enter_context(open_file(path))
        said = opened.metadata
        if FORM_KEY not in said:
            raise CorruptFile(f"{path}: a safetensors file, but not a calibration; `convert IN OUT --calibrate own`")
        if said[FORM_KEY] != FORM:
            raise UsageError(f"{path}: a calibration of form {short(said[FORM_KEY])}, this version knows {FORM}")
        digests, uses = (_table(path, said, key) for key in ("digests", "tensors"))
        factors = {name: _factor(path, tensor, digests.get(name)) for name, tensor in opened.tensors.items()}
        tensors = {name: _spread(path, name, use, factors) for name, use in uses.items()}
        kind, tokens, damping = _facts(path, said)
        sha = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
        return Calibration(path, tensors, kind, tokens, damping, sha, held.pop_all().close)


def _table(path: Path, said: Mapping[str, str], key: str) -> Mapping[str, object]:
    return parse_json(said.get(key, "").encode(), path)


def _facts(path: Path, said: Mapping[str, str]) -> tuple[str, int, float]:
    try:
        kind, tokens, damping = said["kind"], int(said["tokens"]), float(said["damping"])
        if kind not in KINDS or not 0 < tokens < 1 << 32 or not 0 < damping < math.inf:
            raise ValueError("out of range")
    except (KeyError, ValueError) as error:
        raise CorruptFile(f"{path}: this calibration does not say what was read ({short(str(error))})") from None
    return kind, tokens, damping


def _factor(path: Path, tensor: LazyTensor, digest: object) -> Factor:
    info, name = tensor.info, short(tensor.name)
    row = (math.isqrt(8 * info.row + 1) - 1) // 2
    if info.dtype is not BF16 or len(info.shape) != 2 or not info.n_rows or not row or triangle(row) != info.row:
        raise CorruptFile(f"{path}: factor {name} is no stack of triangles in BF16")
    if not isinstance(digest, str):
        raise CorruptFile(f"{path}: factor {name} has no digest")
    return Factor(path, tensor, row, digest)


def _spread(path: Path, name: str, use: object, factors: Mapping[str, Factor]) -> Spread:
    factor, of = use if isinstance(use, list) and len(use) == 2 else (None, None)
    found = factors.get(factor) if isinstance(factor, str) else None
    if found is None or not isinstance(of, list) or not of or set(map(type, of)) != {int}:
        raise CorruptFile(f"{path}: says no factor for {short(name)}")
    if not 0 <= min(of) <= max(of) < found.tensor.info.n_rows:
        raise CorruptFile(f"{path}: {short(name)} is of a factor that is not there")
    return Spread(found, tuple(of), path.name)


# ----------------------------------------------------------------------------------------- whose they are


def said_calibration(config: Mapping[str, object]) -> str | None:
    """The calibration that a file says it was encoded with, by its digest."""
    return text_of(config, SHA_KEY) or ("" if number_of(config, TOKENS_KEY) else None)


def beside(path: Path, sha256: str) -> Path | None:
    """The calibration of that digest in the folder of a file, or in the file's folder itself."""
    folder = path if path.is_dir() else path.parent
    for found in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            with open_calibration(found) as opened:
                if opened.sha256 == sha256:
                    return found
        except (FormatError, UsageError):
            continue
    return None


def assign_feedback(
    calibration: Calibration, tensors: Iterable[TensorInfo], types: Mapping[str, str]
) -> tuple[dict[str, Spread], list[Event]]:
    """What each tensor's errors are worth, by name, and what the user should know of those that do without.

    Args:
        calibration: an open one.
        tensors: with the types they have; those that `types` leaves as they are do not take part.
        types: name -> type that the tensor will have.

    Raises:
        QuantizationError: the calibration is of another model.
    """
    infos = {info.name: info for info in tensors}
    if not any(name in infos for name in calibration.tensors):
        raise QuantizationError(f"{calibration.path.name}: is of another model, no tensor of this one is in it")
    spread: dict[str, Spread] = {}
    events: list[Event] = []
    for name, info in infos.items():
        type_ = types[name]
        if type_ == info.dtype.name or len(info.shape) < 2 or type_ in _PLAIN:
            continue
        found = calibration.tensors.get(name)
        if found is not None:
            _check_shape(calibration, info, found)
        if type_ not in kernels.FEEDBACK:
            events.append(NoFeedback(name, type_, "its codes are not on a line"))
        elif found is None:
            events.append(NoFeedback(name, type_, "no input of it was seen"))
        else:
            spread[name] = found
    if not spread:
        events.append(Note(f"{calibration.path.name}: no tensor of these types is encoded with error feedback"))
    return spread, events


_PLAIN = ("F32", "F16", "BF16", "F64")


def _check_shape(calibration: Calibration, info: TensorInfo, found: Spread) -> None:
    stacked = info.shape[-3] if len(info.shape) > 2 else 1
    if found.factors.row != info.row or len(found) != stacked:
        raise QuantizationError(
            f"{info.name}: {calibration.path.name} has {len(found)} factors for rows of {found.factors.row} for it, "
            f"it needs {stacked} for rows of {info.row}\nthe calibration is of another model"
        )
