"""Long parts of JSON files: the same value as the whole file's, however it looks; and the memory that it saves."""

from __future__ import annotations

import io
import itertools
import json
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from support import families

from converter.errors import TokenizerError
from converter.metadata import Strings
from converter.storage import json as strict_json
from converter.tokenizers import large
from converter.tokenizers.files import LARGE, TokenizerFiles
from converter.tokenizers.large import Long, parse_large
from converter.tokenizers.splitting import byte_alphabet

PATHS = (("model", "vocab"), ("model", "merges"))
NASTY = ['"', "\\", '\\"', "}", "],", '"vocab": {', "é", "\u2028", "😀", "\x7f", " ", "a,b", "\\u00e9", "x" * 300]


def read(text: str | bytes, paths: tuple[tuple[str, ...], ...] = PATHS) -> Any:
    data = text.encode() if isinstance(text, str) else text
    return parse_large(
        "f.json", lambda: nullcontext(io.BytesIO(data)), paths, lambda rest: strict_json.parse(rest.decode("utf-8-sig"))
    )


def whole(value: Any) -> Any:
    """The value with its long parts read."""
    if isinstance(value, Long):
        entries = list(itertools.chain.from_iterable(value.pieces()))
        return dict(entries) if value.kind == "{" else entries
    return {key: whole(each) for key, each in value.items()} if isinstance(value, dict) else value


def document(**model: Any) -> dict[str, Any]:
    return {"version": "1.0", "added_tokens": [{"id": 1, "content": '"vocab": {'}], "model": {"type": "BPE", **model}}


VOCAB = {text: i for i, text in enumerate([*NASTY, *map(str, range(500))])}
DOCUMENTS = {
    "strings": document(vocab=VOCAB, merges=["a b", *NASTY] * 40),
    "pairs": document(merges=[[a, b] for a in NASTY for b in NASTY], vocab=VOCAB),
    "scores": document(vocab=[[text, -i / 3] for text, i in VOCAB.items()] + [["e", 1e-30]]),
    "objects": document(vocab=[{"rank": i, "token_bytes": "YQ==", "token_str": None} for i in range(300)]),
}  # fmt: skip


@pytest.mark.parametrize("window", [48, 1 << 18])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_same_value(
    name: str, indent: int | None, ascii_only: bool, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "WINDOW", window)
    monkeypatch.setattr(large, "_KEY", 40)
    value = read(json.dumps(DOCUMENTS[name], indent=indent, ensure_ascii=ascii_only))
    assert isinstance(value["model"]["vocab"], Long)
    assert whole(value) == DOCUMENTS[name]


@pytest.mark.parametrize(
    "value",
    [
        document(vocab={}, merges=[]),
        document(vocab={"a": "x"}, merges=[1, 2]),
        document(vocab={"a": 1, "b": [2]}, merges=[["a"], ["a", "b", "c"]]),
        document(vocab=7),
        {"model": None, "vocab": {"a": 1}},
        {"other": {"vocab": {"a": 1}}, "model": {"vocab": {"b": 2}, "merges": ["a b"]}},
        {},
    ],
)
def test_other_shapes_are_plain_json(value: dict[str, Any]) -> None:
    assert whole(read(json.dumps(value))) == value


def test_a_file_that_is_one_long_part_with_a_byte_order_mark() -> None:
    value = read(b"\xef\xbb\xbf" + json.dumps(VOCAB).encode(), ((),))
    assert isinstance(value, Long) and whole(value) == VOCAB


@pytest.mark.parametrize(
    "text,message",
    [
        ('{"model": {"vocab": {"a": 1,}}}', "Expecting property name|Illegal trailing comma"),
        ('{"model": {"vocab": {"a": 1}', "Expecting"),
        ('{"model": {"vocab": {"a": 1 "b": 2}}}', "Expecting ',' delimiter"),
        ('{"model": {"vocab": {"a": 1}, "vocab": {"b": 2}}}', "stands twice"),
        ('{"model": {"vocab": {"a": 1}, "vo\\u0063ab": {"b": 2}}}', "stands twice"),
        ('{"model": {"vocab": {"a": ' + "9" * 41 + "}}}", "more than 40 digits"),
    ],
)
def test_errors_are_those_of_json(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(text)


@pytest.mark.parametrize("entry", [b'"a\nb": 1', b'"\xff": 1', b'"\\q": 1'])
def test_what_is_wrong_within_a_long_part_is_said_where_it_is_read(entry: bytes) -> None:
    value = read(b'{"model": {"vocab": {"x": 0, ' + entry + b"}}}")
    with pytest.raises(TokenizerError, match=r"f\.json: not (UTF-8 at byte 30|valid JSON)"):
        whole(value)


def test_a_file_that_changes_between_two_looks(tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(VOCAB))
    value = TokenizerFiles({"vocab.json": path}).value("vocab.json")
    path.write_text("[]")
    with pytest.raises(TokenizerError, match="changed while it was read"):
        whole(value)
    assert LARGE["vocab.json"] == ((),)


def test_strings_are_those_they_are_made_of() -> None:
    texts = ["", "a", "é", "😀", b"\xff\xfe"]
    made = Strings.of(texts)
    assert list(made) == texts and made[:2] == texts[:2] and made[-1] == b"\xff\xfe" and len(made) == 5
    assert bytes(Strings.of(["ab"]).raw) == b"\x02\0\0\0\0\0\0\0ab"


def many_tokens(count: int) -> dict[str, Any]:
    """A byte-level BPE of `count` tokens, each but the letters made by one merge."""
    letters = list(byte_alphabet())
    pairs = [[a, b] for a in letters[:240] for b in letters[:240]]
    pairs += [[a + b, c] for a, b, c in itertools.product(letters[:120], letters[:120], letters[:20])]
    pairs = pairs[: count - 256]
    vocab = {token: i for i, token in enumerate([*letters, *(a + b for a, b in pairs)])}
    assert len(vocab) == count
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": split, "post_processor": None,
        "decoder": split, "model": {"type": "BPE", "vocab": vocab, "merges": pairs},
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("count", [150_000, 256_000])
def test_peak_memory_of_a_conversion_with_a_large_tokenizer(count: int, tmp_path: Path) -> None:
    """Once a tokenizer of 128,000 tokens took 177 MB, and one of 256,000 from 124 to 146; now 118 to 120."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc to read the peak from")
    config = families.family_config("qwen2", vocab_size=count, tie_word_embeddings=True)
    folder = families.write(tmp_path / "model", config, families.random_tensors(config, "F16"), "F16")
    (folder / "tokenizer.json").write_text(json.dumps(many_tokens(count), indent=2, ensure_ascii=False), "utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    code = (
        "import sys; from converter.cli.main import main; code = main(sys.argv[1:]);"
        "print(open('/proc/self/status').read()); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "out.gguf"), "--quiet"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak = re.search(r"VmHWM:\s+(\d+)", done.stdout)
    assert peak is not None and int(peak[1]) << 10 < 130e6
