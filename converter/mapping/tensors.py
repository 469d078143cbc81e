"""The Map stage: tensors under Hugging Face names <-> under GGUF's, in either's layout, by an architecture's rows.

Nothing here knows a model: the rows of `converter/architectures` do, and both directions read the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from converter.architectures.settings import BY_FACTORS
from converter.architectures.spec import DENSE, HEAD, NEXTN_SAID, Architecture, HFClass, TensorRule
from converter.architectures.traits import TokenizerStyle
from converter.checkpoint import Checkpoint
from converter.errors import (
    ArchitectureError,
    MissingTensor,
    ShapeMismatch,
    UnknownArchitecture,
    UnmatchedTensor,
    UsageError,
)
from converter.events import Dropped, Event, Ignored, MetadataLost, Note, ReadAs
from converter.formats.hub import module_of
from converter.mapping.companions import asks_base, with_companions
from converter.mapping.detect import (
    classes_of,
    detect,
    detect_gguf,
    detect_projector,
    is_classifier,
    named,
    projector_in,
)
from converter.mapping.generators import GENERATORS
from converter.mapping.hparams import (
    MAX_BLOCKS,
    TOKENS,
    HParams,
    Scope,
    class_for,
    hparam_metadata,
    read_config,
    read_metadata,
    rope_facts,
    text_config,
    write_config,
)
from converter.mapping.names import (
    Match,
    RuleNames,
    Spelled,
    block_beyond,
    fill,
    in_whole,
    is_beside,
    is_ignored,
    is_own,
    resolved,
    spellings,
)
from converter.mapping.nearest import nearest
from converter.mapping.settings import lost_settings
from converter.metadata import Metadata
from converter.storage.slabs import row_ranges
from converter.tensors.dtypes import DTYPES, F32, DType
from converter.tensors.mxfp4 import joined, parted
from converter.tensors.ops import Chain, Row, Stack, inverse
from converter.tensors.shards import whole
from converter.tensors.streams import compose
from converter.tensors.tensor import LazyTensor, from_array

#: Where the tensors of a classifier stand beside the model's.
CLASSIFIER_PARTS = ("score", "classifier", "classification_head")
PROJECTOR_WRITTEN = "convert FOLDER mmproj.gguf --mmproj writes it"
UNSAID = "preprocessor_config.json: a projector's file sets no limits to images, those of the class hold"


@dataclass(frozen=True)
class _Applies:
    """Asks whether a rule applies to the block that a tensor's name says; what is generated always may be there.

    Another layout of the same name applies where its shape is the tensor's.
    """

    scope: Scope
    n_layer: int | None = None
    shape: tuple[int, ...] = ()

    def __call__(self, rule: TensorRule, block: int | None) -> bool:
        if block is not None and self.n_layer is not None and block >= self.n_layer:
            return False
        if rule.generator is not None:
            return True
        return self.scope.holds(rule.when, block) and (
            not rule.by_shape or self.shape == sizes(rule, self.scope, block)
        )


_Group = dict[tuple[int, "int | None"], LazyTensor]


def _group(matches: Iterable[tuple[Match, LazyTensor]]) -> Iterable[tuple[TensorRule, int | None, _Group]]:
    """The tensors of each rule in each block, by their place in it and their expert."""
    groups: dict[tuple[int, int | None], tuple[TensorRule, int | None, _Group]] = {}
    for match, tensor in matches:
        if 0 in tensor.info.shape:
            raise ShapeMismatch(f"{tensor.name} is {list(tensor.info.shape)}: empty")
        # A rule stands once in an architecture, and to hash what it says costs more than to find it.
        group = groups.setdefault((id(match.rule), match.block), (match.rule, match.block, {}))[2]
        if (match.slot, match.expert) in group:
            other = group[match.slot, match.expert].name
            raise UnmatchedTensor(f"{tensor.name}: the same tensor as {other} under another name")
        group[match.slot, match.expert] = tensor
    return groups.values()


def _unmatched(architecture: Architecture, names: Sequence[str]) -> UnmatchedTensor:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return UnmatchedTensor(
        f"{shown}: no rule of architecture {architecture.gguf} names this\n"
        "is it another architecture? --arch NAME chooses one, --tensors-only keeps names as they are"
    )


# ------------------------------------------------------------------------------------------ HF -> GGUF


@dataclass(frozen=True)
class Translation:
    """A checkpoint in the other dialect, with what happened on the way.

    `config` are GGUF keys or a config.json, `early` those of the keys that stand before `general.type`, `types` the
    rules' `type` of the tensors that have one, `stored` the type of what a computed tensor was made of, `tokenizer` how
    the class that was read writes its own, `whole` what the config.json of a model of several inputs says beside its
    text model's.
    """

    architecture: Architecture
    hparams: HParams
    tensors: dict[str, LazyTensor]
    config: dict[str, Any]
    events: tuple[Event, ...]
    early: Metadata = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    stored: Mapping[str, DType] = field(default_factory=dict)
    tokenizer: TokenizerStyle | None = None
    whole: Mapping[str, Any] | None = None


def to_gguf(
    checkpoint: Checkpoint,
    name: str | None = None,
    *,
    no_nextn: bool = False,
    no_head: bool = False,
    dense_modules: bool = False,
    graph: bool = False,
) -> Translation:
    """Tensors under GGUF names in GGUF layout, and the architecture's keys; for a file of them, or a `graph`.

    `no_nextn`: without what predicts further tokens; `no_head`: without a classifier; `dense_modules`: with the dense
    layers after the pooling.

    Raises:
        ArchitectureError and its kinds: unknown architecture, a tensor without a rule, a rule without its
        tensor, a shape that the config contradicts, a model for another without that one.
        UsageError: another model beside one that needs none.
    """
    checkpoint = checkpoint.replace(tensors=whole(joined(checkpoint.tensors)))
    found, hf = _detected(checkpoint, name)
    _check_base(checkpoint, found)
    facts = {**({HEAD: 0} if no_head else {}), **({DENSE: 1} if dense_modules else {})}
    hf = replace(hf, facts={**hf.facts, **facts})
    beside = detect_projector(checkpoint.config)
    model = replace(_read(checkpoint, found, hf, (NEXTN_SAID,) if no_nextn else ()), beside=beside and beside[0])
    architecture, config, hparams, scope = model.architecture, model.config, model.hparams, model.scope
    events: list[Event] = list(_contradicted(config, architecture, name))
    events += _unmet(model, graph)
    outputs, types, stored = _mapped_forward(model, checkpoint, events, no_nextn)
    if any(isinstance(event, Ignored) for event in events) and model.beside:
        events.append(Note("what sees or hears is left out" + ("" if graph else f": {PROJECTOR_WRITTEN}")))
    _add_computed(model, outputs, types)
    events += _check_complete(model, outputs)
    keys = hparam_metadata(architecture, hparams, model.given)
    back = read_metadata(architecture, keys, hparams.get("n_vocab"), outputs)
    events += lost_settings(architecture, model.hf, config, scope, back)
    early = hparam_metadata(architecture, hparams, model.given, early=True)
    style = architecture.tokenizer(model.hf)
    return Translation(architecture, hparams, outputs, dict(keys), tuple(events), early, types, stored, style)


def projector_to_gguf(checkpoint: Checkpoint) -> Translation:
    """The towers and the projectors of a multimodal model, for a file beside that of its text model.

    Raises:
        UnknownArchitecture: none that is known here.
        ArchitectureError and its kinds: as `to_gguf`.
    """
    found = detect_projector(checkpoint.config)
    if found is None:
        classes = named(classes_of(checkpoint.config)) or "a model without a class"
        raise UnknownArchitecture(
            f"--mmproj: no tower of {classes} is known; without it the text model alone is converted"
        )
    _check_base(checkpoint, found[0])
    model = _read(checkpoint, *found)
    ignored: list[Event] = []
    outputs, types, stored = _mapped_forward(model, checkpoint, ignored)
    _add_computed(model, outputs, types)
    _check_complete(model, outputs)
    keys = hparam_metadata(model.architecture, model.hparams, model.given)
    told = f"{len(ignored)} tensors are the text model's; without --mmproj they are converted"
    events = (*((Note(told),) if ignored else ()), *_unmet(model))
    return Translation(model.architecture, model.hparams, outputs, dict(keys), events, types=types, stored=stored)


def _unmet(model: _Model, graph: bool = False) -> Iterator[Event]:
    """What is to be said of a model: whatever runs it, and where that is no `graph` of ours, of the runtime, too."""
    traits = model.architecture.traits
    for relation in (*traits.told, *(() if graph else traits.runtime)):
        if not model.scope.holds(relation.condition):
            yield Note(relation.message)


@dataclass(frozen=True)
class _Model:
    """A Hugging Face model as the rows of its architecture find it.

    `given` are the hparams that its config says, `beside` the projector that its folder may have, too.
    """

    architecture: Architecture
    hf: HFClass
    config: Mapping[str, Any]
    hparams: HParams
    given: set[str]
    scope: Scope
    beside: Architecture | None = None


def _read(checkpoint: Checkpoint, architecture: Architecture, hf: HFClass, unsaid: Container[str] = ()) -> _Model:
    config = with_companions(architecture, checkpoint.config, checkpoint.assets, checkpoint.base)
    present = Spelled(architecture, checkpoint.tensors)
    hparams, given = read_config(architecture, hf, config, present, unsaid)
    scope = Scope(hparams, present)
    return _Model(resolved(architecture, scope.at(None)), hf, config, hparams, given, scope)


def _check_base(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """A model that is for another is given this, too, and no other model is."""
    if checkpoint.base is None and asks_base(architecture):
        raise ArchitectureError(
            f"{architecture.gguf}: such a model is for another, whose layers and tokenizer it needs\n"
            "--base DIR names the folder of that; config.json and tokenizer in it are enough"
        )
    if checkpoint.base is not None and not asks_base(architecture):
        raise UsageError(f"--base {checkpoint.base.path}: a model of {architecture.gguf} is for no other")


def _detected(checkpoint: Checkpoint, name: str | None) -> tuple[Architecture, HFClass]:
    try:
        return detect(checkpoint.config, name)
    except UnknownArchitecture as error:
        if not (like := nearest(checkpoint.tensors)):
            raise
        first, *rest = str(error).splitlines()
        raise UnknownArchitecture("\n".join((first, like, *rest))) from error


def _contradicted(config: Mapping[str, Any], architecture: Architecture, name: str | None) -> Iterator[Event]:
    """A word of caution where config.json names another architecture than the one that was asked for."""
    if name is None:
        return
    try:
        own, _ = detect(config)
    except ArchitectureError:
        return
    if own.gguf != architecture.gguf:
        yield ReadAs(architecture.gguf, own.gguf)


def _anywhere(rule: TensorRule, block: int | None) -> bool:
    return True


def _mapped_forward(
    model: _Model, checkpoint: Checkpoint, events: list[Event], no_nextn: bool = False
) -> tuple[dict[str, LazyTensor], dict[str, str], dict[str, DType]]:
    """The tensors under their GGUF names, the types that rules give them, and of what was computed those it had."""
    outputs: dict[str, LazyTensor] = {}
    types: dict[str, str] = {}
    stored: dict[str, DType] = {}
    for rule, block, group in _group(_match_hf(model, checkpoint, events, no_nextn)):
        if rule.said:  # a key has it
            events.append(Note(f"{fill(rule.hf[0], block)}: {rule.said} of the file's keys"))
            continue
        made = _forward(rule, block, group, model.scope)
        for tensor in made:
            if tensor.name in outputs:
                name = next(iter(group.values())).name
                raise UnmatchedTensor(f"{name}: other tensors of the file make {tensor.name} already")
            outputs[tensor.name] = tensor
        types.update((tensor.name, rule.type) for tensor in made if rule.type is not None)
        own = next(iter(group.values())).info.dtype
        stored.update((tensor.name, own) for tensor in made if tensor.info.dtype is not own)
    for rule in model.architecture.tensors:
        head, embedding = rule.gguf[0] if rule.gguf else "", rule.tied_to or ""
        if rule.unless_equal and {head, embedding} <= outputs.keys() and equal(outputs[head], outputs[embedding]):
            del outputs[head]
            events.append(Note(f"{head}: left out, it repeats {embedding}"))
    return outputs, types, stored


def equal(a: LazyTensor, b: LazyTensor) -> bool:
    """Whether two tensors hold the same bytes; what differs early is not read to its end."""
    if (a.info.dtype, a.info.shape, a.beside) != (b.info.dtype, b.info.shape, b.beside):
        return False
    ranges = row_ranges([a, b], a.info.row_nbytes)
    return all(np.array_equal(a.rows(start, stop), b.rows(start, stop)) for start, stop in ranges)


def _match_hf(
    model: _Model, checkpoint: Checkpoint, events: list[Event], no_nextn: bool
) -> list[tuple[Match, LazyTensor]]:
    architecture, scope = model.architecture, model.scope
    rules = RuleNames(architecture.tensors, "hf")
    n_layer = scope.size("n_layer")
    matches: list[tuple[Match, LazyTensor]] = []
    unknown: list[str] = []
    beyond: Counter[int] = Counter()
    for name, tensor in checkpoint.tensors.items():
        applies = _Applies(scope, n_layer, tensor.info.shape)
        if is_own(model.hf, name):
            events.append(Ignored(name))
            continue
        match = rules.find(name, applies)
        spelled = [] if match else spellings(architecture, name)
        match = match or next((found for each in spelled if (found := rules.find(each, applies))), None)
        if match is not None:
            matches.append((match, tensor))
        elif is_ignored(architecture, spelled) or (model.beside and is_beside(model.beside, name)):
            events.append(Ignored(name))
        elif (block := block_beyond(architecture, [name, *spelled], n_layer)) is not None:
            beyond[block] += 1
        elif module_of(name, checkpoint.assets):
            events.append(Dropped(name, _after_the_model(architecture, scope)))
        elif is_classifier(model.hf.name) and name.partition(".")[0] in CLASSIFIER_PARTS:
            events.append(Dropped(name, f"of a classifier, which a GGUF of {architecture.gguf} has no place for"))
        elif any((found := rules.find(each, _anywhere)) and (found.block or 0) >= n_layer for each in [name, *spelled]):
            raise ShapeMismatch(f"{name}: config.json says {n_layer} layers")
        else:
            unknown.append(name)
    if unknown:
        raise _unmatched(architecture, unknown)
    for block, count in sorted(beyond.items()):
        why = f"{count} tensors of a block that predicts further tokens"
        left = f"layer {block}"
        events.append(Note(f"{left}: left out ({why})") if no_nextn else Dropped(left, why))
    return matches


def _after_the_model(architecture: Architecture, scope: Scope) -> str:
    """Why a module's tensor is not in the file."""
    if DENSE in {row.name for row in architecture.hparams} and not scope.size(DENSE):
        return "of a layer after the pooling; --dense-modules keeps it"
    return f"a GGUF of {architecture.gguf} has no place for this layer after the pooling"


