"""Tokenizer files to metadata and back: against llama.cpp's converter, against the libraries, against hostile files."""

from __future__ import annotations

import itertools
import json
import random
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import models
from support.paths import DATA
from support.protobuf import blob, varint
from support.vocabularies import Files, bytes_of, case_files, read_case, style_of, write_vocab_gguf

from converter.architectures import architectures
from converter.architectures.runtime import RUNTIME
from converter.architectures.traits import TokenizerStyle
from converter.errors import ConverterError, MissingPart, TokenizerError, UnknownPreTokenizer, UsageError
from converter.events import Dropped, Note, VocabularyPadded
from converter.formats.gguf import open_gguf
from converter.metadata import Array, Metadata, Value, boolean, text, u32
from converter.tokenizers import READERS, Tokenizer, pretokenizer, read_tokenizer, write_tokenizer
from converter.tokenizers.encoder import Encoder
from converter.tokenizers.files import TokenizerFiles
from converter.tokenizers.sentencepiece import read_sentencepiece
from converter.tokenizers.special import SPACE_PREFIX
from converter.tokenizers.splitting import Unsupported, byte_alphabet, compile_pattern, make_normalizer, make_splitter
from converter.tokenizers.vocabulary import read_vocabulary

HERE = DATA / "tokenizers"
sys.path.insert(0, str(HERE))

from tokenizer_cases import CASES  # noqa: E402
from tokenizer_digest import digest  # noqa: E402

REFERENCE: dict[str, dict[str, list[str]] | str] = json.loads((HERE / "reference.json").read_text())
# Where we differ on purpose: the reference gives every token the score -1000, which its own runtime cuts text
# wrongly with, and without a tokenizer_config.json it does not know <s> and </s> for special tokens.
DIFFERS = {
    "stories-json": {"tokenizer.ggml.scores"},
    "stories-json-v5": {"tokenizer.ggml.scores"},
    "stories-json-bare": {"tokenizer.ggml.scores", "tokenizer.ggml.token_type"},
}


def memory(**files: object) -> Files:
    """Files held in memory; `_` in a keyword stands for `.`, the last one only ("tokenizer_json")."""
    named = {".".join(name.rsplit("_", 1)): content for name, content in files.items()}
    return {
        name: bytes_of(
            content
            if isinstance(content, bytes)
            else content.encode()
            if isinstance(content, str)
            else json.dumps(content).encode()
        )
        for name, content in named.items()
    }


def digests(metadata: Metadata) -> dict[str, list[str]]:
    return {
        key: [f"[{v.type}]", digest(v.type, v.values)] if isinstance(v, Array) else [v.type, digest(v.type, v.value)]
        for key, v in metadata.items()
    }


# --- against llama.cpp's converter


@pytest.mark.parametrize("name", [name for name, keys in REFERENCE.items() if isinstance(keys, dict)])
def test_keys_values_types_and_order_equal_the_reference(name: str, data: Path) -> None:
    expected = REFERENCE[name]
    assert isinstance(expected, dict)
    ours = digests(read_case(name, data).metadata)
    assert list(ours) == [key for key in expected if key not in CASES[name].rows]
    assert {key for key in ours if ours[key] != expected[key]} == DIFFERS.get(name, set())


def test_reference_covers_every_case() -> None:
    assert set(REFERENCE) == set(CASES)


def test_tokenizer_larger_than_the_embedding_names_both(data: Path) -> None:
    assert "AssertionError" in REFERENCE["qwen2.5"]
    with pytest.raises(TokenizerError, match="151955 tokens, the embedding 151936 rows"):
        read_case("qwen2.5", data)


def test_wordpiece_without_a_known_hash_is_written(data: Path) -> None:
    tokenizer = read_case("bert-cased", data)
    assert tokenizer.metadata["tokenizer.ggml.pre"] == text("default")
    tokens = tokenizer.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Array)
    assert list(tokens.values[100:104]) == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert "▁the" in tokens.values and "ing" in tokens.values


@pytest.mark.parametrize(
    "name,vocab", [("llama2-spm", "llama-spm"), ("qwen2", "qwen2"), ("falcon", "falcon"), ("gpt2-slow", "gpt-2")]
)
def test_tokens_equal_llama_cpps_own_vocabulary_files(name: str, vocab: str, data: Path) -> None:
    path = data / "gguf-vocab-llamacpp" / f"ggml-vocab-{vocab}.gguf"
    if not path.is_file():
        pytest.skip(f"not in the test data: {path}")
    ours = read_case(name, data).metadata
    with open_gguf(path) as checkpoint:
        for key in (f"tokenizer.ggml.{part}" for part in ("tokens", "merges", "scores")):
            theirs, mine = checkpoint.config.get(key), ours.get(key)
            assert (theirs is None) == (mine is None), key
            if isinstance(theirs, Array) and isinstance(mine, Array):
                assert list(mine.values) == list(theirs.values), key


# --- what the runtime makes of it


def test_derived_scores_make_the_runtime_cut_text_as_the_tokenizer_does(data: Path, tmp_path: Path) -> None:
    llama_cpp, tokenizers = pytest.importorskip("llama_cpp"), pytest.importorskip("tokenizers")
    metadata = read_case("stories-json", data).metadata
    constant = {**metadata, "tokenizer.ggml.scores": Array("f32", np.full(512, -1000, np.float32))}
    write_vocab_gguf(metadata, tmp_path / "ours.gguf")
    write_vocab_gguf(constant, tmp_path / "constant.gguf")
    ours, flat = (
        llama_cpp.Llama(str(tmp_path / f"{n}.gguf"), vocab_only=True, verbose=False) for n in ("ours", "constant")
    )
    expected = tokenizers.Tokenizer.from_file(str(data / "lm-stories260K-hf" / "tokenizer.json"))
    lines = ["Lily and Ben went to the park.", "They saw a big red ball!", "I did not want to break it."]
    wanted = [expected.encode(line).ids for line in lines]
    assert [ours.tokenize(line.encode(), add_bos=True) for line in lines] == wanted
    assert [flat.tokenize(line.encode(), add_bos=True) for line in lines] != wanted


# --- the encoder

