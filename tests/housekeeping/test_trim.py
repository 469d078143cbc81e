"""A vocabulary cut to some tokens: what stays is cut, and computed, as it was, under other ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures
from support.llama_runner import ask
from support.rewriting import item, rewritten

import converter
from converter.cli.main import main
from converter.errors import CorruptFile, MissingPart, TokenizerError, UnsupportedFeature, UsageError
from converter.formats.gguf import open_gguf
from converter.housekeeping.trim import Trimmed, trim
from converter.metadata import Array, Value
from converter.tokenizers.sentencepiece import read_sentencepiece

pytest.importorskip("tokenizers")
TEXT = "In the beginning was the word, and the word was with God.\nNaïve 12345 — done?\n\n  two  spaces\n"
OTHER = "Something else, zebra! Ümläut \t\n 日本語"
# A model for every kind of tokenizer: BPE of bytes with merges and without words, pieces that merge by scores, and
# WordPiece, Unigram.
KINDS = {
    "qwen2": "qwen2moe-tiny", "llama3": "llama4-tiny", "glm": "glm4-tiny", "spm": "gemma-tiny", "marks": "dream-marks",
    "wordpiece": "bert-tiny", "roberta": "roberta-tiny", "t5": "t5-tiny", "xlm": "xlm-roberta-tiny",
}  # fmt: skip
DECODERS = {"qwen2": "qwen2moe-tiny", "spm": "gemma-tiny", "llama3": "smollm3-tiny"}


def build(name: str, tmp_path: Path, quant: str = "f32") -> tuple[Path, Path, Path]:
    """A sample's folder, its GGUF, and the text."""
    folder = architectures.build(name, tmp_path)
    target, text = tmp_path / "m.gguf", tmp_path / "text.txt"
    text.write_text(TEXT, "utf-8", newline="")
    converter.convert(folder, target, converter.Request(quant=quant, **architectures.facts(name)["request"]), threads=1)
    return folder, target, text


def cut(folder: Path) -> Any:
    """What the tokenizers library makes ids of."""
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def mapped(made: Trimmed, ids: list[int]) -> list[int]:
    numbers = {old: new for new, old in enumerate(made.ids)}
    return [numbers[i] for i in ids]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_cut_into_the_same_tokens(kind: str, tmp_path: Path) -> None:
    """By the tokenizers library, of the folder; special tokens around it, too."""
    folder, file, text = build(KINDS[kind], tmp_path)
    made = trim(folder, tmp_path / "less", text=text)
    if not (folder / "tokenizer.json").exists():  # tokenizer.model alone: transformers reads it
        from transformers import AutoTokenizer

        before, after = (AutoTokenizer.from_pretrained(each) for each in (folder, tmp_path / "less"))
        assert mapped(made, before(TEXT).input_ids) == after(TEXT).input_ids
    else:
        before, after = cut(folder), cut(tmp_path / "less")
        assert mapped(made, before.encode(TEXT).ids) == after.encode(TEXT).ids
        assert after.get_vocab() == {before.id_to_token(old): new for new, old in enumerate(made.ids)}
        after.encode(OTHER)  # what is not in the text is still cut into something
    assert len(made.ids) < made.n_tokens
    again = trim(tmp_path / "less", tmp_path / "again", text=text)
    assert len(again.ids) == again.n_tokens == len(made.ids)
    gguf = trim(file, tmp_path / "less.gguf", text=text)
    with open_gguf(file) as old, open_gguf(tmp_path / "less.gguf") as new:
        for key in ("tokens", "token_type", "scores"):
            if f"tokenizer.ggml.{key}" in old.config:
                values = item(old.config, f"tokenizer.ggml.{key}")
                assert item(new.config, f"tokenizer.ggml.{key}") == [values[i] for i in gguf.ids]
        for key, entry in old.config.items():
            if key.endswith("_token_id"):
                assert item(new.config, key) == mapped(gguf, [entry.value])[0]
        embedding, less = old.tensors["token_embd.weight"], new.tensors["token_embd.weight"]
        assert np.array_equal(less.array(), embedding.array()[list(gguf.ids)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("marks",)])
