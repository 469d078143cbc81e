"""What two models do with the same text: the reference and the candidate, each in a runtime that opens it.

    behaviour(Path("llama-folder"), Path("llama-q4_k_m.gguf"))

A runtime is a row of `RUNTIMES`: transformers for Hugging Face folders and PyTorch or safetensors files beside a
config.json, llama.cpp for GGUF, ONNX Runtime for ONNX. Any two can be compared.

Both sides get the same token ids. They are the reference's own tokenizer's, or the candidate's where the reference has
none, so that a difference between the tokenizers (`probe_ids` shows it) is not taken for one between the models.

The statistics are those of llama-perplexity, so that the figures can be compared. The ids are cut into windows of
`context`, none overlapping, the rest left out; where the tokenizer puts a BOS in front of a text, it replaces the first
id of every window. Each window is computed from nothing. Its first half only gives context: scored are the predictions
of the tokens behind position context // 2, which are context - 1 - context // 2 a window. Perplexity is exp of their
mean negative log-likelihood, KL is KL(reference || candidate) in nats, top-1 the share of positions whose most likely
token is the same. A text shorter than one window is one window of its own.

That program writes the reference's log-probabilities, rounded to 16 bits, into a file; here both models are asked in
turn, window by window, so that one window of logits of either side is all there ever is. They are compared in float64,
in slices of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import Cancelled, MissingPart, ShapeMismatch, UnsupportedFeature, UsageError
from converter.formats.registry import source_format
from converter.runtimes import llama_cpp, transformers
from converter.runtimes.base import Floats, Named, Runtime, RuntimeTokenizer
from converter.runtimes.llama_cpp import LlamaCpp
from converter.runtimes.onnxruntime import OnnxRuntime
from converter.runtimes.transformers import Transformers
from converter.storage.files import refuse_elsewhere
from converter.storage.json import finite
from converter.storage.slabs import Progress, ProgressCallback
from converter.workers import default_threads

Doubles = NDArray[np.float64]

SLICE = 1 << 18  # logits that are widened to float64 at once
SHORTEST = 3  # tokens that leave one prediction to score
RANDOM_INPUTS = 3  # of a graph that takes no text


@dataclass(frozen=True)
class Behaviour:
    """What the reference's and the candidate's runtime made of the same text.

    Logits are compared at every position that has a next token. `kl` is KL(reference || candidate) in nats, `top1` the
    share of positions where both name the same next token. Perplexities are exp of the mean negative log-likelihood.
    For embedding models only `cosine` (the smallest over the texts) is there.

    Errors are standard errors of the mean over the scored positions, as llama-perplexity prints them behind its ±; that
    of the increase is of the positions' differences, so that what a text is like for both models cancels.
    """

    reference_runtime: str
    candidate_runtime: str
    tokens: int
    max_abs: float | None = None
    mean_kl: float | None = None
    max_kl: float | None = None
    top1: float | None = None
    reference_ppl: float | None = None
    candidate_ppl: float | None = None
    cosine: float | None = None
    mean_kl_error: float | None = None
    reference_ppl_error: float | None = None
    candidate_ppl_error: float | None = None
    ppl_increase_error: float | None = None
    #: tokens that both choose among
    vocabulary: int | None = None
    #: KL at each position, in order, for plots
    kl_by_position: tuple[float, ...] = field(default=(), repr=False)

    @property
    def ppl_increase(self) -> float | None:
        """The candidate's perplexity over the reference's, less one; None where there is none."""
        if not self.reference_ppl or self.candidate_ppl is None:
            return None
        return self.candidate_ppl / self.reference_ppl - 1

    @property
    def ppl_unchanged(self) -> bool | None:
        """Whether the increase is at most three times its error, and may be chance. None where that is not known."""
        if self.ppl_increase is None or self.ppl_increase_error is None:
            return None
        return abs(self.ppl_increase) <= 3 * self.ppl_increase_error

    @property
    def foreign(self) -> bool:
        """Whether the source itself can do little with it: of the bits of a blind guess it saves less than a third."""
        if self.reference_ppl is None or self.vocabulary is None:
            return False
        return not self.reference_ppl <= self.vocabulary ** (2 / 3)

    def as_dict(self) -> dict[str, Any]:
        derived = {name: getattr(self, name) for name in ("ppl_increase", "ppl_unchanged", "foreign")}
        as_json: dict[str, Any] = finite({**vars(self), **derived})
        return as_json


def foreign_text(found: Behaviour) -> str:
    """What a `foreign` text means for the figures, as a sentence without its subject."""
    guesses = f"{found.reference_ppl:,.0f} of {found.vocabulary or 0:,} tokens"
    return f"of the source is {guesses}: the text is foreign to this model, and its perplexities say little"


@dataclass(frozen=True)
class Plugin:
    """A runtime: what loads a model (path, tokens at once, threads), and what finds its tokenizer."""

    open: Callable[[Path, int, int], Runtime]
    tokenizer: Callable[[Path], RuntimeTokenizer | None]


_TORCH = Plugin(Transformers, transformers.tokenizer)
#: The runtime of each format, by the format's name. An ONNX file's tokenizer is that of its folder.
RUNTIMES = {
    "gguf": Plugin(LlamaCpp, llama_cpp.tokenizer),
    "onnx": Plugin(OnnxRuntime, transformers.tokenizer),
    "hf": _TORCH,
    "safetensors": _TORCH,
    "torch": _TORCH,
}  # fmt: skip


def runs(path: Path) -> bool:
    """Whether there is a runtime for what is at `path`; whether it is installed is another question."""
    return source_format(path).name in RUNTIMES


@cache
def probe() -> str:
    """The built-in text: prose, numbers, code, several scripts; paragraphs are set apart by an empty line."""
    return Path(__file__).with_name("probe.txt").read_text("utf-8")


def probe_ids(path: Path, text: str | None = None) -> list[int] | None:
    """How the model's own tokenizer cuts a text, with the special tokens around it; None where it has no tokenizer.

    Raises:
        UnsupportedFeature: no runtime opens this format, or the runtime refuses the tokenizer.
        MissingDependency: the runtime is not installed.
    """
    tokenizer = _plugin(path).tokenizer(path)
    return None if tokenizer is None else tokenizer.encode(probe() if text is None else text)


def behaviour(
    reference: Path,
    candidate: Path,
    text: str | None = None,
    *,
    tokens: int = 512,
    context: int = 512,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Behaviour:
    """Run both models on the same text and compare what they say.

    Args:
        reference: what is trusted.
        candidate: what is judged.
        text: what both read; None takes the built-in probe.
        tokens: how many of the text's tokens are read at most.
        context: tokens of a window; less where a model or the text has less.
        threads: of each runtime; None takes all processors.
        progress: called after every window; returning False cancels.

    Returns:
        For language models the statistics of the logits at every scored position, `tokens` being those of all
        windows. A logit that is not a number makes the difference, the KL and its side's perplexity infinite. For
        encoders the smallest cosine of the mean vectors of the text's paragraphs. For other graphs, which get random
        inputs of a fixed seed, the largest difference and the smallest cosine over all outputs, and no tokens.

    Raises:
        MissingDependency: a runtime is not installed.
        UnsupportedFeature: no runtime opens one of them, its runtime refuses it, or they are of different kinds.
        MissingTensor, MissingPart: a model lacks weights or its config, or neither of them has a tokenizer.
        ShapeMismatch: vocabularies or vectors of different sizes.
        UsageError: the text is too short to score anything.
        Cancelled: `progress` returned False.
    """
    count = default_threads() if threads is None else threads
    for path in (reference, candidate):
        refuse_elsewhere(path, "what runs a model")
    first, second = _plugin(reference), _plugin(candidate)
    limit = min(context, tokens)
    with first.open(reference, limit, count) as one, second.open(candidate, limit, count) as other:
        if one.kind != other.kind:
            raise UnsupportedFeature(f"{candidate}: gives {other.kind}, and {reference.name} gives {one.kind}")
        watch = _Watch(progress, f"{one.name}, {other.name}")
        if one.kind == "values":
            return _values(one, other, watch)
        tokenizer = first.tokenizer(reference) or second.tokenizer(candidate)
        if tokenizer is None:
            raise MissingPart(f"{reference}: no tokenizer, and {candidate.name} has none either; put one beside it")
        limit = min([limit, *(runtime.context for runtime in (one, other) if runtime.context is not None)])
        compare = _logits if one.kind == "logits" else _embeddings
        return compare(one, other, tokenizer, probe() if text is None else text, tokens, limit, watch)


def _plugin(path: Path) -> Plugin:
    name = source_format(path).name
    if name not in RUNTIMES:
        known = ", ".join(RUNTIMES)
        raise UnsupportedFeature(f"{path}: no runtime here runs a model of format {name} (those that run: {known})")
    return RUNTIMES[name]


@dataclass(frozen=True)
class _Watch:
    progress: ProgressCallback | None
    names: str

    def __call__(self, done: int, total: int) -> None:
        if self.progress is not None and self.progress(Progress(done, total, self.names)) is False:
            raise Cancelled("cancelled")


# ------------------------------------------------------------------------------------------ language models


def _logits(
    one: Runtime, other: Runtime, tokenizer: RuntimeTokenizer, text: str, tokens: int, context: int, watch: _Watch
) -> Behaviour:
    ids = tokenizer.encode(text)
    windows = list(_windows(ids[:tokens], min(context, len(ids)), tokenizer.bos))
    found = Divergence()
    for done, window in enumerate(windows):
        first = len(window) // 2
        found.add(one.logits(window, first), other.logits(window, first), window[first + 1 :])
        watch(done + 1, len(windows))
    return found.result(one.name, other.name, sum(map(len, windows)))


def _windows(ids: Sequence[int], size: int, bos: int | None) -> Iterator[list[int]]:
    if size < SHORTEST:
        raise UsageError(f"a text of {len(ids)} tokens, read {size} at once, leaves nothing to score")
    for start in range(0, len(ids) - size + 1, size):
        window = list(ids[start : start + size])
        yield window if bos is None else [bos, *window[1:]]


@dataclass
class Divergence:
    """Sums over all scored positions. What is not a number counts as infinitely far."""

    kl: list[float] = field(default_factory=list)
    same: int = 0
    max_abs: float = 0.0
    vocabulary: int = 0
    reference_losses: list[float] = field(default_factory=list)
    candidate_losses: list[float] = field(default_factory=list)

    def add(self, reference: Floats, candidate: Floats, targets: Sequence[int]) -> None:
        """Rows of logits, (positions, vocabulary) each, and the token that follows each of them."""
        if reference.shape != candidate.shape:
            sizes = f"{reference.shape[-1]} and {candidate.shape[-1]}"
            raise ShapeMismatch(f"vocabularies of {sizes} tokens cannot be compared; the two are not the same model")
        self.vocabulary = reference.shape[1]
        step = max(1, SLICE // reference.shape[1])
        for start in range(0, len(targets), step):
            part = slice(start, start + step)
            self._add(reference[part].astype(np.float64), candidate[part].astype(np.float64), targets[part])

    def _add(self, one: Doubles, other: Doubles, targets: Sequence[int]) -> None:
        """Both are overwritten."""
        rows = np.arange(len(targets))
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            self.max_abs = max(self.max_abs, _largest_difference(one, other))
            top = one.argmax(axis=1) == other.argmax(axis=1)
            one -= one.max(axis=1, keepdims=True)
            other -= other.max(axis=1, keepdims=True)
            weights = np.exp(one)  # the reference's probabilities times their sum
            total, other_total = weights.sum(axis=1), np.exp(other).sum(axis=1)
            losses = np.log(total) - one[rows, targets], np.log(other_total) - other[rows, targets]
            one -= other
            one *= weights
            one[weights == 0] = 0  # nothing is lost where the reference gives nothing, be the other -infinity too
            kl = _not_nan(one.sum(axis=1) / total + np.log(other_total) - np.log(total))
        self.same += int((top & np.isfinite(kl)).sum())
        self.kl += np.maximum(kl, 0.0).tolist()  # rounding makes it a hair less than nothing
        self.reference_losses += _not_nan(losses[0]).tolist()
        self.candidate_losses += _not_nan(losses[1]).tolist()

    def result(self, reference: str, candidate: str, tokens: int) -> Behaviour:
        with np.errstate(over="ignore", invalid="ignore"):
            losses = np.array([self.reference_losses, self.candidate_losses])
            ppl = np.exp(losses.mean(axis=1))
            errors = [_error(each) for each in (*losses, losses[1] - losses[0], np.array(self.kl))]
            ratio = np.exp((losses[1] - losses[0]).mean())
        own, other, increase, kl = errors
        return Behaviour(
            reference, candidate, tokens, max_abs=self.max_abs, mean_kl=float(np.mean(self.kl)), max_kl=max(self.kl),
            top1=self.same / len(self.kl), reference_ppl=float(ppl[0]), candidate_ppl=float(ppl[1]),
            mean_kl_error=kl, reference_ppl_error=_times(own, ppl[0]), candidate_ppl_error=_times(other, ppl[1]),
            ppl_increase_error=_times(increase, ratio), vocabulary=self.vocabulary, kl_by_position=tuple(self.kl),
        )  # fmt: skip


def _error(values: Doubles) -> float | None:
    """The standard error of their mean; None where that is not to be known."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return error if math.isfinite(error) else None


