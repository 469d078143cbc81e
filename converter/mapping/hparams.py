"""Hyperparameters: config.json <-> names that expressions use <-> typed GGUF keys, by an architecture's rows."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np

from converter.architectures.defaults import defaults_of
from converter.architectures.settings import BY_FACTORS
from converter.architectures.spec import Architecture, HFClass, HParam
from converter.errors import ArchitectureError, short
from converter.metadata import Array, Metadata, Value
from converter.tensors.expressions import BLOCK, PRESENT, ExpressionError, Sizes, compute, evaluate

HParams = dict[str, Any]
TOKENS = "tokenizer.ggml.tokens"

# A config that says more than this is not a model but an attack on our memory.
_LIMIT = 1 << 31
MAX_BLOCKS = 1 << 16  # where there is a value for each
MAX_ITEMS = 1 << 20  # of a list in a header
_F32_MAX = float(np.finfo(np.float32).max)
_RANGES: dict[str, tuple[float, float]] = {
    "u32": (0, _LIMIT - 1), "i32": (-_LIMIT, _LIMIT - 1), "u64": (0, (1 << 64) - 1), "f32": (-_F32_MAX, _F32_MAX),
}  # fmt: skip


class Scope:
    """What expressions see: the hyperparameters, the names of the tensors that are read, and a block where one is."""

    def __init__(self, hparams: HParams, present: Container[str] = ()) -> None:
        self._model: dict[str, Any] = {**hparams, PRESENT: present}
        self._block = self._model
        self._held: dict[tuple[str, int | None], bool] = {}  # every expert of a block asks the same

    def at(self, block: int | None) -> Sizes:
        """The names as they are in a block; None for the model as a whole."""
        if block is None:
            return self._model
        if self._block.get(BLOCK) != block:
            self._block = {**self._model, BLOCK: block}
        return self._block

    def holds(self, condition: str | None, block: int | None = None) -> bool:
        """Whether a row applies; one without a condition always does."""
        if condition is None:
            return True
        if (condition, block) not in self._held:
            self._held[condition, block] = bool(evaluate(condition, self.at(block)))
        return self._held[condition, block]

    def size(self, text: str | int, block: int | None = None) -> int:
        """A size in a block."""
        return evaluate(text, self.at(block))


# ----------------------------------------------------------------------------------------------- config.json

# Where the text model of a config for several kinds of input stands.
TEXT_CONFIGS = (
    "text_config", "llm_config", "lm_config", "language_config", "thinker_config.text_config", "lfm",
    "transformer_layer_config",
)  # fmt: skip


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that is the text model's own; empty where the whole config is."""
    return next((part for key in TEXT_CONFIGS if (part := _object(lookup(config, key)))), {})


# The sizes of a model, under any of their names.
SIZES = (
    "hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer", "n_layers", "num_attention_heads", "n_head",
    "n_heads", "vocab_size", "dim",
)  # fmt: skip

# What stands beside the rope scaling, under any of these names, and within it where transformers 5 wrote the config.
ROPE_KEYS: Mapping[str, tuple[str, ...]] = {
    "rope_theta": ("global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rope_pct", "rope_percent"),
    "original_max_position_embeddings": ("original_max_position_embeddings",),
}


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of transformers 4 or 5, with a nested text model lifted and every rope fact under "rope"."""
    flat = {**config, **text_config(config)}
    rope = dict(_object(flat.get("rope_parameters")) or _object(flat.get("rope_scaling")))
    rope = dict(_object(rope.get("full_attention")) or rope)
    for key, names in ROPE_KEYS.items():
        value = next((flat[name] for name in names if flat.get(name) is not None), None)
        if value is not None:
            rope.setdefault(key, value)
    if "type" in rope:
        rope.setdefault("rope_type", rope["type"])
    flat["rope"] = rope
    return flat


def rope_facts(hf: HFClass, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of rotation, over what its class fills in where it says nothing of the scaling."""
    flat = flat_config(config)
    if any(flat.get(key) for key in ("rope_parameters", "rope_scaling")):
        return dict(flat["rope"])
    return {**flat_config(class_defaults(hf, config))["rope"], **flat["rope"]}


