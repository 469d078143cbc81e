"""One model by itself, before a deploy: `convert check`.

What is looked at is a table, `STEPS`. Each step yields findings and never raises for what a file says; what keeps a
file from being opened at all is a finding too, and its error is kept for the exit code.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from converter.architectures.spec import Architecture
from converter.check import rows
from converter.check.scales import Values
from converter.check.tokens import TokenizerKeys, templates
from converter.checkpoint import Checkpoint
from converter.errors import (
    ArchitectureError,
    ConverterError,
    FormatError,
    MissingPart,
    UnknownPreTokenizer,
    said_of,
)
from converter.findings import Finding
from converter.mapping.hparams import HParams
from converter.mapping.recovered import open_model
from converter.mapping.view import ModelView, tokenizer_beside, view
from converter.metadata import Metadata
from converter.quant.sources import unpacked
from converter.request import PathLike, Source
from converter.runtimes.generation import Ran, try_out
from converter.storage import slabs
from converter.storage.slabs import ProgressCallback
from converter.tensors.tensor import LazyTensor

#: ggml's names of the matrices that no model works without: embedding, output, attention and feed-forward.
VITAL = re.compile(
    r"(token_embd|output|blk\.\d+\.(attn_(q|k|v|qkv|output|q_a|q_b|kv_a_mqa|kv_b|k_b|v_b)"
    r"|ffn_(gate|up|down|gate_up)(_exps|_shexp)?))\.weight"
)


@dataclass(frozen=True)
class Checked:
    """What a check found.

    `steps` are the names of those taken, `ran` says what a runtime did with the model, `error` is what kept the file
    from being opened; `strict` says that warnings fail, too.
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
    strict: bool = False

    def fails(self, finding: Finding) -> bool:
        """Whether this one forbids to use the file; under `strict` every one does."""
        return finding.failed or self.strict

    @property
    def passed(self) -> bool:
        return not any(map(self.fails, self.findings))

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        own = {key: value for key, value in vars(self).items() if key != "error"}
        own["findings"] = [finding.as_dict() for finding in self.findings]
        return own | {"steps": list(self.steps), "seconds": round(self.seconds, 3), "passed": self.passed}


def check(
    path: PathLike,
    *,
    format: str | None = None,
    runtime: bool = False,
    strict: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Checked:
    """Check a file or folder of any format. Tensors are read once, in slabs.

    Args:
        path: what to check.
        format: its format, where content and extension do not tell.
        runtime: also load it with what is installed and let it generate a few tokens.
        strict: what is only a warning fails, too.
        threads, progress: as for `convert`.

    Raises:
        OutputError: there is no such file, or it was changed meanwhile.
        Cancelled: `progress` returned False.
    """
    started, source = time.monotonic(), Source(path, format)
    path = source.path
    try:
        checkpoint = _opened(source)
    except (FormatError, ArchitectureError) as error:
        return unopened(path, error, format, strict)
    with checkpoint:
        model = view(checkpoint)
        checking = Checking(model, threads, progress)
        steps = [step for step in STEPS if step.applies(model)]
        findings = [finding for step in steps for finding in step.run(checking)]
        ran = _ran(checking, findings) if runtime else Ran()
        findings += [ran.finding] if ran.finding else []
        checkpoint.opened.check()
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
            strict=strict,
        )


def unopened(path: Path, error: ConverterError, format: str | None = None, strict: bool = False) -> Checked:
    """What there is to say of a file that cannot be opened."""
    message, *hints = said_of(path, error).splitlines()
    finding = Finding("structure", path.name, message, hint="; ".join(hints))
    return Checked(str(path), format, None, (STEPS[0].name,), (finding,), error=error, strict=strict)


def _opened(source: Source) -> Checkpoint:
    """The model, whose tensors are numbers and not the codes of a scheme."""
    checkpoint = open_model(source)
    try:
        return unpacked(checkpoint)
    except BaseException:
        checkpoint.close()
        raise


