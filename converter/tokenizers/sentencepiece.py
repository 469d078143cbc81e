"""SentencePiece `tokenizer.model`: the few protobuf fields a conversion needs.

Source: sentencepiece_model.proto (ModelProto: pieces = 1, trainer_spec = 2, normalizer_spec = 3).
The reader knows the wire format only: it never trusts a length beyond the buffer it was given.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from converter.errors import TokenizerError
from converter.tokenizers.files import MAX_TOKENS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2

_FLOAT = struct.Struct("<f")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_TYPES = {UNIGRAM: "unigram", BPE: "bpe"}


@dataclass(frozen=True)
class SentencePieceModel:
    """Pieces (bytes as stored, UTF-8), their scores and types (1 normal ... 6 byte), and the normalizer's switches."""

    pieces: list[bytes]
    scores: list[float]
    types: list[int]
    model_type: int
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    precompiled_charsmap: bytes

    def __len__(self) -> int:
        return len(self.pieces)


def read_sentencepiece(data: bytes, name: str = "tokenizer.model") -> SentencePieceModel:
    """Parse a serialized ModelProto.

    Raises:
        TokenizerError: not a SentencePiece model, truncated, or of a kind (word, char) that GGUF cannot hold.
    """
    pieces: list[bytes] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, object] = {}
    normalizer: dict[int, object] = {}
    view = memoryview(data)
    for field, value in _fields(view, name):
        if field == 1:
            if len(pieces) >= MAX_TOKENS:
                raise TokenizerError(f"{name}: more than {MAX_TOKENS} pieces")
            message = _message(value, name)
            piece, score, kind = _usual_piece(bytes(message)) or _any_piece(message, name, len(pieces))
            pieces.append(piece)
            scores.append(score)
            types.append(kind)
        elif field == 2:
            trainer.update(_fields(_message(value, name), name))
        elif field == 3:
            normalizer.update(_fields(_message(value, name), name))
    _check(pieces, types, name)
    model_type = _integer(trainer.get(3, UNIGRAM), name)
    if model_type not in _MODEL_TYPES:
        raise TokenizerError(f"{name}: model type {model_type} is not unigram or BPE, no GGUF tokenizer holds it")
    charsmap = normalizer.get(2, b"")
    return SentencePieceModel(
        pieces,
        scores,
        types,
        model_type,
        add_dummy_prefix=bool(_integer(normalizer.get(3, 1), name)),
        remove_extra_whitespaces=bool(_integer(normalizer.get(4, 1), name)),
        precompiled_charsmap=bytes(_message(charsmap, name)),
    )


def _usual_piece(message: bytes) -> tuple[bytes, float, int] | None:
    """A piece laid out as every writer does (text, score, then a type that is not normal); None for another layout."""
    if len(message) < 7 or message[0] != 0x0A:
        return None
    end = 2 + message[1]
    if message[1] > 0x7F or len(message) < end + 5 or message[end] != 0x15:
        return None
    rest = message[end + 5 :]
    if rest and not (len(rest) == 2 and rest[0] == 0x18 and NORMAL <= rest[1] <= BYTE):
        return None
    return message[2:end], _FLOAT.unpack_from(message, end + 1)[0], rest[1] if rest else NORMAL


def _any_piece(view: memoryview, name: str, at: int) -> tuple[bytes, float, int]:
    piece, score, kind = b"", 0.0, NORMAL
    for field, value in _fields(view, name):
        if field == 1:
            piece = bytes(_message(value, name))
        elif field == 2:
            if not isinstance(value, float):
                raise TokenizerError(f"{name}: piece {at} has a score that is not a 32-bit float")
            score = value
        elif field == 3:
            kind = _integer(value, name)
    if not NORMAL <= kind <= BYTE:
        raise TokenizerError(f"{name}: piece {at} has unknown type {kind}")
    return piece, score, kind


def _check(pieces: list[bytes], types: list[int], name: str) -> None:
    if not pieces:
        raise TokenizerError(f"{name}: no pieces; is it a SentencePiece model?")
    if types.count(UNKNOWN) != 1:
        raise TokenizerError(f"{name}: {types.count(UNKNOWN)} unknown pieces where a SentencePiece model has one")
    if len(set(pieces)) != len(pieces):
        raise TokenizerError(f"{name}: a piece appears twice; the file is damaged")
    for i, piece in enumerate(pieces):
        if not piece:
            raise TokenizerError(f"{name}: piece {i} is empty; the file is damaged")
        try:
            piece.decode()
        except UnicodeDecodeError:
            raise TokenizerError(f"{name}: piece {i} is not UTF-8; the file is damaged") from None


def _message(value: object, name: str) -> memoryview:
    if not isinstance(value, memoryview | bytes):
        raise TokenizerError(f"{name}: a protobuf field has the wrong wire type; is it a SentencePiece model?")
    return memoryview(value)


def _integer(value: object, name: str) -> int:
    if not isinstance(value, int):
        raise TokenizerError(f"{name}: a protobuf field has the wrong wire type; is it a SentencePiece model?")
    return value


def _fields(view: memoryview, name: str) -> Iterator[tuple[int, object]]:
    """(field number, value) of one message: int for varints, float for 32-bit, memoryview for the rest."""
    at, end = 0, len(view)
    while at < end:
        tag, at = _varint(view, at, name)
        field, wire = tag >> 3, tag & 7
        if field == 0:
            raise TokenizerError(f"{name}: damaged at byte {at} of a message (field number 0)")
        if wire == _VARINT:
            value, at = _varint(view, at, name)
            yield field, value
            continue
        if wire == _BYTES:
            size, at = _varint(view, at, name)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise TokenizerError(f"{name}: damaged at byte {at} of a message (wire type {wire})")
        if size > end - at:
            raise TokenizerError(f"{name}: truncated, a field declares {size} bytes and {end - at} are left")
        chunk = view[at : at + size]
        at += size
        yield field, _FLOAT.unpack(chunk)[0] if wire == _FIXED32 else chunk


def _varint(view: memoryview, at: int, name: str) -> tuple[int, int]:
    value = shift = 0
    while at < len(view):
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise TokenizerError(f"{name}: damaged at byte {at} of a message (a number longer than 64 bits)")
    raise TokenizerError(f"{name}: truncated inside a number")