TEXTS = [
    "  lead",
    "tab\t\ttab",
    "\r\n a\r\n\r\n",
    "éÀ¼ Ⅻ½ ١٢٣ 12345",
    " ",
    "\u00a0nbsp\u2003em",
    "a\u0301 한국어 日本語 😀\u200d👧",
    "I'll we've IT'S",
    "<|endoftext|> x <|endoftext|>y",
    "<s>a</s>",
    "3.14 + 2e10",
    "if (a) {\n    return b;\n}\n",
]


def random_texts(count: int) -> list[str]:
    parts = [*"aB \n\t9é中ก—\rΩß▁x", "'s", "  ", "12", "!!", "<unk>"]
    rng = random.Random(7)
    return ["".join(rng.choice(parts) for _ in range(rng.randint(1, 30))) for _ in range(count)]


@pytest.mark.parametrize(
    "folder",
    [
        "tok-phi2",
        "tok-falcon",
        "tok-rebuilt-qwen2",
        "tok-rebuilt-starcoder",
        "tok-roberta",
        "tok-clip",
        "lm-stories260K-hf",
    ],
)
def test_encoder_equals_the_tokenizers_library_on_real_tokenizers(folder: str, data: Path) -> None:
    library = pytest.importorskip("tokenizers")
    path = data / folder / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"not in the test data: {path}")
    vocabulary = read_vocabulary(TokenizerFiles({"tokenizer.json": path}), {})
    ours, theirs = Encoder(vocabulary.tokenizer, vocabulary), library.Tokenizer.from_file(str(path))
    for line in [pretokenizer.facts().probe, *TEXTS, *random_texts(100)]:
        ids = ours.encode(line)
        assert ids == theirs.encode(line, add_special_tokens=False).ids, line
        assert ours.with_special(ids) == theirs.encode(line).ids, line


SPLITTERS: list[dict[str, object]] = [
    *(pretokenizer.to_json(row.split) for row in pretokenizer.facts().expressions),
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
    {"type": "BertPreTokenizer"},
    {"type": "Whitespace"},
    {"type": "WhitespaceSplit"},
    {"type": "Punctuation", "behavior": "Isolated"},
    {"type": "Punctuation", "behavior": "Removed"},
    *(
        {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}
        for pattern in ({"String": " "}, {"Regex": r"\d{1,2}|[aeiou]"}, {"Regex": r"(?=\d)"})
        for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
        for invert in (False, True)
    ),
]


@pytest.mark.parametrize("spec", SPLITTERS, ids=lambda spec: ascii(spec)[:70])
def test_splitters_equal_the_tokenizers_library(spec: dict[str, object]) -> None:
    library = pytest.importorskip("tokenizers")
    shell = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": spec,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    theirs = library.Tokenizer.from_str(json.dumps(shell)).pre_tokenizer
    split = make_splitter(spec)
    for line in [*TEXTS, *random_texts(40)]:
        assert split([line]) == [piece for piece, _ in theirs.pre_tokenize_str(line)], line


NORMALIZERS: list[dict[str, object]] = [
    *({"type": name} for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "ByteLevel")),
    {"type": "Strip", "strip_left": True, "strip_right": False},
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    *(
        {
            "type": "BertNormalizer",
            "clean_text": clean,
            "handle_chinese_chars": clean,
            "strip_accents": accents,
            "lowercase": lower,
        }
        for clean in (True, False)
        for accents in (None, True, False)
        for lower in (True, False)
    ),
    {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]},
]


@pytest.mark.parametrize("spec", NORMALIZERS, ids=lambda spec: ascii(spec)[:70])
def test_normalizers_equal_the_tokenizers_library(spec: dict[str, object]) -> None:
    library = pytest.importorskip("tokenizers")
    shell = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": spec,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    theirs, ours = library.Tokenizer.from_str(json.dumps(shell)).normalizer, make_normalizer(spec)
    for line in [*TEXTS, *random_texts(40)]:
        assert ours(line) == theirs.normalize_str(line), line


# --- small tokenizers made here

GPT2_PRE = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def byte_level(
    extra: Mapping[str, object] | None = None,
    *,
    merges: list[object] | None = None,
    added: list[object] | None = None,
    pre: object = GPT2_PRE,
) -> dict[str, object]:
    """A byte-level BPE with 256 bytes, "ab" (256) and "Ġab" (257)."""
    vocab = {char: i for i, char in enumerate(byte_alphabet())} | {"ab": 256, "Ġab": 257}
    pairs = [["a", "b"], ["Ġ", "ab"]] if merges is None else merges
    return {
        "added_tokens": added if added is not None else [{"id": 258, "content": "<|end|>", **SPECIAL}],
        "normalizer": None,
        "pre_tokenizer": pre,
        "post_processor": None,
        "decoder": GPT2_PRE,
        "model": {"type": "BPE", "vocab": vocab, "merges": pairs},
        **(extra or {}),
    }


def read_small(
    tokenizer: object,
    settings: object = None,
    config: Mapping[str, object] | None = None,
    *,
    rows: int | None = None,
    arch: str = "gpt2",
    pre: str | None = None,
    **files: object,
) -> Tokenizer:
    given = {"tokenizer_json": tokenizer, **({} if settings is None else {"tokenizer_config_json": settings}), **files}
    return read_tokenizer(memory(**given), config or {}, n_rows=rows, style=style_of(arch), pre=pre)


def template(*single: str | dict[str, object], pair: list[dict[str, object]] | None = None) -> dict[str, object]:
    items = [{"SpecialToken": {"id": s, "type_id": 0}} if isinstance(s, str) else s for s in single]
    return {
        "type": "TemplateProcessing",
        "single": items,
        "pair": pair or [],
        "special_tokens": {s: {"id": s, "ids": [258], "tokens": [s]} for s in single if isinstance(s, str)},
    }


SEQUENCE: dict[str, object] = {"Sequence": {"id": "A", "type_id": 0}}


def value(tokenizer: Tokenizer, key: str) -> object:
    found = tokenizer.metadata.get(f"tokenizer.ggml.{key}")
    return found.value if isinstance(found, Value) else found


def array(tokenizer: Tokenizer, key: str) -> list[object]:
    found = tokenizer.metadata[f"tokenizer.ggml.{key}"]
    assert isinstance(found, Array)
    return list(found.values)