def test_llama_cpp_cuts_the_text_into_the_same_tokens(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    _, file, text = build(KINDS[kind], tmp_path)
    made = trim(file, tmp_path / "less.gguf", text=text)
    lines = [TEXT, *TEXT.split("\n")]
    for before, after in zip(
        ask(file, tokenize=lines), ask(tmp_path / "less.gguf", tokenize=[*lines, OTHER])[:-1], strict=True
    ):
        assert mapped(made, before) == after


@pytest.mark.slow
@pytest.mark.parametrize("kind", DECODERS)
def test_logits_of_the_tokens_that_stay_are_the_same(kind: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, file, text = build(DECODERS[kind], tmp_path)
    made, other = trim(folder, tmp_path / "less", text=text), trim(file, tmp_path / "less.gguf", text=text)
    tokens = list(made.ids)[5:25]

    def computed(path: Path, ids: list[int]) -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids])).logits[0].numpy()

    before, after = computed(folder, tokens), computed(tmp_path / "less", mapped(made, tokens))
    assert np.abs(before[:, list(made.ids)] - after).max() <= 1e-5 * np.abs(before).max()
    pytest.importorskip("llama_cpp")
    tokens = list(other.ids)[5:25]
    before, after = (
        np.array(ask(file, logits=tokens)),
        np.array(ask(tmp_path / "less.gguf", logits=mapped(other, tokens))),
    )
    assert np.abs(before[:, list(other.ids)] - after).max() <= 1e-5 * np.abs(before).max()


def test_rows_are_bytes(tmp_path: Path) -> None:
    _, file, text = build("qwen2moe-tiny", tmp_path, "q8_0")
    made = trim(file, tmp_path / "less.gguf", text=text)
    index = list(made.ids)
    with open_gguf(file) as old, open_gguf(tmp_path / "less.gguf") as new:
        for name, tensor in new.tensors.items():
            before = old.tensors[name].rows(0, old.tensors[name].info.n_rows)
            wanted = before[index] if name in ("token_embd.weight", "output.weight") else before
            assert np.array_equal(tensor.rows(0, tensor.info.n_rows), wanted)
            assert tensor.info.dtype is old.tensors[name].info.dtype
    assert made.n_tokens - len(made.ids) > 100
    assert f"tokens: dropped ({made.n_tokens - len(made.ids)} of {made.n_tokens}, " in str(made.events[0])


def test_a_list_keeps_what_its_tokens_are_made_of(tmp_path: Path) -> None:
    folder, _, _ = build("qwen2moe-tiny", tmp_path)
    before = cut(folder)
    merges = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["merges"]
    left, right = next(pair for pair in reversed(merges) if min(map(len, pair)) > 1)
    word = left + right
    listed = tmp_path / "tokens.txt"
    for content in (f"{word}\n", json.dumps([word]), json.dumps([before.token_to_id(word)])):
        listed.write_text(content, "utf-8")
        made = trim(folder, tmp_path / "less", tokens=listed, force=True)
        after = cut(tmp_path / "less")
        assert after.encode(before.decode([before.token_to_id(word)])).tokens == [word]
        assert {left, right, word} <= set(after.get_vocab())
        assert {before.id_to_token(i) for i in made.ids if i >= 256} >= {left, right, word}
    for content in ("nonsense token\n", "[999999]", "[true]", "[[1]]", "[", "[1.0]"):
        listed.write_text(content, "utf-8")
        with pytest.raises(UsageError):
            trim(folder, tmp_path / "less", tokens=listed, force=True)


def test_the_most_frequent_tokens_and_what_they_cover(tmp_path: Path) -> None:
    folder, _, text = build("qwen2moe-tiny", tmp_path)
    every = trim(folder, tmp_path / "every", text=text)
    some = trim(folder, tmp_path / "some", text=text, most=3)
    assert set(some.ids) < set(every.ids)
    (said,) = [str(event) for event in some.events if "of the text's" in str(event)]
    ids = cut(folder).encode(TEXT, add_special_tokens=False).ids
    left = sum(i in some.ids for i in ids)
    assert f"{left} of the text's {len(ids)} ({left / len(ids):.2%})" in said


def test_a_sentencepiece_model_is_cut_like_tokenizer_json(tmp_path: Path) -> None:
    import sentencepiece

    folder, _, text = build("gemma-tiny", tmp_path)
    data = (folder / "tokenizer.model").read_bytes()
    made = trim(folder, tmp_path / "less", text=text)
    less = (tmp_path / "less/tokenizer.model").read_bytes()
    before, after = read_sentencepiece(data), read_sentencepiece(less)
    kept = [i for i in made.ids if i < len(before)]
    assert after.pieces == [before.pieces[i] for i in kept] and after.scores == [before.scores[i] for i in kept]
    old, new = (sentencepiece.SentencePieceProcessor(model_proto=each) for each in (data, less))
    for line in TEXT.split("\n"):
        assert mapped(made, old.encode(line)) == new.encode(line)
    for name in ("unk_id", "bos_id", "eos_id", "pad_id"):
        assert getattr(new, name)() == (-1 if getattr(old, name)() < 0 else mapped(made, [getattr(old, name)()])[0])
    assert new.vocab_size() == len(after)


