"""Chat templates: a converted file renders the same prompts as its source, also after the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from converter.metadata import Metadata, Value, text
from converter.tokenizers.files import TokenizerFiles
from converter.tokenizers.special import read_special
from converter.tokenizers.write import written_template

TOOL = {
    "type": "function",
    "function": {
        "name": "weather", "description": "The weather of a day.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}},
    },
}  # fmt: skip
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


SYSTEM = {"role": "system", "content": "Be brief. 简短。"}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": '{"rain": true}'}
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [user("Hi")]},
    {"messages": [user("Hi")], "add_generation_prompt": True},
    {"messages": [SYSTEM, user("Hi")], "add_generation_prompt": True},
    {"messages": [user("a"), said("b"), user("c"), said("d"), user("e")], "add_generation_prompt": True},
    {"messages": [SYSTEM, user("a"), said("<think>\nhm\n</think>\n\nb"), user("c")], "add_generation_prompt": True},
    {"messages": [user("Hi")], "add_generation_prompt": True, "enable_thinking": True},
    {"messages": [user("Hi")], "add_generation_prompt": True, "enable_thinking": False},
    {"messages": [SYSTEM, user("Rain?")], "tools": [TOOL], "add_generation_prompt": True},
    {"messages": [user("Rain?"), said("", tool_calls=[CALL]), RESULT, said("Yes.")], "tools": [TOOL]},
    {"messages": [user("  spaces \n\n <|im_end|> {{ x }} 'quotes\" ")], "add_generation_prompt": True},
]
MADE: dict[str, dict[str, Any]] = {
    "list": {"tokenizer_config.json": {"chat_template": [
        {"name": "default", "template": "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"},
        {"name": "tool_use", "template": "{{ tools | tojson if tools else 'none' }}{{ messages[-1]['content'] }}"},
    ]}},
    "files": {
        "tokenizer_config.json": {"tokenizer_class": "X"},
        "chat_template.jinja": "{{ messages[0]['content'] }}\r\n{{ bos_token }}",
        "additional_chat_templates/rag.jinja": "{{ messages | length }}",
    },
    "json": {
        "tokenizer_config.json": {"tokenizer_class": "X"},
        "chat_template.json": {"chat_template": "{{ messages[-1]['role'] }}é"},
    },
}  # fmt: skip


def render(template: str, conversation: Mapping[str, Any]) -> str:
    """The prompt, or what the template raises."""
    jinja = pytest.importorskip("jinja2.sandbox")
    made = jinja.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = lambda value, indent=None, **more: json.dumps(value, ensure_ascii=False, indent=indent)

    def fail(message: str) -> None:
        raise ValueError(message)

    made.globals.update(raise_exception=fail, strftime_now=lambda form: "26 Nov 2026")
    try:
        return str(made.from_string(template).render(bos_token="<s>", eos_token="</s>", **conversation))
    except Exception as error:  # a template may refuse a conversation: so must the other
        return f"{type(error).__name__}: {error}"


def templates(value: Any) -> dict[str, str]:
    """Name -> template, for what transformers reads from a folder."""
    if isinstance(value, str):
        return {"default": value}
    return {entry["name"]: entry["template"] for entry in value or ()}


def converted(files: Mapping[str, Any]) -> Metadata:
    sources = {
        name: (lambda body=body: (body if isinstance(body, str) else json.dumps(body)).encode())
        for name, body in files.items()
    }
    metadata: Metadata = {"tokenizer.ggml.model": text("gpt2")}
    read_special(TokenizerFiles(sources), {}).write(metadata)
    return metadata


def in_metadata(metadata: Metadata) -> dict[str, str]:
    key = "tokenizer.chat_template"
    return {
        name.removeprefix(key).removeprefix(".") or "default": str(value.value)
        for name, value in metadata.items()
        if name.startswith(key) and name != "tokenizer.chat_templates" and isinstance(value, Value)
    }


def check(source: dict[str, str], metadata: Metadata) -> None:
    assert source
    for made in (in_metadata(metadata), templates(written_template(metadata))):
        assert made.keys() == source.keys()
        for name, template in source.items():
            prompts = [render(template, each) for each in CONVERSATIONS]
            assert [render(made[name], each) for each in CONVERSATIONS] == prompts
            assert len(set(prompts)) > 1


def test_published_templates(data: Path) -> None:
    found = 0
    for path in sorted((data / "tokcfg-ortext").rglob("tokenizer_config.json")):
        files: dict[str, Any] = {"tokenizer_config.json": json.loads(path.read_text("utf-8"))}
        jinja = path.with_name("chat_template.jinja")
        if jinja.is_file():
            files[jinja.name] = jinja.read_text("utf-8")
        source = templates(files["tokenizer_config.json"].get("chat_template") or files.get(jinja.name))
        if source:
            check(source, converted(files))
            found += 1
    assert found >= 5


@pytest.mark.parametrize("name", MADE)
def test_every_place_a_template_may_stand_in(name: str) -> None:
    files = MADE[name]
    more = [
        {"name": Path(file).stem, "template": body} for file, body in files.items() if file.startswith("additional_")
    ]
    plain = files.get("chat_template.jinja", files.get("chat_template.json", {}))
    source = templates(files["tokenizer_config.json"].get("chat_template") or more)
    if "chat_template" not in files["tokenizer_config.json"]:
        source = {"default": plain if isinstance(plain, str) else plain["chat_template"], **source}
    check(source, converted(files))
