"""One model by itself, before a deploy: `convert check`.

What is looked at is a table, `STEPS`. Each step yields findings and never raises for what a file says; what keeps a
file from being opened at all is a finding too, and its error is kept for the exit code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from converter.architectures.spec import Architecture, HFClass
from converter.check import expected
from converter.check.scales import Values
from converter.check.tokens import TOKENS, TokenizerKeys, templates
from converter.checkpoint import Checkpoint
from converter.errors import (
    ArchitectureError,
    ConverterError,
    FormatError,
    MissingPart,
    UnknownArchitecture,
    UnknownPreTokenizer,
)
from converter.findings import Finding
from converter.formats.registry import open_checkpoint
from converter.mapping.detect import detect, detect_gguf
from converter.mapping.hparams import HParams, flat_config, read_config, read_metadata
from converter.metadata import Metadata, Value
from converter.request import PathLike, Source
from converter.runtimes.generation import Ran, try_out
from converter.storage import slabs
from converter.storage.slabs import ProgressCallback
from converter.tensors.tensor import LazyTensor

BOTH = frozenset(("gguf", "hf"))
ANY = BOTH | {None}
# general.type of GGUF files that are no whole models: they need neither tokenizer nor the architecture's tensors.
PARTS = ("adapter", "mmproj", "imatrix", "vocab")
EMBEDDING = {"gguf": "token_embd.weight", "hf": "model.embed_tokens.weight"}


@dataclass(frozen=True)
class Checked:
    """What a check found.

    `steps` are the names of those taken, `ran` says what a runtime did with the model, `error` is what kept the file
    from being opened.
    """

    source: str
    format: str | None
    architecture: str | None
    steps: tuple[str, ...]
    findings: tuple[Finding, ...]
    tensors: int = 0
    bytes: int = 0
    seconds: float = 0.0
    ran: str = ""
    error: ConverterError | None = None

    def failed(self, strict: bool = False) -> bool:
        """Whether a finding forbids to use the file; under `strict` every finding does."""
        return any(finding.failed or strict for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        own = {key: value for key, value in vars(self).items() if key != "error"}
        own["findings"] = [finding.as_dict() for finding in self.findings]
        return own | {"steps": list(self.steps), "seconds": round(self.seconds, 3), "passed": not self.failed()}


def check(
    path: PathLike,
    *,
    format: str | None = None,
    runtime: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Checked:
    """Check a file or folder of any format. Tensors are read once, in slabs.

    Args:
        path: what to check.
        format: its format, where content and extension do not tell.
        runtime: also load it with what is installed and let it generate a few tokens.
        threads, progress: as for `convert`.

    Raises:
        OutputError: there is no such file.
        Interrupted: `progress` returned False.
    """
    started = time.monotonic()
    try:
        checkpoint = open_checkpoint(Source(path, format))
    except (FormatError, ArchitectureError) as error:
        finding = Finding("structure", Path(path).name, str(error).removeprefix(f"{path}: "))
        return Checked(str(path), format, None, (STEPS[0].name,), (finding,), error=error)
    with checkpoint:
        model = Model(checkpoint, threads, progress)
        steps = [step for step in STEPS if checkpoint.dialect in step.dialects]
        findings = [finding for step in steps for finding in step.run(model)]
        ran = _ran(model, findings) if runtime else Ran()
        findings += [ran.finding] if ran.finding else []
        return Checked(
            source=str(path),
            format=checkpoint.format,
            architecture=model.architecture.gguf if model.architecture else None,
            steps=tuple(step.name for step in steps),
            findings=tuple(findings),
            tensors=len(checkpoint.tensors),
            bytes=sum(tensor.info.nbytes for tensor in checkpoint.tensors.values()),
            seconds=time.monotonic() - started,
            ran=ran.words,
        )


def _ran(model: Model, findings: list[Finding]) -> Ran:
    path = model.checkpoint.path
    if any(finding.failed for finding in findings) or not model.checkpoint.tensors:
        return Ran(finding=Finding("behaviour", path.name, "not run: look at the rest first", failed=False))
    # llama.cpp opens a split set by its first file.
    first = model.checkpoint.files[0] if model.checkpoint.format == "gguf" else path
    return try_out(first, model.checkpoint.format, model.threads)


class Model:
    """An opened model with what the steps share, worked out once."""

    def __init__(self, checkpoint: Checkpoint, threads: int | None, progress: ProgressCallback | None) -> None:
        self.checkpoint = checkpoint
        self.threads = threads
        self.progress = progress
        #: what is wrong with the architecture or its hyperparameters as a whole
        self.problems: list[Finding] = []

    @property
    def metadata(self) -> Metadata:
        return dict(self.checkpoint.config)

    @cached_property
    def known(self) -> tuple[Architecture, HFClass | None] | None:
        """The architecture, and the class of a Hugging Face folder; None where it is not known here."""
        try:
            if self.checkpoint.dialect == "gguf":
                return (detect_gguf(self.metadata), None) if "general.architecture" in self.metadata else None
            return detect(self.checkpoint.config) if self.checkpoint.dialect == "hf" else None
        except UnknownArchitecture as error:
            subject = "general.architecture" if self.checkpoint.dialect == "gguf" else "config.json"
            first = str(error).partition("\n")[0]
            self.problems.append(Finding("metadata", subject, f"{first}: keys and tensors not compared", failed=False))
            return None

    @property
    def architecture(self) -> Architecture | None:
        return self.known[0] if self.known else None

    @cached_property
    def keys(self) -> list[Finding]:
        """What is wrong with the architecture's keys of a GGUF."""
        known = self.architecture if self.checkpoint.dialect == "gguf" else None
        return list(expected.keys(known, self.metadata)) if known else []

    @cached_property
    def hparams(self) -> HParams | None:
        """The hyperparameters; None where the architecture is unknown or they cannot be read."""
        if self.known is None or self.keys:
            return None
        architecture, hf = self.known
        subject = "config.json" if hf else architecture.gguf
        try:
            if hf is not None:
                found = read_config(architecture, hf, self.checkpoint.config)[0]
            else:  # the tokenizer's step compares the number of tokens with the embedding, so they do not count here
                keys = {key: value for key, value in self.metadata.items() if key != TOKENS}
                found = read_metadata(architecture, keys, self.n_rows)
        except ArchitectureError as error:
            message = str(error).partition("\n")[0].removeprefix(f"{subject}: ")
            self.problems.append(Finding("metadata", subject, message))
            return None
        if self.whole and (problem := expected.excess(found, len(self.checkpoint.tensors))):
            self.problems.append(Finding("metadata", subject, problem))
            return None
        return found

    @cached_property
    def canonical(self) -> dict[str, LazyTensor]:
        """Tensors by the names that the architecture's rows have."""
        found = dict(self.checkpoint.tensors)
        if self.checkpoint.dialect == "hf" and self.architecture and self.hparams:
            return expected.spelled(self.architecture, found, self.hparams)
        return found

    @property
    def n_rows(self) -> int | None:
        """Rows of the embedding; None where it is not there under its usual name."""
        name = EMBEDDING.get(self.checkpoint.dialect or "", "")
        tensor = self.checkpoint.tensors.get(name)
        if tensor is None and self.checkpoint.dialect == "hf":
            tensor = self.canonical.get(name)
        return tensor.info.shape[0] if tensor and tensor.info.shape else None

    @property
    def whole(self) -> bool:
        """Whether this is a model with tensors of its own, and not an adapter or a vocabulary."""
        kind = self.metadata.get("general.type")
        return bool(self.checkpoint.tensors) and not (isinstance(kind, Value) and kind.value in PARTS)


