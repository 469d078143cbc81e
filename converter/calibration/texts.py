"""What a model reads so that its activations can be seen: a text, what it writes itself, or tokens drawn by lot.

    text = from_file(Path("model.gguf"), Path("wiki.txt"), 512)
    text.chunks          # [[1, 318, ...], ...], each of 512 tokens

A text is cut as llama-imatrix cuts it: tokenized as a whole, then into chunks of `context` tokens, the rest left out;
where the tokenizer puts a BOS in front of a text, it replaces the first token of every chunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.calibration.readers import Reader, reader_of
from converter.errors import Cancelled, MissingPart, UsageError
from converter.request import RANDOM
from converter.runtimes.base import Writer
from converter.runtimes.products import MIN_ROWS
from converter.storage.files import regular_size
from converter.storage.slabs import Progress, ProgressCallback
from converter.workers import default_threads

#: Tokens of a chunk, as llama-imatrix has them.
CONTEXT = 512
#: Chunks where the model writes them, or they are drawn: 8,192 tokens of 512.
CHUNKS = 16
SEED = 0
#: How a model writes: probabilities as they are, of so many tokens at most.
TOP = 64
AT_ONCE = 16  # chunks that are written side by side
MAX_NBYTES = 1 << 30  # of a text: its tokens take four times as much


@dataclass(frozen=True)
class Text:
    """Chunks of token ids, and where they come from: a name, and the SHA-256 of the text's bytes (of its ids as
    little-endian int32 where no file has them)."""

    chunks: Sequence[Sequence[int]] = field(repr=False)
    name: str
    sha256: str

    @property
    def tokens(self) -> int:
        """How many there are."""
        return sum(map(len, self.chunks))


def from_file(
    model: Path | Reader, path: Path, context: int = CONTEXT, chunks: int | None = None, special: bool = False
) -> Text:
    """The text in a file, UTF-8.

    Args:
        model: a GGUF file or another model, whose vocabulary cuts the text.
        path: the text.
        context: tokens of a chunk.
        chunks: how many at most.
        special: special tokens that are written out are what they say, and not their letters.

    Raises:
        MissingPart: the model has no vocabulary.
        UsageError: the text does not fill a chunk, is too long, or is not UTF-8.
    """
    _check(context)
    if regular_size(path) > MAX_NBYTES:
        raise UsageError(f"{path}: more than {MAX_NBYTES >> 30} GiB of text; a few megabytes are enough")
    reader = reader_of(model)
    tokenizer = reader.tokenizer(special)
    if tokenizer is None:
        raise MissingPart(
            f"{reader.path}: has no vocabulary, so that {path} cannot be read; --calibrate random does without"
        )
    data = path.read_bytes()
    try:
        ids = tokenizer.encode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text") from error
    found = [ids[start : start + context] for start in range(0, len(ids) - context + 1, context)][:chunks]
    if not found:
        raise UsageError(
            f"{path}: its {len(ids)} tokens fill no chunk of {context}; take a longer text, or shorter chunks"
        )
    if tokenizer.bos is not None:
        found = [[tokenizer.bos, *chunk[1:]] for chunk in found]
    return Text(found, path.name, hashlib.sha256(data).hexdigest())


def drawn(model: Path | Reader, context: int = CONTEXT, chunks: int | None = None, seed: int = SEED) -> Text:
    """Tokens by lot, all equally likely but for control tokens; the same ones for the same vocabulary and seed."""
    _check(context)
    reader = reader_of(model)
    with reader.writer(context, 1) as runtime:
        allowed = np.flatnonzero(~runtime.controls())
    if not len(allowed):
        raise MissingPart(f"{reader.path}: has control tokens alone, and none to draw")
    random = np.random.Generator(np.random.PCG64(seed))
    count = chunks or CHUNKS
    ids = allowed[random.integers(0, len(allowed), (count, context))]
    return _of_ids(ids, f"random tokens, seed {seed}", _bos(reader))


def written(
    model: Path | Reader,
    context: int = CONTEXT,
    chunks: int | None = None,
    seed: int = SEED,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Text:
    """What the model writes itself: every token drawn by the probabilities that it gives the `TOP` likeliest ones.

    A chunk begins with BOS, or with a token by lot where there is none. No control token is drawn, so that a text does
    not end. The same seed gives the same text on the same machine; elsewhere a logit's last bit may lead to another.

    Args:
        model: a GGUF file of a language model, or another such model.
        context: tokens of a chunk.
        chunks: how many.
        seed: of the lots.
        threads: to compute with.
        progress: called after every token, which each of the chunks that are written side by side gets.

    Raises:
        UsageError: the model is no language model.
        Cancelled: `progress` returned False.
    """
    _check(context)
    reader = reader_of(model)
    count, bos = chunks or CHUNKS, _bos(reader)
    random = np.random.Generator(np.random.PCG64(seed))
    at_once = min(AT_ONCE, count)
    parts: list[NDArray[np.int64]] = []
    with reader.writer(context, threads or default_threads(), at_once) as runtime:
        if runtime.kind != "logits":
            raise UsageError(
                f"{reader.path}: is no model that writes text; give one by --text FILE, or --calibrate random"
            )
        allowed = ~runtime.controls()
        for start in range(0, count, at_once):
            together = min(at_once, count - start)

            def told(done: int, before: int = start, together: int = together) -> None:
                now = Progress(before * context + done * together, count * context, "text of its own", unit="tokens")
                if progress is not None and progress(now) is False:
                    raise Cancelled("cancelled")

            parts.append(_written(runtime, together, context, allowed, bos, random, told))
    return _of_ids(np.concatenate(parts), f"text of its own, seed {seed}", bos)


def _written(
    runtime: Writer,
    count: int,
    context: int,
    allowed: NDArray[np.bool_],
    bos: int | None,
    random: np.random.Generator,
    told: Callable[[int], None],
) -> NDArray[np.int64]:
    ids = np.empty((count, context), np.int64)
    ids[:, 0] = random.choice(np.flatnonzero(allowed), count) if bos is None else bos
    for position in range(context - 1):
        logits = runtime.continued(ids[:, position].tolist(), position).astype(np.float64)
        logits[:, ~allowed] = -np.inf
        ids[:, position + 1] = _sampled(logits, random)
        told(position + 2)
    return ids


def _sampled(logits: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """One of each row's `TOP` largest, by the softmax over these (Gumbel's way: the largest with noise added)."""
    top = np.argpartition(logits, -min(TOP, logits.shape[1]), axis=1)[:, -TOP:]
    noisy = np.take_along_axis(logits, top, 1) + random.gumbel(size=top.shape)
    return np.take_along_axis(top, noisy.argmax(axis=1)[:, None], 1)[:, 0]


def _of_ids(ids: NDArray[np.int64], name: str, bos: int | None) -> Text:
    if bos is not None:
        ids[:, 0] = bos
    return Text(ids.tolist(), name, hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest())


def read(
    model: Path | Reader,
    how: str | Path,
    context: int = CONTEXT,
    chunks: int | None = None,
    *,
    special: bool = False,
    seed: int = SEED,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Text:
    """What a model shall read: its own words ("own"), tokens by lot ("random"), or the text in a file (a path).

    Raises:
        ConverterError: as `written`, `drawn`, `from_file`.
    """
    if isinstance(how, Path):
        return from_file(model, how, context, chunks, special)
    if how == RANDOM:
        return drawn(model, context, chunks, seed)
    return written(model, context, chunks, seed, threads, progress)


def usual_context(model: Path | Reader, most: int = CONTEXT) -> int:
    """Tokens of a chunk: `most`, or what the model was made for if that is less."""
    return min(most, reader_of(model).made_for() or most)


def _bos(reader: Reader) -> int | None:
    tokenizer = reader.tokenizer()
    return None if tokenizer is None else tokenizer.bos


def _check(context: int) -> None:
    if context < MIN_ROWS:
        raise UsageError(f"chunks of {context} tokens are too short: products are looked at from {MIN_ROWS} on")