def test_both_forms_of_merges_give_the_same_metadata() -> None:
    as_pairs, as_text = read_small(byte_level()), read_small(byte_level(merges=["a b", "Ġ ab"]))
    assert as_pairs.metadata == as_text.metadata
    assert array(as_pairs, "merges") == ["a b", "Ġ ab"]


def test_padding_is_said_and_typed_unused() -> None:
    tokenizer = read_small(byte_level(), rows=264)
    assert tokenizer.n_tokens == 264
    assert array(tokenizer, "tokens")[257:261] == ["Ġab", "<|end|>", "[PAD259]", "[PAD260]"]
    assert array(tokenizer, "token_type")[257:261] == [1, 3, 5, 5]
    assert VocabularyPadded(259, 264) in tokenizer.events


def test_added_tokens_are_typed_and_decoded_as_the_reference_does() -> None:
    added = [
        {"id": 258, "content": "<|end|>", **SPECIAL},
        {"id": 259, "content": "Ġnew", **SPECIAL, "special": False},
        {"id": 260, "content": "Ġkept", **SPECIAL, "special": False, "normalized": True},
        {"id": 261, "content": "<|looks special|>", **SPECIAL, "special": False},
    ]
    tokenizer = read_small(byte_level(added=added))
    assert array(tokenizer, "tokens")[258:] == ["<|end|>", " new", "Ġkept", "<|looks special|>"]
    assert array(tokenizer, "token_type")[258:] == [3, 4, 4, 3]


def test_special_tokens_of_the_settings_join_the_added_ones() -> None:
    settings = {
        "eos_token": {"content": "ab", "special": True},
        "extra_special_tokens": ["<new>"],
        "tokenizer_class": "TokenizersBackend",
    }
    tokenizer = read_small(byte_level(), settings)
    assert array(tokenizer, "token_type")[256] == 3
    assert array(tokenizer, "tokens")[259] == "<new>"


POST_PROCESSORS: list[tuple[object, dict[str, object], dict[str, bool]]] = [
    (None, {}, {}),
    ({"type": "ByteLevel"}, {}, {"bos": False, "eos": False}),
    (template("<|end|>", SEQUENCE), {"bos_token": "<|end|>"}, {"bos": True}),
    (template("<|end|>", SEQUENCE), {"bos_token": "ab", "cls_token": "ab"}, {"bos": False}),
    (template(SEQUENCE, "<|end|>"), {"eos_token": "<|end|>"}, {"eos": True}),
    (template("<|end|>", SEQUENCE, "<|end|>"), {}, {"bos": True, "eos": True}),
    (
        {"type": "RobertaProcessing", "sep": ["ab", 256], "cls": ["<|end|>", 258]},
        {"bos_token": "<|end|>"},
        {"bos": True, "eos": True, "sep": True},
    ),
    (
        {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template("<|end|>", SEQUENCE)]},
        {"bos_token": "<|end|>"},
        {"bos": True, "eos": False},
    ),
    (None, {"add_bos_token": True, "add_eos_token": False}, {"bos": True, "eos": False}),
    (template("<|end|>", SEQUENCE), {"bos_token": "<|end|>", "add_bos_token": False}, {"bos": True}),
]


@pytest.mark.parametrize("post,settings,expected", POST_PROCESSORS)
def test_add_switches_follow_the_post_processor(
    post: object, settings: dict[str, object], expected: dict[str, bool]
) -> None:
    tokenizer = read_small(byte_level({"post_processor": post}), {"model_max_length": 8, **settings})
    found = {name: value(tokenizer, f"add_{name}_token") for name in ("bos", "eos", "sep")}
    assert {name: flag for name, flag in found.items() if flag is not None} == expected


def test_pair_template_switches_add_sep() -> None:
    def item(token: str) -> dict[str, object]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    pair = [item("<|end|>"), SEQUENCE, item("ab"), {"Sequence": {"id": "B", "type_id": 1}}]
    post = template("<|end|>", SEQUENCE, pair=pair)
    with_sep = read_small(byte_level({"post_processor": post}), {"bos_token": "<|end|>", "sep_token": "ab"})
    assert value(with_sep, "add_sep_token") is True
    without = read_small(byte_level({"post_processor": post}), {"bos_token": "<|end|>", "sep_token": "Ġab"})
    assert value(without, "add_sep_token") is False


def test_another_eos_in_the_template_makes_eot() -> None:
    added = [{"id": 258, "content": "<|end|>", **SPECIAL}, {"id": 259, "content": "<eos>", **SPECIAL}]
    tokenizer = byte_level({"post_processor": template(SEQUENCE, "<|end|>")}, added=added)
    read = read_small(tokenizer, {"eos_token": "<eos>"})
    assert (value(read, "eos_token_id"), value(read, "eot_token_id")) == (258, 259)


def test_python_s_own_words_in_the_files_that_python_reads() -> None:
    plain = read_small(byte_level(), {"model_max_length": 512})
    assert read_small(byte_level(), {"model_max_length": float("inf"), "odd": float("nan")}).metadata == plain.metadata


def test_ids_come_from_the_config_where_the_settings_have_none() -> None:
    config = {"bos_token_id": 258, "eos_token_id": [256, 257], "pad_token_id": -1, "text_config": {"unk_token_id": 5}}
    tokenizer = read_small(byte_level(), {"bos_token": "ab"}, config)
    assert (value(tokenizer, "bos_token_id"), value(tokenizer, "unknown_token_id")) == (258, 5)
    assert value(tokenizer, "eos_token_id") is None and value(tokenizer, "padding_token_id") is None
    assert any("pad_token_id -1" in str(event) for event in tokenizer.events if isinstance(event, Note))


