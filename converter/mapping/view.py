"""One view of a model, whatever its dialect: what it is, without asking who calls its tensors and keys what.

A dialect is how tensors are named and what says what a model is: Hugging Face's (config.json), ggml's (typed
key/values), or none (plain named arrays). Each is a class here, and `view` takes the one of a checkpoint. Whoever looks
at models (check, verify, diff, inspect) asks the view and compares no dialects.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from converter.architectures.spec import Architecture, HFClass, HParam, TensorRule
from converter.checkpoint import Checkpoint
from converter.errors import ArchitectureError, ConverterError, UnknownArchitecture
from converter.events import Event
from converter.formats.hub import module_of
from converter.mapping.companions import with_companions
from converter.mapping.detect import detect, detect_gguf
from converter.mapping.hparams import TOKENS, HParams, Scope, flat_config, read_config, read_metadata
from converter.mapping.names import Spelled, block_beyond, fill, is_ignored, is_own, spellings
from converter.mapping.tensors import Translation, bound, sizes, to_gguf
from converter.metadata import Metadata, Value, text_of
from converter.storage.json import read_json
from converter.tensors.mxfp4 import joined
from converter.tensors.ops import Shape, infer
from converter.tensors.tensor import LazyTensor

#: `general.type` of files that are no whole models: they need neither tokenizer nor the architecture's tensors.
PARTS = ("adapter", "mmproj", "imatrix", "vocab")
#: More experts in all layers than any model has; their names are listed, so that a config must not say any number.
MAX_EXPERTS = 1 << 18


@dataclass(frozen=True)
class Instance:
    """A rule of the architecture in one block: names and shapes of its tensors in the model's dialect.

    `shapes` is empty where the rule does not say; `gguf` are the tensors of a GGUF that they become.
    """

    rule: TensorRule
    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    gguf: tuple[str, ...]


class ModelView:
    """Plain named arrays: nothing says what they are. The dialects below know more.

    Attributes:
        named: whether an architecture may know the names.
        keyed: whether the file itself holds typed key/values, its tokenizer among them.
        filed: whether config.json and other files beside the tensors say what it is.
        embedding, head: usual names of the token embedding, and of the output that may be the same tensor.
        identity: the key or file that says which architecture it is.
        makes: "X makes", where X says the hyperparameters; for messages.
    """

    named = keyed = filed = False
    embedding = head = identity = makes = ""

    def __init__(self, checkpoint: Checkpoint, arch: str | None = None) -> None:
        self.checkpoint = checkpoint
        self.arch = arch

    # ------------------------------------------------------------------------------------ what it is

    def _detect(self) -> tuple[Architecture, HFClass | None] | None:
        return None

    @cached_property
    def _detected(self) -> tuple[Architecture | None, HFClass | None, str]:
        """The architecture, the transformers class, or why there is neither."""
        try:
            return (*(self._detect() or (None, None)), "")
        except UnknownArchitecture as error:
            return None, None, str(error).partition("\n")[0]

    @property
    def architecture(self) -> Architecture | None:
        """None where the model says none, or one that is not known here."""
        return self._detected[0]

    @property
    def hf_class(self) -> HFClass | None:
        """The transformers class that config.json names."""
        return self._detected[1]

    @property
    def unknown(self) -> str:
        """Why the architecture that it says is not known here; "" where it is, or none is said."""
        return self._detected[2]

    @property
    def name(self) -> str | None:
        """What it calls itself, known here or not."""
        return None

    @property
    def whole(self) -> bool:
        """Whether this is a model with tensors of its own, and not an adapter or a vocabulary."""
        return bool(self.checkpoint.tensors) and text_of(self.checkpoint.config, "general.type") not in PARTS

    @property
    def config(self) -> Mapping[str, Any]:
        """Its config.json, nested parts lifted; empty where it has none."""
        return {}

    @cached_property
    def hparams(self) -> HParams | None:
        """The hyperparameters by name; None where the architecture is unknown.

        Raises:
            ArchitectureError: they cannot be read, or claim more layers or experts than the file can have.
        """
        found = self._read_hparams(self.architecture) if self.architecture else None
        if found is not None and self.whole and (problem := _excess(found, len(self.checkpoint.tensors))):
            raise ArchitectureError(f"{self.subject}: {problem}")
        return found

    def _read_hparams(self, architecture: Architecture) -> HParams | None:
        return None

    @property
    def subject(self) -> str:
        """Where the hyperparameters are said, for messages."""
        return self.identity

    def said_by(self, architecture: Architecture, hparam: HParam) -> str:
        """The key that says a hyperparameter."""
        return architecture.key(hparam.gguf[0]) if hparam.gguf else hparam.name

    @property
    def tied(self) -> bool | None:
        """Whether it says that the head is the embedding; None where it says nothing, and a missing head is."""
        return None

    # ------------------------------------------------------------------------------------ its tensors

    @cached_property
    def canonical(self) -> Mapping[str, LazyTensor]:
        """Tensors by the names that the architecture's rows have, without those that are dropped on purpose."""
        return self.checkpoint.tensors

    @property
    def n_rows(self) -> int | None:
        """Rows of the embedding; None where it is not there under its usual name."""
        tensor = self.checkpoint.tensors.get(self.embedding)
        return tensor.info.shape[0] if tensor and tensor.info.shape else None

    def instances(self, architecture: Architecture, hparams: HParams) -> Iterator[Instance]:
        """The tensors that the architecture gives a model of these hyperparameters, in this dialect."""
        scope = Scope(hparams, self._present(architecture))
        for rule in filter(self._stores, architecture.tensors):
            for block in range(hparams["n_layer"]) if rule.per_block else (None,):
                # A file does not say all that a config does (`rope_type == 'llama3'`): what is computed may be there.
                if rule.generator or scope.holds(rule.when, block):
                    gguf = tuple(fill(template, block) for template in rule.gguf)
                    yield Instance(rule, self._names(rule, block, scope), self._shapes(rule, block, scope), gguf)

    def _present(self, architecture: Architecture) -> Container[str]:
        """The names of the tensors, for rows that ask."""
        return self.checkpoint.tensors

    def _stores(self, rule: TensorRule) -> bool:
        return False

    def _names(self, rule: TensorRule, block: int | None, scope: Scope) -> tuple[str, ...]:
        return ()

    def _shapes(self, rule: TensorRule, block: int | None, scope: Scope) -> tuple[Shape, ...]:
        return ()

    # -------------------------------------------------------------------------- as a runtime sees it

    @property
    def keys(self) -> Metadata:
        """The keys that a GGUF of it has, the tokenizer's aside; empty where it is not known that well."""
        return {}

    @property
    def ggml(self) -> Mapping[str, LazyTensor]:
        """The tensors under ggml's names in ggml's layout; empty where it is not known that well."""
        return {}

    def tokenizer(self, pre: str | None = None) -> Metadata | None:
        """The tokenizer as `tokenizer.*` keys, None where there is none; `pre` names the pre-tokenizer.

        Raises:
            ArchitectureError, TokenizerError, MissingPart: it cannot be read.
        """
        return None


