"""What an architecture file may say. Data only; `converter/mapping` reads it in both directions.

Sizes, conditions and defaults are texts in the language of `converter.tensors.expressions`. Names are templates:
`{block}` and `{expert}` stand for numbers, `{rest}` and other words for one or more components; the same template
parses and formats. In a rule, `{block-n_main}` is a number that counts from another block, and `{n_main}` a number
that the hparams say. What contradicts itself is refused, with the row named, when the Architecture is built.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from converter.architectures.traits import AS_ASKED, F16_OR_F32, IDS, INDEXES, TokenizerStyle, Traits
from converter.tensors.expressions import BLOCK, PRESENT, RESERVED, ExpressionError, names
from converter.tensors.ops import ROW, Chain, Op, Size

Names = tuple[str, ...]
Values = tuple[tuple[str | int | float | bool, str | int | float | bool], ...]

PYTHON_TYPES: Mapping[str, type] = {"u32": int, "i32": int, "u64": int, "f32": float, "str": str, "bool": bool}
NUMBERED = (BLOCK, "expert")
FORCED_TYPES = ("F32", "F16", IDS, INDEXES, F16_OR_F32, AS_ASKED)
NEXTN_SAID = "n_nextn_said"  # the hparam that says how many blocks for further tokens there are, beside those counted
HEAD = "with_head"  # the hparam that says whether there is a classifier
DENSE = "with_dense"  # the hparam that says whether the file has the dense layers after the pooling


@dataclass(frozen=True)
class HParam:
    """One fact of config.json <-> one typed GGUF key (or several that say the same).

    Attributes:
        name: what expressions call it.
        config: dotted keys in config.json; the first that is there wins, the first of all is written. One that begins
            with "/" is of a file beside it (`mapping/companions.py`): "/pooling.mode"; "/base.hidden_size" is of the
            model that this one is for.
        gguf: keys below "{arch}.", or absolute ones with a leading "/"; none for facts that only expressions need.
            A key that two rows write keeps the place of the first and the value of the last, which alone reads it.
        type: of the GGUF key: "u32", or "i32[]" for a list, or "u32 or i32[]" for one or the other by content.
        default: value, or expression over other hparams, where config.json has none.
        back: the same on the way back, where the GGUF has none; without it `default` counts in both directions.
        per_block: `default` and `back` are computed once for each block and make a list; a text says for how many.
        always: write the GGUF key even if the value came from `default`.
        follows: the hparam that this one is made of: the key is written where that one is given, and `default` counts
            where that one has a value.
        required: a config without it is an error.
        stated: config.json says it even where a reader would fill in the same, for a class that fails at that.
        null: what null in config.json means, and a GGUF without the key; it is written as null, and as no key. Of a
            list it is what null means among its items.
        values: config value -> GGUF value; of several that mean the same, the first is written on the way back.
            A value that is not listed is not written, or an error if `closed`.
        when: condition under which the GGUF key is written, and `default` computed.
        early: the GGUF key stands directly after general.architecture.
        token: the text of the token whose id it is, by which a GGUF's vocabulary says it.
        numbered: config.json has the list as an object with numbers for keys.
    """

    name: str
    config: Names = ()
    gguf: Names = ()
    type: str = "u32"
    default: Size | float | None = None
    back: Size | float | None = None
    per_block: bool | str = False
    always: bool = False
    follows: str | None = None
    required: bool = False
    stated: bool = False
    null: int | float | bool | None = None
    values: Values = ()
    closed: bool = False
    when: str | None = None
    early: bool = False
    token: str | None = None
    numbered: bool = False

    @property
    def types(self) -> Names:
        """The types that the GGUF key may have."""
        return tuple(self.type.split(" or "))

    @property
    def single(self) -> bool:
        """Whether it may be one value, and not a list alone."""
        return not all(kind.endswith("[]") for kind in self.types)


@dataclass(frozen=True)
class TensorRule:
    """Hugging Face tensors <-> GGUF tensors, through a chain of invertible ops.

    Attributes:
        hf, gguf: name templates with `{block}` and `{expert}`; the same string parses and formats.
            `{expert}` only in `hf` means that the experts are stacked. Empty `hf`: the tensor is generated.
            Several rules may share a name under different conditions.
        ops: from `hf` to `gguf`; the way back is their inverse.
        shape: of each `hf` tensor, or of each that is generated, as expressions; checked against the file before
            anything is written. A shape for each name where they differ.
        optional: a model (or a block) may lack it.
        idle: nothing is computed with it: a checkpoint may have it, and a graph leaves it out.
        when: condition under which the rule applies, to the model or, where the names have `{block}`, to a block.
        tied_to: the `gguf` tensor that stands in for it when embeddings are tied.
        unless_equal: one that repeats what it is tied to, byte for byte, is left out.
        count: how many `{expert}` there are, where they are something else than the model's experts.
        generator: name of the function that computes the `gguf` tensors from the config, and the config from them.
        read_only: another layout of tensors that an earlier rule writes; never used on the way back.
        type: the type in an unquantized GGUF where it is not the usual one: a name, "F16 or F32" for F16 in a file of
            F16 and F32 in others, "as asked" for what the file has, whatever the tensor is called, or "I64" for ids.
        by_shape: the rule is for tensors of its shape only; those of other shapes go on to the next rule of the name.
        said: the hparam that is its whole numbers, for a tensor that a GGUF has as a key and not among its tensors; it
            is made of them again. Such a rule has no `gguf`.
        missed: what happens to a folder that lacks it, where a GGUF may and the class does not.
    """

    hf: Names
    gguf: Names
    ops: Chain = ()
    shape: tuple[Size, ...] | tuple[tuple[Size, ...], ...] = ()
    optional: bool = False
    idle: bool = False
    when: str | None = None
    tied_to: str | None = None
    unless_equal: bool = False
    count: Size = "n_expert"
    generator: str | None = None
    read_only: bool = False
    type: str | None = None
    by_shape: bool = False
    said: str | None = None
    missed: str = ""

    @property
    def stacked(self) -> bool:
        """Whether `{expert}` stands on the Hugging Face side only."""
        return any("{expert}" in name for name in self.hf) and not any("{expert}" in name for name in self.gguf)

    def shape_of(self, slot: int) -> tuple[Size, ...]:
        """The shape of the tensors of one of its names."""
        each = self.shape[slot : slot + 1]
        return each[0] if each and isinstance(each[0], tuple) else self.shape  # type: ignore[return-value]

    @property
    def per_block(self) -> bool:
        return any(in_block(name) for name in (*self.hf, *self.gguf))


@dataclass(frozen=True)
class HFClass:
    """A class of transformers that writes this architecture, and what its config leaves out.

    Attributes:
        name, model_type: what config.json calls it.
        defaults: the class's own defaults, used where config.json is silent; a text is an expression over its keys.
        facts: hparams that this class has whatever its config says.
        constants: what config.json says besides the hparams, on the way back.
        takes: condition on the way to GGUF, where the class belongs to this architecture for some of its configs.
        when: condition that picks the class on the way back.
        head: whether it stores an output tensor; a class without one does not, whatever its config says.
        tokenizer: how its tokenizer is written, where not as that of the architecture's other classes.
        text: of a projector's class, the GGUF names of the text models that it is for.
        keys: what the rows call an entry of config.json -> what this class calls it.
        ignore: templates of tensors that stand beside the model in the folders of this class alone; dropped on purpose.
        nested, outer: the model_type of the text model whose entries stand below `text_config` on the way back, and the
            entries that stay beside it.
        remote: its code is the model's own, so that transformers fills in nothing, whatever its parts are called.
        prefix, beside: the module that holds the model's tensors on the way back, and the first components of the
            names of those that stand beside it.
    """

    name: str
    model_type: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    when: str | None = None
    head: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    takes: str | None = None
    tokenizer: TokenizerStyle | None = None
    text: Names = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    ignore: Names = ()
    nested: str = ""
    outer: Names = ()
    remote: bool = False
    prefix: str = ""
    beside: Names = ()

    def whole(self, name: str) -> str:
        """What this class calls a tensor of the rows."""
        return name if not self.prefix or name.partition(".")[0] in self.beside else f"{self.prefix}.{name}"


@dataclass(frozen=True)
class Architecture:
    """One model family.

    Attributes:
        gguf: `general.architecture`.
        hf: its transformers classes.
        hparams: in the order in which their GGUF keys are written.
        tensors: rules, tried in order.
        ignore: templates of tensors that are dropped on purpose (the runtime computes them or has no use for them, or
            another file has them);
            `{beyond}` stands for the number of a block after the last.
        aliases: (template of names in some checkpoints, template of the canonical name), applied in this order,
            one after the other.
        traits: what other rooms ask: tokenizer, window, state, quantization, relations.
        text: of a projector, templates of the tensors that its text model's file has.
        whole: of a projector, (template of a canonical name of either model, template in the folder that has both).

    Raises:
        ValueError: a row contradicts itself or another.
    """

    gguf: str
    hf: tuple[HFClass, ...]
    hparams: tuple[HParam, ...]
    tensors: tuple[TensorRule, ...]
    ignore: Names = ()
    aliases: tuple[tuple[str, str], ...] = ()
    traits: Traits = field(default_factory=Traits)
    text: Names = ()
    whole: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for row, problem in _problems(self):
            raise ValueError(f"{self.gguf}: {row}: {problem}" if row else f"{self.gguf}: {problem}")

    def key(self, name: str) -> str:
        """The whole GGUF key that a row's `gguf` means."""
        return name[1:] if name.startswith("/") else f"{self.gguf}.{name}"

    def tokenizer(self, hf: HFClass | None) -> TokenizerStyle:
        """How the tokenizer of a class is written."""
        return (hf.tokenizer if hf else None) or self.traits.tokenizer