def _ran(checking: Checking, findings: list[Finding]) -> Ran:
    checkpoint, path = checking.checkpoint, checking.checkpoint.path
    if any(finding.failed for finding in findings) or not checkpoint.tensors:
        return Ran(finding=Finding("behaviour", path.name, "not run: look at the rest first", failed=False))
    # llama.cpp opens a split set by its first file.
    first = checkpoint.files[0] if checking.model.keyed else path
    return try_out(first, checkpoint.format, checking.threads)


class Checking:
    """A check under way: the view of the model, and what the steps share, worked out once."""

    def __init__(self, model: ModelView, threads: int | None, progress: ProgressCallback | None) -> None:
        self.model = model
        self.checkpoint = model.checkpoint
        self.threads = threads
        self.progress = progress
        #: what is wrong with the architecture or its hyperparameters as a whole
        self.problems: list[Finding] = []

    @cached_property
    def keys(self) -> list[Finding]:
        """What is wrong with the architecture's typed keys, where the file has such."""
        known = self.model.architecture if self.model.keyed else None
        return list(rows.keys(known, self.checkpoint.config)) if known else []

    @cached_property
    def known(self) -> tuple[Architecture, HParams] | None:
        """The architecture and the hyperparameters; None, and a problem, where either is unknown or cannot be read."""
        if self.model.unknown:
            message = f"{self.model.unknown}: keys and tensors not compared"
            self.problems.append(Finding("metadata", self.model.identity, message, failed=False))
        if self.model.architecture is None or self.keys:
            return None
        try:
            hparams = self.model.hparams
        except ArchitectureError as error:
            message = str(error).partition("\n")[0].removeprefix(f"{self.model.subject}: ")
            self.problems.append(Finding("metadata", self.model.subject, message))
            return None
        return (self.model.architecture, hparams) if hparams is not None else None

    @cached_property
    def vital(self) -> frozenset[str]:
        """The matrices that no model works without."""
        model = self.model
        if not (model.named and model.whole):
            return frozenset()
        try:
            instances = model.instances(*self.known) if self.known else ()
            ggml = {name: each.gguf for each in instances for name in each.names}
        except ArchitectureError:  # which is told where the tensors are looked at
            ggml = {}
        return frozenset(
            tensor.name
            for name, tensor in model.canonical.items()
            if len(tensor.info.shape) > 1 and any(map(VITAL.fullmatch, ggml.get(name, (name,))))
        )


# ----------------------------------------------------------------------------------------------- steps


def _structure(checking: Checking) -> Iterator[Finding]:
    """What the reader noticed; it refused what it could not read."""
    checkpoint = checking.checkpoint
    for event in checkpoint.events:
        if event.loss:
            yield Finding("structure", checkpoint.path.name, str(event), failed=False)
    if not checkpoint.tensors and not checking.model.keyed:
        yield Finding("structure", checkpoint.path.name, "holds no tensors", failed=False)


def _metadata(checking: Checking) -> Iterator[Finding]:
    if "general.architecture" not in checking.checkpoint.config:
        yield Finding("metadata", "general.architecture", "is missing: no runtime knows what this is")
    elif checking.model.whole:
        yield from checking.keys


def _hparams(checking: Checking) -> Iterator[Finding]:
    known = checking.known if checking.model.whole else None
    yield from checking.problems
    if known is not None:
        yield from rows.relations(checking.model, *known)


def _tensors(checking: Checking) -> Iterator[Finding]:
    model = checking.model
    if not model.whole or checking.known is None:
        return
    architecture, hparams = checking.known
    try:
        yield from rows.tensors(model, architecture, hparams)
    except ArchitectureError as error:
        yield Finding("metadata", architecture.gguf, str(error).partition("\n")[0])
    if model.tied:
        yield from _tied(architecture, model.canonical)


def _tied(architecture: Architecture, found: Mapping[str, LazyTensor]) -> Iterator[Finding]:
    """A head that is stored although the config ties it to the embedding: fine where it is the same."""
    names = {rule.gguf[0]: rule.hf[0] for rule in architecture.tensors if rule.hf and rule.gguf and not rule.per_block}
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