def _by_number(value: Any) -> Any:
    """The values of an object whose keys count from 0, in their order."""
    named = {str(key): item for key, item in _object(value).items()}
    numbers = [str(number) for number in range(len(named))]
    return [named[key] for key in numbers] if named and named.keys() == set(numbers) else value


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def lookup(config: Mapping[str, Any], dotted: str) -> Any:
    """The entry at a dotted key, of the first that has it where the key says `*`; None where there is none."""
    part, _, rest = dotted.partition(".")
    if part == "*":
        return next((found for each in config.values() if (found := lookup(_object(each), rest)) is not None), None)
    value = config.get(part)
    return lookup(_object(value), rest) if rest else value


def _says_null(config: Mapping[str, Any], dotted: str) -> bool:
    """Whether the entry at a dotted key is there and null."""
    *parts, last = dotted.split(".")
    holder = lookup(config, ".".join(parts)) if parts else config
    return isinstance(holder, Mapping) and last in holder and holder[last] is None


def read_config(
    architecture: Architecture,
    hf: HFClass,
    config: Mapping[str, Any],
    present: Container[str] = (),
    unsaid: Container[str] = (),
) -> tuple[HParams, set[str]]:
    """Hyperparameters by name, and the names of those that the config (or its class) really gives.

    `present` are the names of the model's tensors, for rows that ask; `unsaid` hparams count as not given.

    Raises:
        ArchitectureError: a required key is missing, or a value is of the wrong kind.
    """
    filled = class_defaults(hf, config)
    flat = flat_config(config)
    flat |= {key: flat[own] for key, own in hf.keys.items() if flat.get(own) is not None}
    flat["rope"] = rope_facts(hf, config)
    said: HParams = {}
    for hparam in architecture.hparams:
        if hparam.name in unsaid:
            continue
        value = hf.facts.get(hparam.name)
        if value is None:
            value = next((v for key in hparam.config if (v := lookup(flat, key)) is not None), None)
        if value is None and hparam.single and any(_says_null(flat, key) for key in hparam.config):
            value = hparam.null
        if isinstance(value, list):
            value = [hparam.null if item is None else item for item in value]
        if value is None:
            value = _class_default(hf, filled, hparam, flat)
        if value is not None:
            value = _by_number(value) if hparam.numbered else value
            said[hparam.name] = _checked(hparam, value, _config_name(hparam))
        elif hparam.required and hparam.config:
            raise ArchitectureError(f"config.json has no {hparam.config[0]}, which {architecture.gguf} needs")
    found = _Derived(architecture, said, present, back=False).all()
    return {name: _checked(row, found[name], _config_name(row)) for name, row in _rows(architecture, found)}, set(said)


def _config_name(hparam: HParam) -> str:
    key = hparam.config[0] if hparam.config else hparam.name
    return key[1:] if key.startswith("/") else f"config.json: {key}"


def _rows(architecture: Architecture, found: HParams) -> Iterator[tuple[str, HParam]]:
    return ((hparam.name, hparam) for hparam in architecture.hparams if hparam.name in found)


