"""Vocabularies of other kinds than tokenizer.json: ids as by their own merging, the way back, hostile files."""

from __future__ import annotations

import base64
import json
import sys
import unicodedata
from pathlib import Path

import pytest
import regex
from support.paths import DATA

from converter.architectures.traits import TokenizerStyle
from converter.errors import TokenizerError
from converter.metadata import Array, Metadata
from converter.tokenizers import read_tokenizer, write_tokenizer
from converter.tokenizers.own import read_rwkv, write_rwkv
from converter.tokenizers.pretokenizer import expression_of
from converter.tokenizers.ranks import RANK_FILES, merges_of, read_ranks, spelled

sys.path.insert(0, str(DATA / "tokenizers"))

from tokenizer_cases import CASES, JINJA, merged, small_ranks, tiktoken_file

TEXTS = [
    "a tear in the ocean, seven stones", "est\n\n  tons of rain 中中é 😀😀 a😀e", "نص عربي", "हिन्दी",
    "x" * 40 + "  \t\r\n",
    "1234567890 IT'S we'll", "\x00\x07\x1b", "a\u0301e\u0301", "👩‍👩‍👧", "<s>it</s>",
]  # fmt: skip
WORDS = TokenizerStyle()


def metadata_of(name: str) -> Metadata:
    case = CASES[name]
    files = {file: (lambda text=text: text.encode()) for file, text in case.made.items()}
    rows = case.config["vocab_size"]
    assert isinstance(rows, int)
    return read_tokenizer(files, case.config, n_rows=rows, style=WORDS).metadata


@pytest.mark.parametrize("name", ["qwen-tiktoken", "kimi-tiktoken"])
def test_ids_are_those_of_merging_by_rank(name: str) -> None:
    """What tiktoken does, in four lines, against the tokenizers library on what we write."""
    library = pytest.importorskip("tokenizers")
    (file,) = CASES[name].made.keys() & RANK_FILES.keys()
    tokens = read_ranks(CASES[name].made[file], file)
    metadata = metadata_of(name)
    expression = expression_of(RANK_FILES[file].pre)
    assert expression is not None
    pattern = regex.compile(expression.split[0], regex.V1)
    ours = library.Tokenizer.from_str(write_tokenizer(metadata)["tokenizer.json"].decode())
    merges = metadata["tokenizer.ggml.merges"]
    assert isinstance(merges, Array)
    known = {token for token in tokens if len(token) == 1 or len(merged(token, tokens[: tokens.index(token)])) == 2}
    assert [text.replace(" ", "") for text in map(str, merges.values)] == [
        spelled(t) for t in tokens if t in known and len(t) > 1
    ]
    for text in TEXTS:
        plain = unicodedata.normalize("NFC", text) if expression.normalizer else text
        words = [word.encode() for word in pattern.findall(plain)]
        wanted = [
            tokens.index(part) for word in words for part in merged(word, [t if t in known else b"" for t in tokens])
        ]
        assert ours.encode(text, add_special_tokens=False).ids == wanted, text


@pytest.mark.parametrize("name", ["qwen-tiktoken", "kimi-tiktoken", "tekken-old"])
def test_the_way_back_reads_as_the_same_vocabulary(name: str) -> None:
    metadata = metadata_of(name)
    files = {file: (lambda content=content: content) for file, content in write_tokenizer(metadata).items()}
    rows = CASES[name].config["vocab_size"]
    assert isinstance(rows, int)
    again = read_tokenizer(
        files, CASES[name].config, n_rows=rows, style=WORDS, pre=str(metadata["tokenizer.ggml.pre"].value)
    )  # type: ignore[union-attr]
    for key in ("tokens", "token_type", "merges"):
        assert again.metadata[f"tokenizer.ggml.{key}"] == metadata[f"tokenizer.ggml.{key}"], key


@pytest.mark.parametrize("name", ["rwkv-world", "plamo2"])
def test_files_of_one_family_come_back(name: str) -> None:
    metadata = metadata_of(name)
    files = {file: (lambda content=content: content) for file, content in write_tokenizer(metadata).items()}
    rows = CASES[name].config["vocab_size"]
    assert isinstance(rows, int)
    assert read_tokenizer(files, CASES[name].config, n_rows=rows, style=WORDS).metadata == metadata


