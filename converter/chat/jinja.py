"""A model's own chat template, rendered as transformers does it, in a process of its own with bounds.

A template is a stranger's program. It runs in Jinja's sandbox, in a child that has little memory and a few seconds, so
that the worst it can do is to give no text.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from converter.chat.conversations import Conversation
from converter.child import limit_memory
from converter.errors import MissingDependency
from converter.extras import package

MAX_TEMPLATE = 1 << 20  # characters
MAX_RENDERED = 1 << 16  # characters of a prompt; the conversations here have some hundred
SECONDS = 20.0
MAX_NBYTES = 1 << 30  # of the child's memory, where the system can limit it
WORK = "to know a chat template"
_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")  # a tag of transformers that changes no text


class TemplateFailed(Exception):
    """A template that does not parse, does not end, or takes too much."""


def render(template: str, conversations: Sequence[Conversation], bos: str, eos: str) -> list[str | None]:
    """The prompts of conversations, None where the template refuses one.

    It is told the date only where it renders nothing without: most then have a date of their own.

    Raises:
        MissingDependency: jinja2 is not installed.
        TemplateFailed: the template is broken.
    """
    package("jinja2", WORK)
    if len(template) > MAX_TEMPLATE:
        raise TemplateFailed(f"has {len(template)} characters, no chat template has")
    asked = {"template": template, "bos": bos, "eos": eos, "asked": [each.for_jinja() for each in conversations]}
    command = [sys.executable, "-P", "-c", "from converter.chat.jinja import child; child()"]
    try:
        done = subprocess.run(command, input=json.dumps(asked).encode(), capture_output=True, timeout=SECONDS)
        said = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise TemplateFailed(f"does not end within {SECONDS:g} s") from None
    except ValueError:
        raise TemplateFailed("takes more memory than a chat template may") from None
    if "error" in said:
        raise TemplateFailed(str(said["error"]))
    return list(said["texts"])


def environment() -> Any:
    """Jinja's sandbox with what transformers gives to chat templates; JSON is written as Go writes it.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    from converter.chat.gotemplate import compact

    sandbox = package("jinja2.sandbox", WORK)
    made = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = lambda value, **_: compact(value)

    def refuse(message: str) -> None:
        raise ValueError(message)

    made.globals["raise_exception"] = refuse
    return made


def plain(template: str) -> str:
    """A template without the tag that only transformers knows."""
    return _GENERATION.sub(lambda match: f"{match[1]}{'endif' if match[2] else 'if true'}{match[3]}", template)


# ------------------------------------------------------------------------------------------------- the child


def child() -> None:
    """Answer one question: JSON on standard input, JSON on standard output."""
    limit_memory(MAX_NBYTES)
    asked = json.loads(sys.stdin.buffer.read())
    try:
        answer = _answer(asked)
    except MissingDependency:
        raise
    except Exception as error:  # whatever a template makes Python say
        answer = {"error": f"{type(error).__name__}: {error}"[:200]}
    sys.stdout.buffer.write(json.dumps(answer).encode())


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    made = environment()
    template = made.from_string(plain(asked["template"]))
    dated = "strftime_now" in asked["template"]
    texts = []
    for each in asked["asked"]:
        made.globals.pop("strftime_now", None)
        text = _text(template, asked, each)
        if text is None and dated:
            made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
            text = _text(template, asked, each)
        texts.append(text)
    return {"texts": texts}


def _text(template: Any, asked: dict[str, Any], variables: dict[str, Any]) -> str | None:
    pieces, size = [], 0
    try:
        for piece in template.generate(bos_token=asked["bos"], eos_token=asked["eos"], **variables):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_RENDERED:
                return None
    except Exception:  # a template may refuse a conversation
        return None
    return "".join(pieces)