# ----------------------------------------------------------------------------------------------- steps


def _structure(model: Model) -> Iterator[Finding]:
    """What the reader noticed; it refused what it could not read."""
    for event in model.checkpoint.events:
        if event.loss:
            yield Finding("structure", model.checkpoint.path.name, str(event), failed=False)
    if not model.checkpoint.tensors and model.checkpoint.dialect != "gguf":
        yield Finding("structure", model.checkpoint.path.name, "holds no tensors", failed=False)


def _metadata(model: Model) -> Iterator[Finding]:
    if "general.architecture" not in model.metadata:
        yield Finding("metadata", "general.architecture", "is missing: no runtime knows what this is")
    elif model.whole:
        yield from model.keys


def _hparams(model: Model) -> Iterator[Finding]:
    hparams = model.hparams if model.whole else None
    yield from model.problems
    if model.architecture is not None and hparams is not None:
        side: expected.Side = "hf" if model.checkpoint.dialect == "hf" else "gguf"
        yield from expected.relations(model.architecture, hparams, side)


def _tensors(model: Model) -> Iterator[Finding]:
    if not model.whole or (architecture := model.architecture) is None or (hparams := model.hparams) is None:
        return
    config = flat_config(model.checkpoint.config) if model.checkpoint.dialect == "hf" else {}
    if config.get("quantization_config") is not None:
        yield Finding("metadata", "config.json: quantization_config", "tensors not compared", failed=False)
        return
    hf = model.known[1] if model.known else None
    tied = config.get("tie_word_embeddings") if hf is not None and hf.head else None
    side: expected.Side = "hf" if model.checkpoint.dialect == "hf" else "gguf"
    try:
        yield from expected.tensors(architecture, hparams, model.canonical, side, tied)
    except ArchitectureError as error:
        yield Finding("metadata", architecture.gguf, str(error).partition("\n")[0])
    if tied is True:
        yield from _tied(architecture, model.canonical)