TEMPLATES: list[tuple[dict[str, object], dict[str, object], dict[str, object]]] = [
    ({"chat_template": "x"}, {}, {"tokenizer.chat_template": "x"}),
    ({"a": 1}, {"chat_template_jinja": "j\r\n"}, {"tokenizer.chat_template": "j\n"}),
    ({"a": 1}, {"chat_template_json": {"chat_template": "k"}}, {"tokenizer.chat_template": "k"}),
    ({"chat_template": "x"}, {"chat_template_jinja": "j"}, {"tokenizer.chat_template": "x"}),
    (
        {"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]},
        {},
        {"tokenizer.chat_template.rag": "r", "tokenizer.chat_templates": ["rag"], "tokenizer.chat_template": "d"},
    ),
    (
        {"a": 1},
        {"chat_template_jinja": "j", "additional_chat_templates/a b_jinja": "t"},
        {"tokenizer.chat_template.a_b": "t", "tokenizer.chat_templates": ["a_b"], "tokenizer.chat_template": "j"},
    ),
    ({"chat_template": 5}, {}, {}),
]


@pytest.mark.parametrize("settings,files,expected", TEMPLATES)
def test_chat_templates(settings: dict[str, object], files: dict[str, object], expected: dict[str, object]) -> None:
    tokenizer = read_small(byte_level(), settings, **files)
    found = {
        k: v.value if isinstance(v, Value) else list(v.values)
        for k, v in tokenizer.metadata.items()
        if "chat_template" in k
    }
    assert list(found.items()) == list(expected.items())


def test_normalizer_switches() -> None:
    spec = {"type": "Sequence", "normalizers": [{"type": "StripAccents"}, {"type": "Lowercase"}]}
    tokenizer = read_small(byte_level({"normalizer": spec}))
    assert value(tokenizer, "normalizer.lowercase") is True and value(tokenizer, "normalizer.strip_accents") is True


def test_sentencepiece_json_fills_rows_that_the_model_leaves_empty(data: Path) -> None:
    case = CASES["stories-spm"]
    added = {"added_tokens": [{"id": 513, "content": "<extra>", "special": True}], "model": {"vocab": {}}}
    files = {**case_files(case, data), **memory(tokenizer_json=added)}
    tokenizer = read_tokenizer(files, case.config, n_rows=514, style=style_of("llama"))
    assert array(tokenizer, "tokens")[512:] == ["[PAD512]", "<extra>"]
    assert array(tokenizer, "token_type")[512:] == [5, 3]


def test_styles_name_known_readers_only() -> None:
    every = {*RUNTIME, *architectures()}
    own = {"tekken", "tiktoken", "rwkv", "plamo"}  # tried for every style
    assert {reader for arch in every for reader in style_of(arch).readers} | own == set(READERS)
    of_one_family = {"gemma4", "chatglm", "whitespace", "none"}
    assert set(style_of("nobody").readers) == set(READERS) - of_one_family - own
    tokenizer = read_tokenizer({}, {}, n_rows=None, style=style_of("wavtokenizer-dec"))
    assert tokenizer.metadata == {"tokenizer.ggml.model": text("none")}


def test_architecture_keys_around_the_vocabulary() -> None:
    keys = list(read_small(byte_level(), arch="modern-bert").metadata)
    assert keys[:4] == [f"tokenizer.ggml.add_{n}_token" for n in ("bos", "eos", "sep")] + ["tokenizer.ggml.model"]
    granite = read_small(byte_level(), {"add_prefix_space": False}, rows=49152, arch="llama")
    assert next(iter(granite.metadata)) == "tokenizer.ggml.add_space_prefix"
    assert granite.metadata["tokenizer.ggml.add_bos_token"] == boolean(False)
    rounded = read_small(byte_level(), config={"vocab_size": 259}, arch="mamba")
    assert rounded.n_tokens == 264
    glm = read_small(byte_level(added=[{"id": 258, "content": "<|endoftext|>", **SPECIAL}]), arch="glm4")
    assert glm.metadata["tokenizer.ggml.eos_token_id"] == u32(258)


def test_unigram_tokenizer_json(data: Path) -> None:
    path = data / "tok-t5-small" / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"not in the test data: {path}")
    settings = path.with_name("tokenizer_config.json")
    files: Files = {"tokenizer.json": path, "tokenizer_config.json": settings}
    tokenizer = read_tokenizer(files, {}, n_rows=32128, style=style_of("t5"))
    assert value(tokenizer, "model") == "t5" and value(tokenizer, "add_space_prefix") is True
    assert array(tokenizer, "tokens")[:4] == ["<pad>", "</s>", "<unk>", "▁"]
    assert array(tokenizer, "token_type")[:4] == [3, 3, 2, 1]
    assert len(array(tokenizer, "precompiled_charsmap")) > 100_000


# --- the pre-tokenizer's name


@pytest.mark.parametrize("row", pretokenizer.facts().expressions, ids=lambda row: row.name)
def test_name_is_found_by_expression(row: pretokenizer.Expression) -> None:
    tokenizer = byte_level(pre=pretokenizer.to_json(row.split))
    model = tokenizer["model"]
    assert isinstance(model, dict)
    model["ignore_merges"] = bool(row.ignore_merges)
    read = read_small(tokenizer)
    assert value(read, "pre") == row.name
    assert any("regular expression" in str(event) for event in read.events)


