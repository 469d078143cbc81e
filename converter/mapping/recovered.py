"""Tensors of a graph that another program exported, under the names that the model had before.

The graph tells in which module each tensor is used (`Use`), config.json with the rows of its architecture which tensors
there are and of which shapes. A name counts where both agree, and only if with all that were found the model is whole:
then the checkpoint is one of Hugging Face's dialect, and the graph goes on in its `stored`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from converter.architectures.spec import Architecture
from converter.checkpoint import Checkpoint, Structure, Use
from converter.errors import ArchitectureError, ConverterError, MissingTensor, short
from converter.events import Decoded, Dropped, Event, NamesUnknown, Note, StoredLoss
from converter.formats.hub import client_folder, folder_assets
from converter.formats.registry import open_checkpoint
from converter.mapping.detect import detect
from converter.mapping.hparams import HParams, Scope
from converter.mapping.names import Spelled, is_ignored, resolved, spellings
from converter.mapping.tensors import canonical_tensors, equal, to_gguf
from converter.mapping.view import HFView, Instance
from converter.request import PathLike, Source
from converter.storage.files import expands_too_far
from converter.storage.json import read_json
from converter.storage.transposed import transposed
from converter.tensors.ops import Add, Concat, Op, Split, Transpose, inverse
from converter.tensors.streams import compose
from converter.tensors.tensor import LazyTensor

#: What exporters call modules by words of their own, below the number of a block and elsewhere -> ggml's word.
WORDS = {
    "attn.q_proj": "attn_q", "attn.k_proj": "attn_k", "attn.v_proj": "attn_v", "attn.qkv_proj": "attn_qkv",
    "attn.o_proj": "attn_output", "attn.q_norm": "attn_q_norm", "attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "attention.query": "attn_q", "attention.key": "attn_k", "attention.value": "attn_v",
    "attention.dense": "attn_output", "attention.LayerNorm": "attn_output_norm",
    "dense": "ffn_down", "LayerNorm": "layer_output_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
    "mlp.experts.{expert}.gate_proj": "ffn_gate_exps", "mlp.experts.{expert}.up_proj": "ffn_up_exps",
    "mlp.experts.{expert}.down_proj": "ffn_down_exps",
    "final_norm_layernorm": "output_norm", "embed_tokens": "token_embd", "lm_head": "output",
}  # fmt: skip
#: Words that stand behind a block's number and are of no block.
OF_NO_BLOCK = {"output_norm", "token_embd", "output"}
#: ggml's word -> those of its rows, one after the other, where either a model or a graph has them apart.
JOINED = {"attn_qkv": ("attn_q", "attn_k", "attn_v")}
#: How exporters end names of tensors -> how they end in the model.
ENDINGS = {
    ".stored": "", "_Q4": "", "_Q8": "", "_quantized": "",
    ".weight_t": ".weight", ".MatMul.weight": ".weight", ".Add.bias": ".bias", ".layernorm.weight": ".weight",
}  # fmt: skip
#: Operators that multiply by what they are given, so that it is 1 + w where a model's norm has w.
SCALES = {
    "Mul", "RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization",
    "LayerNormalization", "SkipLayerNormalization",
}  # fmt: skip
#: What graphs hold that follows from the config.
DERIVED = re.compile(
    r"inv_freq|rotary|(?:^|[^a-z])(?:cos|sin)(?:[^a-z]|$)|(?:position|token_type)_ids|(?:attention|causal)_mask|masked_bias"
    r"|(?:^|/)Constant(?:_\d+)?_output_\d+$",
    re.IGNORECASE,
)
MAX_WRAPPERS = 4  # modules that an exporter put around the model
FEW = 3


def open_model(source: PathLike | Source, name: str | None = None) -> Checkpoint:
    """`open_checkpoint`, and a graph with its model's names where these are found again; `name` as in `recovered`.

    Raises:
        FormatError, OutputError, UsageError: as `open_checkpoint`.
    """
    opened = open_checkpoint(source)
    try:
        return recovered(opened, name)
    except BaseException:
        opened.close()
        raise


def alike(one: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Two models to be compared; a graph whose names were found again as it is where the other has its own names."""

    def meant(own: Checkpoint, beside: Checkpoint) -> Checkpoint:
        stored = own.stored if own.dialect == "hf" else None
        names = beside.tensors.keys()
        return own if stored is None or names <= own.tensors.keys() or not names <= stored.tensors.keys() else stored

    return meant(one, other), meant(other, one)