# ------------------------------------------------------------------------------------------- validation


def _problems(architecture: Architecture) -> Iterator[tuple[str, str]]:
    """(row, what is wrong with it), the worst first."""
    known = [hparam.name for hparam in architecture.hparams]
    if len(set(known)) != len(known):
        yield "", "an hparam is listed twice"
    for side in ("hf", "gguf"):
        claims = [(name, r.when) for r in architecture.tensors if not r.read_only for name in getattr(r, side)]
        if len(set(claims)) != len(claims):
            yield "", f"a {side} name stands in two rules under the same condition"
    for hparam in architecture.hparams:
        yield from ((f"hparam {hparam.name}", problem) for problem in _hparam_problems(hparam, known))
    yield from _circle(architecture.hparams)
    outputs = {name for rule in architecture.tensors for name in rule.gguf}
    for rule in architecture.tensors:
        row = f"tensor {', '.join((*rule.hf, *rule.gguf)[:2])}"
        yield from ((row, problem) for problem in _rule_problems(rule, known, outputs))
    for hf in architecture.hf:
        for condition in (hf.when, hf.takes):
            yield from ((f"class {hf.name}", problem) for problem in _unknown(condition, known))
        if strange := hf.facts.keys() - set(known):
            yield f"class {hf.name}", f"there is no hparam {', '.join(sorted(strange))}"
    for template in (*architecture.ignore, *architecture.text, *(name for hf in architecture.hf for name in hf.ignore)):
        yield from ((f"ignore {template}", problem) for problem in _template_problems(template))
    for pattern, template in (*architecture.aliases, *architecture.whole):
        row = f"alias {pattern}"
        yield from ((row, problem) for name in (pattern, template) for problem in _template_problems(name))
        if set(_fields(pattern)) != set(_fields(template)):
            yield row, "both sides must have the same {words}"


