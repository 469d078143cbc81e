"""The mixtures of llama-quantize as data: which type each tensor of a model gets, and why.

A `Recipe` is a base type and rows; the first row whose role and conditions hold decides, else the
base type does. `assign` interprets a recipe for a model's tensors; it looks at names, shapes and five
numbers of the config, never at tensor data. It visits tensors in `sort_key` order whatever order they
come in, so that the same model always gives the same file.

Source of the facts: llama.cpp's `src/llama-quant.cpp` (types) and `conversion/base.py` (dtypes of the
intermediate file). The expectations in `fixtures/snapshots` are llama.cpp's own.

Two quirks are kept because bytes depend on them:

- Layers of attn_v and (in models without experts) of the ffn tensors are *counted as the rules see
  them*, not read from the name. A tensor that an override takes away from the rules is not counted, so
  overriding one layer's `ffn_down` shifts which later layers get extra bits.
- The count of attn_v layers is taken over all tensors, while the number of ffn layers is the block
  count of the config.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from converter.architectures.traits import AS_ASKED, F16_OR_F32, IDS, INDEXES, Traits
from converter.errors import QuantizationError, UsageError
from converter.quant.patterns import Pattern, check_count
from converter.tensors.dtypes import DTYPES, dtype
from converter.tensors.expressions import evaluate

# --------------------------------------------------------------------------------------------------
# Facts that go in, choices that come out


@dataclass(frozen=True)
class TensorSpec:
    """A tensor by its GGUF name; `shape` is row-major, so its last axis is the row; `source` a type name."""

    name: str
    shape: tuple[int, ...]
    source: str


@dataclass(frozen=True)
class ModelFacts:
    """What the rules ask of a model; head counts are those of layer 0, `n_expert` is 0 without experts.

    `arch` is its GGUF name, `traits` what is known of that architecture.
    """

    arch: str
    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int
    traits: Traits = field(default_factory=Traits)

    @cached_property
    def large(self) -> bool:
        """Whether llama.cpp calls it a 70B."""
        counts = {"n_layer": self.n_layer, "n_head": self.n_head, "n_head_kv": self.n_head_kv}
        return bool(self.traits.large and evaluate(self.traits.large, counts))


@dataclass(frozen=True)
class Options:
    """The flags of llama-quantize that change types.

    `tensor_types` are (pattern, type name) pairs, first match wins; `no_fallback` refuses the
    substitution of a type whose blocks do not divide a row; `has_imatrix` says that an importance
    matrix will be used, which some rules ask. `named` is no flag: the type of single tensors, and the
    rule that says so; flags come before it.
    """

    pure: bool = False
    tensor_types: tuple[tuple[str, str], ...] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    leave_output: bool = False
    no_fallback: bool = False
    has_imatrix: bool = False
    named: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The type of one tensor, the rule that chose it and, if that type did not fit, the type wanted."""

    type: str
    rule: str
    fallback_from: str | None = None

    @property
    def reason(self) -> str:
        """The rule, and what became of the type that it wanted."""
        return self.rule + (f"; rows do not fit {self.fallback_from} -> {self.type}" if self.fallback_from else "")


# --------------------------------------------------------------------------------------------------
# Roles: what a tensor is to the rules

TOKEN_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")

# Part of a name → role; the first that occurs decides. Fused and latent values count as attn_v.
ROLE_PARTS = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)

ROLES = {
    "any": "any tensor",
    "head": "output (or the tied token embedding)",
    "token_embd": "token embedding",
    "attn_v": "attn_v, attn_qkv or attn_kv_b",
    "attn_qkv": "attn_qkv",
    "attn_k": "attn_k",
    "attn_q": "attn_q",
    "attn_output": "attn_output",
    "ffn_up": "ffn_up",
    "ffn_gate": "ffn_gate",
    "ffn_down": "ffn_down",
    "other": "any other tensor",
}


# A type that does not divide a row → what llama-quantize puts in its place
FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


@dataclass(frozen=True)
class Rules:
    """What rows of recipes do not say; the defaults are today's, `quant.ages` has those of other years.

    Attributes:
        parts: part of a name → role; the first that occurs decides.
        heads: embeddings that are the head of a model without an output, in architectures `tying` (None: in all).
        fallback: what takes the place of a type that does not divide a row.
        sorted: whether tensors are visited in `sort_key` order, else as they are in the file.
    """

    parts: tuple[tuple[str, str], ...] = ROLE_PARTS
    heads: tuple[str, ...] = TOKEN_EMBEDDINGS
    tying: frozenset[str] | None = None
    fallback: Mapping[str, str] = field(default_factory=lambda: FALLBACK)
    sorted: bool = True

    def ties(self, arch: str) -> bool:
        """Whether the embedding of a model without an output is quantized as the output would be."""
        return self.tying is None or arch in self.tying