def test_unknown_pretokenizer_shows_what_was_found_and_how_to_go_on() -> None:
    pre = {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated", "invert": False}
    with pytest.raises(UnknownPreTokenizer, match=r"\[aeiou\]\+") as caught:
        read_small(byte_level(pre=pre))
    assert "--pre NAME" in str(caught.value) and len(str(caught.value).splitlines()) <= 3
    assert value(read_small(byte_level(pre=pre), pre="qwen2"), "pre") == "qwen2"
    with pytest.raises(UsageError, match="close names: qwen2"):
        read_small(byte_level(pre=pre), pre="qwen22")


def test_every_hash_is_a_sha256_and_every_alias_has_expressions() -> None:
    facts = pretokenizer.facts()
    assert len(facts.hashes) == 95 and all(len(h) == 64 for h in facts.hashes)
    assert all(pretokenizer.expression_of(name) for name in facts.same_as)
    assert {row.name for row in facts.expressions} <= facts.names


# --- the way back


@pytest.mark.parametrize(
    "name",
    [
        "stories-spm",
        "stories-spm-padded",
        "stories-spm-jinja-more",
        "stories-json",
        "mistral-spm-v3",
        "qwen2",
        "starcoder",
        "phi2",
        "falcon",
        "gpt2-slow",
    ],
)
def test_written_files_read_back_to_the_same_metadata(name: str, data: Path) -> None:
    case = CASES[name]
    first = read_case(name, data)
    files: Files = {file: bytes_of(content) for file, content in write_tokenizer(first.metadata).items()}
    again = read_tokenizer(files, case.config, n_rows=first.n_tokens, style=style_of(case.arch))
    assert again.metadata == first.metadata
    assert list(again.metadata) == list(first.metadata)


@pytest.mark.parametrize("name", ["stories-spm", "qwen2", "starcoder", "phi2", "falcon"])
def test_written_tokenizer_json_encodes_as_the_original(name: str, data: Path) -> None:
    library = pytest.importorskip("tokenizers")
    written = write_tokenizer(read_case(name, data).metadata)
    ours = library.Tokenizer.from_str(written["tokenizer.json"].decode())
    theirs = library.Tokenizer.from_file(str(data / CASES[name].files["tokenizer.json"]))
    for line in [pretokenizer.facts().probe, *TEXTS, *random_texts(60)]:
        assert ours.encode(line).ids == theirs.encode(line).ids, line


def test_written_sentencepiece_model_encodes_as_the_original(data: Path) -> None:
    library = pytest.importorskip("sentencepiece")
    written = write_tokenizer(read_case("llama2-spm", data).metadata)["tokenizer.model"]
    ours = library.SentencePieceProcessor(model_proto=written)
    theirs = library.SentencePieceProcessor(model_file=str(data / "tok-llama2-spm" / "tokenizer.model"))
    for line in TEXTS:
        assert ours.encode(line) == theirs.encode(line), line


OF_ENCODERS = {"wordpiece": "bert", "xlm-roberta": "t5encoder", "t5-json": "t5encoder", "roberta": "eurobert"}
PAIR = ("she eats an apple 12", "The end.")


@pytest.mark.parametrize("name", OF_ENCODERS)
def test_written_tokenizers_of_encoders(name: str, tmp_path: Path) -> None:
    """The files that are written say the same keys, in the same order, and encode as the source: two texts, too."""
    library = pytest.importorskip("tokenizers")
    models.TOKENIZERS[name](tmp_path)
    style, config = style_of(OF_ENCODERS[name]), models.TOKENIZER_CONFIG[name]
    source: Files = {path.name: path for path in tmp_path.iterdir()}
    first = read_tokenizer(source, config, n_rows=None, style=style, pre="gpt-2")
    written = write_tokenizer(first.metadata)
    files: Files = {file: bytes_of(content) for file, content in written.items()}
    again = read_tokenizer(files, config, n_rows=None, style=style, pre="gpt-2")
    assert again.metadata == first.metadata and list(again.metadata) == list(first.metadata)
    ours = library.Tokenizer.from_str(written["tokenizer.json"].decode())
    theirs = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for line in [pretokenizer.facts().probe, *TEXTS, *random_texts(60), "Crème brûlée, ÉTÉ and Ünïcode 東京"]:
        assert ours.encode(line).ids == theirs.encode(line).ids, line
    assert ours.encode(*PAIR).ids == theirs.encode(*PAIR).ids
    assert ours.decode(ours.encode(PAIR[0]).ids) == theirs.decode(theirs.encode(PAIR[0]).ids)


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ({"lowercase": False}, {"lowercase": False, "strip_accents": None}),
        ({"lowercase": True, "strip_accents": False}, {"lowercase": True, "strip_accents": False}),
        # A file that does not say it is read as its runtime reads it.
        ({}, {"lowercase": True, "strip_accents": None}),
    ],
)
def test_what_wordpiece_does_to_letters(said: dict[str, bool], written: dict[str, Any], tmp_path: Path) -> None:
    models.TOKENIZERS["wordpiece"](tmp_path)
    source: Files = {path.name: path for path in tmp_path.iterdir()}
    metadata = dict(read_tokenizer(source, {}, n_rows=None, style=style_of("bert")).metadata)
    metadata = {key: entry for key, entry in metadata.items() if ".normalizer." not in key}
    metadata |= {f"tokenizer.ggml.normalizer.{name}": boolean(flag) for name, flag in said.items()}
    normalizer = json.loads(write_tokenizer(metadata)["tokenizer.json"])["normalizer"]
    assert {name: normalizer[name] for name in written} == written


@pytest.mark.parametrize("add", [True, False])
def test_wordpiece_that_says_what_it_adds(add: bool, tmp_path: Path) -> None:
    """[CLS] and [SEP], and one [SEP] between two texts; or nothing."""
    library = pytest.importorskip("tokenizers")
    models.TOKENIZERS["wordpiece"](tmp_path)
    source: Files = {path.name: path for path in tmp_path.iterdir()}
    metadata = dict(read_tokenizer(source, {}, n_rows=None, style=style_of("bert")).metadata)
    metadata |= {f"tokenizer.ggml.add_{name}_token": boolean(add) for name in ("bos", "eos")}
    ours = library.Tokenizer.from_str(write_tokenizer(metadata)["tokenizer.json"].decode())
    theirs = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ours.encode(*PAIR).ids == theirs.encode(*PAIR, add_special_tokens=add).ids


def test_what_cannot_be_written_says_so() -> None:
    metadata = dict(read_small(byte_level()).metadata)
    with pytest.raises(TokenizerError, match="'none'"):
        write_tokenizer({**metadata, "tokenizer.ggml.model": text("none")})
    with pytest.raises(TokenizerError, match="superbpe"):
        write_tokenizer({**metadata, "tokenizer.ggml.pre": text("superbpe")})
    with pytest.raises(TokenizerError, match="differ in length"):
        write_tokenizer({**metadata, "tokenizer.ggml.token_type": Array("i32", [1, 2])})
    with pytest.raises(TokenizerError, match="not UTF-8"):
        write_tokenizer({**metadata, "tokenizer.ggml.tokens": Array("str", [b"\xff"] * 259)})


# --- hostile files


def piece(token: bytes, kind: int = 1) -> bytes:
    return blob(1, blob(1, token) + b"\x15" + struct.pack("<f", 0.0) + b"\x18" + varint(kind))