class HFView(ModelView):
    """Hugging Face names; config.json says what they are, files beside it hold the tokenizer."""

    named = filed = True
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    identity, makes = "config.json", "config.json makes"

    def _detect(self) -> tuple[Architecture, HFClass | None] | None:
        return detect(self.checkpoint.config, self.arch)

    @property
    def name(self) -> str | None:
        if self._mapped:
            return self._mapped.architecture.gguf
        listed = self.checkpoint.config.get("architectures")
        return str(listed[0]) if isinstance(listed, list) and listed else None

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return flat_config(self.checkpoint.config)

    def _read_hparams(self, architecture: Architecture) -> HParams | None:
        if self.hf_class is None:
            return None
        config = with_companions(architecture, self.checkpoint.config, self.checkpoint.assets, self.checkpoint.base)
        return read_config(architecture, self.hf_class, config, self._present(architecture))[0]

    def said_by(self, architecture: Architecture, hparam: HParam) -> str:
        return f"config.json: {hparam.config[0]}" if hparam.config else super().said_by(architecture, hparam)

    @property
    def tied(self) -> bool | None:
        said = self.config.get("tie_word_embeddings") if self.hf_class and self.hf_class.head else None
        return said if isinstance(said, bool) else None

    @cached_property
    def canonical(self) -> Mapping[str, LazyTensor]:
        architecture = self.architecture
        try:
            hparams = self.hparams
        except ArchitectureError:
            hparams = None
        if architecture is None or hparams is None or not self.whole:
            return self.checkpoint.tensors
        stored = joined(self.checkpoint.tensors)
        known = {name for each in self.instances(architecture, hparams) for name in each.names}
        result: dict[str, LazyTensor] = {}
        for name, tensor in stored.items():
            if is_own(self.hf_class, name):
                continue
            spelled = spellings(architecture, name)
            canonical = next((each for each in spelled if each in known), None)
            beyond = block_beyond(architecture, spelled, hparams["n_layer"])
            beside = module_of(name, self.checkpoint.assets) is not None
            if canonical is not None or not (beside or beyond is not None or is_ignored(architecture, spelled)):
                result[canonical or name] = tensor
        return result

    def _present(self, architecture: Architecture) -> Container[str]:
        return Spelled(architecture, self.checkpoint.tensors)

    @property
    def n_rows(self) -> int | None:
        tensor = self.checkpoint.tensors.get(self.embedding) or self.canonical.get(self.embedding)
        return tensor.info.shape[0] if tensor and tensor.info.shape else None

    def _stores(self, rule: TensorRule) -> bool:
        return bool(rule.hf)

    def _names(self, rule: TensorRule, block: int | None, scope: Scope) -> tuple[str, ...]:
        experts = range(_n_stacked(rule, block, scope))
        return tuple(fill(template, block, expert) for template in rule.hf for expert in experts)

    def _shapes(self, rule: TensorRule, block: int | None, scope: Scope) -> tuple[Shape, ...]:
        return _hf_shapes(rule, block, scope)

    @cached_property
    def _mapped(self) -> Translation | None:
        try:
            return to_gguf(self.checkpoint, self.arch)
        except ConverterError:
            return None

    @property
    def keys(self) -> Metadata:
        if self._mapped is None:
            return {}
        return {"general.architecture": Value("str", self._mapped.architecture.gguf), **self._mapped.config}

    @property
    def ggml(self) -> Mapping[str, LazyTensor]:
        return self._mapped.tensors if self._mapped else {}

    def tokenizer(self, pre: str | None = None) -> Metadata | None:
        from converter.tokenizers import FILES, read_tokenizer  # costs as much to import as all the rest

        if not any(name in self.checkpoint.assets for name in FILES):
            return None
        architecture, hf = detect(self.checkpoint.config, self.arch)
        style, config = architecture.tokenizer(hf), self.checkpoint.config
        return read_tokenizer(self.checkpoint.assets, config, n_rows=self.n_rows, style=style, pre=pre).metadata