def class_defaults(hf: HFClass, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the transformers class of a config fills in, and those of the models within it.

    The config of one model alone says its sizes: one that does not is another file, whatever its class would make of
    it.
    """
    if hf.remote:
        return {}
    text, tower = text_config(config), _object(config.get("vision_config"))
    filled = {**defaults_of(hf.model_type), **defaults_of(text.get("model_type"))}
    if config and not text:
        filled = {key: value for key, value in filled.items() if key not in SIZES}
    filled |= {key: filled[own] for key, own in hf.keys.items() if own in filled}
    if found := defaults_of(tower.get("model_type")):
        filled["vision_config"] = found
    return filled


def computed_defaults(hf: HFClass, filled: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """What our rows say of the class besides; a text that is no expression is what it says."""
    computed = ((name, _left_out(hf, filled, name, flat)) for name in hf.defaults)
    return {name: hf.defaults[name] if value is None else value for name, value in computed}


def _class_default(hf: HFClass, filled: Mapping[str, Any], hparam: HParam, flat: Mapping[str, Any]) -> Any:
    """What the transformers class would have filled in for a row, or computed of other keys."""
    names = (key.removeprefix("rope.") for key in hparam.config)
    return next((value for name in names if (value := _left_out(hf, filled, name, flat)) is not None), None)


def _left_out(hf: HFClass, filled: Mapping[str, Any], name: str, flat: Mapping[str, Any]) -> Any:
    """The default of a class for one key; a text of our rows is an expression over the others, given or not."""
    if (value := lookup(filled, name)) is not None:
        return value
    default = hf.defaults.get(name)
    if not isinstance(default, str):
        return default
    try:
        return compute(default, {**hf.defaults, **filled, **flat})
    except ExpressionError:
        return None


class _Derived(Mapping[str, Any]):
    """Hyperparameters that are said, and those that follow from them, computed when they are asked for."""

    def __init__(self, architecture: Architecture, said: HParams, present: Container[str], back: bool) -> None:
        self._rows = {hparam.name: hparam for hparam in architecture.hparams}
        self._values: HParams = {**said, PRESENT: present}
        self._pending: list[str] = []
        self._back = back

    def all(self) -> HParams:
        """Every hyperparameter that has a value, in the order of the rows."""
        return {name: self[name] for name in self._rows if self._value(name) is not None}

    def __getitem__(self, name: str) -> Any:
        value = self._value(name)
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _value(self, name: str) -> Any:
        if name not in self._values and name in self._rows:
            if name in self._pending:
                raise ArchitectureError(f"{', '.join(self._pending)}: each follows from another, and none is given")
            self._pending.append(name)
            self._values[name] = self._computed(self._rows[name])
            self._pending.pop()
        return self._values.get(name)

    def _computed(self, row: HParam) -> Any:
        default = row.back if self._back and row.back is not None else row.default
        if default is None:
            return row.null if self._back and row.single else None
        if not _holds(row.when, self):
            return None
        if not isinstance(default, str):
            return default
        if row.follows and ((default is not row.back and self._back) or self._value(row.follows) is None):
            return None
        if not row.per_block:
            return _as_bool(row, compute(default, self))
        count = evaluate("n_layer" if row.per_block is True else row.per_block, self)
        if count > MAX_BLOCKS:
            raise ArchitectureError(f"{count} blocks, which no model has")
        blocks = (ChainMap({BLOCK: block}, self) for block in range(count))  # type: ignore[arg-type]
        return [_as_bool(row, compute(default, block)) for block in blocks]


def _holds(condition: str | None, hparams: Sizes) -> bool:
    return condition is None or bool(evaluate(condition, hparams))


def _as_bool(row: HParam, value: Any) -> Any:
    """Conditions are 0 or 1, which JSON and GGUF tell from false and true."""
    return bool(value) if row.type.startswith("bool") and value in (0, 1) else value


# ------------------------------------------------------------------------------------------------ types


def _fits(kind: str, value: Any) -> bool:
    """Whether a value is one of a metadata type: "u32", or "u32[]" for a list."""
    if kind.endswith("[]"):
        return isinstance(value, list) and all(_fits(kind[:-2], item) for item in value)
    if kind in ("str", "bool"):
        return isinstance(value, str if kind == "str" else bool)
    if isinstance(value, bool) or not isinstance(value, int | float if kind == "f32" else int):
        return False
    lowest, highest = _RANGES[kind]
    return lowest <= value <= highest


def _checked(hparam: HParam, value: Any, where: str) -> Any:
    """`value`, if it is one that config.json may have for this row."""
    if hparam.values:
        kinds = {type(ours) for ours, _ in hparam.values}
        if not all(type(item) in kinds for item in _items(value)):
            wanted = " or ".join(sorted(kind.__name__ for kind in kinds))
            raise ArchitectureError(f"{where} is {str(value)[:40]!r}, not a usable {wanted} value")
        if hparam.closed and _translated(hparam, value) is None:
            known = ", ".join(short(ours) for ours, _ in hparam.values)
            raise ArchitectureError(f"{where} is {short(value)}, which is none of {known}")
    elif not any(_fits(kind, value) for kind in hparam.types):
        raise ArchitectureError(f"{where} is {str(value)[:40]!r}, not a usable {hparam.type} value")
    return value


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def _translated(hparam: HParam, value: Any) -> Any:
    """What the GGUF calls a value of config.json; nothing where it has no word for it."""
    if not hparam.values:
        return value
    words = [next((theirs for ours, theirs in hparam.values if _same(ours, item)), None) for item in _items(value)]
    return None if None in words else words if isinstance(value, list) else words[0]


def says(hparam: HParam, value: Any) -> bool:
    """Whether the row has a word for this value of config.json."""
    return _translated(hparam, value) is not None


def _config_value(hparam: HParam, value: Any) -> Any:
    """What config.json calls a GGUF value; nothing where it has no word for it."""
    if not hparam.values:
        return value
    words = [next((ours for ours, theirs in hparam.values if _same(theirs, item)), None) for item in _items(value)]
    return None if None in words else words if isinstance(value, list) else words[0]


# ----------------------------------------------------------------------------------------------- GGUF keys


def hparam_metadata(architecture: Architecture, hparams: HParams, given: set[str], early: bool = False) -> Metadata:
    """The architecture's GGUF keys, in the order of its rows; only the early ones if `early`."""
    metadata: Metadata = {}
    for hparam in architecture.hparams:
        value = hparams.get(hparam.name)
        written = hparam.always or hparam.name in given or hparam.follows in given
        if value is None or not written or value == hparam.null or not _holds(hparam.when, hparams):
            continue
        value = _translated(hparam, value)
        if value is None or value == [] or (early and not hparam.early):
            continue
        for key in hparam.gguf:
            metadata[architecture.key(key)] = _typed(hparam, value)
    return metadata


def _typed(hparam: HParam, value: Any) -> Value | Array:
    """What the row's own words are needs no check, but that a list is one."""
    lists = {kind: kind.endswith("[]") == isinstance(value, list) for kind in hparam.types if hparam.values}
    kind = next((kind for kind in hparam.types if lists.get(kind) or _fits(kind, value)), "")
    if not kind:
        raise ArchitectureError(f"{hparam.name} is {short(value)}, not a usable {hparam.type} value")
    return Array(kind[:-2], value) if kind.endswith("[]") else Value(kind, value)


def read_metadata(
    architecture: Architecture,
    metadata: Mapping[str, Value | Array],
    n_rows: int | None = None,
    present: Container[str] = (),
) -> HParams:
    """Hyperparameters by name from a GGUF file's keys; the vocabulary is `n_rows` where no key tells.

    `present` are the names of the file's tensors, for rows that ask.

    Raises:
        ArchitectureError: a required key is missing or of the wrong kind.
    """
    said: HParams = {}
    reader = {key: hparam for hparam in architecture.hparams for key in hparam.gguf}
    for hparam in architecture.hparams:
        value: Any = None
        for key in (key for key in hparam.gguf if reader[key] is hparam):
            entry = _plain(hparam, metadata.get(architecture.key(key)))
            if entry is not None:
                value = _config_value(hparam, entry)
        if hparam.name == "n_vocab" and value is None:
            tokens = metadata.get(TOKENS)
            value = len(tokens) if isinstance(tokens, Array) else n_rows
        if value is None and hparam.token:
            value = _token_id(metadata, hparam.token)
        if value is not None:
            said[hparam.name] = _checked(hparam, value, _key_name(architecture, hparam))
        elif hparam.required and hparam.gguf and hparam.back is None:
            raise ArchitectureError(f"the file has no {_key_name(architecture, hparam)}")
    found = _Derived(architecture, said, present, back=True).all()
    return {
        name: _checked(row, found[name], _key_name(architecture, row)) for name, row in _rows(architecture, found)
    }  # fmt: skip


def _token_id(metadata: Mapping[str, Value | Array], text: str) -> int | None:
    tokens = metadata.get(TOKENS)
    if not isinstance(tokens, Array):
        return None
    wanted = (text, text.encode())
    return next((at for at, token in enumerate(tokens.values) if token in wanted), None)


def _key_name(architecture: Architecture, hparam: HParam) -> str:
    return architecture.key(hparam.gguf[0]) if hparam.gguf else hparam.name


def _plain(hparam: HParam, entry: Value | Array | None) -> Any:
    """A key's value as Python has it, an F32 as its shortest decimal where it is no word of the row's.

    Nothing for a list where the row knows none.
    """
    if not isinstance(entry, Array):
        return _shortest(entry.value) if entry is not None else None
    if not any(kind.endswith("[]") for kind in hparam.types):
        return None
    if len(entry) > MAX_ITEMS:
        raise ArchitectureError(f"{hparam.name} has {len(entry)} values")
    values = entry.values.tolist() if isinstance(entry.values, np.ndarray) else list(entry.values)
    return values if hparam.values else _shortest(values)


# ----------------------------------------------------------------------------------------- config.json again


def class_for(architecture: Architecture, hparams: HParams) -> HFClass:
    """The transformers class that is written for these hyperparameters.

    Raises:
        ArchitectureError: no class of the architecture is for them.
    """
    hf = next((cls for cls in architecture.hf if _holds(cls.when, hparams)), None)
    if hf is None:
        raise ArchitectureError(f"no transformers class of {architecture.gguf} is for such a model")
    return hf


def write_config(
    architecture: Architecture,
    hparams: HParams,
    tied: bool,
    scaling: Mapping[str, Any] | None = None,
    *,
    hf: HFClass | None = None,
    part: bool = False,
) -> dict[str, Any]:
    """A config.json (in the layout of transformers 4, which 5 reads too) for these hyperparameters.

    `scaling` is what the tensors say of the rope scaling, which goes before what the keys say; `hf` the class, where
    not the architecture's first for them; `part` for a text model among other inputs, whose positions have sections.

    Raises:
        ArchitectureError: no class of the architecture is for them.
    """
    hf = hf or class_for(architecture, hparams)
    filled = {**hf.defaults, **class_defaults(hf, {})}
    config: dict[str, Any] = {"architectures": [hf.name], "model_type": hf.model_type, "tie_word_embeddings": tied}
    for hparam in architecture.hparams:
        value = hparams.get(hparam.name)
        if value is None or value == [] or not hparam.config or not _holds(hparam.when, hparams):
            continue
        key = hparam.config[0]
        if value == hparam.null:
            _put(config, key, None)
        elif hparam.numbered:
            _put(config, key, {str(number): item for number, item in enumerate(value)})
        elif key.startswith("rope.") or lookup(filled, key) is not None or not (hparam.default == 0 and value == 0):
            _put(config, key, _decimal(value))
    config = {hf.keys.get(key, key): value for key, value in config.items()}
    rope = config.pop("rope", {})
    if "rope_parameters" in config:  # of sliding blocks, so that those of the others stand beside them
        rope = {"rope_type": "default", **rope, **(scaling or {})}
        sliding = {"rope_type": "default", **config["rope_parameters"].get("sliding_attention", {})}
        config["rope_parameters"] = {"full_attention": rope, "sliding_attention": sliding}
        return _nested(hf, merged(config, hf.constants))
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            config[key] = rope.pop(key)
    if scaling:
        config["rope_scaling"] = {**rope, **scaling}
    elif rope.get("rope_type", "default") not in ("default", *BY_FACTORS):  # transformers refuses these without factors
        config["rope_scaling"] = rope
    elif part and rope.get("mrope_section"):
        config["rope_scaling"] = {"rope_type": "default", "mrope_section": rope["mrope_section"]}
    return _nested(hf, merged(config, hf.constants))


def _nested(hf: HFClass, config: dict[str, Any]) -> dict[str, Any]:
    """The config with the text model's entries where the class has them."""
    if not hf.nested:
        return config
    whole = {key: config[key] for key in ("architectures", "model_type", "tie_word_embeddings", *hf.outer)}
    inner = {key: value for key, value in config.items() if key == "tie_word_embeddings" or key not in whole}
    return {**whole, "text_config": {"model_type": hf.nested, **inner}}


def merged(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of two configs, of which the second counts, and so in each object that both have."""
    both = {
        key: merged(config[key], value) for key, value in other.items() if key in config and isinstance(value, dict)
    }
    return {**config, **other, **both}


def _put(config: dict[str, Any], dotted: str, value: Any) -> None:
    *parts, last = dotted.split(".")
    for part in parts:
        config = config.setdefault(part, {})
    config[last] = value


def _decimal(value: Any) -> Any:
    """A number of few digits where that is the same F32; what was divided keeps all, for `int` of its product."""
    if isinstance(value, list):
        return [_decimal(item) for item in value]
    short = float(f"{value:.6g}") if isinstance(value, float) else value
    return short if _shortest(short) == _shortest(value) else value


def _shortest(value: Any) -> Any:
    """The shortest decimal that is the same F32: 1e-05 rather than 9.999999747378752e-06."""
    if isinstance(value, list):
        return [_shortest(item) for item in value]
    return float(str(np.float32(value))) if isinstance(value, float) else value