BAD_MODELS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no pieces"),
    "not protobuf": (b"PK\x03\x04" + bytes(60), "damaged|truncated|wire type"),
    "length bomb": (b"\x0a" + varint(1 << 40) + b"x", "needs 1099511627776 bytes, 1 are left"),
    "endless number": (b"\x0a" + b"\xff" * 40, "a number at offset 11 does not end"),
    "truncated number": (b"\x0a\xff", "a number at offset 2 does not end"),
    "field zero": (b"\x02\x00", "field 0 at offset 0"),
    "group": (b"\x0b", "wire type 3"),
    "varint for a piece": (b"\x08\x01", "wrong wire type"),
    "score as a varint": (piece(b"<unk>", 2) + blob(1, blob(1, b"x") + b"\x10\x01"), "not a 32-bit float"),
    "unknown type": (piece(b"<unk>", 9), "unknown type 9"),
    "no unknown piece": (piece(b"a"), "0 unknown pieces"),
    "duplicate": (piece(b"<unk>", 2) + piece(b"a") * 2, "appears twice"),
    "empty piece": (piece(b"<unk>", 2) + piece(b""), "piece 1 is empty"),
    "not UTF-8": (piece(b"<unk>", 2) + piece(b"\xff"), "not UTF-8"),
    "char model": (piece(b"<unk>", 2) + blob(2, b"\x18\x04"), "model type 4"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_damaged_sentencepiece_models_are_one_message(name: str) -> None:
    content, message = BAD_MODELS[name]
    with pytest.raises(TokenizerError, match=message) as caught:
        read_tokenizer(memory(tokenizer_model=content), {}, n_rows=None, style=style_of("llama"))
    assert len(str(caught.value)) < 300 and "tokenizer.model" in str(caught.value)


def test_every_truncation_of_a_model_is_refused_or_whole(data: Path) -> None:
    whole = (data / "lm-stories260K-hf" / "tokenizer.model").read_bytes()
    for size in [*range(0, 200), *range(200, len(whole), 97)]:
        try:
            model = read_sentencepiece(whole[:size])
        except TokenizerError:
            continue
        assert len(model) <= 512


def test_unusual_but_valid_piece_layouts_are_read() -> None:
    backwards = blob(1, b"\x18\x02" + b"\x15" + struct.pack("<f", -1.5) + blob(1, b"<unk>"))
    model = read_sentencepiece(backwards + blob(1, blob(1, b"long" * 40)) + blob(9, b"ignored"))
    assert (model.pieces[0], model.scores[0], model.types[0]) == (b"<unk>", -1.5, 2)
    assert (model.pieces[1], model.types[1]) == (b"long" * 40, 1)


def changed(path: str, new: object) -> dict[str, object]:
    """A byte-level tokenizer with the value at "a/b/c" replaced."""
    tokenizer = byte_level()
    at: dict[str, object] = tokenizer
    *parents, last = path.split("/")
    for name in parents:
        inner = at[name]
        assert isinstance(inner, dict)
        at = inner
    at[last] = new
    return tokenizer


def nested(depth: int) -> str:
    """A byte-level tokenizer.json whose normalizer is `depth` sequences in one another."""
    spec = '{"type": "Sequence", "normalizers": [' * depth + "]}" * depth
    return json.dumps(byte_level()).replace('"normalizer": null', f'"normalizer": {spec}')


BAD_JSON: dict[str, tuple[object, str]] = {
    "deep": ('{"a":' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deeply"),
    "twice": ('{"model": {}, "model": {}}', "key 'model' stands twice"),
    "NaN": ('{"model": NaN}', "NaN is not JSON"),
    "huge number": ('{"model": ' + "9" * 10_000 + "}", "not valid JSON"),
    "list": ("[]", "a JSON object was expected, found list"),
    "cut": ('{"model": {"vo', "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not UTF-8 at byte 2"),
    "no model": ({"added_tokens": []}, "vocabulary is empty"),
    "model is a list": (changed("model", []), "an object was expected"),
    "vocab is a number": (changed("model/vocab", 7), "an object was expected"),
    "id is text": (changed("model/vocab", {"a": "x"}), "token 'a' has no id"),
    "id is true": (changed("model/vocab", {"a": True}), "token 'a' has no id"),
    "id is negative": (changed("model/vocab", {"a": -1}), "token 'a' has no id"),
    "id is huge": (changed("model/vocab", {"a": 1 << 40}), "token 'a' has no id"),
    "shared id": (changed("model/vocab", {"a": 0, "b": 0}), "share one id"),
    "merge of unknown tokens": (changed("model/merges", [["a", "b"], ["a", "zz"]]), "merge 1 .* unknown token"),
    "merge of one": (changed("model/merges", ["ab"]), "merge 0 is not a pair"),
    "merge of numbers": (changed("model/merges", [[1, 2]]), "merge 0 is not a pair"),
    "merges are text": (changed("model/merges", "a b"), "a list was expected"),
    "added token out of range": (changed("added_tokens", [{"id": 1 << 30, "content": "x"}]), "out of range"),
    "added token elsewhere": (changed("added_tokens", [{"id": 3, "content": "ab"}]), "'ab' has id 3, and 256 in"),
    "added token without text": (changed("added_tokens", [{"id": 300}]), "a string was expected"),
    "added tokens are numbers": (changed("added_tokens", [1]), "an object was expected"),
    "half a surrogate pair": (changed("added_tokens", [{"id": 258, "content": "\ud800"}]), "surrogate"),
    "type is a number": (changed("model/type", 3), "a string was expected"),
    "strange kind": (changed("model/type", "Mystery"), "kind Mystery"),
    "post-processor is text": (changed("post_processor", "x"), "an object was expected"),
    "many parts": (
        changed("pre_tokenizer", {"type": "Sequence", "pretokenizers": [GPT2_PRE] * 99}),
        "99 parts are refused",
    ),
    "growing normalizer": (
        changed(
            "normalizer",
            {
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "...."}] * 60,
            },
        ),
        "more than 4096 characters",
    ),
    "endless affixes": (
        changed(
            "post_processor",
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "a"}}] * 2000,
                "special_tokens": {"a": {"ids": [1] * 2000}},
            },
        ),
        "more than 64 special tokens",
    ),
    "nested sequences": (nested(3000), "nested too deeply"),
    "decoder that does not compile": (
        changed("decoder", {"type": "Replace", "pattern": {"Regex": "("}, "content": "x"}),
        "cannot be used",
    ),
    "long expression": (
        changed("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "a" * 30_000}, "behavior": "Isolated"}),
        "30000 characters is refused",
    ),
    "expression that unrolls": (
        changed(
            "pre_tokenizer",
            {
                "type": "Split",
                "pattern": {"Regex": "((a{9999}){9999}){9999}"},
                "behavior": "Isolated",
            },
        ),
        "repeats too much",
    ),
    "no pattern": (changed("pre_tokenizer", {"type": "Split", "behavior": "Isolated"}), "needs Regex or String"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_hostile_tokenizer_json_is_one_message(name: str) -> None:
    content, message = BAD_JSON[name]
    with pytest.raises(TokenizerError, match=message) as caught:
        read_small(content)
    assert len(str(caught.value).splitlines()) <= 3 and len(str(caught.value)) < 600


def test_catastrophic_expression_ends_in_time() -> None:
    pattern = {"Regex": r"(?:(?:.|\s)+)+(?=\x00\x00|\x01)"}
    pre = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    start = time.monotonic()
    with pytest.raises(TokenizerError, match="does not finish in 2 s"):
        read_small(byte_level(pre=pre))
    assert time.monotonic() - start < 20
    assert value(read_small(byte_level(pre=pre), pre="gpt-2"), "pre") == "gpt-2"


CALLS = (
    "((?R)a)*", "(?R)?a", "(?1)", "(?&x)", "(?P<x>a)(?P>x)", "(.(?R)?.(?R)?)", "(?:ab){e<=3}", "(?:ab){2i+1s<=4}",
    "(?:a){e}", "(*PRUNE)",
)  # fmt: skip
ORDINARY = (
    "(?>a)", r"\((?i:a)", "[(?R)]", r"\(?R", "(?P<x>a)", "(?<!x)a", "(?=x)x", "a{2,3}", r"\p{Lu}{1}", r"\p{s}", "a{b}",
    "(?-i:x)", r"\{e<1\}",
)  # fmt: skip


@pytest.mark.parametrize("pattern", CALLS)
def test_an_expression_that_calls_itself_is_not_run(pattern: str) -> None:
    """It took 600 MB in its two seconds, and then "out of memory"."""
    with pytest.raises(Unsupported, match="calls itself"):
        compile_pattern(pattern, "tokenizer.json")
    pre = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    with pytest.raises(UnknownPreTokenizer, match="--pre NAME"):
        read_small(byte_level(pre=pre))


@pytest.mark.parametrize("pattern", ORDINARY)
def test_what_looks_like_a_call_and_is_none(pattern: str) -> None:
    assert compile_pattern(pattern, "tokenizer.json").pattern == pattern


def test_repetitions_of_real_patterns_compile() -> None:
    groups = compile_pattern(r"\p{N}{1,3}(?=(?:\d{3}){2,}\b)", "tokenizer.json")
    assert groups.findall("12345678") == ["12"]
    assert compile_pattern("(?:a{99}){99}", "tokenizer.json").fullmatch("a" * 99 * 99)
    with pytest.raises(Unsupported, match="4E00"):  # an escape of Oniguruma alone
        compile_pattern(r"\x{4E00}{2}|a{0,9999}", "tokenizer.json")


def test_expression_that_does_not_compile_asks_for_a_name() -> None:
    pre = {"type": "Split", "pattern": {"Regex": "(unclosed"}, "behavior": "Isolated", "invert": False}
    with pytest.raises(UnknownPreTokenizer, match="--pre NAME"):
        read_small(byte_level(pre=pre))


@pytest.mark.parametrize(
    "settings",
    [
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"1": "a"}},
        {"added_tokens_decoder": {"-5": {"content": "a"}}},
        {"additional_special_tokens": 5},
        {"chat_template": [5]},
    ],
)
def test_hostile_settings_are_one_message(settings: dict[str, object]) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        read_small(byte_level(), settings)