TODAY = Rules()


def role(name: str, tied: bool, rules: Rules = TODAY) -> str:
    """What tensor `name` is to the rules; `tied` says that the model has no `output.weight`."""
    if name == "output.weight" or (tied and name in rules.heads):
        return "head"
    if name in TOKEN_EMBEDDINGS:
        return "token_embd"
    return next((found for part, found in rules.parts if part in name), "other")


_BLOCK = re.compile(r"blk\.\s*([+-]?[0-9]{1,9})")


def block_of(name: str) -> int:
    """The N of a name that begins with `blk.N`, -1 for others."""
    found = _BLOCK.match(name)
    return int(found[1]) if found else -1


def sort_key(name: str) -> tuple[int, bytes]:
    """Order of tensors in a file that llama-quantize writes: block number (none first), then name by bytes."""
    return block_of(name), name.encode()


# --------------------------------------------------------------------------------------------------
# Conditions


@dataclass(frozen=True)
class Place:
    """One tensor as the conditions see it.

    `seen` is how many tensors of its role the rules met before it, `count` how many layers that is out
    of, `base` the recipe's base type.
    """

    spec: TensorSpec
    role: str
    seen: int
    count: int
    base: str
    facts: ModelFacts
    has_imatrix: bool

    @property
    def layer(self) -> int:
        """The layer the rules think this is: counted, but from the name for the ffn of expert models.

        Raises:
            QuantizationError: the name has no block number, or one outside the model.
        """
        if self.facts.n_expert <= 1 or not self.role.startswith("ffn_"):
            return self.seen
        layer = block_of(self.spec.name)
        if not 0 <= layer < self.count:
            raise QuantizationError(
                f"{self.spec.name}: its layer must be in a name like blk.N. with N from 0 to {self.count - 1}\n"
                f"choose its type with --tensor-type, or use --pure"
            )
        return layer

    @property
    def heads_per_key(self) -> int:
        return self.facts.n_head // self.facts.n_head_kv if self.facts.n_head_kv else 0

    @property
    def more_bits(self) -> bool:
        eighth = self.count // 8
        return self.layer < eighth or self.layer >= 7 * self.count // 8 or (self.layer - eighth) % 3 == 2


@dataclass(frozen=True)
class Condition:
    """A named question about a `Place`, and how a person would say it."""

    phrase: str
    holds: Callable[[Place], bool]