@dataclass(frozen=True)
class Rewriting:
    """What a rule makes of tensors of a model: the chain, bound, takes them to tensors of these names."""

    sources: tuple[LazyTensor, ...]
    chain: Chain
    names: tuple[str, ...]


def rewritings(checkpoint: Checkpoint, name: str | None = None) -> tuple[Architecture, list[Rewriting]]:
    """What becomes of each tensor of a Hugging Face model on the way to GGUF, for others that follow it.

    Raises:
        ArchitectureError and its kinds: as `to_gguf`, but what the model lacks is not looked for.
    """
    checkpoint = checkpoint.replace(tensors=joined(checkpoint.tensors))
    model = _read(checkpoint, *_detected(checkpoint, name))
    groups = _group(_match_hf(model, checkpoint, [], no_nextn=True))
    return model.architecture, [_rewriting(rule, block, group, model.scope) for rule, block, group in groups]


def _forward(
    rule: TensorRule, block: int | None, group: Mapping[tuple[int, int | None], LazyTensor], scope: Scope
) -> list[LazyTensor]:
    made = _rewriting(rule, block, group, scope)
    return compose(made.chain, made.sources, made.names)


def _rewriting(
    rule: TensorRule, block: int | None, group: Mapping[tuple[int, int | None], LazyTensor], scope: Scope
) -> Rewriting:
    experts: Sequence[int | None] = range(scope.size(rule.count, block)) if rule.stacked else (None,)
    sources = []
    for slot, template in enumerate(rule.hf):
        for expert in experts:
            if (slot, expert) not in group:
                raise MissingTensor(f"{fill(template, block, expert)}: not in the file, its siblings are")
            sources.append(group[slot, expert])
    if len(sources) != len(group):
        extra = next(iter(group.keys() - {(slot, expert) for slot in range(len(rule.hf)) for expert in experts}))
        raise ShapeMismatch(f"{group[extra].name}: config.json says {len(experts)} experts")
    for slot in range(len(rule.hf)) if rule.shape else ():
        expected = sizes(rule, scope, block, slot)
        for source in sources[slot * len(experts) : (slot + 1) * len(experts)]:
            _check_shape(source, expected)
    return Rewriting(tuple(sources), bound(rule, scope, block), tuple(fill(name, block) for name in rule.gguf))