def _tokenizer(checking: Checking) -> Iterator[Finding]:
    model, metadata = checking.model, checking.checkpoint.config
    if checking.checkpoint.stored is not None:
        yield from _of_files(checking, lambda: tokenizer_beside(checking.checkpoint)[0], model.n_rows)
        return
    has_any = any(key.startswith("tokenizer.") for key in metadata)
    if has_any or (model.whole and model.architecture is not None):
        yield from TokenizerKeys(metadata, model.n_rows if model.whole else None).findings()
    yield from templates(metadata)


def _tokenizer_files(checking: Checking) -> Iterator[Finding]:
    from converter.tokenizers import read_tokenizer

    checkpoint, n_rows = checking.checkpoint, checking.model.n_rows
    if checking.known is None or n_rows is None:
        return
    architecture, hparams = checking.known
    yield from _config_ids(checking.model, hparams["n_vocab"])
    style = architecture.tokenizer(checking.model.hf_class)
    read = partial(read_tokenizer, checkpoint.assets, checkpoint.config, n_rows=n_rows, style=style)
    yield from _of_files(checking, lambda: read().metadata, n_rows)


def _of_files(checking: Checking, read: Callable[[], Metadata], n_rows: int | None) -> Iterator[Finding]:
    """What is to be said of a tokenizer in files; none at all is only told."""
    try:
        metadata = read()
    except (MissingPart, UnknownPreTokenizer) as error:
        yield Finding("tokenizer", checking.checkpoint.path.name, str(error).partition("\n")[0], failed=False)
    except ConverterError as error:
        yield Finding("tokenizer", checking.checkpoint.path.name, str(error))
    else:
        yield from TokenizerKeys(metadata, n_rows).findings()
        yield from templates(metadata)


def _config_ids(model: ModelView, n_vocab: int) -> Iterator[Finding]:
    """Token ids of config.json that no token has."""
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = model.config.get(key)
        for number in value if isinstance(value, list) else [value]:
            if number is None or (isinstance(number, int) and -1 <= number < n_vocab):
                continue
            yield Finding("tokenizer", f"config.json: {key}", f"is {number!r}, and there are {n_vocab} tokens")


def _values(checking: Checking) -> Iterator[Finding]:
    """Every stored number, read once; then the sums that the format keeps of them."""
    checkpoint = checking.checkpoint
    tensors, weights = list(checkpoint.tensors.values()), checking.model.named
    looked = Values(checkpoint.path.name, tensors, weights, checking.vital)
    try:
        slabs.run(looked.jobs(), checking.threads, checking.progress)
        yield from looked.findings()
        checkpoint.check()
    except FormatError as error:
        message, *hints = said_of(checkpoint.path, error).splitlines()
        yield Finding("structure", checkpoint.path.name, message, hint="; ".join(hints))


@dataclass(frozen=True)
class CheckStep:
    """Something to look at: what it is, in which models, and who looks."""

    name: str
    looks_at: str
    applies: Callable[[ModelView], bool]
    run: Callable[[Checking], Iterable[Finding]]


def _any(model: ModelView) -> bool:
    return True


def _named(model: ModelView) -> bool:
    return model.named


def _keyed(model: ModelView) -> bool:
    return model.keyed


def _filed(model: ModelView) -> bool:
    return model.filed


#: In this order. The first is taken by opening the file; a reader refuses what is broken.
STEPS = (
    CheckStep(
        "structure", "sizes, offsets, alignment, gaps, indexes, shards: what the reader compares", _any, _structure
    ),
    CheckStep("keys", "required metadata keys, and types that runtimes insist on", _keyed, _metadata),
    CheckStep("relations", "hyperparameters that must fit each other", _named, _hparams),
    CheckStep("tensors", "the architecture's tensors, their shapes, tied weights", _named, _tensors),
    CheckStep(
        "tokenizer", "tokens against the embedding, types, scores, ids, merges, chat templates", _keyed, _tokenizer
    ),
    CheckStep("tokenizer files", "the same, of a folder's files", _filed, _tokenizer_files),
    CheckStep("values", "scales of every block finite, no NaN or infinity, tensors not all zero", _any, _values),
)
