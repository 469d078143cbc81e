"""Tokens that no file of the tokenizer lists, and the code beside it makes: InternS1's pieces, DNA in runs of letters.

Facts of the code that lies beside such models (or in transformers); nothing of it is executed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from converter.errors import TokenizerError
from converter.tokenizers.files import TokenizerFiles, as_id
from converter.tokenizers.sentencepiece import read_sentencepiece

DNA_FILE, DNA_CLASS, DNA_MODEL = "dna_config.json", "HybridDNATokenizer", "hybriddna"
DNA_LETTERS, DNA_MARKS = "ATCG", ("<dna>", "</dna>", "<oov>")
DNA_RUN = 6  # letters of a token
#: Behind a run of letters, which may be a token of plain text, too; llama.cpp takes it off.
RUN_MARK = "\ue000"
_DNA_ALIGNED = 128  # the vocabulary is filled up to a multiple of it

# InternS1's SentencePiece models of three sciences, by the name that its code gives their pieces, and their first ids.
_INTERN_S1 = (("SMILES", 151669), ("IUPAC", 151929), ("FASTA", 152443))
BESIDE_FILES = (DNA_FILE, *(f"tokenizer_{name}.model" for name, _ in _INTERN_S1))


@dataclass(frozen=True)
class Beside:
    """What code adds to a vocabulary.

    Attributes:
        tokens: text -> id; with any, tokens that are added keep the ids that they ask for, as in Python's tokenizers.
        model: the tokenizer model of a GGUF that has them.
    """

    tokens: Mapping[str, int] = field(default_factory=dict)
    model: str = "gpt2"


def read_beside(files: TokenizerFiles, tokenizer_class: str, following: int) -> Beside:
    """What the code of a tokenizer's class adds to the tokens of its files; `following`: the first id after theirs.

    Raises:
        TokenizerError: a file that it reads is not there, or damaged.
    """
    reader = _READERS.get(tokenizer_class)
    return reader(files, following) if reader else Beside()


def _intern_s1(files: TokenizerFiles, following: int) -> Beside:
    found: dict[str, int] = {}
    for name, first in _INTERN_S1:
        file = f"tokenizer_{name}.model"
        pieces = read_sentencepiece(files.data(file), file).pieces
        found.update((f"<|{name}_{piece.decode()}|>", first + i) for i, piece in enumerate(pieces))
    return Beside(found)


def _dna(files: TokenizerFiles, following: int) -> Beside:
    settings = files.json(DNA_FILE)
    run = as_id(settings.get("k", DNA_RUN), f"{DNA_FILE} k")
    if not 0 < run < 10:  # four to the power of it
        raise TokenizerError(f"{DNA_FILE}: k is {run}, runs of letters are of 1 to 9")
    first = as_id(settings.get("dna_start_id", following), f"{DNA_FILE} dna_start_id")
    return Beside({token: first + i for i, token in enumerate(dna_tokens(run, first))}, DNA_MODEL)


def dna_tokens(run: int, first: int) -> list[str]:
    """The tokens of DNA by id from `first` on: marks, runs of letters, and what fills the vocabulary up."""
    runs = ("".join(letters) + RUN_MARK for letters in itertools.product(DNA_LETTERS, repeat=run))
    tokens = [*DNA_MARKS, *runs]
    return [*tokens, *(f"<unused_{i}>" for i in range(-(first + len(tokens)) % _DNA_ALIGNED))]


def dna_settings(tokens: list[str], first: int) -> bytes:
    """The dna_config.json of a vocabulary whose DNA begins at `first`.

    Raises:
        TokenizerError: what stands there is not DNA as the code beside such models numbers it.
    """
    at = first + len(DNA_MARKS)
    run = len(tokens[at]) - len(RUN_MARK) if at < len(tokens) and tokens[at].endswith(RUN_MARK) else 0
    wanted = dna_tokens(run, first) if 0 < run < 10 else []
    if not wanted or tokens[first : first + len(wanted)] != wanted:
        raise TokenizerError(f"tokenizer model {DNA_MODEL!r}: its runs of letters are not in the order of {DNA_CLASS}")
    return (json.dumps({"k": run, "dna_start_id": first, "dna_vocab_size": len(wanted)}, indent=1) + "\n").encode()


_READERS: Mapping[str, Callable[[TokenizerFiles, int], Beside]] = {
    "InternS1Tokenizer": _intern_s1, DNA_CLASS: _dna,
}  # fmt: skip