def canonical_tensors(
    architecture: Architecture, scope: Scope, tensors: Mapping[str, LazyTensor]
) -> dict[str, LazyTensor]:
    """Tensors under names of the rows, those of layouts that are only read in the layout that is written.

    Raises:
        ArchitectureError and its kinds: one of such a layout is missing, or does not fit.
    """
    rules = RuleNames(architecture.tensors, "hf")
    n_layer = scope.size("n_layer")
    found = [(rules.find(n, _Applies(scope, n_layer, t.info.shape)), t) for n, t in tensors.items()]
    made = {tensor.name: tensor for match, tensor in found if match is None or not match.rule.read_only}
    others = _group((match, tensor) for match, tensor in found if match and match.rule.read_only)
    ggml = [tensor for rule, block, group in others for tensor in _forward(rule, block, group, scope)]
    back = RuleNames([rule for rule in architecture.tensors if not rule.read_only], "gguf")
    matches = [(match, tensor) for tensor in ggml if (match := back.find(tensor.name, _Applies(scope)))]
    for rule, block, group in _group(matches):
        made.update((tensor.name, tensor) for tensor in _backward(rule, block, group, scope))
    return made


def _check_shape(source: LazyTensor, expected: tuple[int, ...]) -> None:
    if source.info.shape != expected:
        raise ShapeMismatch(
            f"{source.name} is {list(source.info.shape)}, config.json makes it {list(expected)}\n"
            "config.json does not belong to these weights"
        )