def _times(error: float | None, scale: float) -> float | None:
    """The error of exp(x), which is `scale`, by that of x."""
    return None if error is None else float(error * scale)


def _not_nan(array: Doubles) -> Doubles:
    return np.where(np.isnan(array), np.inf, array)


def _largest_difference(one: Doubles, other: Doubles) -> float:
    """Equal infinities are no difference; anything against a NaN is an infinite one."""
    distance = np.abs(one - other)
    largest = float(distance.max(initial=0.0))
    if math.isfinite(largest):
        return largest
    return float(_not_nan(np.where(one == other, 0.0, distance)).max())


# ------------------------------------------------------------------------------------- encoders, other graphs


def _embeddings(
    one: Runtime, other: Runtime, tokenizer: RuntimeTokenizer, text: str, tokens: int, context: int, watch: _Watch
) -> Behaviour:
    texts = [ids for part in text.split("\n\n") if part.strip() and (ids := tokenizer.encode(part)[:context])]
    if not texts:
        raise UsageError("a text without a word leaves nothing to compare")
    read, smallest = 0, 1.0
    for done, ids in enumerate(texts):
        if done and read + len(ids) > tokens:
            break
        smallest = min(smallest, _cosine(one.embedding(ids), other.embedding(ids), "embedding"))
        read += len(ids)
        watch(done + 1, len(texts))
    return Behaviour(one.name, other.name, read, cosine=smallest)