def recovered(checkpoint: Checkpoint, name: str | None = None) -> Checkpoint:
    """A checkpoint with the model's names where it is a graph without them and a config.json tells which there are.

    `name` is the architecture that wins over what the config says. Where tensors are missing or do not fit, all keep
    their names, and an event says why.

    Raises:
        CorruptFile: the graph cannot be read.
    """
    structure = checkpoint.structure
    if structure is None or checkpoint.stored is not None or not structure.uses:
        return checkpoint
    if (small := _small_files(checkpoint)) is None:
        return checkpoint
    try:
        architecture, _ = detect(small.config, name)
    except ConverterError:
        return checkpoint
    for path in small.assets.values():
        checkpoint.opened.add(path)
    try:
        found = _Search(_decoded(small, structure), architecture, structure.uses, name).found()
        named = checkpoint.replace(
            dialect="hf",
            tensors=found.tensors,
            config=small.config,
            assets=small.assets,
            structure=None,
            events=(*structure.leave(), *found.events),
            stored=checkpoint.replace(dialect=None, config={}, assets={}),
        )
        to_gguf(named, name)
    except ConverterError as error:
        event = NamesUnknown(architecture.gguf, str(error).partition("\n")[0])
        return checkpoint.replace(dialect=None, config={}, assets={}, events=(*checkpoint.events, event))
    return named


def _decoded(checkpoint: Checkpoint, structure: Structure) -> Checkpoint:
    """The checkpoint with numbers in the place of codes, of what these are made of."""
    made = structure.decoded
    parts = {part for tensor in made.values() for part in tensor.parts} - made.keys()
    tensors = {name: made.get(name, tensor) for name, tensor in checkpoint.tensors.items() if name not in parts}
    return checkpoint.replace(tensors=tensors)


def _small_files(checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint with config.json and its other small files, if it is given one or one lies beside it."""
    if checkpoint.dialect is not None:
        return checkpoint if checkpoint.dialect == "hf" else None
    try:
        assets = folder_assets(client_folder(checkpoint.path))
        config = read_json(assets["config.json"], python=True) if "config.json" in assets else {}
    except ConverterError:  # a file that nobody named is no reason to refuse another
        return None
    return checkpoint.replace(dialect="hf", config=config, assets=assets) if config else None


# ------------------------------------------------------------------------------------------------- one tensor


@dataclass(frozen=True)
class _Place:
    """One tensor of the model: a rule's tensors in a block, and which of them."""

    instance: Instance
    index: int

    @property
    def name(self) -> str:
        return self.instance.names[self.index]

    @property
    def turned(self) -> bool:
        """Whether the model itself has the inputs of a matrix as its rows, as GPT-2 has."""
        return any(op == Transpose() for op in self.instance.rule.ops)

    @property
    def computed(self) -> tuple[Op, ...]:
        """What a model makes of the numbers before it computes with them, as Gemma's norms 1 + w."""
        return tuple(op for op in self.instance.rule.ops if op.in_half)

    def exchanged(self, shape: tuple[int, ...], turned: bool | None) -> bool | None:
        """Whether a graph's tensor has the axes of this one exchanged; None where it is another one."""
        if not self.instance.shapes:
            return None
        want = self.instance.shapes[self.index]
        if len(shape) != 2 or turned is None:
            return False if shape == want else True if len(shape) == 2 and shape[::-1] == want else None
        other = turned != self.turned
        return other if (shape[::-1] if other else shape) == want else None


@dataclass(frozen=True)
class _Found:
    """Tensors of the graph as one of the model; `own` where their own names say so, and not only what uses them."""

    sources: tuple[str, ...]
    tensor: LazyTensor
    own: bool


@dataclass(frozen=True)
class _Result:
    tensors: Mapping[str, LazyTensor]
    events: tuple[Event, ...]


def _ended(name: str) -> str:
    """A tensor's own name, without what exporters put behind it."""
    for end, own in ENDINGS.items():
        if name.endswith(end):
            name = name.removesuffix(end) + own
    return name


def _said(use: Use) -> str:
    """What a tensor would be called by the module that uses it."""
    return f"{use.module}.{'bias' if use.bias else 'weight'}"


def _inside(name: str) -> Iterator[str]:
    """A name, and what it is without the modules around the model."""
    parts = name.split(".")
    yield from (".".join(parts[start:]) for start in range(min(len(parts), MAX_WRAPPERS)))


def _ends(module: str) -> tuple[str, ...]:
    """The numbers in a module's name and its last word, which no exporter leaves out."""
    parts = module.split(".")
    return (*(part for part in parts if part.isdecimal()), parts[-1])


def _word(name: str) -> tuple[str, int | None] | None:
    """ggml's name of what an exporter calls by a word of its own, and the number of the expert."""
    *parts, leaf = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()][:2]
    if not numbers:
        word = WORDS.get(parts[-1]) if parts else None
        return (f"{word}.{leaf}", None) if word in OF_NO_BLOCK else None
    expert = int(parts[numbers[1]]) if numbers[1:] else None
    rest = ["{expert}" if i in numbers else part for i, part in enumerate(parts)][numbers[0] + 1 :]
    word = WORDS.get(".".join(rest))
    if word is None:
        return None
    return (f"{word}.{leaf}" if word in OF_NO_BLOCK else f"blk.{int(parts[numbers[0]])}.{word}.{leaf}"), expert