def _hparam_problems(hparam: HParam, known: list[str]) -> Iterator[str]:
    if hparam.name in RESERVED or not hparam.name.isidentifier():
        yield "is no name that expressions can have"
    if strange := [kind for kind in hparam.types if kind.removesuffix("[]") not in PYTHON_TYPES]:
        yield f"there is no type {strange[0]}"
    if hparam.per_block and not any(kind.endswith("[]") for kind in hparam.types):
        yield f"one value for each block is a list, not {hparam.type}"
    if hparam.per_block and hparam.default is None and hparam.back is None:
        yield "nothing to compute for each block"
    blocks = {BLOCK} if hparam.per_block else set()
    for text in (hparam.default, hparam.back):
        yield from _unknown(text, [*known, PRESENT, *blocks])
    for text in (hparam.when, hparam.follows, hparam.per_block or None):
        yield from _unknown(text, known)
    if len({(type(ours), ours) for ours, _ in hparam.values}) != len(hparam.values):
        yield "a config value is listed twice"
    kinds = {PYTHON_TYPES[kind.removesuffix("[]")] for kind in hparam.types} if not strange else set()
    for _, theirs in hparam.values:
        if kinds and type(theirs) not in kinds:
            yield f"{theirs!r} is no {hparam.type}"


def _rule_problems(rule: TensorRule, known: list[str], outputs: set[str]) -> Iterator[str]:
    if bool(rule.hf) == bool(rule.generator) or bool(rule.gguf) == bool(rule.said):
        yield "a tensor comes from the file or from a generator, and goes somewhere"
    for name in (*rule.hf, *rule.gguf):
        yield from _template_problems(name, (*NUMBERED, *known))
    if len({in_block(name) for name in (*rule.hf, *rule.gguf)}) > 1:
        yield "all names of a rule lie in blocks or none does"
    if not rule.stacked and any("{expert}" in name for name in rule.gguf) > any("{expert}" in name for name in rule.hf):
        yield "{expert} on the GGUF side only"
    if rule.tied_to and rule.tied_to not in outputs:
        yield f"tied to {rule.tied_to}, which no rule writes"
    if rule.unless_equal and not rule.tied_to:
        yield "equal to nothing"
    if rule.type is not None and rule.type not in FORCED_TYPES:
        yield f"its type is one of {', '.join(FORCED_TYPES)}, not {rule.type}"
    blocks = [BLOCK] if rule.per_block else []
    for text in (*_sizes(rule.shape), rule.when, rule.said, *_sizes(rule.ops)):
        yield from _unknown(text, [*known, PRESENT, *blocks])