def _values(one: Runtime, other: Runtime, watch: _Watch) -> Behaviour:
    random = np.random.default_rng(0)
    largest, smallest = 0.0, 1.0
    for done in range(RANDOM_INPUTS):
        inputs = one.inputs(random)
        for name, wanted, got in _pairs(one.values(inputs), other.values(inputs)):
            smallest = min(smallest, _cosine(wanted, got, name))
            with np.errstate(invalid="ignore"):
                largest = max(largest, _largest_difference(wanted.astype(np.float64), got.astype(np.float64)))
        watch(done + 1, RANDOM_INPUTS)
    return Behaviour(one.name, other.name, 0, max_abs=largest, cosine=smallest)


def _pairs(one: Named, other: Named) -> Iterator[tuple[str, Floats, Floats]]:
    if one.keys() != other.keys():
        raise ShapeMismatch(f"outputs {', '.join(one)} and {', '.join(other)} cannot be compared")
    for name, array in one.items():
        yield name, array, other[name]


def _cosine(one: Floats, other: Floats, name: str) -> float:
    """Of two arrays of one shape; 1 where both are zero, -1 where one is not finite: nothing is further away."""
    if one.shape != other.shape:
        raise ShapeMismatch(f"{name}: {one.shape} and {other.shape} cannot be compared")
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -1.0
    if not (a.any() or b.any()):
        return 1.0
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return min(1.0, float(a @ b) / length) if length else 0.0