CONDITIONS: dict[str, Condition] = {
    "more": Condition("in the first eighth, the last eighth and every third layer", lambda p: p.more_bits),
    "first_eighth": Condition("in the first eighth of the layers", lambda p: p.layer < p.count // 8),
    "first_sixteenth": Condition("in the first sixteenth of the layers", lambda p: p.layer < p.count // 16),
    "middle": Condition("between the first and the last eighth", lambda p: p.count // 8 <= p.layer < 7 * p.count // 8),
    "first_2": Condition("in the first 2 layers", lambda p: p.layer < 2),
    "first_4": Condition("in the first 4 layers", lambda p: p.layer < 4),
    "seen_eighth": Condition(
        "among the first of its kind (an eighth of the block count)", lambda p: p.seen < p.count // 8
    ),
    "uneven": Condition("whose rows or columns do not divide by 256", lambda p: any(n % 256 for n in p.spec.shape)),
    "gqa>=4": Condition("where 4 or more heads share a key", lambda p: p.heads_per_key >= 4),
    "experts=8": Condition("in a model of 8 experts", lambda p: p.facts.n_expert == 8),
    "experts!=8": Condition("unless the model has 8 experts", lambda p: p.facts.n_expert != 8),
    "experts>=4": Condition("in a model of 4 or more experts", lambda p: p.facts.n_expert >= 4),
    "70b": Condition("in a 70B model", lambda p: p.facts.large),
    "falcon": Condition("in a Falcon model", lambda p: p.facts.arch == "falcon"),
    "not_falcon": Condition("unless the model is a Falcon", lambda p: p.facts.arch != "falcon"),
    "not_bailingmoe3": Condition("unless the model is a Ling 3", lambda p: p.facts.arch != "bailingmoe3"),
    "protected": Condition(
        "that a GLM-5 model is sensitive to",
        lambda p: any(part in p.spec.name for part in p.facts.traits.protected),
    ),
    "imatrix": Condition("with an importance matrix", lambda p: p.has_imatrix),
    "no_imatrix": Condition("without an importance matrix", lambda p: not p.has_imatrix),
    "ragged": Condition(
        "whose rows do not divide into the base type's blocks", lambda p: not DTYPES[p.base].fits(p.spec.shape[-1])
    ),
    "stacked": Condition("that stacks matrices (experts)", lambda p: len(p.spec.shape) > 2 and p.spec.shape[-3] > 1),
}


# --------------------------------------------------------------------------------------------------
# Recipes


@dataclass(frozen=True)
class Row:
    """Tensors of `role` for which every condition of `when` holds get `type`."""

    role: str
    type: str
    when: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES or self.type not in DTYPES or not CONDITIONS.keys() >= set(self.when):
            raise ValueError(f"row that can never be read: {self}")

    @property
    def label(self) -> str:
        """The row in words, as `convert plan` prints it."""
        return " ".join((ROLES[self.role], *(CONDITIONS[name].phrase for name in self.when), "->", self.type))

    def holds(self, place: Place) -> bool:
        return self.role in ("any", place.role) and all(CONDITIONS[name].holds(place) for name in self.when)


_NEEDS_IMATRIX = frozenset(("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"))


@dataclass(frozen=True)
class Recipe:
    """One ftype of llama-quantize.

    `file_type` is the value of `general.file_type` (None: the source's is kept), `base` the type of
    every tensor no row names (None: each keeps its own), `needs_imatrix` the types that this recipe
    gives only with an importance matrix.
    """

    name: str
    file_type: int | None
    base: str | None
    rows: tuple[Row, ...] = ()
    needs_imatrix: frozenset[str] = field(default=_NEEDS_IMATRIX)

    @property
    def quantized(self) -> bool:
        """Whether the base type is block-quantized."""
        return self.base is not None and DTYPES[self.base].quantized

    def describe(self) -> list[str]:
        """The rules in words, first applicable first."""
        last = "every other tensor keeps its type" if self.base is None else f"every other tensor -> {self.base}"
        return [*(row.label for row in self.rows), last]


def _row(role: str, type: str, *when: str) -> Row:
    return Row(role, type, when)


_PROTECTED = _row("any", "Q8_0", "protected")


def _head(type: str) -> tuple[Row, ...]:
    return (_row("head", "Q8_0", "falcon"), _row("head", "Q8_0", "ragged"), _row("head", type))


# 8 experts: attention is so small a part of the file that 8 bits cost nothing
_E8 = (_row("attn_v", "Q8_0", "experts=8"), _row("attn_k", "Q8_0", "experts=8"))
_E8_OUTPUT = _row("attn_output", "Q5_K", "not_falcon", "experts=8")
_PLAIN = (_PROTECTED, *_head("Q6_K"), *_E8)
_70B = _row("attn_v", "Q5_K", "70b")
_GQA = (_row("attn_v", "Q5_K", "gqa>=4", "70b"), _row("attn_v", "Q4_K", "gqa>=4"))


def _tiny(low: str, attn_output: str | None) -> tuple[Row, ...]:
    """Rows of the 1- and 2-bit IQ recipes; `low` is what their sensitive tensors get."""
    rest = () if attn_output is None else (_row("attn_output", attn_output),)
    return (
        _PROTECTED,
        *_head("Q5_K"),
        _row("token_embd", low),
        _row("attn_v", "Q4_K", "gqa>=4"),
        _row("attn_v", "Q4_K", "experts>=4"),
        _row("attn_v", low),
        _row("attn_k", "Q4_K", "experts=8"),
        _row("ffn_down", low, "seen_eighth"),
        _row("attn_output", "Q5_K", "experts=8"),
        *rest,
    )


_TERNARY = (*_PLAIN, _row("token_embd", "Q4_K"))
_IQ4 = (*_PLAIN, _row("attn_v", "Q5_K", "gqa>=4"), _row("ffn_down", "Q5_K", "first_eighth", "no_imatrix"), _E8_OUTPUT)

_RECIPES = (
    Recipe("F32", 0, "F32"),
    Recipe("F16", 1, "F16"),
    Recipe("BF16", 32, "BF16"),
    Recipe("COPY", None, None),
    Recipe("Q8_0", 7, "Q8_0", (_PROTECTED,)),
    Recipe("Q4_0", 2, "Q4_0", (*_PLAIN, _row("ffn_down", "Q4_1", "imatrix", "first_eighth"))),
    Recipe("Q4_1", 3, "Q4_1", _PLAIN),
    Recipe("Q5_0", 8, "Q5_0", (*_PLAIN, _row("ffn_down", "Q5_1", "imatrix", "first_eighth"))),
    Recipe("Q5_1", 9, "Q5_1", _PLAIN),
    Recipe(
        "Q2_K",
        10,
        "Q2_K",
        (
            *_PLAIN,
            _70B,
            _row("attn_v", "Q4_K", "gqa>=4"),
            _row("attn_v", "Q3_K"),
            _row("ffn_down", "Q3_K"),
            _E8_OUTPUT,
            _row("attn_output", "Q3_K", "not_falcon"),
        ),
    ),
    Recipe(
        "Q2_K_S",
        21,
        "Q2_K",
        (
            *_PLAIN,
            *_GQA,
            _row("ffn_down", "Q4_K", "first_eighth"),
        ),
        _NEEDS_IMATRIX | {"Q2_K"},
    ),
    Recipe("Q3_K_S", 11, "Q3_K", (*_PLAIN, _70B, _E8_OUTPUT)),
    Recipe(
        "Q3_K_M",
        12,
        "Q3_K",
        (
            *_PLAIN,
            _row("attn_v", "Q5_K", "first_2"),
            _70B,
            _row("attn_v", "Q4_K"),
            _row("ffn_down", "Q5_K", "first_sixteenth"),
            _row("ffn_down", "Q4_K", "not_falcon"),
            _row("ffn_down", "Q4_K", "more"),
            _E8_OUTPUT,
            _row("attn_output", "Q4_K", "not_falcon"),
        ),
    ),
    Recipe(
        "Q3_K_L",
        13,
        "Q3_K",
        (
            *_PLAIN,
            _row("attn_v", "Q5_K"),
            _row("ffn_down", "Q4_K", "falcon"),
            _row("ffn_down", "Q5_K"),
            _row("attn_output", "Q4_K", "falcon"),
            _row("attn_output", "Q5_K", "experts!=8"),
        ),
    ),
    Recipe(
        "Q4_K_S",
        14,
        "Q4_K",
        (
            *_PLAIN,
            _row("attn_v", "Q5_K", "first_4"),
            _70B,
            _row("ffn_down", "Q5_K", "not_falcon", "first_eighth"),
            _E8_OUTPUT,
        ),
    ),
    Recipe(
        "Q4_K_M",
        15,
        "Q4_K",
        (
            *_PLAIN,
            _row("attn_v", "Q6_K", "more"),
            _70B,
            _row("ffn_down", "Q6_K", "not_falcon", "more"),
            _row("ffn_down", "Q6_K", "falcon", "first_sixteenth"),
            _row("ffn_down", "Q5_K", "falcon", "more"),
            _E8_OUTPUT,
        ),
    ),
    Recipe("Q5_K_S", 16, "Q5_K", _PLAIN),
    Recipe("Q5_K_M", 17, "Q5_K", (*_PLAIN, _row("attn_v", "Q6_K", "more"), _row("ffn_down", "Q6_K", "more"))),
    Recipe("Q6_K", 18, "Q6_K", _PLAIN),
    Recipe("IQ1_S", 24, "IQ1_S", _tiny("Q2_K", "IQ2_XXS")),
    Recipe("IQ1_M", 31, "IQ1_M", _tiny("Q2_K", "IQ2_XXS")),
    Recipe("IQ2_XXS", 19, "IQ2_XXS", _tiny("Q2_K", None)),
    Recipe("IQ2_XS", 20, "IQ2_XS", _tiny("Q2_K", None)),
    Recipe("IQ2_S", 28, "IQ2_XS", _tiny("IQ3_S", "IQ3_S")),
    Recipe("IQ2_M", 29, "IQ2_S", _tiny("IQ3_S", "IQ3_S")),
    Recipe(
        "IQ3_XXS",
        23,
        "IQ3_XXS",
        (
            _PROTECTED,
            *_head("Q5_K"),
            *_E8,
            _row("token_embd", "IQ3_S"),
            *_GQA,
            _row("attn_v", "IQ3_S", "no_imatrix"),
            _row("attn_k", "IQ2_S"),
            _row("attn_q", "IQ2_S"),
            _row("ffn_down", "Q4_K", "no_imatrix", "first_eighth"),
            _row("ffn_down", "Q3_K", "no_imatrix"),
            _E8_OUTPUT,
            _row("attn_output", "IQ3_S", "not_falcon"),
        ),
    ),
    Recipe(
        "IQ3_XS",
        22,
        "IQ3_S",
        (
            *_PLAIN,
            *_GQA,
            _row("attn_k", "IQ3_XXS"),
            _row("attn_q", "IQ3_XXS"),
            _row("ffn_gate", "IQ3_XXS", "middle"),
            _row("ffn_up", "IQ3_XXS", "middle"),
            _E8_OUTPUT,
        ),
    ),
    Recipe("IQ3_S", 26, "IQ3_S", (*_PLAIN, *_GQA, _E8_OUTPUT)),
    Recipe(
        "IQ3_M",
        27,
        "IQ3_S",
        (
            *_PLAIN,
            _70B,
            _row("attn_v", "Q4_K"),
            _row("ffn_down", "Q4_K", "first_eighth"),
            _row("ffn_down", "Q4_K", "experts=8", "more"),
            _E8_OUTPUT,
            _row("attn_output", "Q4_K", "not_falcon"),
        ),
    ),
    Recipe("IQ4_NL", 25, "IQ4_NL", _IQ4),
    Recipe("IQ4_XS", 30, "IQ4_XS", _IQ4),
    Recipe("TQ1_0", 36, "TQ1_0", _TERNARY),
    Recipe("TQ2_0", 37, "TQ2_0", _TERNARY),
    Recipe(
        "MXFP4_MOE",
        38,
        "MXFP4",
        (
            _PROTECTED,
            _row("head", "Q8_0"),
            _row("any", "MXFP4", "stacked", "not_bailingmoe3"),
            _row("ffn_up", "MXFP4", "stacked"),
            _row("ffn_gate", "MXFP4", "stacked"),
            _row("ffn_down", "MXFP4", "stacked"),
            _row("any", "Q8_0"),
        ),
    ),
    Recipe("Q1_0", 40, "Q1_0", _PLAIN),
    Recipe("Q2_0", 41, "Q2_0", _TERNARY),
)

RECIPES: dict[str, Recipe] = {r.name: r for r in _RECIPES}
ALIASES: dict[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "FP16": "F16", "FP32": "F32"}
#: What ONNX graphs have beside; one of them with activations whose ranges are known before.
STATIC = "INT8-STATIC"
GRAPH_RECIPES: dict[str, Recipe] = {name: Recipe(name, None, "INT8") for name in ("INT8", STATIC)}
_BY_FILE_TYPE = {str(r.file_type): r for r in _RECIPES if r.file_type is not None}


def recipe(name: str, *, graph: bool = False) -> Recipe:
    """The recipe called `name` in any case, by alias (`q4_k`) or by its `general.file_type` number (`15`).

    `graph`: also those that only graphs have.

    Raises:
        UsageError: there is no such recipe; the message has near names and all names.
    """
    wanted = name.strip().upper()
    found = RECIPES.get(ALIASES.get(wanted, wanted)) or _BY_FILE_TYPE.get(wanted)
    if found is None and wanted in GRAPH_RECIPES:
        if graph:
            return GRAPH_RECIPES[wanted]
        raise UsageError(f"--quant {name}: a type of ONNX graphs (--to onnx), not of ggml, whose q8_0 has as many bits")
    if found is None:
        known = [*RECIPES, *ALIASES, *(GRAPH_RECIPES if graph else ())]
        raise UsageError(f"unknown quantization {name!r}{_hint(wanted, known)}\nknown: {', '.join(known)}")
    return found


def _hint(wanted: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(wanted, known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


# --------------------------------------------------------------------------------------------------
# Tensors that stay as they are

_RUNTIME_ONLY = frozenset(("Q8_1", "Q8_K"))
_ENCODABLE = tuple(
    d.name for d in DTYPES.values() if d.gguf is not None and d.floating and d.name not in _RUNTIME_ONLY | {"F64"}
)

# Part of a name → why such a tensor is never quantized
_KEPT_PARTS: Mapping[str, tuple[str, ...]] = {
    "norm": ("_norm.weight",),
    "router": ("ffn_gate_inp.weight", "ffn_gate_tid2eid.weight"),
    "small": (
        "altup",
        "laurel",
        "ssm_conv1d",
        "shortconv.conv.weight",
        "indexer.k_proj.weight",
        "indexer.q_proj.weight",
    ),
    "per-layer projection": ("per_layer_model_proj",),
    "RWKV mixing": tuple(
        f"time_mix_{part}.weight"
        for part in (
            "first",
            "w0",
            "w1",
            "w2",
            "v0",
            "v1",
            "v2",
            "a0",
            "a1",
            "a2",
            "g1",
            "g2",
            "decay_w1",
            "decay_w2",
            "lerp_fused",
        )
    ),
    "relative position": ("attn_rel_b.weight", ".rel_pos"),
    "vision": (".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".patch_embd", ".patch_merger"),
    "audio codebook": ("a.rvq.codebook", "mm.a.code_embd"),
}
_KEPT_WHY = {part: why for why, parts in _KEPT_PARTS.items() for part in parts}
_KEPT_PART = re.compile("|".join(map(re.escape, _KEPT_WHY)))
_KEPT_NAMES = {"position_embd.weight": "positions", "token_types.weight": "token types"}


def kept_because(spec: TensorSpec, traits: Traits, leave_output: bool) -> str | None:
    """Why llama-quantize leaves this tensor in its source type, None if it may be quantized."""
    name = spec.name
    if not any(size > 1 for size in spec.shape[:-1]):  # as ggml counts, leading axes of length 1 are none
        return "1-D"
    if not DTYPES[spec.source].floating:
        return "integers"
    if not name.endswith("weight"):
        return "not a weight"
    if leave_output and name == "output.weight":
        return "--leave-output"
    if name in _KEPT_NAMES:
        return _KEPT_NAMES[name]
    for why, parts in traits.kept.items():
        if any(part in name for part in parts):
            return why
    part = _KEPT_PART.search(name)
    return None if part is None else _KEPT_WHY[part[0]]


# --------------------------------------------------------------------------------------------------
# The interpreter


@dataclass(frozen=True)
class _Override:
    pattern: Pattern
    type: str


@dataclass
class _Counter:
    """How many tensors of each role the rules have met, and out of how many."""

    n_layer: int
    n_attn_v: int
    seen: Counter[str] = field(default_factory=Counter)

    def place(self, spec: TensorSpec, its_role: str, base: str, facts: ModelFacts, has_imatrix: bool) -> Place:
        count = self.n_attn_v if its_role == "attn_v" else self.n_layer
        place = Place(spec, its_role, self.seen[its_role], count, base, facts, has_imatrix)
        self.seen[its_role] += 1
        return place


def assign(
    recipe: Recipe,
    tensors: Sequence[TensorSpec],
    facts: ModelFacts,
    options: Options | None = None,
    rules: Rules = TODAY,
) -> dict[str, Choice]:
    """The type of every tensor, by name, in `sort_key` order (that of `tensors` where `rules` do not sort).

    The types are those of llama-quantize for a file whose tensors have the types `source`. Where it
    would stop, crash or ignore a wish, this differs: `tensor_types` also count for the recipes F32, F16
    and BF16 (llama-quantize ignores them there), a pattern that matches nothing that may be quantized
    is an error, and so is an output or embedding type that does not divide the rows.

    Raises:
        UsageError: a malformed pattern or one without effect, an unknown type name, options with COPY.
        QuantizationError: a type that does not fit and has no substitute, or any substitution under
            `no_fallback`; a type in `source` that does not exist.
    """
    options = options or Options()
    _check(recipe, options)
    overrides = _overrides(options)
    ordered = sorted(tensors, key=lambda spec: sort_key(spec.name)) if rules.sorted else list(tensors)
    why_kept = {spec.name: _kept(recipe, spec, facts, options) for spec in ordered}
    _require_effect(overrides, why_kept)
    tied = rules.ties(facts.arch) and all(spec.name != "output.weight" for spec in ordered)
    roles = {spec.name: role(spec.name, tied, rules) for spec in ordered}
    counter = _Counter(facts.n_layer, sum(roles[spec.name] in ("attn_v", "attn_qkv") for spec in ordered))
    choices: dict[str, Choice] = {}
    for spec in ordered:
        kept = why_kept[spec.name]
        if kept is not None or recipe.base is None:
            choices[spec.name] = Choice(spec.source, f"kept: {kept}")
        else:
            choices[spec.name] = _choose(
                recipe, recipe.base, spec, roles[spec.name], facts, options, overrides, counter, rules.fallback
            )
    return choices


def needs_imatrix(recipe: Recipe, name: str, type: str) -> bool:
    """Whether llama-quantize refuses to give tensor `name` this `type` without an importance matrix.

    Asked of tensors that may be quantized; embeddings and output never need one.
    """
    return type in recipe.needs_imatrix and name != "output.weight" and name not in TOKEN_EMBEDDINGS


def _check(recipe: Recipe, options: Options) -> None:
    for flag, wanted in (("--output-type", options.output_type), ("--embedding-type", options.embedding_type)):
        if wanted is not None:
            type_name(flag, wanted)
            if recipe.base is None:
                raise UsageError(f"{flag} has no effect with COPY, which keeps every tensor as it is")
    if options.tensor_types and recipe.base is None:
        raise UsageError("--tensor-type has no effect with COPY, which keeps every tensor as it is")


def type_name(flag: str, name: str) -> str:
    """A type that tensors can be encoded as, by its name in any case.

    Raises:
        UsageError: there is none; the message begins with `flag`.
    """
    wanted = name.strip().upper()
    if wanted not in _ENCODABLE:
        raise UsageError(f"{flag}: no type {name!r}{_hint(wanted, _ENCODABLE)}\nknown: {', '.join(_ENCODABLE)}")
    return wanted


def encodable(type: str) -> bool:
    """Whether there is such a type, and tensors can be encoded as it."""
    return type in _ENCODABLE


def _overrides(options: Options) -> tuple[_Override, ...]:
    check_count(len(options.tensor_types), "--tensor-type")
    return tuple(
        _Override(Pattern(pattern), type_name(f"--tensor-type {pattern}", wanted))
        for pattern, wanted in options.tensor_types
    )


def _kept(recipe: Recipe, spec: TensorSpec, facts: ModelFacts, options: Options) -> str | None:
    dtype(spec.source)
    return "COPY" if recipe.base is None else kept_because(spec, facts.traits, options.leave_output)


def _require_effect(overrides: tuple[_Override, ...], why_kept: Mapping[str, str | None]) -> None:
    usable = [name for name, why in why_kept.items() if why is None]
    if overrides and not usable:
        raise UsageError("--tensor-type has no effect: this model has no tensor that may be quantized")
    for override in overrides:
        if any(override.pattern.search(name) for name in usable):
            continue
        matched = next((name for name in why_kept if override.pattern.search(name)), None)
        if matched is not None:
            detail = f"only tensors that are never quantized, as {matched} ({why_kept[matched]})"
            raise UsageError(f"--tensor-type {override.pattern.text!r} matches {detail}")
        near = difflib.get_close_matches(override.pattern.text, _stems(usable), n=3, cutoff=0.4)
        found = f"near names: {', '.join(near)}" if near else f"names look like {', '.join(usable[:2])}"
        raise UsageError(f"--tensor-type {override.pattern.text!r} matches no tensor\n{found}")


def _stems(names: Iterable[str]) -> list[str]:
    """The distinct names of a model without block number and `.weight`."""
    return list(dict.fromkeys(re.sub(r"^blk\.[0-9]+\.", "", name).removesuffix(".weight") for name in names))


def _choose(
    recipe: Recipe,
    base: str,
    spec: TensorSpec,
    its_role: str,
    facts: ModelFacts,
    options: Options,
    overrides: tuple[_Override, ...],
    counter: _Counter,
    fallback: Mapping[str, str],
) -> Choice:
    """Type of one tensor that may be quantized. The order of precedence is that of llama-quantize."""
    override = next((o for o in overrides if o.pattern.search(spec.name)), None)
    if options.embedding_type is not None and spec.name in TOKEN_EMBEDDINGS:
        if override is None or spec.name == "token_embd.weight":
            return _fixed(spec, "--embedding-type", options.embedding_type)
    if options.output_type is not None and spec.name == "output.weight":
        return _fixed(spec, "--output-type", options.output_type)
    if override is not None:
        return _fitted(spec, override.type, f"--tensor-type {override.pattern.text}", options.no_fallback, fallback)
    if spec.name in options.named:
        return _fitted(spec, *options.named[spec.name], options.no_fallback, fallback)
    if not recipe.quantized:
        return Choice(base, f"base type of {recipe.name}")
    if options.pure:
        return _fitted(spec, base, "--pure", options.no_fallback, fallback)
    place = counter.place(spec, its_role, base, facts, options.has_imatrix)
    row = next((r for r in recipe.rows if r.holds(place)), None)
    if its_role == "head" and options.output_type is not None:
        wanted, rule = options.output_type.strip().upper(), "--output-type (tied token embedding)"
    elif row is not None:
        wanted, rule = row.type, row.label
    else:
        wanted, rule = base, f"base type of {recipe.name}"
    return _fitted(spec, wanted, rule, options.no_fallback, fallback)


def _fixed(spec: TensorSpec, flag: str, wanted: str) -> Choice:
    """A type asked for by name, which is never substituted.

    Raises:
        QuantizationError: the rows do not divide into its blocks.
    """
    name = type_name(flag, wanted)
    row = spec.shape[-1]
    if not DTYPES[name].fits(row):
        raise QuantizationError(
            f"{spec.name}: rows of {row} do not divide into {name} blocks of {DTYPES[name].block_size}\n"
            f"choose another type for {flag}"
        )
    return Choice(name, flag)


def _fitted(spec: TensorSpec, wanted: str, rule: str, no_fallback: bool, fallback: Mapping[str, str]) -> Choice:
    """`wanted`, or the type llama-quantize puts in its place where a row does not divide into blocks."""
    row = spec.shape[-1]
    if DTYPES[wanted].fits(row):
        return Choice(wanted, rule)
    what = f"{spec.name}: rows of {row} do not divide into {wanted} blocks of {DTYPES[wanted].block_size}"
    used = fallback.get(wanted, wanted)
    if used == wanted and DTYPES[wanted].block_size > 32:
        raise QuantizationError(f"{what}, and {wanted} has no substitute\nchoose a type with --tensor-type")
    used = used if DTYPES[used].fits(row) else "F16"
    if no_fallback:
        raise QuantizationError(f"{what}\nallow {used} by leaving out --no-fallback, or choose with --tensor-type")
    return Choice(used, rule, fallback_from=wanted)


# --------------------------------------------------------------------------------------------------
# The intermediate file

_NORM = "_norm.weight"
_FLOAT32_NAMES = re.compile(
    r"""(blk\.[0-9]+\.(ffn_gate_inp(_shexp)?|ssm_conv1d(_[qkv])?|shortconv\.conv|indexer\.proj
        |time_mix_(first|w1|w2|decay_w1|decay_w2|lerp_fused)|altup_(correct|predict)_coef)
      |posnet\.[0-9]+\.norm[12]|position_embd|token_types|[va]\.position_embd)\.weight""",
    re.VERBOSE,
)
_NOT_TERNARY_NAMES = re.compile(r"((per_layer_)?token_embd|output|blk\.[0-9]+\.(altup_router|laurel_[lr]))\.weight")
_WEIGHT_SUFFIXES = (".weight", ".lora_a", ".lora_b")
_TERNARY_TYPES = ("TQ1_0", "TQ2_0")


def converter_type(name: str, shape: tuple[int, ...], source: str, outtype: str, forced: str | None = None) -> Choice:
    """The type of tensor `name` in the file that llama.cpp's HF converter writes with `--outtype`.

    `name` is the GGUF name, `shape` the row-major shape after the architecture's operations, `source`
    the stored type (weights that arrive block-quantized are repacked, never re-encoded), `outtype` a type
    name, `forced` what the architecture's rule says of it (`architectures.spec.TensorRule.type`).

    Raises:
        QuantizationError: `source` or `outtype` is no type.
    """
    if dtype(source).quantized:
        return Choice(source, "kept: arrives quantized")
    if forced in (IDS, INDEXES):
        return Choice(forced, "forced by its architecture")
    wanted = dtype(outtype).name
    if forced in (F16_OR_F32, "F16", "F32"):
        halved = forced == "F16" or (forced == F16_OR_F32 and wanted == "F16")
        return Choice("F16" if halved else "F32", "forced by its architecture")
    if forced == AS_ASKED and len(shape) > 1 and DTYPES[wanted].fits(shape[-1]):
        return Choice(wanted, "forced by its architecture")
    if len(shape) <= 1 or name.endswith(_NORM):
        return Choice("F32", "1-D" if len(shape) <= 1 else "norm")
    if _FLOAT32_NAMES.fullmatch(name):
        return Choice("F32", "read as F32 by the runtime")
    if not name.endswith(_WEIGHT_SUFFIXES):
        return Choice("F32", "not a weight")
    if wanted in _TERNARY_TYPES and _NOT_TERNARY_NAMES.fullmatch(name):
        return Choice("F16", f"never {wanted}")
    if not DTYPES[wanted].fits(shape[-1]):
        return Choice("F16", "outtype", fallback_from=wanted)
    return Choice(wanted, "outtype")