class GGUFView(ModelView):
    """ggml's names; typed key/values say what they are and hold the tokenizer."""

    named = keyed = True
    embedding, head = "token_embd.weight", "output.weight"
    identity, makes = "general.architecture", "the keys make"

    def _detect(self) -> tuple[Architecture, HFClass | None] | None:
        said = self.arch or "general.architecture" in self.checkpoint.config
        return (detect_gguf(self.checkpoint.config, self.arch), None) if said else None

    @property
    def name(self) -> str | None:
        return text_of(self.checkpoint.config, "general.architecture")

    @property
    def subject(self) -> str:
        return self.architecture.gguf if self.architecture else self.identity

    def _read_hparams(self, architecture: Architecture) -> HParams | None:
        # The vocabulary is what the embedding has; whether the tokenizer has as many tokens is another question.
        keys = {key: value for key, value in self.checkpoint.config.items() if key != TOKENS}
        return read_metadata(architecture, keys, self.n_rows, self._present(architecture))

    def _stores(self, rule: TensorRule) -> bool:
        return not rule.read_only

    def _names(self, rule: TensorRule, block: int | None, scope: Scope) -> tuple[str, ...]:
        return tuple(fill(template, block) for template in rule.gguf)

    def _shapes(self, rule: TensorRule, block: int | None, scope: Scope) -> tuple[Shape, ...]:
        shapes = _hf_shapes(rule, block, scope)
        try:
            return tuple(infer(bound(rule, scope, block), shapes)) if shapes else ()
        except ArchitectureError:
            return ()

    @property
    def keys(self) -> Metadata:
        return dict(self.checkpoint.config)

    @property
    def ggml(self) -> Mapping[str, LazyTensor]:
        return self.checkpoint.tensors

    def tokenizer(self, pre: str | None = None) -> Metadata | None:
        from converter.tokenizers import FILES  # costs as much to import as all the rest

        keys = {key: value for key, value in self.checkpoint.config.items() if key.startswith("tokenizer.")}
        if TOKENS in keys or self.checkpoint.stored is None:
            return keys if TOKENS in keys else None
        beside = any(name in self.checkpoint.assets for name in FILES)
        return tokenizer_beside(self.checkpoint, self.arch, pre)[0] if beside else None


