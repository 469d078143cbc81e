"""Tokenizer files with some of their tokens, counted anew; each file as it was in all else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from converter.errors import CorruptFile, TokenizerError
from converter.metadata import Array, Metadata, Strings, Value
from converter.storage import protobuf
from converter.storage.files import InMemory
from converter.storage.json import parse
from converter.storage.windows import Windows
from converter.tokenizers.files import as_dict, as_id, as_list

Ids = Mapping[int, int]  # old -> new, of the tokens that stay, ascending

_TOKENS, _MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
_ID = "_token_id"
LISTS = ("tokenizer.ggml.suppress_tokens",)  # of ids
_OTHERS = ("tokenizer.ggml.precompiled_charsmap",)
# Of SentencePiece's trainer_spec: (field of an id, its default), and that of the number of pieces.
_TRAINER_IDS, _TRAINER_SIZE = {40: 0, 41: 1, 42: 2, 43: -1}, 4
_U64 = (1 << 64) - 1


def keys(metadata: Metadata, ids: Ids) -> Metadata:
    """A GGUF's tokenizer keys.

    Raises:
        TokenizerError: a list of numbers that is not known, or an id of a token that is gone.
    """
    tokens = metadata.get(_TOKENS)
    assert isinstance(tokens, Array)  # whoever knows the ids has read them
    texts, result = list(tokens.values), dict(metadata)
    kept = {texts[i] for i in ids}
    for key, entry in metadata.items():
        if not key.startswith("tokenizer.ggml."):
            continue
        if isinstance(entry, Value):
            if key.endswith(_ID) and type(entry.value) is int:
                result[key] = Value(entry.type, _new(ids, entry.value, key))
        elif key == _MERGES:
            merges = (merge for merge in entry.values if isinstance(merge, str | bytes) and _merges(merge, kept))
            result[key] = Array("str", Strings.of(merges))
        elif key in LISTS:
            result[key] = Array(entry.type, [_new(ids, int(i), key) for i in entry.values])  # type: ignore[arg-type]
        elif len(entry) == len(texts):
            values = [entry.values[i] for i in ids]
            result[key] = Array(entry.type, Strings.of(values) if entry.type == "str" else values)  # type: ignore[arg-type]
        elif key not in _OTHERS:
            raise TokenizerError(f"{key}: a list of {len(entry)}, of which it is not known what it counts")
    return result


def _merges(merge: str | bytes, kept: set[Any]) -> bool:
    """Whether both halves of a merge and what it makes are there; texts that are not UTF-8 make none."""
    left, _, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
    return left in kept and right in kept and left + right in kept


def _new(ids: Ids, old: int, where: str) -> int:
    if old not in ids:
        raise TokenizerError(f"{where}: {old} is no token")
    return ids[old]


# ------------------------------------------------------------------------------------------------ files


def file(name: str, data: bytes, ids: Ids, texts: Mapping[int, str]) -> bytes:
    """A file of a folder; `texts` are all tokens of the vocabulary.

    Raises:
        TokenizerError: it is malformed, or of a kind that is not known.
    """
    if name in UNTOUCHED:
        return data
    if name not in FILES:
        raise TokenizerError(f"{name}: a tokenizer of this kind cannot be trimmed; {', '.join(FILES)} can")
    return FILES[name](name, data, ids, texts)


def _json(name: str, data: bytes) -> Any:
    try:
        return parse(data.decode("utf-8-sig"), python=True)
    except ValueError as error:
        raise TokenizerError(f"{name}: not valid JSON ({error})") from None


def _dumped(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def _vocab(where: str, vocab: Any, ids: Ids) -> dict[str, int]:
    numbered = {token: as_id(i, where) for token, i in as_dict(vocab, where).items()}
    return dict(sorted(((t, ids[i]) for t, i in numbered.items() if i in ids), key=lambda pair: pair[1]))


def _tokenizer(name: str, data: bytes, ids: Ids, texts: Mapping[int, str]) -> bytes:
    whole = as_dict(_json(name, data), name)
    model = as_dict(whole.get("model"), f"{name} model")
    if isinstance(listed := model.get("vocab"), list):  # Unigram
        model["vocab"] = [listed[i] for i in ids if i < len(listed)]
        if model.get("unk_id") is not None:
            model["unk_id"] = _new(ids, as_id(model["unk_id"], name), f"{name} unk_id")
    else:
        model["vocab"] = _vocab(f"{name} vocab", listed, ids)
    if "merges" in model:
        merges, kept = as_list(model["merges"], f"{name} merges"), {texts[i] for i in ids if i in texts}
        model["merges"] = [entry for entry in merges if _joins(entry, kept)]
    for added in as_list(whole.get("added_tokens"), f"{name} added_tokens"):
        token = as_dict(added, f"{name} added_tokens")
        token["id"] = _new(ids, as_id(token.get("id"), name), f"{name} added_tokens")
    padding = as_dict(whole.get("padding"), f"{name} padding")
    if "pad_id" in padding:
        padding["pad_id"] = _new(ids, as_id(padding["pad_id"], name), f"{name} padding")
    _processor(name, whole.get("post_processor"), ids)
    return _dumped(whole)


def _joins(entry: Any, vocab: set[str]) -> bool:
    pair = entry.split(" ") if isinstance(entry, str) else entry
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(half, str) for half in pair):
        raise TokenizerError("tokenizer.json: a merge is not a pair of tokens")
    return pair[0] in vocab and pair[1] in vocab and pair[0] + pair[1] in vocab


def _processor(name: str, spec: Any, ids: Ids) -> None:
    """The ids in what is put around a text, changed where they are."""
    where = f"{name} post_processor"
    fields = as_dict(spec, where)
    for part in as_list(fields.get("processors"), where):
        _processor(name, part, ids)
    for side in ("cls", "sep"):
        if isinstance(pair := fields.get(side), list) and len(pair) == 2:
            pair[1] = _new(ids, as_id(pair[1], where), where)
    if fields.get("type") == "TemplateProcessing":
        for token in as_dict(fields.get("special_tokens"), where).values():
            said = as_dict(token, where)
            said["ids"] = [_new(ids, as_id(i, where), where) for i in as_list(said.get("ids"), where)]


def _settings(name: str, data: bytes, ids: Ids, texts: Mapping[int, str]) -> bytes:
    whole = as_dict(_json(name, data), name)
    if "added_tokens_decoder" in whole:
        added = as_dict(whole["added_tokens_decoder"], f"{name} added_tokens_decoder")
        whole["added_tokens_decoder"] = {str(_new(ids, as_id(i, name), name)): token for i, token in added.items()}
    return _dumped(whole)


def _numbers(name: str, data: bytes, ids: Ids, texts: Mapping[int, str]) -> bytes:
    return _dumped(_vocab(name, _json(name, data), ids))


def _merges_txt(name: str, data: bytes, ids: Ids, texts: Mapping[int, str]) -> bytes:
    kept = {texts[i] for i in ids if i in texts}
    lines = data.decode("utf-8").split("\n")
    return "\n".join(
        line for at, line in enumerate(lines)
        if (at == 0 and line.startswith("#")) or len(line.split()) != 2 or _merges(" ".join(line.split()), kept)
    ).encode()  # fmt: skip


def _vocab_txt(name: str, data: bytes, ids: Ids, texts: Mapping[int, str]) -> bytes:
    lines = data.decode("utf-8").removesuffix("\n").split("\n")
    return ("\n".join(lines[i] for i in ids if i < len(lines)) + "\n").encode()


def _sentencepiece(name: str, data: bytes, ids: Ids, texts: Mapping[int, str]) -> bytes:
    """A SentencePiece model, its pieces in their order; ids of the trainer that are not those of tokens stay."""
    windows = Windows(InMemory(Path(name), data))
    try:
        out, at = bytearray(), 0
        for field in protobuf.fields(windows, 0, windows.size):
            if field.number == 1:
                out += _field(windows, field) if at in ids else b""
                at += 1
            elif field.number == 2:
                out += protobuf.blob(2, _trainer(windows, field, ids, sum(i < _pieces(windows) for i in ids)))
            else:
                out += _field(windows, field)
    except CorruptFile as error:
        raise TokenizerError(str(error)) from None
    return bytes(out)


def _pieces(windows: Windows) -> int:
    return sum(field.number == 1 for field in protobuf.fields(windows, 0, windows.size))


def _trainer(windows: Windows, message: protobuf.Field, ids: Ids, count: int) -> bytes:
    out, said = bytearray(), set[int]()
    for field in protobuf.fields(windows, message.start, message.stop):
        said.add(field.number)
        if field.number == _TRAINER_SIZE:
            out += protobuf.number(field.number, count)
        elif field.number in _TRAINER_IDS:
            signed = (field.signed + (1 << 31)) % (1 << 32) - (1 << 31)
            out += protobuf.number(field.number, ids.get(signed, signed if signed < 0 else -1))
        else:
            out += _field(windows, field)
    for number, usual in _TRAINER_IDS.items():
        if number not in said and (new := ids.get(usual, -1)) != usual:
            out += protobuf.number(number, new)
    return bytes(out)


def _field(windows: Windows, field: protobuf.Field) -> bytes:
    """A field as it was."""
    if field.wire == protobuf.BYTES:
        return protobuf.blob(field.number, bytes(windows.at(field.start, field.stop - field.start, "a field")))
    if field.wire == protobuf.VARINT:
        return protobuf.number(field.number, field.value)
    size = {protobuf.FIXED32: 4, protobuf.FIXED64: 8}[field.wire]
    return protobuf.varint_bytes(field.number << 3 | field.wire) + field.value.to_bytes(size, "little")


FILES: dict[str, Callable[[str, bytes, Ids, Mapping[int, str]], bytes]] = {
    "tokenizer.json": _tokenizer,
    "tokenizer_config.json": _settings,
    "added_tokens.json": _numbers,
    "vocab.json": _numbers,
    "merges.txt": _merges_txt,
    "vocab.txt": _vocab_txt,
    "tokenizer.model": _sentencepiece,
    "spiece.model": _sentencepiece,
}
UNTOUCHED = ("special_tokens_map.json", "chat_template.jinja", "chat_template.json")  # of texts alone
