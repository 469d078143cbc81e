"""A vocabulary cut to some of its tokens: tokenizer, embedding and output together, ids counted anew."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from converter.architectures.traits import IDS
from converter.checkpoint import Checkpoint
from converter.errors import MissingPart, TokenizerError, UnsupportedFeature, UsageError, about, short
from converter.events import Dropped, Event, Note
from converter.extras import package
from converter.formats.registry import open_checkpoint
from converter.housekeeping.blocks import Model
from converter.housekeeping.experts import rows_of
from converter.housekeeping.prune import without_size
from converter.housekeeping.rewrite import Rewritten, check_format, fewer_weights, made_anew
from converter.housekeeping.settings import Config, Keys
from converter.metadata import Array, Metadata, Value, array_of
from converter.request import PathLike, Source
from converter.storage.files import regular_size
from converter.storage.json import parse
from converter.storage.slabs import ProgressCallback
from converter.tensors.tensor import LazyTensor, Rows
from converter.tokenizers import FILES, renumbered, sentencepiece, trimming, write_tokenizer
from converter.tokenizers import files as tokenizer_files
from converter.tokenizers.vocabulary import Vocabulary, read_vocabulary

TOKENIZER, TOKENS, TYPES = "tokenizer.json", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
GENERATION = "generation_config.json"
_MAX_TEXT = 1 << 30  # bytes
_PIECE = 1 << 20  # characters of a text that are cut at once
_FEW = (sentencepiece.NORMAL, sentencepiece.UNUSED)  # types of pieces that may go
# Entries of a config that are ids of tokens, or lists of such; and entries that hold them in other ways.
_IDS = re.compile(r"(?:.*_)?token_(?:id|ids|index)|(?:begin_)?suppress_tokens")
_NESTED = ("bad_words_ids", "forced_decoder_ids", "force_words_ids", "sequence_bias")


@dataclass(frozen=True)
class Trimmed(Rewritten):
    """What was written, and the old id of each token of the new vocabulary."""

    ids: tuple[int, ...]
    n_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return super().as_dict() | {"kept_tokens": len(self.ids), "source_tokens": self.n_tokens, "ids": list(self.ids)}


@dataclass(frozen=True)
class _Words:
    """A tokenizer: what tokenizer.json says, its vocabulary, and the files that it comes from, where there are some."""

    json: bytes
    vocabulary: Vocabulary
    files: Mapping[str, bytes]

    @property
    def texts(self) -> dict[int, str]:
        return dict(self.vocabulary.tokens())


def trim(
    source: PathLike | Source,
    target: PathLike,
    *,
    tokens: Path | None = None,
    text: Path | None = None,
    most: int | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Trimmed:
    """A model whose vocabulary has fewer tokens. Special, added and byte tokens stay, and what kept ones are made of.

    What a text is cut into, is the same tokens as before under their new ids, if all of them were kept.

    Args:
        source: a GGUF, or a Hugging Face folder.
        target: the file or folder to be.
        tokens: a list of tokens that stay: one a line, or in JSON, as the vocabulary spells them or by their ids.
        text: a text whose tokens stay.
        most: of the text's, the most frequent ones alone.
        force, threads, progress: as for `convert`.

    Raises:
        UsageError: neither is given, or a token that there is not.
        TokenizerError: a tokenizer of a kind that cannot be trimmed, or a damaged one.
        UnsupportedFeature: another format or an architecture that is not known here.
        MissingDependency: `tokenizers`, which cuts the text, is not there.
        ConverterError: as `rewrite`.
    """
    if tokens is None and text is None:
        raise UsageError("say what stays: --tokens FILE or --text FILE")
    with about(Source.of(source).path), open_checkpoint(source) as checkpoint:
        check_format(checkpoint, "trim-vocab")
        if checkpoint.format not in ("gguf", "hf"):
            raise UnsupportedFeature(f"{checkpoint.path}: tensors alone; give the folder, which has the tokenizer")
        model, words = Model.of(checkpoint), _words(checkpoint)
        counts = Counter[int]() if text is None else _counted(words.json, text)
        wanted = {i for i, _ in sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:most]}
        wanted |= set() if tokens is None else _listed(tokens, words)
        kept = trimming.needed(words.vocabulary, wanted | _named(checkpoint, words) | _typed(checkpoint, words))
        ids = {old: new for new, old in enumerate(sorted(kept))}
        trimmed = _renumbered(model, words, ids)
        if text is not None and (most is None or len(wanted) == len(counts)):
            _check(text, words.json, _words(trimmed).json, ids)
        trimmed = trimmed.replace(events=(*trimmed.events, *_told(checkpoint, trimmed, words, ids, counts)))
        made = made_anew(without_size(trimmed), target, force=force, threads=threads, progress=progress)
    return Trimmed(made.source, made.files, made.tensors, made.events, made.seconds, tuple(ids), len(words.texts))


# ------------------------------------------------------------------------------------------- the tokenizer


def _words(checkpoint: Checkpoint) -> _Words:
    """The tokenizer of a model; that of a GGUF, or of a SentencePiece model alone, as tokenizer.json means it.

    Raises:
        MissingPart: there is none.
        TokenizerError: it is damaged, or of a kind that tokenizer.json does not have.
    """
    config = dict(checkpoint.config) if checkpoint.format == "hf" else {}
    own: dict[str, tokenizer_files.Source] = dict(checkpoint.assets)
    own |= {name: _held(data) for name, data in checkpoint.made.items()}
    found = tokenizer_files.TokenizerFiles({name: own[name] for name in FILES if name in own})
    files = {name: found.data(name) for name in found}
    if TOKENIZER in files:
        return _Words(files[TOKENIZER], read_vocabulary(found, config), files)
    metadata: Metadata | None = Model.of(checkpoint).seen.tokenizer()
    if metadata is None:
        raise MissingPart(f"{checkpoint.path}: has no tokenizer, and nobody knows which row is which token")
    made = write_tokenizer(metadata)
    if TOKENIZER not in made:
        raise TokenizerError(f"{checkpoint.path}: a tokenizer of this kind ({', '.join(made)}) cannot be trimmed")
    read = tokenizer_files.TokenizerFiles({name: _held(data) for name, data in made.items()})
    return _Words(made[TOKENIZER], read_vocabulary(read, config), files)


def _held(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _cut(tokenizer: bytes) -> Callable[[str], list[int]]:
    """What makes ids of a text: the library that tokenizer.json belongs to.

    Raises:
        MissingDependency: it is not there.
        TokenizerError: it refuses the file.
    """
    library = package("tokenizers", "cutting a text into tokens")
    said = {**json.loads(tokenizer), "truncation": None, "padding": None}
    try:
        made = library.Tokenizer.from_str(json.dumps(said))
    except Exception as error:  # it raises nothing else
        raise TokenizerError(f"{TOKENIZER}: the tokenizers library refuses it ({short(error)})") from None
    return lambda text: list(made.encode(text, add_special_tokens=False).ids)


def _pieces(path: Path) -> Iterator[str]:
    """A text in pieces that end at an end of a line."""
    if regular_size(path) > _MAX_TEXT:
        raise UsageError(f"{path}: larger than {_MAX_TEXT >> 20} MiB; a part of it has the same tokens")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            while piece := file.read(_PIECE):
                yield piece + file.readline(_PIECE)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text") from error


def _counted(tokenizer: bytes, text: Path) -> Counter[int]:
    """How often each token is in a text."""
    cut, counts = _cut(tokenizer), Counter[int]()
    for piece in _pieces(text):
        counts.update(cut(piece))
    if not counts:
        raise UsageError(f"{text}: has no tokens in it")
    return counts


def _check(text: Path, before: bytes, after: bytes, ids: Mapping[int, int]) -> None:
    """Raises: TokenizerError, where the text is cut in another way than before."""
    old, new = _cut(before), _cut(after)
    for piece in _pieces(text):
        if [ids[i] for i in old(piece)] != new(piece):
            raise TokenizerError(f"{text}: would be cut in another way with fewer tokens; nothing was written")


def _listed(path: Path, words: _Words) -> set[int]:
    """The ids of a list: JSON of texts and ids, or a text of the vocabulary in each line.

    Raises:
        UsageError: it cannot be read, or a token that there is not.
    """
    by_text = {token: i for i, token in words.texts.items()}
    known = set(by_text.values())
    text = "".join(_pieces(path))
    if text.lstrip().startswith("["):
        try:
            listed: Any = parse(text)
        except ValueError as error:
            raise UsageError(f"{path}: is no list in JSON ({short(error)})") from None
    else:
        listed = [line.rstrip("\r") for line in text.split("\n") if line.rstrip("\r")]
    found = set()
    for each in listed:
        i = each if type(each) is int else by_text.get(each) if isinstance(each, str) else None
        if i not in known:
            raise UsageError(f"{path}: {short(each)} is no token of the vocabulary")
        found.add(i)
    return found


def _named(checkpoint: Checkpoint, words: _Words) -> set[int]:
    """Ids that the model's settings name.

    Raises:
        TokenizerError: one that no token has.
    """
    found: set[int] = set()

    def note(where: str, old: int) -> int:
        if old not in known:
            raise TokenizerError(f"{where}: {old} is no token")
        found.add(old)
        return old

    known = set(words.texts)
    if checkpoint.format == "gguf":
        for key, entry in checkpoint.config.items():
            if key.endswith("_token_id") and isinstance(entry, Value) and type(entry.value) is int:
                note(key, entry.value)
            elif key in renumbered.LISTS and isinstance(entry, Array):
                for i in entry.values:
                    note(key, int(i))  # type: ignore[arg-type]
        return found
    for name, config in _configs(checkpoint).items():
        _mapped(name, config, note)
    return found


def _typed(checkpoint: Checkpoint, words: _Words) -> set[int]:
    """Pieces that are no normal ones: unknown, control, user-defined, bytes."""
    types: Sequence[Any] = []
    if checkpoint.format == "gguf":
        said = array_of(checkpoint.config, TYPES)
        types = [] if said is None else list(said.values)
    for name in ("tokenizer.model", "spiece.model"):
        if name in words.files:
            types = sentencepiece.read_sentencepiece(words.files[name], name).types
    known = set(words.texts)
    return {i for i, kind in enumerate(types) if int(kind) not in _FEW and i in known}


# ------------------------------------------------------------------------------------------------ the model


def _renumbered(model: Model, words: _Words, ids: Mapping[int, int]) -> Checkpoint:
    checkpoint = model.checkpoint.replace(tensors=_tensors(model, words, list(ids)))
    settings = model.settings()
    for row in model.architecture.hparams:
        if row.name in ("n_vocab", "vocab") and type(settings.value(row)) is int:
            settings.change(row, len(ids))
    if isinstance(settings, Keys):
        settings.entries.update(renumbered.keys(settings.entries, ids))
        for key, entry in settings.entries.items():
            own = key.endswith("_token_id") and not key.startswith("tokenizer.")
            if own and isinstance(entry, Value) and type(entry.value) is int:
                settings.entries[key] = Value(entry.type, ids[entry.value])
        return settings.applied(checkpoint)
    assert isinstance(settings, Config)

    def renew(where: str, old: int) -> int:
        return ids[old]

    settings.whole = _mapped("config.json", settings.whole, renew)
    texts = words.texts
    made = {name: renumbered.file(name, data, ids, texts) for name, data in words.files.items()}
    for name, config in _configs(checkpoint).items():
        if name == GENERATION:
            made[name] = (json.dumps(_mapped(name, config, renew), indent=2, ensure_ascii=False) + "\n").encode()
    return settings.applied(checkpoint.replace(made={**checkpoint.made, **made}))


def _configs(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """config.json and its like, which name tokens by their ids."""
    found = {"config.json": dict(checkpoint.config)}
    if GENERATION in checkpoint.assets:
        read = tokenizer_files.TokenizerFiles({GENERATION: checkpoint.assets[GENERATION]})
        found[GENERATION] = dict(read.json(GENERATION))
    return found


def _mapped(where: str, config: Mapping[str, Any], new: Callable[[str, int], int]) -> dict[str, Any]:
    """A config with other ids, in objects within it, too; negative ones mean none.

    Raises:
        TokenizerError: an entry that holds ids in a way that is not known.
    """

    def one(key: str, value: Any) -> Any:
        said = f"{where}: {key}"
        if isinstance(value, Mapping):
            return _mapped(where, value, new)
        if key in _NESTED and value:
            raise TokenizerError(f"{said}: holds ids of tokens in a way that cannot be counted anew; remove it")
        if _IDS.fullmatch(key) and isinstance(value, list):
            return [new(said, i) if type(i) is int and i >= 0 else i for i in value]
        return new(said, value) if _IDS.fullmatch(key) and type(value) is int and value >= 0 else value

    return {key: one(key, value) for key, value in config.items()}


def _tensors(model: Model, words: _Words, kept: list[int]) -> dict[str, LazyTensor]:
    """The tensors, those with a row for each token with fewer.

    Raises:
        UnsupportedFeature: one holds tokens in a way that is not known.
    """
    n_vocab = model.hparams["n_vocab"]
    rows = model.seen.n_rows or n_vocab
    if kept[-1] >= rows:
        raise UnsupportedFeature(f"{model.checkpoint.path}: {kept[-1] + 1} tokens, and the embedding has {rows} rows")
    if any(rule.type == IDS for rule in model.architecture.tensors):
        raise model.refused("has tensors of ids, which would have to be counted anew")
    axes: dict[str, int] = {}
    before, after = (
        {
            name: shape
            for each in model.seen.instances(model.architecture, {**model.hparams, "n_vocab": count})
            for name, shape in zip(each.names, each.shapes, strict=False)
        }
        for count in (n_vocab, n_vocab + 1)
    )
    for name, shape in before.items():
        changed = [axis for axis, (a, b) in enumerate(zip(shape, after[name], strict=True)) if a != b]
        axes.update({name: changed[0]} if changed else {})
    tensors = {}
    for name, tensor in model.checkpoint.tensors.items():
        canonical = next((each for each in model.spelled(name) if each in axes), None)
        if canonical is None:
            if rows in tensor.info.shape and re.search(r"embe?d.*token|token.*embe?d|lm_head|vocab", name):
                raise model.refused(
                    f"has {short(name)} {list(tensor.info.shape)}: how it holds the tokens is not known"
                )
            tensors[name] = tensor
        elif axes[canonical] == 0 and len(tensor.info.shape) > 1:
            tensors[name] = _taken(tensor, kept)
        else:
            tensors[name] = rows_of(model, tensor, axes[canonical], rows, kept)
    return tensors


def _taken(tensor: LazyTensor, kept: Sequence[int]) -> LazyTensor:
    """Some entries of a tensor's first axis."""
    info, index = tensor.info, np.array(kept, np.int64)
    each = info.n_rows // info.shape[0]

    def read(start: int, stop: int) -> Rows:
        entries, rest = np.divmod(np.arange(start, stop, dtype=np.int64), each)
        return tensor.take(index[entries] * each + rest) if stop > start else tensor.rows(0, 0)

    return tensor.derived(replace(info, shape=(len(index), *info.shape[1:])), read)


def _told(
    before: Checkpoint, after: Checkpoint, words: _Words, ids: Mapping[int, int], counts: Mapping[int, int]
) -> Iterable[Event]:
    """What was lost, and what share of the text it was."""
    count = len(words.texts)
    yield Dropped("tokens", f"{count - len(ids):,} of {count:,}, with {fewer_weights(before, after)}")
    if counts:
        total, left = sum(counts.values()), sum(number for i, number in counts.items() if i in ids)
        yield Note(f"the tokens that stay are {left:,} of the text's {total:,} ({left / total:.2%})")