def tokenizer_beside(
    checkpoint: Checkpoint, arch: str | None = None, pre: str | None = None
) -> tuple[Metadata, list[Event]]:
    """The `tokenizer.*` keys of a model of ggml's names, and what is to be said, from files beside it.

    Raises:
        ArchitectureError, TokenizerError, MissingPart: there are no such files, or they cannot be read.
    """
    from converter.tokenizers import read_tokenizer

    assets, architecture = checkpoint.assets, detect_gguf(checkpoint.config, arch)
    config = read_json(assets["config.json"], python=True) if "config.json" in assets else {}
    n_rows = GGUFView(checkpoint, arch).n_rows
    found = read_tokenizer(assets, config, n_rows=n_rows, style=architecture.traits.tokenizer, pre=pre)
    return found.metadata, list(found.events)


VIEWS: dict[str | None, type[ModelView]] = {None: ModelView, "peft": ModelView, "hf": HFView, "gguf": GGUFView}
#: Output tensors that may be the embedding, by their names in every dialect.
HEADS = {each.head: each.embedding for each in VIEWS.values() if each.named}


def view(checkpoint: Checkpoint, arch: str | None = None) -> ModelView:
    """The view of a checkpoint; `arch` is the architecture (GGUF name or class) that wins over what it says itself."""
    return VIEWS[checkpoint.dialect](checkpoint, arch)


def _n_stacked(rule: TensorRule, block: int | None, scope: Scope) -> int:
    """How many tensors of each Hugging Face name of a rule become one of ggml's."""
    return scope.size(rule.count, block) if rule.stacked else 1


def _hf_shapes(rule: TensorRule, block: int | None, scope: Scope) -> tuple[Shape, ...]:
    n_stacked = _n_stacked(rule, block, scope) if rule.shape else 0
    return tuple(sizes(rule, scope, block, slot) for slot in range(len(rule.hf)) for _ in range(n_stacked))


def _excess(hparams: HParams, n_tensors: int) -> str:
    """What is wrong with a model that claims more layers or experts than a file of so many tensors can have; or ""."""
    n_layer, n_expert = hparams["n_layer"], hparams.get("n_expert", 0)
    n_expert = max(n_expert, default=0) if isinstance(n_expert, list) else n_expert
    if n_layer > n_tensors:
        return f"{n_layer} layers, and the file has {n_tensors} tensors"
    if n_layer * n_expert > MAX_EXPERTS:
        return f"{n_expert} experts in each of {n_layer} layers, which no model has"
    return ""