# ---------------------------------------------------------------------------------------------- all of them


class _Search:
    """The tensors of a graph (`checkpoint`, with its config) and those of the model that the config makes."""

    def __init__(
        self, checkpoint: Checkpoint, architecture: Architecture, uses: Mapping[str, Sequence[Use]], name: str | None
    ) -> None:
        self._tensors, self._uses = checkpoint.tensors, uses
        # Rows may ask which tensors there are: all that these can be.
        possible = {text: tensor for each, tensor in self._tensors.items() for text in self._texts(each)}
        view = HFView(checkpoint.replace(tensors=possible, structure=None), name)
        hparams: HParams = view.hparams or {}
        self._tied = view.tied
        self._scope = Scope(hparams, Spelled(architecture, possible))
        self._architecture = resolved(architecture, self._scope.at(None))
        self._by_name: dict[str, list[_Place]] = {}
        self._by_module: dict[str, list[_Place]] = {}
        self._by_ends: dict[tuple[str, ...], list[_Place]] = {}
        self._by_ggml: dict[str, Instance] = {}
        self._instances = tuple(view.instances(self._architecture, hparams))
        for instance in self._instances:
            for place in (_Place(instance, index) for index in range(len(instance.names))):
                self._by_name.setdefault(place.name, []).append(place)
                module = place.name.rpartition(".")[0]
                self._by_module.setdefault(module, []).append(place)
                self._by_ends.setdefault(_ends(module), []).append(place)
            if not instance.rule.read_only:
                self._by_ggml.update(dict.fromkeys(instance.gguf, instance))
        self._model: dict[str, list[_Found]] = {}
        self._parts: dict[str, _Found] = {}  # by ggml's names, where the model has them joined or apart
        self._less: list[str] = []
        self._events: list[Event] = []

    def found(self) -> _Result:
        """The tensors under the model's names.

        Raises:
            ArchitectureError and its kinds: two tensors claim a name, one of a layout is missing.
        """
        for name in self._tensors:
            self._find(name)
        for name in tuple(self._parts):
            self._join(name)
        chosen = {name: _chosen(name, found) for name, found in self._model.items()}
        heads = self._tie(chosen)
        self._say_left(chosen, heads)
        if self._less:
            self._events.append(
                StoredLoss(_few(self._less), "the graph has them plus 1", "less 1 they are the nearest")
            )
        tensors = {name: each.tensor for name, each in chosen.items()}
        if missing := self._missing(tensors.keys()):
            raise MissingTensor(f"{_few(missing)}: not found in the graph")
        self._check_growth(tensors.values())
        return _Result(canonical_tensors(self._architecture, self._scope, tensors), tuple(self._events))

    def _check_growth(self, tensors: Iterable[LazyTensor]) -> None:
        """Refuse many tensors that are the same one of the graph."""
        declared = sum(tensor.info.nbytes for tensor in tensors)
        if expands_too_far(declared, sum(tensor.info.nbytes for tensor in self._tensors.values())):
            raise ArchitectureError(f"one tensor of the graph would be {declared} bytes of the model's")

    def _missing(self, names: Set[str]) -> list[str]:
        """What no layout of the model does without, heads that may be the embedding aside."""
        have = {ggml for each in self._instances if names >= set(each.names) for ggml in each.gguf}
        needed = (
            each for each in self._instances if not (each.rule.optional or each.rule.generator or each.rule.tied_to)
        )
        lacking = (each for each in needed if not (each.rule.read_only or have >= set(each.gguf)))
        return [name for each in lacking for name in each.names if name not in names]

    # -- one after the other

    def _texts(self, name: str) -> Iterator[str]:
        """What a tensor may be called, by its own name and by the modules that use it."""
        yield from _inside(_ended(name))
        for use in self._uses.get(name, ()):
            yield from _inside(_said(use))

    def _find(self, name: str) -> None:
        tensor, uses = self._tensors[name], self._uses.get(name, ())
        if not tensor.info.dtype.floating or not tensor.info.shape:
            return
        turned = next((use.turned for use in uses if use.turned is not None), None)
        found = self._take(name, self._named(_ended(name)), turned, own=True)
        for use in uses:
            found |= self._take(name, self._in_module(use), use.turned, own=False)
        if found or self._take_ignored(name, turned):
            return
        texts = [_ended(name), *map(_said, uses)]
        if any(self._take(name, self._shortened(text), turned, own=False) for text in texts):
            return
        if (word := next(filter(None, map(_word, texts)), None)) is not None:
            self._take_word(name, *word, turned)

    def _named(self, text: str) -> Iterator[_Place]:
        for each in _inside(text):
            for spelled in spellings(self._architecture, each):
                yield from self._by_name.get(spelled, ())

    def _in_module(self, use: Use) -> Iterator[_Place]:
        for each in _inside(use.module):
            for spelled in spellings(self._architecture, f"{each}.weight"):
                for place in self._by_module.get(spelled.rpartition(".")[0], ()):
                    if place.name.endswith("bias") == use.bias:
                        yield place

    def _shortened(self, text: str) -> Iterator[_Place]:
        """Tensors in whose names that of a module lies with some of its words left out."""
        module, _, leaf = text.rpartition(".")
        for place in self._by_ends.get(_ends(module), ()):
            words = iter(place.name.split(".")[:-1])
            if place.name.endswith("bias") == (leaf == "bias") and all(word in words for word in module.split(".")):
                yield place

    def _take(self, name: str, places: Iterable[_Place], turned: bool | None, own: bool) -> bool:
        """Take a tensor as the first of these that it fits; of those in a module it must be the only one."""
        shape = self._tensors[name].info.shape
        if not own and ((len(shape) > 1 and turned is None) or (len(shape) > 2 and turned)):
            return False  # which of its axes is which, only its own name could tell
        fitting: dict[str, _Place] = {}
        for place in places:
            if place.exchanged(shape, turned) is not None:
                fitting.setdefault(place.name, place)
        if not fitting or (len(fitting) > 1 and not own):
            return False
        place = next(iter(fitting.values()))
        if any(name in each.sources for each in self._model.get(place.name, ())):
            return True
        tensor = self._tensors[name]
        made = self._undone(place, transposed(tensor) if place.exchanged(shape, turned) else tensor, name, own)
        if made is not None:
            self._add(place.name, (name,), made, own)
        return made is not None

    def _undone(self, place: _Place, tensor: LazyTensor, name: str, own: bool) -> LazyTensor | None:
        """The model's numbers where an exporter folded what is computed of them; None where that cannot be told."""
        if not all(isinstance(op, Add) for op in place.computed):
            return tensor if own else None
        ops = {use.op for use in self._uses.get(name, ())}
        if not place.computed or "Add" in ops:
            return tensor
        if not ops or not ops <= SCALES:
            return None
        self._less.append(place.name)
        return compose(inverse(place.computed), [tensor], [place.name])[0]

    def _add(self, name: str, sources: tuple[str, ...], tensor: LazyTensor, own: bool) -> None:
        self._model.setdefault(name, []).append(_Found(sources, tensor.renamed(name), own))

    def _take_ignored(self, name: str, turned: bool | None) -> bool:
        """A tensor that a folder may have and no GGUF has is kept under its own name."""
        if DERIVED.search(name):
            return False
        for text in _inside(_ended(name)):
            if is_ignored(self._architecture, spellings(self._architecture, text)):
                tensor = self._tensors[name]
                matrix = len(tensor.info.shape) == 2 and turned
                self._add(text, (name,), transposed(tensor) if matrix else tensor, own=True)
                return True
        return False

    def _take_word(self, name: str, ggml: str, expert: int | None, turned: bool | None) -> None:
        instance = self._by_ggml.get(ggml)
        if instance is not None:
            places = [_Place(instance, expert or 0)] if (expert or 0) < len(instance.names) else []
            self._take(name, places, turned, own=False)
        else:
            tensor = self._tensors[name]
            matrix = len(tensor.info.shape) == 2 and turned
            self._parts.setdefault(ggml, _Found((name,), transposed(tensor) if matrix else tensor, own=False))

    # -- together

    def _join(self, name: str) -> None:
        """Rows of one tensor that the model has apart, or rows that it has in one."""
        *start, word, leaf = name.split(".")
        for whole, parts in JOINED.items():
            names = [".".join((*start, part, leaf)) for part in parts]
            joined, apart = self._by_ggml.get(".".join((*start, whole, leaf))), list(map(self._by_ggml.get, names))
            if word == whole and None not in apart:
                self._split(self._parts[name], [_Place(each, 0) for each in apart if each])
            elif word == parts[0] and joined and self._parts.keys() >= set(names):
                self._whole([self._parts[each] for each in names], _Place(joined, 0))

    def _split(self, found: _Found, places: Sequence[_Place]) -> None:
        shapes = [place.instance.shapes[0] for place in places if place.instance.shapes and not place.turned]
        shape = found.tensor.info.shape
        if len(shapes) == len(places) and (sum(each[0] for each in shapes), *shapes[0][1:]) == shape:
            sizes = tuple(each[0] for each in shapes)
            pieces = compose((Split(0, sizes),), [found.tensor], [place.name for place in places])
            for place, piece in zip(places, pieces, strict=True):
                self._add(place.name, found.sources, piece, own=False)

    def _whole(self, found: Sequence[_Found], place: _Place) -> None:
        sizes = tuple(each.tensor.info.shape[0] for each in found)
        (tensor,) = compose((Concat(0, sizes),), [each.tensor for each in found], [place.name])
        plain = all(op == Transpose() for op in place.instance.rule.ops)
        if plain and (exchanged := place.exchanged(tensor.info.shape, False)) is not None:
            sources = tuple(name for each in found for name in each.sources)
            self._add(place.name, sources, transposed(tensor) if exchanged else tensor, own=False)

    def _tie(self, chosen: dict[str, _Found]) -> dict[str, str]:
        """An embedding that is only there as the head, and a head that is there again; returns head -> embedding."""
        heads = {}
        for rule in self._architecture.tensors:
            own, other = self._by_ggml.get(rule.gguf[0] if rule.gguf else ""), self._by_ggml.get(rule.tied_to or "")
            if own is None or other is None or self._tied is False:
                continue
            head, embedding = own.names[0], other.names[0]
            if self._tied and head in chosen and embedding not in chosen:
                chosen[embedding] = _renamed(chosen[head], embedding)
            if head in chosen and embedding in chosen and _same(chosen[head], chosen[embedding]):
                del chosen[head]
                heads[head] = embedding
        return heads

    def _say_left(self, chosen: Mapping[str, _Found], heads: Mapping[str, str]) -> None:
        """What of the graph is no tensor of the model."""
        used = {name for each in chosen.values() for name in each.sources}
        coded = ((name, tensor.info.dtype.name) for name, tensor in self._tensors.items() if tensor.parts)
        self._events += (Decoded(name, "codes", dtype) for name, dtype in coded if name in used)
        claims: dict[str, list[tuple[str, _Found]]] = {}
        for name, every in self._model.items():
            for found in every:
                for source in found.sources:
                    claims.setdefault(source, []).append((heads.get(name, name), found))
        constants = 0
        for name, tensor in self._tensors.items():
            if name in used:
                continue
            same = any(each in chosen and _same(found, chosen[each]) for each, found in claims.get(name, ()))
            if same or self._is_derived(name, tensor):
                constants += 1
            else:
                self._events.append(Dropped(short(name), f"{self._architecture.gguf} has no such tensor"))
        if constants:
            self._events.append(Note(f"{constants} constants of the graph are left out: angles, masks, shapes, copies"))

    def _is_derived(self, name: str, tensor: LazyTensor) -> bool:
        said = (name, *(use.module for use in self._uses.get(name, ())))
        return not tensor.info.dtype.floating or tensor.info.n_elements <= 1 or any(map(DERIVED.search, said))


def _chosen(name: str, found: Sequence[_Found]) -> _Found:
    first, *others = [each for each in found if each.own] or found
    for other in others:
        if not _same(first, other):
            one, two = short(first.sources[0]), short(other.sources[0])
            raise ArchitectureError(f"{one} and {two} are different, and each could be {name}")
    return first


def _same(one: _Found, other: _Found) -> bool:
    return one.sources == other.sources or equal(one.tensor, other.tensor)


def _renamed(found: _Found, name: str) -> _Found:
    return _Found(found.sources, found.tensor.renamed(name), found.own)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(names[:FEW]) + more
