"""What an architecture's rows expect of a model: keys and types, relations between them, tensors and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from converter.architectures.common import RELATIONS
from converter.architectures.spec import Architecture
from converter.architectures.traits import Relation
from converter.findings import Finding
from converter.mapping.hparams import HParams, Scope
from converter.mapping.view import Instance, ModelView
from converter.metadata import Array, Value, scalar_of
from converter.tensors.expressions import ExpressionError, evaluate, names
from converter.tensors.tensor import LazyTensor

Metadata = Mapping[str, Value | Array]

# Keys (below "{arch}.") that ggml's runtimes do not load a model without, where the architecture has a row for them.
LOADER_KEYS = frozenset(
    ("context_length", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ keys


def keys(architecture: Architecture, metadata: Metadata) -> Iterator[Finding]:
    """Keys of a GGUF that are missing, of another type than runtimes read, or differ though they say the same."""
    for hparam in architecture.hparams:
        for name in hparam.gguf:
            key = architecture.key(name)
            entry = metadata.get(key)
            # The number of tokens is also that of the tokenizer's.
            needed = (hparam.required and hparam.name != "n_vocab") or name in LOADER_KEYS
            if entry is None and needed:
                yield Finding("metadata", key, f"is missing, and {architecture.gguf} models are not loaded without it")
            elif isinstance(entry, Value) and entry.type not in hparam.types:
                yield Finding("metadata", key, f"is of type {entry.type}, not {hparam.type}, which runtimes insist on")
            elif isinstance(entry, Array) and f"{entry.type}[]" not in hparam.types:
                message = f"has {len(entry)} values of its own: tensors are not compared with them"
                yield Finding("metadata", key, message, failed=False)
        whole_keys = map(architecture.key, hparam.gguf)
        said = {key: value for key in whole_keys if (value := scalar_of(metadata, key)) is not None}
        if len(set(said.values())) > 1:
            first, *others = said
            message = f"is {said[first]!r}, and {others[0]}, which must be the same, {said[others[0]]!r}"
            yield Finding("metadata", first, message)


def relations(model: ModelView, architecture: Architecture, hparams: HParams) -> Iterator[Finding]:
    """Hyperparameters that contradict each other."""
    rows = {hparam.name: hparam for hparam in architecture.hparams}

    def finding(name: str, message: str) -> Finding:
        return Finding("metadata", model.said_by(architecture, rows[name]), f"is {hparams[name]}: {message}")

    for relation in (*RELATIONS, *architecture.traits.relations):
        if hparams.get(relation.name) is not None and not _holds(relation, hparams):
            yield finding(relation.name, relation.message)
    for hparam in architecture.hparams:
        # What no config gives follows from the rest, and the runtime compares it.
        if hparam.config or not isinstance(hparam.default, str) or hparams.get(hparam.name) is None:
            continue
        try:
            follows = evaluate(hparam.default, hparams)
        except ExpressionError:
            continue
        if hparams[hparam.name] != follows:
            yield finding(hparam.name, f"does not fit the others, which make it {follows} ({hparam.default})")


def _holds(relation: Relation, hparams: HParams) -> bool:
    """Whether a relation holds, in every block where its numbers differ from block to block."""
    scope = Scope(hparams)
    per_block = any(isinstance(hparams.get(name), list) for name in names(relation.condition))
    try:
        return all(scope.holds(relation.condition, at) for at in (range(hparams["n_layer"]) if per_block else (None,)))
    except ExpressionError:  # of names that this architecture does not have
        return True


# --------------------------------------------------------------------------------------------- tensors


def tensors(model: ModelView, architecture: Architecture, hparams: HParams) -> Iterator[Finding]:
    """Tensors that are missing, extra or of another shape than the keys or the config say."""
    known, found = list(model.instances(architecture, hparams)), model.canonical
    shapes = {name: shape for each in known if each.shapes for name, shape in zip(each.names, each.shapes, strict=True)}
    expected = {name for each in known for name in each.names}
    for name, tensor in found.items():
        if name not in expected:
            yield Finding("extra", tensor.name, f"{architecture.gguf} has no such tensor{_beyond(name, hparams)}")
        elif name in shapes and tensor.info.shape != shapes[name]:
            stored = list(tensor.info.shape)
            yield Finding("shape", tensor.name, f"is {stored}, {model.makes} it {list(shapes[name])}")
    yield from _missing(known, found, model.tied)


def _beyond(name: str, hparams: HParams) -> str:
    numbers = [int(part) for part in name.split(".") if part.isdecimal() and len(part) < 10]
    return f": there are {hparams['n_layer']} layers" if numbers and numbers[0] >= hparams["n_layer"] else ""


def _missing(known: list[Instance], found: Mapping[str, LazyTensor], tied: bool | None) -> Iterator[Finding]:
    whole = {name for each in known if all(name in found for name in each.names) for name in each.gguf}
    for each in known:
        rule, absent = each.rule, [name for name in each.names if name not in found]
        if not absent or all(name in whole for name in each.gguf):
            continue
        begun = len(absent) < len(each.names)
        if not begun and (rule.optional or rule.read_only or rule.generator):
            continue
        if rule.tied_to and tied is not False:
            continue
        if rule.tied_to:
            yield Finding("tied", absent[0], "is not there, and config.json says that it is not tied to the embedding")
            continue
        siblings = ", its siblings are" if begun else ""
        more = f", nor are {len(absent) - 1} more of its kind" if len(absent) > 1 else ""
        yield Finding("missing", absent[0], f"is not there{siblings}{more}", hint="a shard may be missing")