def test_files_larger_than_their_limit_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(TokenizerError, match="larger than the 96 MiB"):
        read_tokenizer({"tokenizer.json": path}, {}, n_rows=None, style=style_of("gpt2"))


def test_absent_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(MissingPart, match=r"tokenizer\.model, tokenizer\.json, vocab\.json or vocab\.txt"):
        read_tokenizer({}, {}, n_rows=None, style=style_of("llama"))
    with pytest.raises(TokenizerError, match=r"tekken\.json config: a token id was expected"):
        read_tokenizer(memory(tekken_json="{}"), {}, n_rows=None, style=style_of("llama"))
    with pytest.raises(TokenizerError, match="cannot be read"):
        read_tokenizer({"tokenizer.json": tmp_path / "gone"}, {}, n_rows=None, style=style_of("gpt2"))
    with pytest.raises(UsageError, match="known: spm"):
        read_tokenizer({}, {}, n_rows=None, style=TokenizerStyle(("spm", "nope")))


def test_random_damage_never_escapes_as_another_exception() -> None:
    rng = random.Random(3)
    whole = json.dumps(byte_level({"post_processor": template("<|end|>", SEQUENCE)})).encode()
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.choice(b'{}[]",:0a\x00\xff')
        try:
            read_small(bytes(damaged))
        except ConverterError as error:
            refused += 1
            assert "tokenizer.json" in str(error) and len(str(error)) < 500
    assert 150 < refused <= 300  # the rest changed a text, or white space


