"""The Map stage: Hugging Face names, shapes and config <-> GGUF's, by an architecture's rows.

Nothing here knows a model: the rows of `converter/architectures` do, and both directions read the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.architectures import architectures
from converter.architectures.spec import Architecture, HFClass, HParam, TensorRule
from converter.checkpoint import Checkpoint
from converter.errors import (
    ArchitectureError,
    MissingTensor,
    ShapeMismatch,
    UnknownArchitecture,
    UnmatchedTensor,
    short,
)
from converter.events import Event, Ignored, Note
from converter.mapping.generators import GENERATORS, llama3_rope_config
from converter.metadata import Array, Metadata, Value
from converter.tensors.dtypes import F32
from converter.tensors.expressions import ExpressionError, evaluate
from converter.tensors.ops import Chain, Stack, inverse
from converter.tensors.streams import compose
from converter.tensors.tensor import LazyTensor, from_array

HParams = dict[str, Any]


# ---------------------------------------------------------------------------------------------- which one


def detect(config: Mapping[str, Any], name: str | None = None) -> tuple[Architecture, HFClass]:
    """The architecture of a Hugging Face config, by `name` (GGUF name or class) or by its `architectures`.

    Raises:
        UnknownArchitecture: none answers; the message lists those there are.
    """
    listed = config.get("architectures")
    classes = listed if isinstance(listed, list) else []
    wanted = [name] if name else [item for item in classes if isinstance(item, str)]
    for architecture in architectures().values():
        for hf in architecture.hf:
            if hf.name in wanted:
                return architecture, hf
    if name and name in architectures():
        architecture = architectures()[name]
        by_type = (hf for hf in architecture.hf if hf.model_type == config.get("model_type"))
        return architecture, next(by_type, architecture.hf[0])
    for architecture in () if wanted else architectures().values():
        for hf in architecture.hf:
            if hf.model_type == config.get("model_type"):
                return architecture, hf
    known = ", ".join(hf.name for architecture in architectures().values() for hf in architecture.hf)
    said = ", ".join(map(short, wanted[:3])) or f"model_type {short(config.get('model_type'))}"
    raise UnknownArchitecture(f"no architecture answers to {said} (known: {known})\n--arch NAME chooses one")


def detect_gguf(metadata: Mapping[str, Value | Array], name: str | None = None) -> Architecture:
    """The architecture of a GGUF file.

    Raises:
        UnknownArchitecture: none answers.
    """
    value = metadata.get("general.architecture")
    wanted = name or (value.value if isinstance(value, Value) else None)
    if wanted not in architectures():
        known = ", ".join(architectures())
        raise UnknownArchitecture(f"no architecture answers to {short(wanted)} (known: {known})")
    return architectures()[str(wanted)]


# --------------------------------------------------------------------------------------- hyperparameters


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of transformers 4 or 5, with a nested text model lifted and every rope fact under "rope"."""
    flat = {**config, **_object(config.get("text_config"))}
    rope = dict(_object(flat.get("rope_parameters")) or _object(flat.get("rope_scaling")))
    rope = dict(_object(rope.get("full_attention")) or rope)
    for key in ("rope_theta", "original_max_position_embeddings"):
        if flat.get(key) is not None:
            rope.setdefault(key, flat[key])
    if "type" in rope:
        rope.setdefault("rope_type", rope["type"])
    flat["rope"] = rope
    return flat


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _lookup(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def read_config(architecture: Architecture, hf: HFClass, config: Mapping[str, Any]) -> tuple[HParams, set[str]]:
    """Hyperparameters by name, and the names of those that the config (or its class) really gives.

    Raises:
        ArchitectureError: a required key is missing, or a value is of the wrong kind.
    """
    flat = flat_config(config)
    found: HParams = {}
    given: set[str] = set()
    for hparam in architecture.hparams:
        value = next((v for key in hparam.config if (v := _lookup(flat, key)) is not None), None)
        if value is None:
            value = _class_default(hf, hparam, flat)
        if value is not None:
            given.add(hparam.name)
        elif hparam.required:
            raise ArchitectureError(f"config.json has no {hparam.config[0]}, which {architecture.gguf} needs")
        elif hparam.default is not None:
            value = _default(hparam, found)
        if value is not None:
            name = hparam.config[0] if hparam.config else hparam.name
            found[hparam.name] = _checked(hparam, value, f"config.json: {name}")
    return found, given


def _class_default(hf: HFClass, hparam: HParam, flat: Mapping[str, Any]) -> Any:
    """What the transformers class would have filled in; a text is an expression over config keys."""
    for key in hparam.config:
        default = hf.defaults.get(key.removeprefix("rope."))
        try:
            if default is not None:
                return evaluate(default, flat) if isinstance(default, str) else default
        except ExpressionError:
            continue
    return None


def _default(hparam: HParam, found: HParams) -> Any:
    if not isinstance(hparam.default, str) or hparam.type == "str":
        return hparam.default
    return evaluate(hparam.default, found)


# A config that says more than this is not a model but an attack on our memory.
_LIMIT = 1 << 31


_F32_MAX = float(np.finfo(np.float32).max)


def _checked(hparam: HParam, value: Any, where: str) -> Any:
    kinds: dict[str, type | tuple[type, ...]] = {"u32": int, "f32": (int, float), "str": str, "bool": bool}
    wrong = not isinstance(value, kinds[hparam.type]) or (isinstance(value, bool) and hparam.type != "bool")
    if not wrong and hparam.type in ("u32", "f32"):
        wrong = not (0 <= value < _LIMIT if hparam.type == "u32" else -_F32_MAX <= value <= _F32_MAX)
    if wrong:
        raise ArchitectureError(f"{where} is {str(value)[:40]!r}, not a usable {hparam.type} value")
    return value


def hparam_metadata(architecture: Architecture, hparams: HParams, given: set[str]) -> Metadata:
    """The architecture's GGUF keys, in the order of its rows."""
    metadata: Metadata = {}
    for hparam in architecture.hparams:
        value = hparams.get(hparam.name)
        if value is None or not (hparam.always or hparam.name in given) or not _holds(hparam.when, hparams):
            continue
        if hparam.values:
            value = dict(hparam.values).get(value)
            if value is None:
                continue
        for key in hparam.gguf:
            metadata[f"{architecture.gguf}.{key}"] = Value(hparam.type, value)
    return metadata


def read_metadata(
    architecture: Architecture, metadata: Mapping[str, Value | Array], n_rows: int | None = None
) -> HParams:
    """Hyperparameters by name from a GGUF file's keys; the vocabulary is `n_rows` where no key tells.

    Raises:
        ArchitectureError: a required key is missing or of the wrong kind.
    """
    found: HParams = {}
    for hparam in architecture.hparams:
        value: Any = None
        for key in hparam.gguf:
            entry = metadata.get(f"{architecture.gguf}.{key}")
            if isinstance(entry, Value):
                value = _config_value(hparam, entry.value)
        if hparam.name == "n_vocab" and value is None:
            tokens = metadata.get("tokenizer.ggml.tokens")
            value = len(tokens) if isinstance(tokens, Array) else n_rows
        if value is None and hparam.required and hparam.gguf:
            raise ArchitectureError(f"the file has no {architecture.gguf}.{hparam.gguf[0]}")
        if value is None and hparam.default is not None:
            value = _default(hparam, found)
        if value is not None:
            name = f"{architecture.gguf}.{hparam.gguf[0]}" if hparam.gguf else hparam.name
            found[hparam.name] = _checked(hparam, value, name)
    return found


def _config_value(hparam: HParam, value: Any) -> Any:
    """What config.json calls a GGUF value; nothing where it has no word for it."""
    if not hparam.values:
        return value
    return next((ours for ours, theirs in hparam.values if theirs == value), None)


def write_config(architecture: Architecture, hparams: HParams, tied: bool) -> dict[str, Any]:
    """A config.json (in the layout of transformers 4, which 5 reads too) for these hyperparameters."""
    hf = next(cls for cls in architecture.hf if _holds(cls.when, hparams))
    config: dict[str, Any] = {"architectures": [hf.name], "model_type": hf.model_type, "tie_word_embeddings": tied}
    rope: dict[str, Any] = {}
    for hparam in architecture.hparams:
        value = hparams.get(hparam.name)
        if value is None or not hparam.config or not _holds(hparam.when, hparams):
            continue
        key = hparam.config[0]
        plain = _shortest(value) if hparam.type == "f32" else value
        if key.startswith("rope."):
            rope[key.removeprefix("rope.")] = plain
        elif not (hparam.default == 0 and value == 0):
            config[key] = plain
    if "rope_theta" in rope:
        config["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = rope
    return config


def _shortest(value: float) -> float:
    """The shortest decimal that is the same F32: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _holds(condition: str | None, hparams: HParams) -> bool:
    return condition is None or bool(evaluate(condition, hparams))


# ------------------------------------------------------------------------------------------------ names


@dataclass(frozen=True)
class _Match:
    rule: TensorRule
    slot: int
    block: int | None
    expert: int | None


class _Names:
    """Finds the rule of a name. Templates have `{block}` and `{expert}` as whole components, so a table does it."""

    def __init__(self, rules: Iterable[TensorRule], side: str) -> None:
        self._table: dict[tuple[str, ...], list[tuple[TensorRule, int, tuple[str, ...]]]] = {}
        for rule in rules:
            for slot, template in enumerate(getattr(rule, side)):
                parts = template.split(".")
                key = tuple("#" if part.startswith("{") or _is_index(part) else part for part in parts)
                numbers = tuple(part for part, kind in zip(parts, key, strict=True) if kind == "#")
                self._table.setdefault(key, []).append((rule, slot, numbers))

    def find(self, name: str) -> _Match | None:
        parts = name.split(".")
        numbers = [part for part in parts if _is_index(part)]
        for rule, slot, kinds in self._table.get(tuple("#" if _is_index(part) else part for part in parts), ()):
            if all(kind.startswith("{") or kind == number for kind, number in zip(kinds, numbers, strict=True)):
                at = {kind: int(number) for kind, number in zip(kinds, numbers, strict=True)}
                return _Match(rule, slot, at.get("{block}"), at.get("{expert}"))
        return None


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdecimal() and len(part) < 10 and str(int(part)) == part


def _fill(template: str, block: int | None, expert: int | None = None) -> str:
    return template.replace("{block}", str(block)).replace("{expert}", str(expert))


_Groups = dict[tuple[TensorRule, "int | None"], dict[tuple[int, "int | None"], LazyTensor]]


def _group(matches: Iterable[tuple[_Match, LazyTensor]]) -> _Groups:
    groups: _Groups = {}
    for match, tensor in matches:
        if 0 in tensor.info.shape:
            raise ShapeMismatch(f"{tensor.name} is {list(tensor.info.shape)}: empty")
        group = groups.setdefault((match.rule, match.block), {})
        if (match.slot, match.expert) in group:
            other = group[match.slot, match.expert].name
            raise UnmatchedTensor(f"{tensor.name}: the same tensor as {other} under another name")
        group[match.slot, match.expert] = tensor
    return groups


def _unmatched(architecture: Architecture, names: Sequence[str]) -> UnmatchedTensor:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return UnmatchedTensor(
        f"{shown}: no rule of architecture {architecture.gguf} names this\n"
        "is it another architecture? --arch NAME chooses one, --tensors-only keeps names as they are"
    )


# ------------------------------------------------------------------------------------------ HF -> GGUF


@dataclass(frozen=True)
class Mapped:
    """A checkpoint in the other dialect, with what happened on the way."""

    architecture: Architecture
    hparams: HParams
    tensors: dict[str, LazyTensor]
    config: dict[str, Any]
    events: tuple[Event, ...]


def to_gguf(checkpoint: Checkpoint, name: str | None = None) -> Mapped:
    """Tensors under GGUF names in GGUF layout, and the architecture's keys.

    Raises:
        ArchitectureError and its kinds: unknown architecture, a tensor without a rule, a rule without its
        tensor, a shape that the config contradicts.
    """
    architecture, hf = detect(checkpoint.config, name)
    hparams, given = read_config(architecture, hf, checkpoint.config)
    events: list[Event] = []
    matches = _match_hf(architecture, checkpoint, hparams, events)
    outputs: dict[str, LazyTensor] = {}
    for (rule, block), group in _group(matches).items():
        outputs.update((tensor.name, tensor) for tensor in _forward(rule, block, group, hparams))
    for rule in architecture.tensors:
        if rule.generator and _holds(rule.when, hparams):
            outputs[rule.gguf[0]] = _generated(rule, checkpoint.config, hparams)
    events += _check_complete(architecture, hf, hparams, outputs, checkpoint.config)
    return Mapped(architecture, hparams, outputs, dict(hparam_metadata(architecture, hparams, given)), tuple(events))


def _match_hf(
    architecture: Architecture, checkpoint: Checkpoint, hparams: HParams, events: list[Event]
) -> list[tuple[_Match, LazyTensor]]:
    rules = _Names((rule for rule in architecture.tensors if _holds(rule.when, hparams)), "hf")
    ignored = _Names((TensorRule((template,), ()) for template in architecture.ignore), "hf")
    matches, unknown = [], []
    for name, tensor in checkpoint.tensors.items():
        spellings = [name, *(new + name.removeprefix(old) for old, new in architecture.aliases if name.startswith(old))]
        match = next((found for spelling in spellings if (found := rules.find(spelling))), None)
        if match is not None:
            if match.block is not None and match.block >= hparams["n_layer"]:
                raise ShapeMismatch(f"{name}: config.json says {hparams['n_layer']} layers")
            matches.append((match, tensor))
        elif any(ignored.find(spelling) for spelling in spellings):
            events.append(Ignored(name))
        else:
            unknown.append(name)
    if unknown:
        raise _unmatched(architecture, unknown)
    return matches


def _forward(
    rule: TensorRule, block: int | None, group: Mapping[tuple[int, int | None], LazyTensor], hparams: HParams
) -> list[LazyTensor]:
    experts: Sequence[int | None] = range(hparams["n_expert"]) if rule.stacked else (None,)
    sources = []
    for slot, template in enumerate(rule.hf):
        for expert in experts:
            if (slot, expert) not in group:
                raise MissingTensor(f"{_fill(template, block, expert)}: not in the file, its siblings are")
            sources.append(group[slot, expert])
    if len(sources) != len(group):
        extra = next(iter(group.keys() - {(slot, expert) for slot in range(len(rule.hf)) for expert in experts}))
        raise ShapeMismatch(f"{group[extra].name}: config.json says {hparams['n_expert']} experts")
    expected = tuple(evaluate(size, hparams) for size in rule.shape)
    for source in sources:
        if rule.shape and source.info.shape != expected:
            raise ShapeMismatch(
                f"{source.name} is {list(source.info.shape)}, config.json makes it {list(expected)}\n"
                "config.json does not belong to these weights"
            )
    return compose(_chain(rule, hparams), sources, [_fill(name, block) for name in rule.gguf])


def _chain(rule: TensorRule, hparams: HParams) -> Chain:
    chain = (*((Stack(len(range(hparams["n_expert"]))),) if rule.stacked else ()), *rule.ops)
    return tuple(op.bind(hparams) for op in chain)


def _generated(rule: TensorRule, config: Mapping[str, Any], hparams: HParams) -> LazyTensor:
    assert rule.generator is not None
    values = GENERATORS[rule.generator](flat_config(config)["rope"], hparams)
    return from_array(rule.gguf[0], values, F32, f"computed by {rule.generator}")


def _check_complete(
    architecture: Architecture,
    hf: HFClass,
    hparams: HParams,
    outputs: Mapping[str, LazyTensor],
    config: Mapping[str, Any],
) -> list[Event]:
    """Every rule that applies has its tensors; says so where the embedding stands in for the head."""
    events: list[Event] = []
    tied = flat_config(config).get("tie_word_embeddings", True)
    for rule in architecture.tensors:
        if rule.optional or rule.read_only or rule.generator or not _holds(rule.when, hparams):
            continue
        for block in range(hparams["n_layer"]) if rule.per_block else (None,):
            if all(_fill(name, block) in outputs for name in rule.gguf):
                continue
            if rule.tied_to and (tied or not hf.head):
                why = "tied" if tied and hf.head else f"{hf.name} has no head"
                events.append(Note(f"{rule.gguf[0]}: not stored, the embedding stands in for it ({why})"))
                continue
            expert = 0 if rule.stacked else None
            raise MissingTensor(
                f"{_fill(rule.hf[0], block, expert)}: not in the file, {architecture.gguf} needs it\n"
                "a shard may be missing, or config.json may belong to another model"
            )
    return events


# ------------------------------------------------------------------------------------------ GGUF -> HF


def to_hf(checkpoint: Checkpoint, name: str | None = None) -> Mapped:
    """Tensors under Hugging Face names in their layout, and a config.json.

    Raises:
        ArchitectureError and its kinds.
    """
    architecture = detect_gguf(checkpoint.config, name)
    embedding = checkpoint.tensors.get("token_embd.weight")
    n_rows = embedding.info.shape[0] if embedding and embedding.info.shape else None
    hparams = read_metadata(architecture, checkpoint.config, n_rows)
    rules = [rule for rule in architecture.tensors if not rule.read_only]
    names = _Names(rules, "gguf")
    found = [(names.find(tensor.name), tensor) for tensor in checkpoint.tensors.values()]
    if unknown := [tensor.name for match, tensor in found if match is None]:
        raise _unmatched(architecture, unknown)
    events: list[Event] = []
    outputs: dict[str, LazyTensor] = {}
    rope: dict[str, Any] = {}
    for (rule, block), group in _group((match, tensor) for match, tensor in found if match).items():
        if rule.generator:
            rope = _rope_back(group[0, None], hparams)
            events.append(Ignored(rule.gguf[0]) if rope else Note(f"{rule.gguf[0]}: of no known rope scaling, dropped"))
            continue
        outputs.update((tensor.name, tensor) for tensor in _backward(rule, block, group, hparams))
    tied = not any(rule.tied_to and rule.gguf[0] in checkpoint.tensors for rule in rules)
    config = write_config(architecture, hparams, tied)
    if rope:
        config["rope_scaling"] = rope
    return Mapped(architecture, hparams, outputs, config, tuple(events))


def _backward(
    rule: TensorRule, block: int | None, group: Mapping[tuple[int, int | None], LazyTensor], hparams: HParams
) -> list[LazyTensor]:
    sources = []
    for slot, template in enumerate(rule.gguf):
        if (slot, None) not in group:
            raise MissingTensor(f"{_fill(template, block)}: not in the file, its siblings are")
        sources.append(group[slot, None])
    experts: Sequence[int | None] = range(hparams["n_expert"]) if rule.stacked else (None,)
    if rule.stacked and sources[0].info.shape[:1] != (len(experts),):
        raise ShapeMismatch(f"{sources[0].name} is {list(sources[0].info.shape)}, the file says {len(experts)} experts")
    names = [_fill(template, block, expert) for template in rule.hf for expert in experts]
    return compose(inverse(_chain(rule, hparams)), sources, names)


def _rope_back(tensor: LazyTensor, hparams: HParams) -> dict[str, Any]:
    if tensor.info.dtype is not F32 or tensor.info.shape != (hparams["head_dim"] // 2,):
        raise ShapeMismatch(f"{tensor.name} is {tensor.info.dtype}{list(tensor.info.shape)}, not F32 of half a head")
    values = tensor.array().astype(np.float32)
    return llama3_rope_config(values, {"rope_theta": hparams.get("rope_theta", 10000.0)}, hparams)
