"""What an architecture file may say. Data only; `converter/mapping` reads it in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from converter.architectures.traits import Traits
from converter.tensors.ops import Chain, Op, Size

Names = tuple[str, ...]


@dataclass(frozen=True)
class HParam:
    """One fact of config.json <-> one typed GGUF key (or several that say the same).

    Attributes:
        name: what expressions call it.
        config: dotted keys in config.json; the first that is there wins, the first of all is written.
        gguf: keys below "{arch}."; none for facts that only expressions need.
        type: metadata type of the GGUF key.
        default: value, or expression over earlier hparams, where config.json has none.
        always: write the GGUF key even if the value came from `default`.
        required: a config without it is an error.
        values: for texts, config value -> GGUF value; a value that is not listed is not written.
        when: condition under which the GGUF key is written.
    """

    name: str
    config: Names
    gguf: Names = ()
    type: str = "u32"
    default: Size | float | None = None
    always: bool = False
    required: bool = False
    values: tuple[tuple[str, str], ...] = ()
    when: str | None = None


@dataclass(frozen=True)
class TensorRule:
    """Hugging Face tensors <-> GGUF tensors, through a chain of invertible ops.

    Attributes:
        hf, gguf: name templates with `{block}` and `{expert}`; the same string parses and formats.
            `{expert}` only in `hf` means that the experts are stacked. Empty `hf`: the tensor is generated.
        ops: from `hf` to `gguf`; the way back is their inverse.
        shape: of each `hf` tensor, as expressions; checked against the file before anything is written.
        optional: a model (or a block) may lack it.
        when: condition on the hyperparameters under which the rule applies at all.
        tied_to: the `gguf` tensor that stands in for it when embeddings are tied.
        generator: name of the function that computes it from the config.
        read_only: another layout of tensors that an earlier rule writes; never used on the way back.
    """

    hf: Names
    gguf: Names
    ops: Chain = ()
    shape: tuple[Size, ...] = ()
    optional: bool = False
    when: str | None = None
    tied_to: str | None = None
    generator: str | None = None
    read_only: bool = False

    @property
    def stacked(self) -> bool:
        """Whether `{expert}` stands on the Hugging Face side only."""
        return any("{expert}" in name for name in self.hf) and not any("{expert}" in name for name in self.gguf)

    @property
    def per_block(self) -> bool:
        return any("{block}" in name for name in (*self.hf, *self.gguf))


@dataclass(frozen=True)
class HFClass:
    """A class of transformers that writes this architecture, and what its config leaves out.

    `defaults` are the class's own defaults, used where config.json is silent; `when` picks the class on
    the way back. A class without a `head` stores no output tensor, whatever its config says.
    """

    name: str
    model_type: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    when: str | None = None
    head: bool = True


@dataclass(frozen=True)
class Architecture:
    """One model family.

    Attributes:
        gguf: `general.architecture`.
        hf: its transformers classes.
        hparams: in the order in which their GGUF keys are written.
        tensors: rules, tried in order.
        ignore: templates of tensors that are dropped on purpose (the runtime computes them).
        aliases: (prefix in some checkpoints, canonical prefix).
        traits: what other rooms ask: tokenizer, window, state, quantization, relations.
    """

    gguf: str
    hf: tuple[HFClass, ...]
    hparams: tuple[HParam, ...]
    tensors: tuple[TensorRule, ...]
    ignore: Names = ()
    aliases: tuple[tuple[str, str], ...] = ()
    traits: Traits = field(default_factory=Traits)

    def __post_init__(self) -> None:
        names = [hparam.name for hparam in self.hparams]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.gguf}: an hparam is listed twice")
        for side in ("hf", "gguf"):
            templates = [name for rule in self.tensors if not rule.read_only for name in getattr(rule, side)]
            if len(set(templates)) != len(templates):
                raise ValueError(f"{self.gguf}: a {side} name stands in two rules")


def T(
    hf: str | Names, gguf: str | Names, *ops: Op, shape: tuple[Size, ...] = (), **options: Any
) -> TensorRule:
    """A rule; single names need no tuple."""
    return TensorRule(_names(hf), _names(gguf), ops, shape, **options)


def pair(hf: str, gguf: str, *ops: Op, shape: tuple[Size, ...], bias: bool = False) -> tuple[TensorRule, TensorRule]:
    """A weight and its bias, which is optional unless `bias`."""
    return (
        T(f"{hf}.weight", f"{gguf}.weight", *ops, shape=shape),
        T(f"{hf}.bias", f"{gguf}.bias", *ops, shape=shape[:1], optional=not bias),
    )


def amended(hparams: Iterable[HParam], **changes: Mapping[str, Any]) -> tuple[HParam, ...]:
    """Shared hparams, some with other fields: `n_expert={"config": ("num_experts",)}`."""
    return tuple(replace(hparam, **changes.get(hparam.name, {})) for hparam in hparams)


def without(rules: Iterable[TensorRule], *gguf: str) -> tuple[TensorRule, ...]:
    """Shared rows less those whose first GGUF name is in `gguf`."""
    return tuple(rule for rule in rules if rule.gguf[0] not in gguf)


def _names(value: str | Names) -> Names:
    return (value,) if isinstance(value, str) else value