def test_ids_in_configs_are_counted_anew(tmp_path: Path) -> None:
    folder, _, text = build("qwen2moe-tiny", tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    last = cut(folder).get_vocab_size() - 1
    config |= {"eos_token_id": [last, last - 1], "pad_token_id": -1, "inner": {"image_token_id": last}}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"suppress_tokens": [300], "top_k": 3}), "utf-8")
    made = trim(folder, tmp_path / "less", text=text)
    after = json.loads((tmp_path / "less/config.json").read_text("utf-8"))
    new = mapped(made, [last, last - 1, 300])
    assert (after["eos_token_id"], after["pad_token_id"], after["inner"]) == (new[:2], -1, {"image_token_id": new[0]})
    assert after["vocab_size"] == len(made.ids)
    said = json.loads((tmp_path / "less/generation_config.json").read_text("utf-8"))
    assert said == {"suppress_tokens": new[2:], "top_k": 3}
    (folder / "generation_config.json").write_text(json.dumps({"bad_words_ids": [[1]]}), "utf-8")
    with pytest.raises(TokenizerError, match="bad_words_ids"):
        trim(folder, tmp_path / "other", text=text)
    (folder / "generation_config.json").write_text(json.dumps({"pad_token_id": 4000}), "utf-8")
    with pytest.raises(TokenizerError, match="pad_token_id: 4000 is no token"):
        trim(folder, tmp_path / "other", text=text)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["gemma3n-tiny", "gemma4-tiny"])
def test_tensors_that_hold_tokens_in_another_way_are_refused(name: str, tmp_path: Path) -> None:
    folder, _, text = build(name, tmp_path)
    with pytest.raises(UnsupportedFeature, match="per_layer"):
        trim(folder, tmp_path / "less", text=text)


def test_what_cannot_be_trimmed_is_refused_by_name(tmp_path: Path) -> None:
    folder, file, text = build("qwen2moe-tiny", tmp_path)
    with pytest.raises(UsageError, match="say what stays"):
        trim(file, tmp_path / "less.gguf")
    (folder / "tekken.json").write_text("{}", "utf-8")
    with pytest.raises(TokenizerError, match=r"tekken\.json"):
        trim(folder, tmp_path / "less", text=text)
    (folder / "tekken.json").unlink()
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["end_of_word_suffix"] = "</w>"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(TokenizerError, match="end_of_word_suffix"):
        trim(folder, tmp_path / "less", text=text)
    (folder / "tokenizer.json").unlink()
    with pytest.raises((MissingPart, TokenizerError)):
        trim(folder, tmp_path / "less", text=text)
    for name, content in (("empty", b""), ("latin", b"\xff\xfe")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError):
            trim(file, tmp_path / "less.gguf", text=tmp_path / name)


@pytest.mark.parametrize(
    "keys",
    [
        {"tokenizer.ggml.tokens": Array("str", ["a", "b"])},
        {"tokenizer.ggml.tokens": None},
        {"tokenizer.ggml.merges": Array("str", ["nonsense", "a b c", "x y"])},
        {"tokenizer.ggml.token_type": Array("i32", [1, 2])},
        {"tokenizer.ggml.eos_token_id": Value("u32", 1 << 31)},
        {"tokenizer.ggml.strange": Array("i32", [1, 2, 3])},
        {"tokenizer.ggml.model": Value("str", "nonsense")},
        {"tokenizer.ggml.model": Value("u32", 1)},
    ],
    ids=str,
)
def test_a_hostile_tokenizer_is_one_error(keys: dict[str, Any], tmp_path: Path) -> None:
    _, file, text = build("qwen2moe-tiny", tmp_path)
    bad = rewritten(file, tmp_path / "bad.gguf", keys)
    with pytest.raises(converter.ConverterError):
        trim(bad, tmp_path / "less.gguf", text=text)
    assert not (tmp_path / "less.gguf").exists()


def test_a_damaged_file_is_one_error(tmp_path: Path) -> None:
    _, file, text = build("qwen2moe-tiny", tmp_path)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CorruptFile):
        trim(file, tmp_path / "less.gguf", text=text)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file, text = build("qwen2moe-tiny", tmp_path)
    assert main(["trim-vocab", str(file), str(tmp_path / "less.gguf"), "--text", str(text), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["verb"] == "trim-vocab" and made["kept_tokens"] == len(made["ids"]) < made["source_tokens"]