def sizes(rule: TensorRule, scope: Scope, block: int | None, slot: int = 0) -> tuple[int, ...]:
    """The shape of a rule's tensors of one name in a block."""
    return tuple(scope.size(size, block) for size in rule.shape_of(slot))


def bound(rule: TensorRule, scope: Scope, block: int | None) -> Chain:
    """The ops of a rule in a block, their sizes evaluated; experts are stacked first."""
    chain = (*((Stack(rule.count),) if rule.stacked else ()), *rule.ops)
    return tuple(op.bind(scope.at(block)) for op in chain)


def _add_computed(model: _Model, outputs: dict[str, LazyTensor], types: dict[str, str]) -> None:
    """The tensors that follow from the config, and the types that are forced on them."""
    for rule in (rule for rule in model.architecture.tensors if rule.generator):
        for tensor in _generated(rule, rope_facts(model.hf, model.config), model.scope, model.hparams):
            outputs[tensor.name] = tensor
            if rule.type is not None:
                types[tensor.name] = rule.type


def _generated(rule: TensorRule, rope: Mapping[str, Any], scope: Scope, hparams: HParams) -> list[LazyTensor]:
    assert rule.generator is not None
    every = range(scope.size("n_layer")) if rule.per_block else (None,)
    blocks = [block for block in every if scope.holds(rule.when, block)]
    arrays = GENERATORS[rule.generator].make(rope, hparams) if blocks else ()
    why = f"computed by {rule.generator}"
    made = [
        from_array(fill(name, block), values, F32, why)
        for block in blocks
        for name, values in zip(rule.gguf, arrays, strict=True)
    ]
    _check_generated(rule, made, scope)
    return made


