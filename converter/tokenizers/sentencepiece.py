"""SentencePiece `tokenizer.model`: the few protobuf fields a conversion needs.

Source: sentencepiece_model.proto (ModelProto: pieces = 1, trainer_spec = 2, normalizer_spec = 3).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from converter.errors import CorruptFile, TokenizerError
from converter.storage.files import InMemory
from converter.storage.protobuf import BYTES, FIXED32, VARINT, Field, fields
from converter.storage.windows import Windows
from converter.tokenizers.files import MAX_TOKENS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2

_FLOAT = struct.Struct("<f")
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
    try:
        return _read(Windows(InMemory(Path(name), data)), name)
    except CorruptFile as error:
        raise TokenizerError(str(error)) from None


def _read(data: Windows, name: str) -> SentencePieceModel:
    pieces: list[bytes] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, Field] = {}
    normalizer: dict[int, Field] = {}
    for field in fields(data, 0, data.size):
        if field.number == 1:
            if len(pieces) >= MAX_TOKENS:
                raise TokenizerError(f"{name}: more than {MAX_TOKENS} pieces")
            piece, score, kind = _usual_piece(_bytes(data, field)) or _any_piece(data, field, len(pieces))
            pieces.append(piece)
            scores.append(score)
            types.append(kind)
        elif field.number in (2, 3):
            part = trainer if field.number == 2 else normalizer
            part.update((each.number, each) for each in fields(data, *_message(data, field)))
    _check(pieces, types, name)
    model_type = _integer(data, trainer.get(3), UNIGRAM)
    if model_type not in _MODEL_TYPES:
        raise TokenizerError(f"{name}: model type {model_type} is not unigram or BPE, no GGUF tokenizer holds it")
    return SentencePieceModel(
        pieces,
        scores,
        types,
        model_type,
        add_dummy_prefix=bool(_integer(data, normalizer.get(3), 1)),
        remove_extra_whitespaces=bool(_integer(data, normalizer.get(4), 1)),
        precompiled_charsmap=_bytes(data, normalizer[2]) if 2 in normalizer else b"",
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


def _any_piece(data: Windows, message: Field, at: int) -> tuple[bytes, float, int]:
    piece, score, kind = b"", 0.0, NORMAL
    for field in fields(data, message.start, message.stop):
        if field.number == 1:
            piece = _bytes(data, field)
        elif field.number == 2:
            if field.wire != FIXED32:
                raise TokenizerError(f"{data.path}: piece {at} has a score that is not a 32-bit float")
            score = _FLOAT.unpack(field.value.to_bytes(4, "little"))[0]
        elif field.number == 3:
            kind = _integer(data, field, NORMAL)
    if not NORMAL <= kind <= BYTE:
        raise TokenizerError(f"{data.path}: piece {at} has unknown type {kind}")
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


def _message(data: Windows, field: Field) -> tuple[int, int]:
    """Where the message or the text that a field is begins and ends."""
    if field.wire != BYTES:
        raise TokenizerError(_WRONG.format(data.path))
    return field.start, field.stop


def _bytes(data: Windows, field: Field) -> bytes:
    start, stop = _message(data, field)
    return bytes(data.at(start, stop - start, "a field"))


def _integer(data: Windows, field: Field | None, default: int) -> int:
    if field is not None and field.wire != VARINT:
        raise TokenizerError(_WRONG.format(data.path))
    return default if field is None else field.value


_WRONG = "{}: a protobuf field has the wrong wire type; is it a SentencePiece model?"
