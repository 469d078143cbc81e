"""Chat templates of models are recognised by what they render, and their family's template renders the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from converter.chat import jinja
from converter.chat.conversations import ASKED, CHAT, TOOLS, Conversation
from converter.chat.families import FAMILIES
from converter.chat.gotemplate import evaluate, parse
from converter.chat.jinja import TemplateFailed, render
from converter.chat.recognition import Recognised, Tokens, among, recognise

RECORDED: list[dict[str, Any]] = json.loads((ROOT / "fixtures/chat/prompts.json").read_text("utf-8"))

# Families of which no model is recorded: what its published template does, by role.
_BY_ROLE = "{{% for m in messages %}}{{% if m['role'] == 'system' %}}{}{{% elif m['role'] == 'user' %}}{}{{% else %}}{}"
_END = "{{% endif %}}{{% if loop.last and add_generation_prompt %}}{}{{% endif %}}{{% endfor %}}"


def by_role(system: str, user: str, assistant: str, reply: str) -> str:
    texts = (
        f"{{{{ {text!r}.replace('@', m['content']).replace('EOS', eos_token) }}}}" for text in (system, user, assistant)
    )
    return (_BY_ROLE + _END).format(*texts, f"{{{{ {reply!r} }}}}")


_ALPACA = "Below are some instructions that describe some tasks."
_SMOL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
JINJA = {
    "zephyr": by_role("<|system|>\n@EOS\n", "<|user|>\n@EOS\n", "<|assistant|>\n@EOS\n", "<|assistant|>\n"),
    "tulu": by_role("<|system|>\n@\n", "<|user|>\n@\n", "<|assistant|>\n@EOS\n", "<|assistant|>\n"),
    "starchat": by_role("<|system|>\n@<|end|>\n", "<|user|>\n@<|end|>\n", "<|assistant|>\n@<|end|>\n", "<|assistant|>"),
    "phi-4-mini": by_role("<|system|>@<|end|>", "<|user|>@<|end|>", "<|assistant|>@<|end|>", "<|assistant|>"),
    "vicuna-1.1": by_role("@ ", "USER: @ ", "ASSISTANT: @EOS", "ASSISTANT:"),
    "solar": by_role("### System:\n@\n\n", "### User:\n@\n\n", "### Assistant:\n@", "### Assistant:\n"),
    "exaone-2": by_role("[|system|]@[|endofturn|]\n", "[|user|]@\n", "[|assistant|]@[|endofturn|]\n", "[|assistant|]"),
    "exaone": "{% if messages[0].role != 'system' %}[|system|][|endofturn|]\n{% endif %}"
    + by_role("[|system|]@[|endofturn|]\n", "[|user|]@\n", "[|assistant|]@[|endofturn|]\n", "[|assistant|]"),
    "alpaca": "{% if messages[0].role != 'system' %}{{ '" + _ALPACA + "\n\n' }}{% endif %}"
    + by_role("@\n\n", "### Instruction:\n@\n\n", "### Response:\n@EOS\n\n", "### Response:\n"),
    "chatml": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n" + _SMOL + "<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "nemotron": "{{ '<extra_id_0>System\n' }}"
    "{{ messages[0].content + '\n\n' if messages[0].role == 'system' else '\n' }}"
    + by_role("", "<extra_id_1>User\n@\n", "<extra_id_1>Assistant\n@\n", "<extra_id_1>Assistant\n"),
    "mistral-v0.1": "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else m.content + eos_token + ' ' }}{% endfor %}",
    "llama2": "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}{% elif m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + ns.system + m.content | trim + ' [/INST]' }}{% set ns.system = '' %}{% else %}"
    "{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    **{
        f"mistral-v3{name}-first": "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}{% elif m.role == 'user' %}"
        f"{{{{ '[INST]{space}' + ns.system + m.content + '[/INST]' }}}}{{% set ns.system = '' %}}{{% else %}}"
        f"{{{{ '{space}' + m.content + eos_token }}}}{{% endif %}}{{% endfor %}}"
        for name, space in (("", " "), ("-tekken", ""))
    },
}  # fmt: skip
USUAL = {"alpaca": _ALPACA, "chatml": _SMOL}


def prompts_of(case: dict[str, Any]) -> dict[Conversation, str | None]:
    return dict(zip(ASKED, case["prompts"], strict=True))


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"])
def test_published_templates(case: dict[str, Any]) -> None:
    """Whether the tokenizer or the template writes the first token: the prompt has it once."""
    for adds_bos in (True, False):
        if case["family"] == "seed" and adds_bos:  # whose turns all begin with it
            continue
        found = among(prompts_of(case), Tokens(case["bos"], case["eos"], adds_bos))
        assert (found and found.family) == case["family"]
        if found is not None:
            check(found, prompts_of(case), case["bos"] if adds_bos else "")


def check(found: Recognised, prompts: dict[Conversation, str | None], before: str) -> None:
    """The template alone, as Ollama has it."""
    nodes = parse(found.template)
    for each in CHAT:
        made = evaluate(nodes, each.for_ollama(found.system))
        assert prompts[each] in (None, before + made, made)
    if ".Tools" in found.template:
        assert "weather" in evaluate(nodes, TOOLS[0].for_ollama(found.system))


@pytest.mark.parametrize("name", JINJA)
def test_other_families(name: str) -> None:
    pytest.importorskip("jinja2")
    found = recognise(JINJA[name], Tokens("<s>", "</s>", True))
    assert found is not None and (found.family, found.system) == (name, USUAL.get(name))
    check(found, dict(zip(ASKED, render(JINJA[name], ASKED, "<s>", "</s>"), strict=True)), "<s>")


def test_every_family_is_some_models() -> None:
    assert {family.name for family in FAMILIES} == {case["family"] for case in RECORDED if case["family"]} | set(JINJA)


def test_templates_of_the_test_data(data: Path) -> None:
    pytest.importorskip("jinja2")
    found = {}
    for path in sorted((data / "tokcfg-ortext").rglob("*.json")):
        own = json.loads(path.read_text("utf-8")).get("chat_template")
        if path.name in ("tokenizer_config.json", "chat_template.json") and isinstance(own, str):
            match = recognise(own, Tokens("<s>", "</s>"))
            found[path.parent.name] = match and match.family
    assert found["qwen2.5"] == "qwen2.5" and found["gemma-3-chat"] == found["gemma"] == "gemma"
    assert found["phi-4"] == "phi-4-mini" and found["phi-4-base"] == "phi-4" and found["nvidia-mistral"] == "nemotron"


def test_what_a_family_lacks_is_told() -> None:
    notes = {case["name"]: case for case in RECORDED}
    found = {name: among(prompts_of(case), Tokens(case["bos"], case["eos"])) for name, case in notes.items()}
    said = {name: " ".join(match.notes) for name, match in found.items() if match is not None}
    assert "tools: " in said["ibm-granite-granite-4.1"] and "thinking: " in said["Qwen-QwQ-32B"]
    assert said["Qwen-Qwen3-0.6B"] == said["meta-llama-Llama-3.1-8B-Instruct"] == said["OpenHermes"] == ""


DATED = "{{ bos_token }}<d>{{ strftime_now('%Y') }}</d>" + JINJA["tulu"]


def test_a_date_is_told() -> None:
    pytest.importorskip("jinja2")
    found = recognise(DATED, Tokens("<s>", "</s>"))
    assert found is not None and found.template.startswith("<d>2") and "date" in found.notes[-1]


BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "memory": "{{ ('x' * 4000000000) | length }}",
    "output": "{% for a in range(99999) %}{{ 'xxxxxxxx' * 99 }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "syntax": "{% for %}",
    "python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch /tmp/owned') }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_template_gives_no_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jinja2")
    monkeypatch.setattr(jinja, "SECONDS", 2.0)
    try:
        assert set(render(BOMBS[name], CHAT[:1], "", "")) <= {None, ""}
    except TemplateFailed as error:
        assert str(error)


@pytest.mark.parametrize("token", ["{{ .System }}", "{{", "}}", '"""', "\n", "\x00", "{{/*", " "])
def test_hostile_tokens(token: str) -> None:
    """A token's text is part of the template: what it makes is compared all the same."""
    pytest.importorskip("jinja2")
    for template in (JINJA["zephyr"], JINJA["llama2"]):
        found = recognise(template, Tokens(token, token))
        prompts = dict(zip(ASKED, render(template, ASKED, token, token), strict=True))
        if found is not None:
            check(found, prompts, token)