def _check_generated(rule: TensorRule, tensors: Iterable[LazyTensor], scope: Scope) -> None:
    expected = sizes(rule, scope, None)
    for tensor in tensors:
        if tensor.info.dtype is not F32 or tensor.info.shape != expected:
            raise ShapeMismatch(
                f"{tensor.name} is {tensor.info.dtype}{list(tensor.info.shape)}, the model needs F32{list(expected)}"
            )


def _check_complete(model: _Model, outputs: Mapping[str, LazyTensor]) -> list[Event]:
    """Every rule has its tensors wherever it applies; says so where the embedding stands in for the head."""
    architecture, hf, scope, events = model.architecture, model.hf, model.scope, list[Event]()
    # For a model of several inputs both say it, and the whole decides; to be missing, the head may be tied by either.
    said = [part.get("tie_word_embeddings") for part in (model.config, text_config(model.config))]
    tied = any(flag for flag in said) or all(flag is None for flag in said)
    n_layer = scope.size("n_layer")
    if n_layer > MAX_BLOCKS:
        raise MissingTensor(f"config.json says {n_layer} layers, which no file has")
    for rule in architecture.tensors:
        if rule.optional or rule.read_only or rule.generator:
            continue
        for block in range(n_layer) if rule.per_block else (None,):
            if not scope.holds(rule.when, block) or all(fill(name, block) in outputs for name in rule.gguf):
                continue
            if rule.tied_to and (tied or not hf.head):
                why = "tied" if tied and hf.head else f"{hf.name} has no head"
                events.append(Note(f"{rule.gguf[0]}: not stored, the embedding stands in for it ({why})"))
                continue
            raise MissingTensor(
                f"{fill(rule.hf[0], block, expert=0)}: not in the file, {architecture.gguf} needs it\n"
                "a shard may be missing, or config.json may belong to another model"
            )
    return events


