"""What an architecture's rows expect of a model: keys and types, relations between them, tensors and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from converter.architectures.common import RELATIONS
from converter.architectures.spec import Architecture, TensorRule
from converter.errors import ArchitectureError
from converter.findings import Finding
from converter.mapping.hparams import HParams
from converter.metadata import Array, Value
from converter.tensors.expressions import ExpressionError, evaluate
from converter.tensors.ops import Shape, Stack, infer
from converter.tensors.tensor import LazyTensor

Side = Literal["hf", "gguf"]
Metadata = Mapping[str, Value | Array]

# Keys (below "{arch}.") that ggml's runtimes do not load a model without, where the architecture has a row for them.
LOADER_KEYS = frozenset(
    ("context_length", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ keys


def keys(architecture: Architecture, metadata: Metadata) -> Iterator[Finding]:
    """Keys of a GGUF that are missing, of another type than runtimes read, or differ though they say the same."""
    prefix = architecture.gguf + "."
    for hparam in architecture.hparams:
        for name in hparam.gguf:
            key = prefix + name
            entry = metadata.get(key)
            # The number of tokens is also that of the tokenizer's.
            needed = (hparam.required and hparam.name != "n_vocab") or name in LOADER_KEYS
            if entry is None and needed:
                yield Finding("metadata", key, f"is missing, and {architecture.gguf} models are not loaded without it")
            elif isinstance(entry, Value) and entry.type != hparam.type:
                yield Finding("metadata", key, f"is of type {entry.type}, not {hparam.type}, which runtimes insist on")
            elif isinstance(entry, Array):
                message = f"has {len(entry)} values of its own: tensors are not compared with them"
                yield Finding("metadata", key, message, failed=False)
        said = {
            name: entry.value for name in hparam.gguf if isinstance(entry := metadata.get(f"{prefix}{name}"), Value)
        }
        if len(set(said.values())) > 1:
            first, *others = said
            message = f"is {said[first]!r}, and {prefix}{others[0]}, which must be the same, {said[others[0]]!r}"
            yield Finding("metadata", prefix + first, message)


# More experts in all layers than any model has; their names are listed, so that a config must not say any number.
MAX_EXPERTS = 1 << 18


def excess(hparams: HParams, n_tensors: int) -> str:
    """What is wrong with a model that claims more layers or experts than a file of so many tensors can have; or ""."""
    n_layer, n_expert = hparams["n_layer"], hparams.get("n_expert", 0)
    if n_layer > n_tensors:
        return f"{n_layer} layers, and the file has {n_tensors} tensors"
    if n_layer * n_expert > MAX_EXPERTS:
        return f"{n_expert} experts in each of {n_layer} layers, which no model has"
    return ""


def relations(architecture: Architecture, hparams: HParams, side: Side) -> Iterator[Finding]:
    """Hyperparameters that contradict each other."""
    named = {hparam.name: hparam for hparam in architecture.hparams}

    def finding(name: str, message: str) -> Finding:
        hparam = named[name]
        ggml = f"{architecture.gguf}.{hparam.gguf[0]}" if hparam.gguf else name
        subject = ggml if side == "gguf" or not hparam.config else f"config.json: {hparam.config[0]}"
        return Finding("metadata", subject, f"is {hparams[name]}: {message}")

    for relation in (*RELATIONS, *architecture.traits.relations):
        try:
            if hparams.get(relation.name) is not None and not evaluate(relation.condition, hparams):
                yield finding(relation.name, relation.message)
        except ExpressionError:  # of names that this architecture does not have
            continue
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


# --------------------------------------------------------------------------------------------- tensors


@dataclass(frozen=True)
class _Instance:
    """A rule in one block: the names and shapes of its tensors on the side that is looked at, and what they become."""

    rule: TensorRule
    names: tuple[str, ...]
    shapes: tuple[Shape, ...]  # none where the rule does not say
    gguf: tuple[str, ...]


def tensors(
    architecture: Architecture, hparams: HParams, found: Mapping[str, LazyTensor], side: Side, tied: bool | None = None
) -> Iterator[Finding]:
    """Tensors that are missing, extra or of another shape than the keys or the config say.

    `found` has the names of `side`, aliases and ignored tensors taken care of. `tied` is what config.json says about
    the head; None where nothing is said and a missing head is a tied one.
    """
    known = list(_instances(architecture, hparams, side))
    shapes = {name: shape for each in known if each.shapes for name, shape in zip(each.names, each.shapes, strict=True)}
    source = "config.json makes" if side == "hf" else "the keys make"
    names = {name for each in known for name in each.names}
    for name, tensor in found.items():
        if name not in names:
            yield Finding("extra", tensor.name, f"{architecture.gguf} has no such tensor{_beyond(name, hparams)}")
        elif name in shapes and tensor.info.shape != shapes[name]:
            stored = list(tensor.info.shape)
            yield Finding("shape", tensor.name, f"is {stored}, {source} it {list(shapes[name])}")
    yield from _missing(known, found, tied)


def _beyond(name: str, hparams: HParams) -> str:
    numbers = [int(part) for part in name.split(".") if part.isdecimal() and len(part) < 10]
    return f": there are {hparams['n_layer']} layers" if numbers and numbers[0] >= hparams["n_layer"] else ""


def _missing(known: list[_Instance], found: Mapping[str, LazyTensor], tied: bool | None) -> Iterator[Finding]:
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


def _instances(architecture: Architecture, hparams: HParams, side: Side) -> Iterator[_Instance]:
    for rule in architecture.tensors:
        if (side == "gguf" and rule.read_only) or (side == "hf" and not rule.hf):
            continue
        # A file does not say all that a config does (`rope_type == 'llama3'`): generated tensors may always be there.
        if not rule.generator and rule.when is not None and not evaluate(rule.when, hparams):
            continue
        shapes = _shapes(rule, hparams, side)
        for block in range(hparams["n_layer"]) if rule.per_block else (0,):
            yield _Instance(rule, _names(rule, hparams, side, block), shapes, _filled(rule.gguf, block))


def _filled(templates: tuple[str, ...], block: int) -> tuple[str, ...]:
    return tuple(template.replace("{block}", str(block)) for template in templates)


def _names(rule: TensorRule, hparams: HParams, side: Side, block: int) -> tuple[str, ...]:
    templates = _filled(getattr(rule, side), block)
    experts = range(hparams["n_expert"]) if rule.stacked and side == "hf" else (0,)
    return tuple(template.replace("{expert}", str(expert)) for template in templates for expert in experts)


def _shapes(rule: TensorRule, hparams: HParams, side: Side) -> tuple[Shape, ...]:
    """Shapes of the tensors of `_names`; none where the rule's sizes or ops do not say."""
    shape = tuple(evaluate(size, hparams) for size in rule.shape)
    if not shape:
        return ()
    count = len(rule.hf) * (hparams["n_expert"] if rule.stacked else 1)
    if side == "hf":
        return (shape,) * count
    chain = (*((Stack(hparams["n_expert"]),) if rule.stacked else ()), *rule.ops)
    try:
        return tuple(infer(tuple(op.bind(hparams) for op in chain), [shape] * count))
    except ArchitectureError:
        return ()


def spelled(architecture: Architecture, found: Mapping[str, LazyTensor], hparams: HParams) -> dict[str, LazyTensor]:
    """Tensors of a Hugging Face checkpoint by their canonical names, without those that are dropped on purpose."""
    known = {name for each in _instances(architecture, hparams, "hf") for name in each.names}
    ignored = {
        name for template in architecture.ignore for block in range(hparams["n_layer"])
        for name in _filled((template,), block)
    }  # fmt: skip
    result: dict[str, LazyTensor] = {}
    for name, tensor in found.items():
        spellings = [name, *(new + name.removeprefix(old) for old, new in architecture.aliases if name.startswith(old))]
        if not any(spelling in ignored for spelling in spellings):
            result[next((spelling for spelling in spellings if spelling in known), name)] = tensor
    return result
