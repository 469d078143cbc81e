"""Bounded reading of tokenizer files: sizes checked before reading, JSON without surprises.

A tokenizer folder comes from strangers. Every file has a size limit, JSON must be UTF-8, may not
repeat a key or nest beyond the parser's depth, and each failure is one TokenizerError.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from converter.errors import TokenizerError
from converter.storage import json as strict_json
from converter.storage.files import local
from converter.storage.stand_ins import LOOKED_AT, stand_in
from converter.tokenizers.large import Long, parse_large

Source = Path | Callable[[], bytes]

MIB = 1 << 20
# The largest published tokenizer.json files are near 35 MB, SentencePiece models near 5 MB.
MAX_BYTES = {
    "tokenizer.json": 96 * MIB, "tekken.json": 96 * MIB, "vocab.json": 96 * MIB, ".model": 64 * MIB, ".txt": 32 * MIB,
}  # fmt: skip
MAX_OTHER = 16 * MIB
MAX_TOKENS = 1 << 22
# The parts of JSON files that stay in the file until they are read, a piece at a time.
LARGE: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "tokenizer.json": (("model", "vocab"), ("model", "merges")), "tekken.json": (("vocab",),), "vocab.json": ((),),
}  # fmt: skip
RUST_FILE = "tokenizer.json"  # which the tokenizers library reads; the others are Python's, NaN and Infinity among them


class TokenizerFiles:
    """The files of one tokenizer, by their name relative to the model folder; parsed JSON is kept."""

    def __init__(self, files: Mapping[str, Source]) -> None:
        self._files = dict(files)
        self._json: dict[str, Any] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def first(self, *names: str) -> str | None:
        """The first of `names` that is there."""
        return next((name for name in names if name in self._files), None)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """The file, open for reading.

        Raises:
            TokenizerError: absent, unreadable, a pointer, a web page, or larger than such a file has a reason to be.
        """
        source = self._files.get(name)
        if source is None:
            raise TokenizerError(f"{name}: not there")
        try:
            with local(source).open("rb") if isinstance(source, Path) else io.BytesIO(source()) as file:
                if file.seek(0, io.SEEK_END) > (limit := _limit(name)):
                    raise TokenizerError(f"{name}: larger than the {limit // MIB} MiB this file may have")
                file.seek(0)
                if says := stand_in(file.read(LOOKED_AT)):
                    raise TokenizerError(f"{name}: {says}")
                file.seek(0)
                yield file
        except OSError as error:
            raise TokenizerError(f"{name}: cannot be read ({error.strerror or error})") from error

    def data(self, name: str) -> bytes:
        """The file's bytes; raises as `opened`."""
        with self.opened(name) as file:
            return file.read()

    def text(self, name: str) -> str:
        """The file as UTF-8 text, a byte order mark dropped.

        Raises:
            TokenizerError: as `data`, or not UTF-8.
        """
        return _decoded(self.data(name), name)

    def json(self, name: str) -> dict[str, object]:
        """The file as a JSON object; empty when the file is not there. Parts named in LARGE may be `Long`.

        Raises:
            TokenizerError: not JSON, not an object, a repeated key, nested too deeply.
        """
        value = self.value(name) if name in self._files else {}
        if not isinstance(value, dict):
            raise TokenizerError(f"{name}: a JSON object was expected, found {type(value).__name__}")
        return value

    def value(self, name: str) -> Any:
        """The file as JSON, an object unless the whole of it is `Long`; raises as `json`, and where it is not there."""
        if name not in self._json:
            opened = lambda: self.opened(name)  # noqa: E731
            self._json[name] = parse_large(name, opened, LARGE.get(name, ()), lambda data: _parse_object(data, name))
        return self._json[name]


def _limit(name: str) -> int:
    return next((limit for suffix, limit in MAX_BYTES.items() if name.endswith(suffix)), MAX_OTHER)


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{name}: not UTF-8 at byte {error.start}") from error


def _parse_object(data: bytes, name: str) -> dict[str, object]:
    try:
        value = strict_json.parse(_decoded(data, name), python=name != RUST_FILE)
    except ValueError as error:
        raise TokenizerError(f"{name}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{name}: a JSON object was expected, found {type(value).__name__}")
    return value


def _short(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def as_dict(value: object, where: str) -> dict[str, object]:
    """`value` when it is an object, an empty one for null; otherwise a TokenizerError naming `where`."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TokenizerError(f"{where}: an object was expected, found {_short(value)}")
    return value


def as_list(value: object, where: str) -> list[object]:
    """`value` when it is a list, an empty one for null; otherwise a TokenizerError naming `where`."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise TokenizerError(f"{where}: a list was expected, found {_short(value)}")
    return value


def as_text(value: object, where: str) -> str:
    """`value` when it is a string; otherwise a TokenizerError naming `where`."""
    if not isinstance(value, str):
        raise TokenizerError(f"{where}: a string was expected, found {_short(value)}")
    return value


def entries(value: object, kind: str, where: str) -> Iterator[list[Any]]:
    """The entries of a list ("["), or the pairs of an object ("{"), that may be `Long`, some thousand at a time."""
    if isinstance(value, Long) and value.kind == kind:
        yield from value.pieces()
    else:
        yield list(as_dict(value, where).items()) if kind == "{" else as_list(value, where)


def as_id(value: object, where: str) -> int:
    """`value` when it is a token id from 0 to MAX_TOKENS; otherwise a TokenizerError naming `where`."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TokenizerError(f"{where}: a token id was expected, found {_short(value)}")
    if not 0 <= value < MAX_TOKENS:
        raise TokenizerError(f"{where}: token id {value} is out of range (0 to {MAX_TOKENS - 1})")
    return value
