"""Go's text/template, as far as chat templates use it: by its documented grammar, and against Go itself."""

from __future__ import annotations

from typing import Any

import pytest
from support import go

from converter.chat.conversations import ASKED
from converter.chat.families import FAMILIES
from converter.chat.gotemplate import TemplateError, evaluate, parse

VALUES = {
    "A": "a",
    "E": "",
    "Z": [],
    "N": 3,
    "T": True,
    "L": ["x", "y", "z"],
    "M": {"k": "v", "b": "w"},
    "S": [{"R": "r"}],
}
GRAMMAR = {
    "plain { text }": "plain { text }",
    "{{ .A }}|{{.A}}|{{ $.A }}": "a|a|a",
    " \n {{- .A -}} \n b {{- /* no\nthing */ -}} c": "abc",
    "{{ .A }} {{/* here */}} {{ .A }}": "a  a",
    '{{ "q\\"\\n{{}}" }}{{ `r"\\` }}{{ 12 }}{{ -3 }}{{ true }}': 'q"\n{{}}r"\\12-3true',
    "{{ if .E }}1{{ else if .T }}2{{ else }}3{{ end }}": "2",
    "{{ if .E }}1{{ else if .E }}2{{ else if .N }}3{{ end }}4": "34",
    "{{ if and .A .T }}1{{ end }}{{ if or .E .A }}2{{ end }}{{ if not .E }}3{{ end }}": "123",
    '{{ if eq .A "b" "a" }}1{{ end }}{{ if ne .A "a" }}2{{ end }}': "1",
    "{{ if lt (len .L) 4 }}1{{ end }}{{ if lt (len .L) 3 }}2{{ end }}": "1",
    "{{ if and (ge (len .L) 3) (le (len .A) 3) }}1{{ end }}{{ if gt (len .A) 1 }}2{{ end }}": "1",
    "{{ range .L }}{{ . }},{{ end }}{{ range .Z }}no{{ else }}none{{ end }}": "x,y,z,none",
    "{{ range $i, $e := .L }}{{ $i }}{{ $e }}{{ $.A }} {{ end }}": "0xa 1ya 2za ",
    "{{ range $k, $v := .M }}{{ $k }}={{ $v }};{{ end }}": "b=w;k=v;",
    '{{ range .L }}{{ if eq . "y" }}{{ continue }}{{ end }}{{ . }}{{ end }}': "xz",
    '{{ range .L }}{{ if eq . "y" }}{{ break }}{{ end }}{{ . }}{{ end }}': "x",
    "{{ with .A }}{{ . }}{{ end }}{{ with .E }}no{{ else }}{{ .A }}{{ end }}": "aa",
    '{{ $x := "1" }}{{ range .L }}{{ $x }}{{ $x = . }}{{ end }}{{ $x }}': "1xyz",
    "{{ $x := .A }}{{ if .T }}{{ $x := .N }}{{ $x }}{{ end }}{{ $x }}": "3a",
    "{{ (index .S 0).R }}{{ index .L 1 }}{{ index .M `k` }}{{ len (slice .L 1) }}{{ slice .A 0 1 }}": "ryv2a",
    "{{ .L | len }}{{ .L | len | eq 3 }}{{ json .L }}": '3true["x","y","z"]',
    "{{ range $i, $_ := .L }}{{ if eq (len (slice $.L $i)) 1 }}last{{ end }}{{ end }}": "last",
}
WRONG = (
    "{{ if .A }}", "{{ end }}", "{{ .A", "{{ }}", "{{ range }}{{ end }}", "{{ .A .E }}", "{{ nothing .A }}",
    "{{ (.A }}",
    "{{ $x }}", "{{ $x = 1 }}", "{{ len .N }}", "{{ slice .A 5 }}", "{{ break }}", "{{ .A | .E }}", "{{ else }}",
    '{{ "a }}', "{{ 1 = 2 }}", "{{ if .A }}{{ else }}{{ else }}{{ end }}",
)  # fmt: skip


@pytest.mark.parametrize("template", GRAMMAR)
def test_what_is_documented(template: str) -> None:
    assert evaluate(parse(template), VALUES) == GRAMMAR[template]


@pytest.mark.parametrize("template", WRONG)
def test_what_is_wrong_is_refused(template: str) -> None:
    with pytest.raises(TemplateError):
        evaluate(parse(template), VALUES)


@pytest.mark.slow
def test_grammar_as_go_has_it() -> None:
    answers = go.answers([{"template": each, "values": VALUES} for each in (*GRAMMAR, *WRONG)])
    assert [each["text"] for each in answers[: len(GRAMMAR)]] == list(GRAMMAR.values())
    assert all(each["error"] for each in answers[len(GRAMMAR) :])


@pytest.mark.slow
@pytest.mark.parametrize("system", ["", "You are X."])
def test_families_as_go_has_them(system: str) -> None:
    """Also what Ollama makes of a conversation before a template sees it."""
    cases = [(family, each) for family in FAMILIES for each in ASKED]
    templates = {family.name: family.template("<s>", "</s>") for family in FAMILIES}
    asked: list[dict[str, Any]] = [
        {
            "template": templates[family.name], "messages": each.messages, "tools": each.tools, "system": system,
            "thinking": each.thinking,
        }
        for family, each in cases
    ]  # fmt: skip
    for (family, each), answer in zip(cases, go.answers(asked), strict=True):
        assert answer["error"] == ""
        assert evaluate(parse(templates[family.name]), each.for_ollama(system)) == answer["text"], family.name