def _tied(architecture: Architecture, found: dict[str, LazyTensor]) -> Iterator[Finding]:
    """A head that is stored although the config ties it to the embedding: fine where it is the same."""
    names = {rule.gguf[0]: rule.hf[0] for rule in architecture.tensors if rule.hf and not rule.per_block}
    for rule in architecture.tensors:
        own, other = found.get(rule.hf[0] if rule.hf else ""), found.get(names.get(rule.tied_to or "", ""))
        if rule.tied_to and own is not None and other is not None and not _same(own, other):
            hint = "some loaders take one, some the other; set tie_word_embeddings to false"
            yield Finding("tied", own.name, f"differs from {other.name}, and config.json ties them", hint=hint)


def _same(one: LazyTensor, other: LazyTensor) -> bool:
    if (one.info.shape, one.info.dtype) != (other.info.shape, other.info.dtype):
        return False
    ranges = slabs.row_ranges((one, other), one.row_work + other.row_work)
    return all(np.array_equal(one.rows(start, stop), other.rows(start, stop)) for start, stop in ranges)


def _tokenizer(model: Model) -> Iterator[Finding]:
    has_any = any(key.startswith("tokenizer.") for key in model.metadata)
    if has_any or (model.whole and model.architecture is not None):
        yield from TokenizerKeys(model.metadata, model.n_rows if model.whole else None).findings()
    yield from templates(model.metadata)


def _tokenizer_files(model: Model) -> Iterator[Finding]:
    from converter.tokenizers import read_tokenizer

    checkpoint, architecture, hparams, n_rows = model.checkpoint, model.architecture, model.hparams, model.n_rows
    if architecture is None or hparams is None or n_rows is None:
        return
    yield from _config_ids(model, hparams["n_vocab"])
    try:
        tokenizer = read_tokenizer(
            checkpoint.assets, checkpoint.config, n_rows=n_rows, style=architecture.traits.tokenizer
        )
    except (MissingPart, UnknownPreTokenizer) as error:
        yield Finding("tokenizer", checkpoint.path.name, str(error).partition("\n")[0], failed=False)
    except ConverterError as error:
        yield Finding("tokenizer", checkpoint.path.name, str(error))
    else:
        yield from TokenizerKeys(tokenizer.metadata, n_rows).findings()
        yield from templates(tokenizer.metadata)


def _config_ids(model: Model, n_vocab: int) -> Iterator[Finding]:
    """Token ids of config.json that no token has."""
    config = flat_config(model.checkpoint.config)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(key)
        for number in value if isinstance(value, list) else [value]:
            if number is None or (isinstance(number, int) and -1 <= number < n_vocab):
                continue
            yield Finding("tokenizer", f"config.json: {key}", f"is {number!r}, and there are {n_vocab} tokens")


def _values(model: Model) -> Iterator[Finding]:
    """Every stored number, read once; then the sums that the format keeps of them."""
    tensors = list(model.checkpoint.tensors.values())
    looked = Values(tensors, weights=model.checkpoint.dialect is not None)
    try:
        slabs.run(looked.jobs(), model.threads, model.progress)
        yield from looked.findings()
        model.checkpoint.check()
    except FormatError as error:
        yield Finding("structure", model.checkpoint.path.name, str(error).removeprefix(f"{model.checkpoint.path}: "))


@dataclass(frozen=True)
class Step:
    """Something to look at: what it is, in files of which dialect, and who looks."""

    name: str
    looks_at: str
    dialects: frozenset[str | None]
    run: Callable[[Model], Iterable[Finding]]


GGUF, HF = frozenset[str | None](("gguf",)), frozenset[str | None](("hf",))

#: In this order. The first is taken by opening the file; a reader refuses what is broken.
STEPS = (
    Step("structure", "sizes, offsets, alignment, gaps, indexes, shards: what the reader compares", ANY, _structure),
    Step("keys", "required metadata keys, and types that runtimes insist on", GGUF, _metadata),
    Step("relations", "hyperparameters that must fit each other", BOTH, _hparams),
    Step("tensors", "the architecture's tensors, their shapes, tied weights", BOTH, _tensors),
    Step("tokenizer", "tokens against the embedding, types, scores, ids, merges, chat templates", GGUF, _tokenizer),
    Step("tokenizer files", "the same, of a folder's files", HF, _tokenizer_files),
    Step("values", "scales of every block finite, no NaN or infinity, tensors not all zero", ANY, _values),
)
