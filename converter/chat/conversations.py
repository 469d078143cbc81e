"""Fixed conversations that tell chat templates apart, as both languages get them.

White space at the ends of contents is left out: Jinja templates trim it or not, Go's cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Conversation:
    """Messages in transformers' form, the last one to be answered.

    `thinking` is what the caller said of it (`enable_thinking` in Jinja, `Think` in Ollama), None for nothing.
    """

    messages: tuple[Message, ...]
    tools: tuple[Message, ...] = ()
    thinking: bool | None = None

    def for_jinja(self) -> dict[str, Any]:
        """Variables of a Jinja template."""
        thinking = {} if self.thinking is None else {"enable_thinking": self.thinking}
        tools = {"tools": list(self.tools)} if self.tools else {}
        return {"messages": list(self.messages), "add_generation_prompt": True, **tools, **thinking}

    def for_ollama(self, system: str | None = None) -> dict[str, Any]:
        """Variables of Ollama's template that ranges over messages; `system` is what a Modelfile says.

        Source: `Execute` and `collate` of ollama/template/template.go, and the chat route: the system text of a
        Modelfile comes first unless the conversation begins with one; messages of one role in a row are one.
        """
        given = list(self.messages)
        if system and given[0]["role"] != "system":
            given.insert(0, {"role": "system", "content": system})
        texts = [each["content"] for each in given if each["role"] == "system"]
        return {
            "System": "\n\n".join(texts),
            "Messages": list(_collated(given)),
            "Tools": list(self.tools),
            "Response": "",
            "Think": bool(self.thinking),
            "IsThinkSet": self.thinking is not None,
        }


def _collated(messages: Sequence[Message]) -> Iterator[dict[str, Any]]:
    held: dict[str, Any] | None = None
    for each in messages:
        if held is not None and held["Role"] == each["role"] != "tool":
            held["Content"] += "\n\n" + each["content"]
            continue
        if held is not None:
            yield held
        held = {
            "Role": each["role"],
            "Content": each["content"],
            "Thinking": each.get("reasoning_content", ""),
            "ToolName": each.get("name", ""),
            "ToolCalls": [
                {"Function": {"Name": call["function"]["name"], "Arguments": call["function"]["arguments"]}}
                for call in each.get("tool_calls", ())
            ],
        }
    if held is not None:
        yield held


def _system(content: str) -> Message:
    return {"role": "system", "content": content}


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _said(content: str, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def _called(city: str, **more: Any) -> Message:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": TOOL_NAME, "arguments": {"city": city}}}
    return _said("", tool_calls=[call], **more)


def _result(content: str) -> Message:
    return {"role": "tool", "name": TOOL_NAME, "tool_call_id": "abcdefghi", "content": content}


TOOL_NAME = "weather"
# The order of the keys is that of Ollama's types, which print themselves.
TOOL = {
    "type": "function",
    "function": {
        "name": TOOL_NAME,
        "description": "The weather of a day.",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {"city": {"type": "string", "description": "where"}},
        },
    },
}

_ASKED = (_user('What\'s an {{ x }}?\n\nSay it in "one" line.'), _said("It is 1 + 1."), _user("And <|b|> <b>?"))
PLAIN = Conversation((_user("Hi"),))
WITH_SYSTEM = Conversation((_system("Be brief. 简短。"), _user("Hi")))
LONG = Conversation(_ASKED)
CHAT = (
    PLAIN,
    WITH_SYSTEM,
    LONG,
    Conversation((_system("You are A.\n\nYou know B."), *_ASKED, _said("c"), _user("d"))),
)
_WEATHER = (_system("Be brief."), _user("Rain in Köln?"))
TOOLS = (
    Conversation(_WEATHER, (TOOL,)),
    Conversation((*_WEATHER, _called("Köln"), _result('{"rain": true}')), (TOOL,)),
    Conversation((*_WEATHER, _called("Köln"), _result('{"rain": true}'), _said("Yes."), _user("Thanks")), (TOOL,)),
)
THINKING = (
    Conversation((_user("Hi"),), thinking=True),
    Conversation((_user("Hi"),), thinking=False),
    Conversation((_user("Hi"), _said("Hello.", reasoning_content="A greeting."), _user("Bye"))),
    Conversation((_user("Rain?"), _called("Bonn", reasoning_content="I ask."), _result("no")), (TOOL,)),
)
ASKED = (*CHAT, *TOOLS, *THINKING)
