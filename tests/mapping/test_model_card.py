"""The card reader gives what PyYAML gives on the part of YAML that cards use, and skips the rest by name."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.mapping.model_card import (
    MAX_DEPTH,
    MAX_LINES,
    MAX_NUMBER_LENGTH,
    Node,
    Plain,
    front_matter,
    read_front_matter,
)

LLAMA = """\
language:
- en
- "no"
- 'pt'
library_name: transformers   # a comment
base_model: meta-llama/Meta-Llama-3.1-8B
license: llama3.1
extra_gated_prompt: >-
  ### LLAMA 3.1 COMMUNITY LICENSE AGREEMENT

  Llama 3.1 Version Release Date: July 23, 2024

  * a list
    that is indented: kept
  and joined
  again
extra_gated_fields:
  First Name: text
  Date of birth: date_picker
  By clicking Submit below I accept: checkbox
  nested:
    type: select
    options: [Student, 'Research "Graduate"', 3, 0.5, true]
pipeline_tag: text-generation
tags: [facebook, meta, "py, torch", llama-3,
  ]
"""

SAME = {
    "llama": LLAMA,
    "scalars": "a: 1\nb: 1.50\nc: yes\nd: ~\ne:\nf: 0x1F\ng: 1_000\nh: 12:30\ni: .5\nj: -.inf\nk: 017\nl: 0b11\n"
    "m: 1e3\nn: 1.0e+3\no: v1.0\np: 1.2.3\nq: -x\n",
    "quotes": 'a: "x\\ty \\u00e9 \\"q\\" \\\\"\nb: \'it\'\'s\'\n"quoted key": 1\n\'k2\' : two\nc: ""\nd: \'\'\n',
    "folded quotes": 'a: "one\n  two\n\n  three \\\n  four"\nb: \'one\n  two\n\n\n  three\'\n',
    "plain over lines": "a: one\n  two\n\n  three\n  - four\nb: 2\n",
    "literal": "a: |\n  x\n    y\n\n  z\n\n\nb: |+\n  x\n\n\nc: |-\n  x\n\nd: |2\n    x\n   y\ne: >2-\n   x\n   y\n",
    "folded": "a: >\n  x\n  y\n\n  z\n    more\n    more\n\n  w\n  v\nb: >+\n  x\n\n\nc: >\n\n  x\n",
    "empty block": "a: |\nb: >-\nc: 1\n",
    "list of maps": "base_model:\n- name: A\n  version: '1'\n"
    "- name: B\n  tags:\n  - x\n  - y\n-\n  name: C\n- \n- - 1\n  - 2\n",
    "indented list": "a:\n    - x\n    - y: 1\n      z: 2\nb:\n  - |\n    text\n  - 'q'\n",
    "flow": "a: [ ]\nb: {}\nc: {x: 1, y: [a, b c], \"z\": 'q', w: }\n"
    "d: [https://a.b/c, x#y, a b,\nc,\n  d]\ne: [[1], {a: b}]\n",
    "flow without spaces": "a: [b,c,'d',[1,2],{e: f,g: h}]\n",
    "comments": "# top\na: 1 # one\n\n# between\nb: x#y\nc:\n  # inside\n  - d # item\n  # after\n",
    "colons": "url: https://huggingface.co/a/b\ntime: a:b\nk:v: 1\n",
    "urls in list": "base_model:\n  - https://huggingface.co/a/b\n  - org/model\n",
    "indented document": "  license: mit\n  tags:\n  - a\n",
    "unicode": "a: 日本語 テキスト\nb: \"é\"\nc: 🤗 model\n",
    "keys with marks": "-a: 1\n?b: 2\n",
    "duplicate": "a: 1\na: 2\n",
    "ending": "a: 1\n...\n",
    "model index": "model-index:\n- name: m\n  results:\n  - task:\n      type: text-generation\n    metrics:\n"
    "    - type: acc\n      value: 71.1\n      verified: false\nlicense: mit\n",
}  # fmt: skip


def plainly(node: Node) -> object:
    """The node as PyYAML would give it."""
    if isinstance(node, Plain):
        return node.value
    if isinstance(node, list):
        return [plainly(item) for item in node]
    if isinstance(node, dict):
        return {key: plainly(value) for key, value in node.items()}
    return node


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_reads_what_pyyaml_reads(text: str) -> None:
    yaml = pytest.importorskip("yaml")
    entries, events = read_front_matter(text)
    assert plainly(entries) == yaml.safe_load(text)
    assert not events


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("x: &anchor 1", "& is not supported"),
        ("x: *alias", "* is not supported"),
        ("x: !!python/object/apply:os.system ['true']", "! is not supported"),
        ("x: `code`", "` is not supported"),
        ("? x", "no `key: value`"),
        ("? x: 1", "no `key: value`"),
        ('"x":1', "no `key: value`"),
        ("x: - a", "- is not supported"),
        ("x: -", "- is not supported"),
        ("x: ?", "? is not supported"),
        ("x: a: b", "a colon in unquoted text"),
        ("x: [a, b", "expected , or ]"),
        ("x: 'open", "a quote is not closed"),
        ('x: "\\q"', "unknown escape"),
        ('x: "\\ud800"', "no character"),
        ("x: 'a' b", "text after the end"),
        ("x: |x", "header"),
        ("x:\n    a: 1\n      b: 2", "colon"),
        ("x:\n    - a\n      - b\n   - c", "indented more"),
        ("x: " + "[" * 100, "nested deeper"),
        ("x:\n" + "".join(" " * n + "- \n" for n in range(1, 50)), "nested deeper"),
    ],
)
def test_skips_one_entry_and_says_so(bad: str, reason: str) -> None:
    entries, events = read_front_matter(f"before: 1\n{bad}\nafter: 2\n")
    assert "x" not in entries and plainly(entries)["before"] == 1  # type: ignore[index]
    assert reason in str(events[0])
    if "open" not in bad and "[a, b" not in bad:
        assert plainly(entries)["after"] == 2  # type: ignore[index]


@pytest.mark.parametrize("rest", ["", " a", "a"])
def test_what_a_value_may_begin_with(rest: str) -> None:
    """Every mark and letter but those of tags and anchors, and `=`, which PyYAML takes for a type of its own."""
    yaml = pytest.importorskip("yaml")
    for mark in sorted({*string.punctuation, *string.ascii_letters, *string.digits} - {*"!&="}):
        entries, events = read_front_matter(f"x: {mark}{rest}\n")
        try:
            expected = yaml.safe_load(f"x: {mark}{rest}\n")
        except yaml.YAMLError:
            expected = {}
        assert plainly(entries) == expected and bool(events) is (expected == {}), mark


def test_notes_only_what_is_wanted() -> None:
    assert not read_front_matter("widget: *x\n", ("license",))[1]
    assert len(read_front_matter("license: *x\nlicense: *y\n", ("license",))[1]) == 1


def test_keeps_the_text_of_numbers() -> None:
    assert read_front_matter("version: 1.10\n")[0] == {"version": Plain("1.10", 1.1)}


@pytest.mark.parametrize(
    ("card", "yaml"),
    [
        ("---\na: 1\n---\n# Title\n", "a: 1\n"),
        ("---\r\na: 1\r\n---\r\n", "a: 1\n"),
        ("---\na:\n- no\n\t- b\n", 'a:\n- "no"\n  - b\n'),
        ("# Title\n---\na: 1\n---\n", None),
        ("", None),
    ],
)
def test_finds_the_front_matter(card: str, yaml: str | None) -> None:
    assert front_matter(card) == yaml


@pytest.mark.parametrize(
    ("before", "after"), [("[", "]"), ("{a: ", "}"), ("{a: [", "]}")], ids=["lists", "maps", "both in turn"]
)
def test_collections_are_as_deep_as_they_may_be(before: str, after: str) -> None:
    yaml = pytest.importorskip("yaml")
    levels = (MAX_DEPTH - 1) // sum(before.count(mark) for mark in "[{")  # and the text within
    text = f"x: {before * levels}a{after * levels}\n"
    entries, events = read_front_matter(text)
    assert plainly(entries) == yaml.safe_load(text) and not events
    entries, events = read_front_matter(f"x: {before * (levels + 1)}a{after * (levels + 1)}\n")
    assert not entries and "nested deeper than 24" in str(events[0])


def test_a_number_is_as_long_as_it_may_be() -> None:
    most, more = ("1" * length for length in (MAX_NUMBER_LENGTH, MAX_NUMBER_LENGTH + 1))
    assert read_front_matter(f"a: {most}\nb: {more}\n")[0] == {"a": Plain(most, int(most)), "b": more}


def test_as_many_lines_are_read_as_there_may_be() -> None:
    most = "#\n" * (MAX_LINES - 1) + "a: 1\n"
    for text in (most, most.removesuffix("\n")):
        assert read_front_matter(text) == ({"a": Plain("1", 1)}, [])
    entries, events = read_front_matter(f"{most}b: 2\n")
    assert entries == {"a": Plain("1", 1)} and "the rest is not read" in str(events[0])


@pytest.mark.parametrize(
    ("escape", "character"),
    [
        ("\\U0010ffff", "\U0010ffff"), ("\\U00110000", None), ("\\ud7ff", "\ud7ff"), ("\\ud800", None),
        ("\\udfff", None), ("\\ue000", "\ue000"), ("\\x41", "A"), ("\\x4", None),
    ],
)  # fmt: skip
def test_escapes_that_are_characters(escape: str, character: str | None) -> None:
    entries, events = read_front_matter(f'a: "{escape}"\n')
    assert entries == ({"a": character} if character else {}) and bool(events) is (character is None)


def test_a_line_that_is_no_entry_is_called_by_its_start() -> None:
    line = "x" * 41
    assert str(read_front_matter(f"a: 1\n{line}\n")[1][0]).startswith(f"README.md: front matter entry '{line[:40]}' ")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab: -#'\"[]{},|>\n\\x1.&?", max_size=80))
def test_never_raises(text: str) -> None:
    """What cannot be read is left out, each with a note, unless it is no entry at all."""
    entries, notes = read_front_matter(text)
    assert all(isinstance(name, str) for name in entries)
    assert all("README.md" in str(note) for note in notes)
    assert read_front_matter(text) == (entries, notes)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["license", "tags", "base_model", "x y"]),
        st.recursive(
            st.one_of(st.text(max_size=12), st.integers(), st.booleans(), st.none()),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3), st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        min_size=1,
    ),
    st.booleans(),
)
def test_reads_what_pyyaml_writes(value: dict[str, object], flow: bool) -> None:
    yaml = pytest.importorskip("yaml")
    value = {**value, "z": [[1]]}  # a map without collections would be written in braces, which no card is
    text = front_matter("---\n" + yaml.safe_dump(value, default_flow_style=None if flow else False, allow_unicode=True))
    assert text is not None
    entries, events = read_front_matter(text)
    if any(mark in text for mark in ("? ", "!!")):
        return
    assert plainly(entries) == yaml.safe_load(text), events


@pytest.mark.parametrize(
    "text",
    [
        'a: "\n' * 50_000,
        "a: [\n" * 50_000,
        "a: {b\n" * 50_000,
        "a: >\n" * 50_000,
        "a: x\n\n\n\n" * 50_000,
        "a:\n" + " - x\n" * 100_000,
        "a: [" + " " * 500_000,
        "a: '" + "'" * 500_001,
        'a: "' + "\\" * 500_001,
        "a: [" + "b " * 250_000,
        "a" * 500_000 + "\n",
        ("a: " + " " * 5000 + "\n") * 100,
    ],
)
def test_time_is_linear(text: str) -> None:
    start = time.process_time()
    read_front_matter(text)
    assert time.process_time() - start < 2