def test_added_token_beyond_the_embedding_is_said(data: Path) -> None:
    events = read_case("stories-spm-added", data).events
    assert any(isinstance(event, Dropped) and "600" in event.name for event in events)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([{"id": 300, "content": "<far>", **SPECIAL}], "'<far>' has id 300, and tokenizers gives it 258"),
        (
            [{"id": 258, "content": "<a>", **SPECIAL}, {"id": 260, "content": "<b>", **SPECIAL}],
            "'<b>' has id 260, and tokenizers gives it 259, the next that is free\nset its id in tokenizer.json",
        ),
        ([{"id": 258, "content": "ab", **SPECIAL}], "'ab' has id 258, and 256 in the vocabulary.*\nset its id to 256"),
        ([{"id": 3, "content": "<c>", **SPECIAL}], "'<c>' has id 3, which the vocabulary gives to"),
    ],
)
def test_added_tokens_whose_ids_tokenizers_would_not_keep(added: list[object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        read_small(byte_level(added=added))


def test_an_added_token_may_be_one_of_the_vocabulary() -> None:
    added: list[object] = [{"id": 256, "content": "ab", **SPECIAL}, {"id": 258, "content": "<|end|>", **SPECIAL}]
    assert array(read_small(byte_level(added=added)), "tokens")[256:] == ["ab", "Ġab", "<|end|>"]


@pytest.mark.parametrize(
    ("settings", "config", "files", "message"),
    [
        ({"pad_token": "<nope>"}, {}, {}, r"260 tokens, the embedding 259 rows: .*'<nope>' \(pad_token of token"),
        (None, {"model_type": "llama"}, {}, r"262 tokens, .*'<unk>' \(unk_token of LlamaTokenizer's defaults\)"),
        (
            {"additional_special_tokens": ["<x>"]}, {}, {},
            r"260 tokens, .*'<x>' \(additional_special_tokens of tokenizer_config\.json\)",
        ),
        ({}, {}, {"special_tokens_map_json": {"cls_token": "<k>"}}, r"'<k>' \(cls_token of special_tokens_map\.json\)"),
    ],
)  # fmt: skip
def test_tokens_beyond_the_embedding_and_what_names_them(
    settings: object, config: dict[str, object], files: dict[str, object], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        read_small(byte_level(), settings, config, rows=259, **files)


# --- size


def test_large_vocabulary_is_read_in_time() -> None:
    letters = [char for char in byte_alphabet() if char.isalpha()]
    pairs = [[a, b] for a in letters for b in letters]
    triples = ([a + b, c] for a in letters[:60] for b in letters[:60] for c in letters[:60])
    pairs += itertools.islice(triples, 150_000 - len(pairs) - 256)
    vocab = {char: i for i, char in enumerate(byte_alphabet())}
    vocab.update((a + b, 256 + i) for i, (a, b) in enumerate(pairs))
    content = json.dumps(byte_level({"model": {"type": "BPE", "vocab": vocab, "merges": pairs}}, added=[])).encode()
    assert len(vocab) == 150_000
    files: Files = {"tokenizer.json": bytes_of(content)}
    start = time.process_time()
    tokenizer = read_tokenizer(files, {}, n_rows=150_000, style=style_of("gpt2"))
    assert time.process_time() - start < 3.0
    assert tokenizer.n_tokens == 150_000


# ------------------------------------------------------------------------------------ habits of single families


def test_pieces_of_internlm2(tmp_path: Path) -> None:
    """A zero has another letter, pieces that no text has are unused, and a chat ends where a turn does."""
    pieces = ["<unk>", "<s>", "</s>", "\0", "[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]", "a"]
    metadata: Metadata = {
        "tokenizer.ggml.model": text("llama"), "tokenizer.ggml.tokens": Array("str", pieces),
        "tokenizer.ggml.scores": Array("f32", [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0]),
        "tokenizer.ggml.token_type": Array("i32", [2, 3, 3, 1, 1, 1, 1]), SPACE_PREFIX: boolean(False),
    }  # fmt: skip
    settings = {"eos_token": "</s>", "added_tokens_decoder": {"5": {"content": "<|im_end|>", "special": True}}}
    files = {
        "tokenizer.model": bytes_of(write_tokenizer(metadata)["tokenizer.model"]),
        **memory(tokenizer_config_json=settings),
    }
    read = read_tokenizer(files, {"eos_token_id": 2}, n_rows=None, style=style_of("internlm2"))
    assert array(read, "tokens") == ["<unk>", "<s>", "</s>", "\N{DRAGON}", "[UNUSED_TOKEN_1]", "<|im_end|>", "a"]
    assert array(read, "token_type") == [2, 3, 3, 1, 5, 3, 1]
    assert read.metadata["tokenizer.ggml.eos_token_id"] == u32(5)
    assert read.metadata[SPACE_PREFIX] == boolean(False)
    plain = read_tokenizer(files, {"eos_token_id": 2}, n_rows=None, style=style_of("llama"))
    assert array(plain, "token_type")[4] == 1 and plain.metadata["tokenizer.ggml.eos_token_id"] == u32(2)


@pytest.mark.parametrize(("arch", "masked"), [("nomic-bert-moe", True), ("bert", False)])
def test_the_mask_behind_the_pieces_of_xlm_roberta(arch: str, masked: bool, tmp_path: Path) -> None:
    models.TOKENIZERS["t5"](tmp_path)
    model = (tmp_path / "spiece.model").read_bytes()
    n_pieces = len(read_sentencepiece(model, "spiece.model"))
    files = {"sentencepiece.bpe.model": bytes_of(model)}
    read = read_tokenizer(files, {}, n_rows=n_pieces + 4, style=style_of(arch))
    expected = "<mask>" if masked else f"[PAD{n_pieces + 1}]"
    assert array(read, "tokens")[n_pieces + 1] == expected
    assert array(read, "token_type")[n_pieces + 1] == (3 if masked else 5)


@pytest.mark.parametrize(("version", "file"), [("v11", "Mistral-Small-3.2"), ("v13", "Devstral"), ("v3", None)])
def test_a_template_that_llama_cpp_has_of_its_own_is_named(version: str, file: str | None) -> None:
    tekken = json.loads(CASES["tekken-old"].made["tekken.json"])
    tekken["config"]["version"] = version
    read = read_tokenizer(memory(tekken_json=tekken), {}, n_rows=None, style=style_of("llama"))
    said = [str(event) for event in read.events if "no chat template" in str(event)]
    assert [file in line for line in said if file] == [True] * (file is not None)
    assert ("tokenizer.chat_template" in read.metadata) is (file is None)
    own = {**memory(tekken_json=tekken), "chat_template.jinja": bytes_of(b"{{ messages }}")}
    read = read_tokenizer(own, {}, n_rows=None, style=style_of("llama"))
    assert read.metadata["tokenizer.chat_template"] == text("{{ messages }}")
    assert not [event for event in read.events if "no chat template" in str(event)]
