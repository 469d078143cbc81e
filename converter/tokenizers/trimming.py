"""Some tokens of a vocabulary: which others they need, so that what they make of a text stays what it was.

BPE merges a token out of smaller ones, which have to stay with their merges; merges that never happened in a text can
go, as the ones that did happen still come first. WordPiece takes the longest piece, and longer ones that are gone did
not fit. Unigram takes the best path, which stays the best of fewer; what it thinks of unknown characters depends on the
worst score and on which characters are pieces, so these stay.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping

from converter.errors import TokenizerError
from converter.tokenizers.splitting import byte_alphabet
from converter.tokenizers.vocabulary import Vocabulary

_BYTE = re.compile("<0x[0-9A-F]{2}>")
_MAX_PIECE = 4096  # characters, merging of which takes as many steps as pairs


def needed(vocabulary: Vocabulary, wanted: Iterable[int]) -> set[int]:
    """Ids of `wanted`, special, added and byte tokens, and all that these are made of.

    Raises:
        TokenizerError: of this kind of vocabulary nothing can be said.
    """
    if vocabulary.kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise TokenizerError(f"a vocabulary of the kind {vocabulary.kind} cannot be trimmed; {known} can")
    texts = {i: token for token, i in vocabulary.base.items()}
    kept = {*wanted, *always(vocabulary)}
    return kept | _KINDS[vocabulary.kind](vocabulary, [texts[i] for i in kept if i in texts])


def always(vocabulary: Vocabulary) -> set[int]:
    """Ids of tokens that any text may need, or that a runtime asks for by name."""
    letters = frozenset(byte_alphabet()) if _by_bytes(vocabulary.tokenizer) else frozenset()
    bytes_ = {i for token, i in vocabulary.base.items() if token in letters or _BYTE.fullmatch(token)}
    model = vocabulary.tokenizer.get("model")
    unknown = model.get("unk_token") if isinstance(model, dict) else None
    named = {vocabulary.base[unknown]} if isinstance(unknown, str) and unknown in vocabulary.base else set()
    unk_id = model.get("unk_id") if isinstance(model, dict) else None
    if type(unk_id) is int and 0 <= unk_id < len(vocabulary.scores):
        named.add(unk_id)
    return bytes_ | named | vocabulary.special_ids() | {token.id for token in vocabulary.added.values()}


def _by_bytes(tokenizer: Mapping[str, object]) -> bool:
    """Whether text goes through the alphabet of bytes."""

    def says(spec: object) -> bool:
        if not isinstance(spec, dict):
            return False
        parts = [*_list(spec.get("pretokenizers")), *_list(spec.get("normalizers"))]
        return spec.get("type") == "ByteLevel" or any(map(says, parts))

    return says(tokenizer.get("pre_tokenizer")) or says(tokenizer.get("normalizer"))


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _of_bpe(vocabulary: Vocabulary, texts: list[str]) -> set[int]:
    """The pieces that merges go through on the way to each token."""
    model = vocabulary.tokenizer.get("model")
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(model, dict) and model.get(affix):
            raise TokenizerError(f"a BPE vocabulary with {affix} cannot be trimmed")
    ranks = {
        (left, right): rank
        for rank, (left, _, right) in enumerate(str(merge).partition(" ") for merge in vocabulary.merges)
    }
    found: set[int] = set()
    for text in texts:
        found.update(vocabulary.base[piece] for piece in _steps(text, ranks) if piece in vocabulary.base)
    return found


def _steps(text: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    if len(text) > _MAX_PIECE:
        raise TokenizerError(f"a token of {len(text)} characters is none")
    symbols = list(text)
    seen = set(symbols)
    while len(symbols) > 1:
        ranked = ((ranks[pair], at) for at, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks)
        best = min(ranked, default=None)
        if best is None:
            break
        at = best[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        seen.add(symbols[at])
    return seen


def _of_unigram(vocabulary: Vocabulary, texts: list[str]) -> set[int]:
    """Their characters, and the worst piece."""
    letters = {letter for text in texts for letter in text}
    found = {vocabulary.base[letter] for letter in letters if letter in vocabulary.base}
    scores = vocabulary.scores
    return found | ({min(range(len(scores)), key=scores.__getitem__)} if scores else set())


_KINDS: dict[str, Callable[[Vocabulary, list[str]], set[int]]] = {
    "BPE": _of_bpe,
    "Unigram": _of_unigram,
    "WordPiece": lambda vocabulary, texts: set(),
}
