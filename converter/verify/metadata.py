"""Metadata and tokenizer of a target against what follows from its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from converter.errors import ConverterError
from converter.findings import Finding
from converter.mapping.detect import detect
from converter.mapping.hparams import read_config
from converter.mapping.view import ModelView
from converter.metadata import TYPES, Array, Metadata, Value

#: Keys that say how a file was made, not what the model is; beginnings of keys.
HOW_IT_WAS_MADE = ("general.file_type", "general.quantization_version", "quantize.", "split.", "converter.")
#: Entries of config.json that say how it was saved.
HOW_IT_WAS_SAVED = frozenset((
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "quantization_config", "use_cache", "_commit_hash",
))  # fmt: skip
#: How the two versions of transformers write what the architecture's rows read as `rope.*`.
ROPE = frozenset(("rope_scaling", "rope_parameters", "rope_theta", "text_config"))
TEMPLATE = "chat_template"


def compare_metadata(
    expected: Mapping[str, Any], source: ModelView, target: ModelView, pre: str | None
) -> list[Finding]:
    """What says what the model is, and its tokenizer; nothing where the target is a file of tensors alone.

    `expected` is what follows from the source in the target's dialect; empty where nothing does.
    """
    if target.keyed:
        beside = compare_tokenizers(source, target, pre) if target.checkpoint.stored is not None else []
        return (compare_gguf(expected, target.checkpoint.config) if expected else []) + beside
    if not target.named:
        return []
    config = compare_config(expected, target.checkpoint.config) if expected else []
    return config + compare_tokenizers(source, target, pre)


def compare_gguf(expected: Mapping[str, Value | Array], found: Mapping[str, Value | Array]) -> list[Finding]:
    """Key/values of a GGUF. What names the model (`general.*`) may be said otherwise; what it is may not."""
    return [
        finding
        for key in dict.fromkeys((*expected, *found))
        if not key.startswith(HOW_IT_WAS_MADE)
        for finding in _key(key, expected.get(key), found.get(key))
    ]


def _key(key: str, wanted: Value | Array | None, got: Value | Array | None) -> Iterator[Finding]:
    failed = key == "general.architecture" or not key.startswith("general.")
    check = "template" if TEMPLATE in key else "tokenizer" if key.startswith("tokenizer.") else "metadata"
    if got is None and wanted is not None:
        yield Finding(check, key, f"is not there; the source gives {_short(wanted)}", failed)
    elif wanted is None and got is not None:
        yield Finding(check, key, f"is {_short(got)}, which does not follow from the source", failed=False)
    elif wanted is not None and got is not None and not _equal(wanted, got):
        yield Finding(check, key, _difference(wanted, got), failed)


def _equal(a: Value | Array, b: Value | Array) -> bool:
    """Whether a file holds the same; a value that has not been written yet is rounded to its type."""
    if isinstance(a, Array) or isinstance(b, Array):
        return isinstance(a, Array) and isinstance(b, Array) and a.type == b.type and _first_difference(a, b) is None
    if a.type != b.type:
        return False
    return a.value == b.value or (a.type == "f32" and np.float32(a.value) == np.float32(b.value))


def _first_difference(a: Array, b: Array) -> int | None:
    """The first entry that differs, or where the shorter one ends."""
    if a.type in TYPES and TYPES[a.type].size:
        kind = np.dtype(TYPES[a.type].struct)
        x, y = (np.asarray(side.values, kind) for side in (a, b))
        n = min(len(x), len(y))
        different = np.nonzero(x[:n] != y[:n])[0]
        first = int(different[0]) if len(different) else None
    else:
        first = next((i for i, (x, y) in enumerate(zip(a.values, b.values, strict=False)) if x != y), None)
    return min(len(a), len(b)) if first is None and len(a) != len(b) else first


def _difference(wanted: Value | Array, got: Value | Array) -> str:
    if isinstance(wanted, Array) and isinstance(got, Array):
        if len(wanted) != len(got):
            return f"has {len(got):,} entries, the source gives {len(wanted):,}"
        at = _first_difference(wanted, got)
        if at is not None and wanted.type == got.type:
            return f"entry {at:,} is {_cut(got.values[at])}, the source gives {_cut(wanted.values[at])}"
    return f"is {_short(got)}, the source gives {_short(wanted)}"


def _short(entry: Value | Array) -> str:
    if isinstance(entry, Array):
        return f"{len(entry):,} entries of {entry.type}"
    return f"{_cut(entry.value)} ({entry.type})"


def _cut(value: object) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def compare_config(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[Finding]:
    """Two config.json: what the architecture reads of them must agree, defaults filled in; the rest is only told."""
    findings, read = [], set()
    try:
        architecture, hf = detect(expected)
        wanted, got = read_config(architecture, hf, expected)[0], read_config(*detect(found), found)[0]
    except ConverterError as error:
        return [Finding("metadata", "config.json", str(error).splitlines()[0])] if expected != found else []
    for hparam in architecture.hparams:
        read |= set(hparam.config)
        a, b = wanted.get(hparam.name), got.get(hparam.name)
        if a != b:
            name = hparam.config[0] if hparam.config else hparam.name
            findings.append(Finding("metadata", f"config.json: {name}", f"means {_cut(b)}, the source gives {_cut(a)}"))
    for key in dict.fromkeys((*expected, *found)):
        if key not in read | HOW_IT_WAS_SAVED | ROPE and _differ(expected.get(key), found.get(key)):
            text = f"is {_cut(found.get(key))}, the source gives {_cut(expected.get(key))}"
            failed = key.endswith("_token_id") and _disjoint(expected.get(key), found.get(key))
            findings.append(Finding("metadata", f"config.json: {key}", text, failed))
    return findings


def _differ(a: Any, b: Any) -> bool:
    """Whether two entries say different things; a NaN, which equals nothing, is what another NaN is."""
    return bool(a != b) and repr(a) != repr(b)


def _disjoint(a: Any, b: Any) -> bool:
    """Whether two token ids, or lists of them, have none in common; one that is not said has."""
    one, other = (set(side if isinstance(side, list) else [side]) - {None} for side in (a, b))
    return bool(one and other) and not one & other


def compare_tokenizers(source: ModelView, target: ModelView, pre: str | None) -> list[Finding]:
    """The files of two tokenizers, or of a GGUF's keys, by what they mean; those that cannot be read are as none."""
    wanted, got = _tokenizer(source, pre), _tokenizer(target, pre)
    if wanted is not None and got is not None:
        return compare_gguf(wanted, got)
    if wanted is not None and target.checkpoint.path.is_dir():
        return [Finding("tokenizer", "tokenizer", "is not there, or cannot be read; the source has one")]
    return []


def _tokenizer(model: ModelView, pre: str | None) -> Metadata | None:
    try:
        return model.tokenizer(pre)
    except ConverterError:
        return None
