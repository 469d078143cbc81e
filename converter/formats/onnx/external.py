"""Files beside an ONNX model that hold its larger tensors.

Source: docs/ExternalData.md of the ONNX project.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from converter.errors import CorruptFile, MissingPart, UnsupportedFeature, short
from converter.formats.base import child
from converter.storage.files import Bytes, open_bytes

MAX_LOCATION = 4096
_KEYS = {"location", "offset", "length", "checksum"}


class External:
    """The data files of one model: each opened once, and the sums that the model tells of them."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self.files: dict[Path, Bytes] = {}
        self._located: dict[str | None, Bytes] = {}
        self._sums: dict[Path, set[str]] = {}

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def find(self, entries: Mapping[str, str], nbytes: int, what: str) -> tuple[Bytes, int]:
        """The file and the offset of a tensor of `nbytes`, by its entries; `what` it is for messages.

        Raises:
            CorruptFile: outside the folder, outside the file, not as long as the tensor.
            MissingPart: no such file.
            UnsupportedFeature: a key that the specification does not have.
        """
        # Keys that onnxruntime adds for itself: where it keeps copies in the order its kernels like.
        extra = {key for key in entries.keys() - _KEYS if not key.startswith("prepacked")}
        if extra:
            raise UnsupportedFeature(f"{what} has a key {short(min(extra))} that the specification does not have")
        file = self._file(entries.get("location"))
        offset = _whole(what, entries.get("offset", "0"))
        length = _whole(what, entries.get("length", str(nbytes)))
        if length != nbytes:
            raise CorruptFile(f"{what} says {length} bytes, shape and type say {nbytes}")
        if offset + nbytes > file.size:
            raise CorruptFile(
                f"{what} at offset {offset} needs {nbytes} bytes, {file.path.name} has {file.size}\n"
                "the file is truncated, or of another model; download it again"
            )
        if "checksum" in entries:
            self._sums.setdefault(file.path, set()).add(entries["checksum"].lower())
        return file, offset

    def _file(self, location: str | None) -> Bytes:
        if location not in self._located:  # following links takes long where there are many tensors
            path = child(self._model.parent, location.removeprefix("./") if location else location, self._model)
            if path not in self.files:
                if not path.exists():
                    raise MissingPart(f"{path}: {self._model.name} has its tensors in this file; download it too")
                self.files[path] = open_bytes(path)
            self._located[location] = self.files[path]
        return self._located[location]

    def checks(self) -> Iterator[Callable[[], None]]:
        """For files whose SHA-1 the model tells, what compares it."""
        for path, wanted in self._sums.items():
            yield lambda path=path, wanted=wanted: _check_sum(self.files[path], wanted)  # type: ignore[misc]


def _whole(what: str, value: str) -> int:
    """A whole number of at most 19 digits, as external data has it in texts."""
    if not (value.isascii() and value.isdigit() and len(value) <= 19):
        raise CorruptFile(f"{what} has {short(value)} where a number of bytes belongs")
    return int(value)


def _check_sum(file: Bytes, wanted: set[str]) -> None:
    digest = hashlib.sha1(usedforsecurity=False)
    for at in range(0, file.size, 1 << 20):
        digest.update(file.view(at, min(1 << 20, file.size - at), "the file").data)
    if wanted != {digest.hexdigest()}:
        raise CorruptFile(f"{file.path}: its SHA-1 is not the one that the model tells; download it again")