def _unknown(text: Size | float | None, known: Iterable[str]) -> Iterator[str]:
    if isinstance(text, str):
        try:
            strange = names(text) - set(known)
        except ExpressionError as error:
            yield str(error)
        else:
            yield from (f"{text!r}: there is no hparam {name}" for name in sorted(strange))


def _sizes(value: Any) -> Iterator[str]:
    """The expressions in an op, a chain or a tuple of sizes."""
    if isinstance(value, str):
        yield from () if value == ROW else (value,)
    elif isinstance(value, tuple):
        yield from (text for item in value for text in _sizes(item))
    elif isinstance(value, Op):
        yield from (text for item in fields(value) for text in _sizes(getattr(value, item.name)))


def _fields(template: str) -> Names:
    return tuple(part for part in template.split(".") if "{" in part or "}" in part)


def in_block(template: str) -> bool:
    """Whether the names that a template means lie in blocks."""
    return any(BLOCK in names(field[1:-1]) for field in _fields(template))


def _template_problems(template: str, allowed: Names | None = None) -> Iterator[str]:
    """`allowed` are the words that a rule's fields may be made of; elsewhere every word is a field."""
    for part in _fields(template):
        inside = part[1:-1]
        if not (part[0] == "{" and part[-1] == "}" and (allowed is not None or inside.isidentifier())):
            yield f"{template}: {part} must be a component of its own"
        elif allowed is not None:
            yield from (f"{template}: {problem}" for problem in _unknown(inside, allowed))
    if len(set(_fields(template))) != len(_fields(template)):
        yield f"{template}: a word stands twice"


def _circle(hparams: Iterable[HParam]) -> Iterator[tuple[str, str]]:
    """Defaults that need each other."""
    graph = {h.name: names(h.default) - {PRESENT} if isinstance(h.default, str) else frozenset() for h in hparams}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"hparam {error.args[1][0]}", f"defaults in a circle: {', '.join(error.args[1])}"


# ------------------------------------------------------------------------------------- rows, shorter to write


def T(
    hf: str | Names,
    gguf: str | Names,
    *ops: Op,
    shape: tuple[Size, ...] | tuple[tuple[Size, ...], ...] = (),
    **options: Any,
) -> TensorRule:
    """A rule; single names need no tuple."""
    return TensorRule(_names(hf), _names(gguf), ops, shape, **options)


def pair(
    hf: str, gguf: str, *ops: Op, shape: tuple[Size, ...], bias: bool = False, **options: Any
) -> tuple[TensorRule, TensorRule]:
    """A weight and its bias, which is optional unless `bias`."""
    return (
        T(f"{hf}.weight", f"{gguf}.weight", *ops, shape=shape, **options),
        T(f"{hf}.bias", f"{gguf}.bias", *ops, shape=shape[:1], **{"optional": not bias, **options}),
    )


def amended(hparams: Iterable[HParam], **changes: Mapping[str, Any]) -> tuple[HParam, ...]:
    """Shared hparams, some with other fields: `n_expert={"config": ("num_experts",)}`."""
    return tuple(replace(hparam, **changes.get(hparam.name, {})) for hparam in hparams)


def before(name: str, rows: Iterable[HParam], hparams: Iterable[HParam]) -> tuple[HParam, ...]:
    """Shared hparams with `rows` in front of the one called `name`, where the reference writes their keys."""
    return tuple(each for hparam in hparams for each in ((*rows, hparam) if hparam.name == name else (hparam,)))


def without(rules: Iterable[TensorRule], *gguf: str) -> tuple[TensorRule, ...]:
    """Shared rows less those whose first GGUF name is in `gguf`."""
    return tuple(rule for rule in rules if rule.gguf[:1] not in [(name,) for name in gguf])


def retyped(rules: Iterable[TensorRule], type: str) -> tuple[TensorRule, ...]:
    """Shared rows with the type that this architecture forces on them."""
    return tuple(replace(rule, type=type) for rule in rules)


def moved(old: str, new: str, rules: Iterable[TensorRule]) -> tuple[TensorRule, ...]:
    """Shared rows whose Hugging Face names begin otherwise."""
    return tuple(replace(rule, hf=tuple(new + name.removeprefix(old) for name in rule.hf)) for rule in rules)


def read_only(rules: Iterable[TensorRule]) -> tuple[TensorRule, ...]:
    """Shared rows as another layout, which is read and not written."""
    return tuple(replace(rule, read_only=True) for rule in rules)


def optional(rules: Iterable[TensorRule]) -> tuple[TensorRule, ...]:
    """Shared rows whose tensors some blocks lack."""
    return tuple(replace(rule, optional=True) for rule in rules)


def only_when(condition: str, rules: Iterable[TensorRule]) -> tuple[TensorRule, ...]:
    """Shared rows under a condition."""
    return tuple(replace(rule, when=condition) for rule in rules)


def _names(value: str | Names) -> Names:
    return (value,) if isinstance(value, str) else value
