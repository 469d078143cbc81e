"""Tokenizers whose code knows tokens that no file lists: ids as by their libraries, the way back, hostile files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.paths import DATA
from support.vocabularies import bytes_of, case_files, read_case, style_of, write_vocab_gguf

from converter.architectures.traits import TokenizerStyle
from converter.errors import MissingPart, TokenizerError
from converter.mapping.hparams import text_config
from converter.metadata import Array, Metadata, Value, text, u32
from converter.tokenizers import read_tokenizer, write_tokenizer
from converter.tokenizers.beside import RUN_MARK, dna_settings, dna_tokens

sys.path.insert(0, str(DATA / "tokenizers"))

from tokenizer_cases import CASES, JINJA

TEXTS = [
    "the land, and in it", "THE  Land\n\n in a tin", "12 34.5 (x=1)", "nu är det élan ça", "中文 and 测试!",
    "नमस्ते दुनिया", "مرحبا", "😀 👩‍👩‍👧", "CCCCCC ACGT", "tab\tand\r\nline", "a\u0301e\u0301", "\x07bell",
]  # fmt: skip
DNA = [
    "in <dna>ATCGATTTCCCG</dna> and",
    "<dna>atcga",
    "<dna></dna>",
    "<dna>ATNNCCG</dna>the<dna>GG</dna>",
    "no end </dn",
]


def again(name: str, files: Mapping[str, bytes]) -> Metadata:
    case = CASES[name]
    rows: Any = text_config(case.config).get("vocab_size", case.config.get("vocab_size"))
    sources = {file: bytes_of(content) for file, content in files.items()}
    return read_tokenizer(
        sources, case.config, n_rows=rows, style=style_of(case.arch), pre=case.pre or None
    ).metadata  # fmt: skip


def runtime(metadata: Metadata, folder: Path) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp")
    write_vocab_gguf(metadata, folder / "vocab.gguf")
    return llama_cpp.Llama(str(folder / "vocab.gguf"), vocab_only=True, verbose=False)


def tokens(metadata: Metadata) -> list[str]:
    found = metadata["tokenizer.ggml.tokens"]
    assert isinstance(found, Array)
    return [token.decode() if isinstance(token, bytes) else str(token) for token in found.values]


@pytest.mark.parametrize("name", ["chatglm3", "hybriddna", "jina-whitespace"])
def test_what_comes_back_reads_as_the_same_vocabulary(name: str, data: Path) -> None:
    metadata = read_case(name, data).metadata
    assert again(name, write_tokenizer(metadata)) == metadata


def test_pieces_of_chatglm_are_cut_as_sentencepiece_does(data: Path, tmp_path: Path) -> None:
    """Also by what comes back, whose model has the pieces of the first one alone."""
    library = pytest.importorskip("sentencepiece")
    read, case = read_case("chatglm3", data), CASES["chatglm3"]
    source = (data / case.files["tokenizer.model"]).read_bytes()
    model = runtime(read.metadata, tmp_path)
    back = library.SentencePieceProcessor(model_proto=write_tokenizer(read.metadata)["tokenizer.model"])
    own = library.SentencePieceProcessor(model_proto=source)
    assert back.vocab_size() == own.vocab_size() == tokens(read.metadata).index("[MASK]")
    for line in TEXTS:
        wanted = own.encode(line)
        assert model.tokenize(line.encode(), add_bos=False) == wanted == back.encode(line), line


def test_letters_between_spaces_are_cut_as_the_library_does(data: Path, tmp_path: Path) -> None:
    """llama.cpp cuts at spaces alone, the library at marks, too; as no merge goes over a mark, both agree."""
    library = pytest.importorskip("tokenizers").Tokenizer
    metadata = read_case("jina-whitespace", data).metadata
    made = CASES["jina-whitespace"].made["tokenizer.json"]
    assert isinstance(made, str)
    model, own = runtime(metadata, tmp_path), library.from_str(made)
    back = library.from_str(write_tokenizer(metadata)["tokenizer.json"].decode())
    for line in [*TEXTS[:3], "中文 测试, the 中文字!", "é in the tin"]:
        wanted = own.encode(line, add_special_tokens=False).ids
        if all(letter.isspace() or letter.lower() in tokens(metadata) for letter in line):  # a letter that it has not
            assert model.tokenize(line.encode(), add_bos=False) == wanted, line
        assert back.encode(line, add_special_tokens=False).ids == wanted, line
        assert back.encode(line).ids == own.encode(line).ids == [0, *wanted, 2]


def test_runs_of_letters_stand_behind_the_plain_text(data: Path) -> None:
    library = pytest.importorskip("tokenizers").Tokenizer
    read = read_case("hybriddna", data)
    vocabulary = tokens(read.metadata)
    first = vocabulary.index("<dna>")
    assert vocabulary[first : first + 4] == ["<dna>", "</dna>", "<oov>", "AA" + RUN_MARK]
    assert vocabulary[first + 3 + 1] == "AT" + RUN_MARK and vocabulary[first + 3 + 16].startswith("<unused_0>")
    written = write_tokenizer(read.metadata)
    plain = library.from_str(written["tokenizer.json"].decode())
    made = CASES["hybriddna"].made["tokenizer.json"]
    assert isinstance(made, str)
    own = library.from_str(made)
    for line in TEXTS:
        assert plain.encode(line).ids == own.encode(line).ids
    assert json.loads(written["dna_config.json"])["k"] == 2


def test_llama_cpp_cuts_dna_of_six_letters_as_its_code_does(data: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers").Tokenizer
    case = CASES["hybriddna"]
    files = {**case_files(case, data), "dna_config.json": bytes_of(b"{}")}
    metadata = read_tokenizer(files, case.config, n_rows=4500, style=style_of("llama"), pre="qwen2").metadata
    vocabulary = tokens(metadata)
    made = case.made["tokenizer.json"]
    assert isinstance(made, str)
    model, own = runtime(metadata, tmp_path), library.from_str(made)
    for line, inside in (
        ("in <dna>ATCGATTTCCCG</dna> and", ["ATCGAT" + RUN_MARK, "TTCCCG" + RUN_MARK]),
        ("<dna>gg", ["GGAAAA" + RUN_MARK]), ("the<dna>ATNCCG</dna>", ["<oov>"]),
    ):  # fmt: skip
        before, _, _ = line.partition("<dna>")
        after = line.partition("</dna>")[2]
        ids = [vocabulary.index(run) for run in inside]
        around = [vocabulary.index(mark) for mark in ("<dna>", "</dna>")]
        closed = around[1:] if "</dna>" in line else []
        wanted = [*own.encode(before).ids, around[0], *ids, *closed, *own.encode(after).ids]
        assert model.tokenize(line.encode(), add_bos=False, special=False) == wanted


def test_intern_s1_cuts_plain_text_as_qwen_does(data: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers").Tokenizer
    metadata, case = read_case("interns1", data).metadata, CASES["interns1"]
    vocabulary = tokens(metadata)
    assert vocabulary[151669:151672] == ["<|SMILES_<unk>|>", "<|SMILES_<s>|>", "<|SMILES_</s>|>"]
    assert vocabulary[151925] == "<SMILES>" and vocabulary[152443] == "<|FASTA_<unk>|>"
    asr = CASES["qwen3-asr"].made["tokenizer.json"]
    assert isinstance(asr, str) and case.made["merges.txt"]
    model, own = runtime(metadata, tmp_path), library.from_str(asr)
    for line in [line for line in TEXTS if "\u0301" not in line]:
        assert model.tokenize(line.encode(), add_bos=False) == own.encode(line).ids, line


def test_the_beginning_that_intern_s1_has_where_nothing_says_it(data: Path) -> None:
    case = CASES["interns1"]
    style = style_of("qwen3", "InternS1ForConditionalGeneration")
    read = read_tokenizer(case_files(case, data), {}, n_rows=152_700, style=style, pre="qwen2")
    assert read.metadata["tokenizer.ggml.bos_token_id"] == u32(151643)


# ------------------------------------------------------------------------------------ files that do not fit


def changed(name: str, data: Path, **files: Any) -> Mapping[str, Any]:
    named = {".".join(key.rsplit("_", 1)): json.dumps(value).encode() for key, value in files.items()}
    return {**case_files(CASES[name], data), **{file: bytes_of(content) for file, content in named.items()}}


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"k": 0}, "k is 0"), ({"k": 40}, "k is 40"), ({"k": "x"}, "a token id was expected"),
        ({"k": 2, "dna_start_id": 5}, "gives id 5"), ({"k": 2, "dna_start_id": 490}, "490|tokens"),
    ],
)  # fmt: skip
def test_settings_of_dna_that_do_not_fit(settings: Any, message: str, data: Path) -> None:
    files = changed("hybriddna", data, dna_config_json=settings)
    with pytest.raises(TokenizerError, match=message):
        read_tokenizer(files, CASES["hybriddna"].config, n_rows=500, style=style_of("llama"), pre="qwen2")


def test_a_science_whose_pieces_are_missing_is_named(data: Path) -> None:
    files = {name: source for name, source in case_files(CASES["interns1"], data).items() if "IUPAC" not in name}
    with pytest.raises(TokenizerError, match=r"tokenizer_IUPAC\.model: not there"):
        read_tokenizer(files, {}, n_rows=152_700, style=TokenizerStyle(("bpe",)), pre="qwen2")


def test_runs_in_another_order_have_no_way_back() -> None:
    names = ["a", "b", *dna_tokens(1, 2)]
    assert json.loads(dna_settings(names, 2))["dna_start_id"] == 2
    names[5], names[6] = names[6], names[5]
    with pytest.raises(TokenizerError, match="not in the order"):
        dna_settings(names, 2)


@pytest.mark.parametrize(("arch", "whose"), [("mamba", "EleutherAI/gpt-neox-20b"), ("openelm", "Llama 2")])
def test_a_folder_without_a_tokenizer_says_whose_it_is(arch: str, whose: str) -> None:
    with pytest.raises(MissingPart, match=f"have that of .*{whose}"):
        read_tokenizer({}, {}, n_rows=512, style=style_of(arch))
    with pytest.raises(MissingPart) as raised:
        read_tokenizer({}, {}, n_rows=512, style=style_of("llama"))
    assert "have that of" not in str(raised.value)


def test_kimi_k3_ends_where_its_config_says_and_names_the_template(data: Path) -> None:
    case = CASES["kimi-tiktoken"]
    files = dict(case_files(case, data))
    del files["tokenizer_config.json"]
    read = read_tokenizer(files, {**case.config, "eos_token_id": 402}, n_rows=640, style=style_of("kimi-k3"))
    assert read.metadata["tokenizer.ggml.eos_token_id"] == Value("u32", 402)
    assert [event for event in map(str, read.events) if "Kimi-K3.jinja" in event]
    own = {**files, "tokenizer_config.json": bytes_of(json.dumps({"chat_template": JINJA}).encode())}
    read = read_tokenizer(own, case.config, n_rows=640, style=style_of("kimi-k3"))
    assert read.metadata["tokenizer.chat_template"] == text(JINJA)
    assert not [event for event in map(str, read.events) if "Kimi-K3.jinja" in event]