# ------------------------------------------------------------------------------------------ GGUF -> HF


def to_hf(checkpoint: Checkpoint, name: str | None = None, projector: Checkpoint | None = None) -> Translation:
    """Tensors under Hugging Face names in their layout, and a config.json; with a projector, those of both files.

    Raises:
        ArchitectureError and its kinds.
    """
    architecture = detect_gguf(checkpoint.config, name)
    embedding = checkpoint.tensors.get("token_embd.weight")
    n_rows = embedding.info.shape[0] if embedding and embedding.info.shape else None
    hparams = read_metadata(architecture, checkpoint.config, n_rows, checkpoint.tensors)
    mapped = _mapped_backward(architecture, checkpoint, hparams)
    hparams |= mapped.hparams
    events, rope = list(mapped.events), mapped.rope
    events += _missed(mapped.rules, checkpoint, Scope(hparams, checkpoint.tensors))
    tied = not any(rule.tied_to and rule.gguf[0] in checkpoint.tensors for rule in mapped.rules)
    hf = class_for(mapped.architecture, hparams)
    config = write_config(mapped.architecture, hparams, tied, rope, hf=hf, part=projector is not None)
    if not rope and hparams.get("rope_type") in BY_FACTORS:
        events.append(MetadataLost(architecture.key("rope.scaling.type"), "the file has no factors for it"))
    tensors = {(name := hf.whole(tensor.name)): tensor.renamed(name) for tensor in mapped.tensors.values()}
    text = Translation(mapped.architecture, hparams, parted(tensors), config, tuple(events))
    return text if projector is None else _with_projector(text, checkpoint, projector)


def _missed(rules: Iterable[TensorRule], checkpoint: Checkpoint, scope: Scope) -> Iterator[Event]:
    """What the folder's class needs, and the file may lack."""
    for rule in rules:
        if rule.missed and rule.gguf[0] not in checkpoint.tensors and scope.holds(rule.when):
            yield Dropped(rule.hf[0], rule.missed)


