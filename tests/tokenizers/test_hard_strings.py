"""Five hundred hard texts: llama.cpp on the vocabulary that we write, against the tokenizer's own library.

Where they differ, llama.cpp does something of its own that no key of a GGUF changes; each such habit is named here, and
nothing else may differ. And llama.cpp's own test vectors, through the tokenizer.json that comes back.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.hard_strings import COUNT, hard_strings
from support.paths import DATA
from support.vocabularies import case_files, read_case, write_vocab_gguf

from converter.formats.gguf import open_gguf
from converter.tokenizers import write_tokenizer

sys.path.insert(0, str(DATA / "tokenizers"))

from tokenizer_cases import CASES

Ids = list[int]
Encode = Callable[[str], Ids]
Explains = Callable[[str], bool]


def names(*words: str) -> Explains:
    """llama.cpp takes what looks like these for special tokens, in plain text too; the library does not."""
    return lambda text: any(word in text for word in words)


def not_composed(text: str) -> bool:
    """llama.cpp does not normalize; this tokenizer composes first (NFC)."""
    return unicodedata.normalize("NFC", text) != text


def not_plain_lower_case(text: str) -> bool:
    """llama.cpp lower-cases and strips accents for a cased WordPiece, too, and splits otherwise at controls."""
    return not re.fullmatch(r"[\x20-\x40\[-\x7e\n\t]*", text) or bool(re.search(r"\[\w+\]", text))


def tokenizer_json(name: str, data: Path) -> Encode:
    library = pytest.importorskip("tokenizers").Tokenizer.from_file(str(data / CASES[name].files["tokenizer.json"]))
    return lambda text: library.encode(text, add_special_tokens=False).ids


def pieces(name: str, data: Path) -> Encode:
    library = pytest.importorskip("sentencepiece")
    return library.SentencePieceProcessor(model_file=str(data / CASES[name].files["tokenizer.model"])).encode


def merges(name: str, data: Path) -> Encode:
    files = (str(data / CASES[name].files[file]) for file in ("vocab.json", "merges.txt"))
    library = pytest.importorskip("tokenizers").ByteLevelBPETokenizer(*files)
    return lambda text: library.encode(text, add_special_tokens=False).ids


def word_pieces(name: str, data: Path) -> Encode:
    vocab = str(data / CASES[name].files["vocab.txt"])
    library = pytest.importorskip("tokenizers").BertWordPieceTokenizer(vocab, lowercase=False)
    return lambda text: library.encode(text, add_special_tokens=False).ids


MARKS = names("<s>", "</s>", "<unk>")
#: Tokenizer -> its library, the habits of llama.cpp that may show, and the most texts in which they do.
PROBES: dict[str, tuple[Callable[[str, Path], Encode], tuple[Explains, ...], int]] = {
    "stories-json": (tokenizer_json, (), 0),
    "phi2": (tokenizer_json, (), 0),
    "falcon": (tokenizer_json, (), 0),
    "starcoder": (tokenizer_json, (), 0),
    "qwen2": (tokenizer_json, (not_composed, names("</s>")), 43),
    "roberta": (tokenizer_json, (names("<|endoftext|>", "<mask>"),), 12),
    "gpt2-slow": (merges, (names("<|endoftext|>"),), 8),
    "llama2-spm": (pieces, (MARKS,), 26),
    "mistral-spm-v3": (pieces, (MARKS,), 26),
    "bert-cased": (word_pieces, (not_plain_lower_case,), 139),
}
FAST = ("stories-json", "phi2")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in PROBES])
def test_llama_cpp_gives_the_ids_of_the_tokenizers_own_library(name: str, data: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    case_files(CASES[name], data)  # which skips without them
    library, habits, most = PROBES[name]
    encode = library(name, data)
    write_vocab_gguf(read_case(name, data).metadata, tmp_path / "vocab.gguf")
    model = llama_cpp.Llama(str(tmp_path / "vocab.gguf"), vocab_only=True, verbose=False)
    different = [
        text
        for text in hard_strings()
        if model.tokenize(text.encode(), add_bos=False, special=True) != list(encode(text))
    ]
    assert [text for text in different if not any(habit(text) for habit in habits)] == []
    assert len(different) <= most


def test_the_texts_are_what_they_say() -> None:
    texts = hard_strings()
    assert len(texts) == COUNT and len(set(texts)) > COUNT - 5 and texts == hard_strings()
    assert len({unicodedata.name(letter, "?").split()[0] for text in texts for letter in text}) > 60


# ------------------------------------------------------------------------------------ llama.cpp's test vectors

# WordPiece comes back, but for a vocabulary file alone nobody knows how the reference cut the `[unused]` texts.
VECTORS = ("falcon", "gpt-2", "llama-spm", "phi-3", "qwen2")


def back(vocab: Path, tmp_path: Path) -> Any:
    """The library with the tokenizer.json or the model that we write of a vocabulary file."""
    with open_gguf(vocab) as checkpoint:
        written = write_tokenizer({key: v for key, v in checkpoint.config.items() if key.startswith("tokenizer.")})
    if "tokenizer.model" in written:
        library = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_proto=written["tokenizer.model"])
        return library.encode
    library = pytest.importorskip("tokenizers").Tokenizer.from_str(written["tokenizer.json"].decode())
    return lambda text: library.encode(text, add_special_tokens=False).ids


@pytest.mark.slow
@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_llama_cpp_through_what_comes_back(name: str, data: Path, tmp_path: Path) -> None:
    vocab = data / "gguf-vocab-llamacpp" / f"ggml-vocab-{name}.gguf"
    texts, ids = (Path(f"{vocab}.{kind}") for kind in ("inp", "out"))
    if not texts.is_file():
        pytest.skip(f"not in the test data: {texts}")
    encode = back(vocab, tmp_path)
    asked = texts.read_bytes().decode().split("\n__ggml_vocab_test__\n")
    wanted = [[int(number) for number in line.split()] for line in ids.read_text("utf-8").splitlines()]
    assert len(wanted) > 40
    assert [list(encode(text)) for text in asked[: len(wanted)]] == wanted