def test_real_ranks_give_tiktokens_ids(data: Path) -> None:
    """cl100k as Qwen's file: 100,256 ranks, of which every merge is rebuilt."""
    tiktoken, library = pytest.importorskip("tiktoken"), pytest.importorskip("tokenizers")
    text = (data / "tok-tiktoken" / "cl100k_base.tiktoken").read_text()
    read = read_tokenizer({"qwen.tiktoken": lambda: text.encode()}, {}, n_rows=101_000, style=WORDS)
    tokens = read_ranks(text, "cl100k")
    expression = expression_of("qwen2")
    assert expression is not None and len(list(merges_of(tokens))) == len(tokens) - 256
    own = tiktoken.Encoding(
        "x", pat_str=expression.split[0], mergeable_ranks={t: i for i, t in enumerate(tokens)}, special_tokens={}
    )
    ours = library.Tokenizer.from_str(write_tokenizer(read.metadata)["tokenizer.json"].decode())
    for line in [*TEXTS[:7], (data / "text-wikitext2-test").glob("*").__next__().read_text("utf-8")[:20_000]]:
        assert ours.encode(line).ids == own.encode(line)


def test_mistrals_own_vocabulary_gives_mistral_commons_ids() -> None:
    common, library = pytest.importorskip("mistral_common"), pytest.importorskip("tokenizers")
    tekken = pytest.importorskip("mistral_common.tokens.tokenizers.tekken")
    path = Path(common.__file__).parent / "data" / "tekken_240718.json"
    read = read_tokenizer({"tekken.json": path}, {}, n_rows=131_072, style=WORDS)
    ours = library.Tokenizer.from_str(write_tokenizer(read.metadata)["tokenizer.json"].decode())
    own = tekken.Tekkenizer.from_file(path)
    for line in TEXTS[:9]:
        assert ours.encode(line, add_special_tokens=False).ids == own.encode(line, bos=False, eos=False), line


# --- hostile files


@pytest.mark.parametrize(
    "line",
    [
        "1 __import__('os').getcwd() 3", "1 'a' 2", "2 'a' 1", "1 b'a' + b'b' 2", "1 ('a') 1", "1 f'a' 1",
        "1 'a", "1 7 1",
        "1 '" + "a" * 5000 + "' 5000", "1 b'\\xzz' 1", "1 " + "-" * 4000 + "1 1", "x 'a' 1",
    ],
)  # fmt: skip
def test_a_line_that_is_no_literal_of_text_is_refused(line: str) -> None:
    with pytest.raises(TokenizerError, match="line 1 is not a number, a quoted token and its length"):
        read_rwkv(line + "\n")


def test_rwkv_lines_are_written_as_they_are_read() -> None:
    text = CASES["rwkv-world"].made["rwkv_vocab_v20230424.txt"]
    assert write_rwkv(read_rwkv(text)) == text
    with pytest.raises(TokenizerError, match="not the escaped bytes"):
        write_rwkv(["é"])


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "0 ranks"), ("!!! 0\n", "not base64"), ("QQ== 1\n", "line 1 is not a token"), ("QQ== 0 1\n", "line 1"),
        ("QQ== 0\n" * 2, "line 2"), (tiktoken_file(small_ranks(3)) + "QQ== 259\n", "stands twice"),
        ("= 0\n", "base64|bytes"),
    ],
)  # fmt: skip
def test_damaged_ranks_are_one_message(text: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        read_tokenizer({"qwen.tiktoken": lambda: text.encode()}, {}, n_rows=700, style=WORDS)


@pytest.mark.parametrize(
    "path,value,message",
    [
        (("config", "default_vocab_size"), 9000, "tokens where config says"),
        (("config", "default_num_special_tokens"), 3, "special tokens where config says 3"),
        (("vocab", 300), {"rank": 7, "token_bytes": "QQ==", "token_str": None}, "token 300 has another rank"),
        (("vocab", 300), {"rank": 300, "token_bytes": "QQ==", "token_str": None}, "stands twice"),
        (("vocab", 65), {"rank": 65, "token_bytes": "QUE=", "token_str": None}, "single bytes"),
        (("vocab", 300), [1], "an object was expected"),
        (("vocab",), {}, "a list was expected"),
        (("special_tokens",), [{"rank": 5, "token_str": "x"}], "rank 5, there are 1"),
    ],
)  # fmt: skip
def test_damaged_tekken_files_are_one_message(path: tuple[str | int, ...], value: object, message: str) -> None:
    spec = json.loads(CASES["tekken-old"].made["tekken.json"])
    *parents, last = path
    inner = spec
    for key in parents:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(TokenizerError, match=message):
        read_tokenizer({"tekken.json": lambda: json.dumps(spec).encode()}, {}, n_rows=None, style=WORDS)


def test_a_folder_of_mistrals_takes_its_own_template() -> None:
    files = {"tekken.json": CASES["tekken-old"].made["tekken.json"], "chat_template.jinja": JINJA}
    read = read_tokenizer(
        {name: (lambda text=text: text.encode()) for name, text in files.items()}, {}, n_rows=None, style=WORDS
    )
    assert read.metadata["tokenizer.chat_template"].value == JINJA  # type: ignore[union-attr]
    assert base64.b64decode("QQ==") == b"A"