def _with_projector(text: Translation, checkpoint: Checkpoint, projector: Checkpoint) -> Translation:
    """The text model that was read from a file, and what its other inputs are read from another."""
    architecture = projector_in(projector.config, text.architecture)
    vocabulary = {key: value for key, value in checkpoint.config.items() if key == TOKENS}
    hparams = read_metadata(architecture, {**vocabulary, **projector.config}, None, projector.tensors)
    mapped, hf = _mapped_backward(architecture, projector, hparams), class_for(architecture, hparams)
    whole = write_config(mapped.architecture, hparams, bool(text.config["tie_word_embeddings"]), hf=hf)
    said = {architecture.key(key) for row in architecture.hparams for key in row.gguf}
    lost = [key for key in projector.config if key not in said and not key.startswith("general.")]
    every = (*text.tensors.values(), *mapped.tensors.values())
    return replace(
        text,
        tensors={(name := in_whole(architecture, tensor.name)): tensor.renamed(name) for tensor in every},
        whole=whole,
        events=(
            *text.events, *mapped.events, Note(UNSAID),
            *(MetadataLost(key, "a Hugging Face folder has no place for it") for key in lost),
            *(
                Note(f"{row.config[0]}: no token is called {row.token}, the default of {hf.name} holds")
                for row in architecture.hparams if row.token and row.name not in hparams
            ),
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class _Backward:
    """The tensors of a file under their Hugging Face names, and what generated ones say: a rope scaling, hparams."""

    architecture: Architecture
    rules: list[TensorRule]
    tensors: dict[str, LazyTensor]
    rope: dict[str, Any]
    hparams: HParams
    events: list[Event]


def _mapped_backward(architecture: Architecture, checkpoint: Checkpoint, hparams: HParams) -> _Backward:
    scope = Scope(hparams, checkpoint.tensors)
    architecture = resolved(architecture, scope.at(None))
    rules = [rule for rule in architecture.tensors if not rule.read_only]
    names = RuleNames(rules, "gguf")
    found = [(names.find(name, _Applies(scope)), tensor) for name, tensor in checkpoint.tensors.items()]
    if unknown := [tensor.name for match, tensor in found if match is None]:
        raise _unmatched(architecture, unknown)
    made = _Backward(architecture, rules, {}, {}, {}, [])
    for rule, block, group in _group((match, tensor) for match, tensor in found if match):
        if rule.generator:
            said = _said_by(rule, block, group, scope, hparams)
            of_rope = GENERATORS[rule.generator].of_rope
            into, what = (made.rope, "rope scaling") if of_rope else (made.hparams, "factor")
            if any(into.get(key, value) != value for key, value in said.items()):  # another block says otherwise
                said = {}
            into.update(said)
            made.events.extend(
                Ignored(name) if said else Note(f"{name}: of no known {what}, dropped")
                for name in (fill(template, block) for template in rule.gguf)
            )
        elif any(isinstance(op, Row) for op in rule.ops):  # which the text model's file has among all others
            made.events.extend(Note(f"{name}: a row of {rule.hf[0]}") for name in rule.gguf)
        else:
            made.tensors.update((tensor.name, tensor) for tensor in _backward(rule, block, group, scope))
    made.tensors.update((tensor.name, tensor) for rule in rules if rule.said for tensor in _of_keys(rule, scope))
    return made


def _of_keys(rule: TensorRule, scope: Scope) -> list[LazyTensor]:
    """The tensor that a rule says to be an hparam."""
    if not scope.holds(rule.when) or not (numbers := scope.at(None)[str(rule.said)]):
        return []
    return [from_array(rule.hf[0], np.array(numbers, np.int64), DTYPES["I64"], f"the file's {rule.said}")]


def _backward(
    rule: TensorRule, block: int | None, group: Mapping[tuple[int, int | None], LazyTensor], scope: Scope
) -> list[LazyTensor]:
    sources = _sources(rule, block, group)
    experts: Sequence[int | None] = range(scope.size(rule.count, block)) if rule.stacked else (None,)
    if rule.stacked and sources[0].info.shape[:1] != (len(experts),):
        raise ShapeMismatch(f"{sources[0].name} is {list(sources[0].info.shape)}, the file says {len(experts)} experts")
    names = [fill(template, block, expert) for template in rule.hf for expert in experts]
    return compose(inverse(bound(rule, scope, block)), sources, names)


def _sources(
    rule: TensorRule, block: int | None, group: Mapping[tuple[int, int | None], LazyTensor]
) -> list[LazyTensor]:
    """The rule's GGUF tensors, all of them."""
    for slot, template in enumerate(rule.gguf):
        if (slot, None) not in group:
            raise MissingTensor(f"{fill(template, block)}: not in the file, its siblings are")
    return [group[slot, None] for slot in range(len(rule.gguf))]


def _said_by(
    rule: TensorRule,
    block: int | None,
    group: Mapping[tuple[int, int | None], LazyTensor],
    scope: Scope,
    hparams: HParams,
) -> dict[str, Any]:
    """What tensors that are generated say; nothing where they are of no kind that is known."""
    assert rule.generator is not None
    sources = _sources(rule, block, group)
    _check_generated(rule, sources, scope)
    return GENERATORS[rule.generator].back(tuple(source.array().astype(np.float32) for source in sources), hparams)
