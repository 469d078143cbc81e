"""Which family a model's own chat template belongs to: the one that renders the same prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from converter.chat.conversations import ASKED, CHAT, LONG, PLAIN, THINKING, TOOL_NAME, TOOLS, WITH_SYSTEM, Conversation
from converter.chat.families import FAMILIES, Family
from converter.chat.gotemplate import TemplateError, evaluate, parse
from converter.chat.jinja import render

MAX_ADDED = 200  # characters that a model's template may add before a family's, and after it
_MARK = "\N{REPLACEMENT CHARACTER}"
# What a family may lack, by the part of a template that shows it.
_LACKS = {
    ".Tools": "tools: the model's own template takes them, this one does not",
    ".Think": "thinking: the model's own template can switch it, this one does not",
}
_DATED = "the model's own template writes the date of the day, this one keeps a fixed one"


class Recognised(NamedTuple):
    """A chat template in Ollama's language.

    Attributes:
        family: its name.
        template: it, with what this model adds before the first and after the last turn.
        system: what stands where a conversation has no system text; None for nothing.
        stop: texts that end an answer.
        notes: what it does not do as the model's own does.
    """

    family: str
    template: str
    system: str | None
    stop: tuple[str, ...]
    notes: tuple[str, ...]


class Tokens(NamedTuple):
    """The texts of a model's tokens, and whether its tokenizer puts the first in front of every prompt."""

    bos: str = ""
    eos: str = ""
    adds_bos: bool = True


Prompts = Mapping[Conversation, "str | None"]


def recognise(template: str, tokens: Tokens) -> Recognised | None:
    """The family of a Jinja template, None where there is none.

    Raises:
        MissingDependency: jinja2 is not installed.
        TemplateFailed: the template is broken.
    """
    rendered = render(template, ASKED, tokens.bos, tokens.eos)
    found = among(dict(zip(ASKED, rendered, strict=True)), tokens)
    if found is not None and "strftime_now" in template:
        return found._replace(notes=(*found.notes, _DATED))
    return found


def among(prompts: Prompts, tokens: Tokens) -> Recognised | None:
    """The family that renders these prompts of `ASKED`; None stands for a conversation that is refused.

    White space of JSON in the prompts with tools does not count: Go writes none.
    """
    if prompts[PLAIN] is None or prompts[LONG] is None:
        return None
    if tokens.adds_bos:
        prompts = {each: text and text.removeprefix(tokens.bos) for each, text in prompts.items()}
    fits = (_Fit(family, tokens, prompts).found() for family in FAMILIES)
    return next((each for each in fits if each is not None), None)


def _asked_of(prompts: Prompts) -> Iterator[tuple[str, tuple[Conversation, ...]]]:
    """The features that a model's template has, with the conversations that show them."""
    if TOOL_NAME in (prompts[TOOLS[0]] or ""):
        yield ".Tools", TOOLS
    if any(prompts[each] != prompts[PLAIN] for each in THINKING[:2]):
        yield ".Think", THINKING


class _Fit:
    """One family against the prompts of a model.

    What the model adds before the first turn and after the last one, and its usual system text, are found first.
    """

    def __init__(self, family: Family, tokens: Tokens, prompts: Prompts) -> None:
        self.family, self.prompts = family, prompts
        self.template = family.template(tokens.bos, tokens.eos)
        self.head, self.tail = "", ""
        self.system: str | None = None

    def found(self) -> Recognised | None:
        try:
            self.nodes = parse(self.template)
            fits = self.settled() and all(map(self.same, CHAT))
            return self.whole() if fits else None
        except TemplateError:
            return None

    def whole(self) -> Recognised | None:
        """With the features that both have; None where this family has one that the model does not."""
        notes, shown = [], dict(_asked_of(self.prompts))
        for mark, note in _LACKS.items():
            if mark not in self.template:
                notes += [note] if mark in shown else []
            elif mark not in shown or not all(map(self.same, shown[mark])):
                return None
        template = self.head + self.template + self.tail
        return Recognised(self.family.name, template, self.system, self.family.stop, tuple(notes))

    def settled(self) -> bool:
        known = WITH_SYSTEM if self.prompts[WITH_SYSTEM] is not None else PLAIN
        self.head, made, self.tail = str(self.prompts[known]).partition(self.made(known))
        if not made or max(len(self.head), len(self.tail)) > MAX_ADDED or "{{" in self.head + self.tail:
            return False
        if not self.same(PLAIN):
            before, mark, after = self.made(PLAIN, _MARK).partition(_MARK)
            plain, before, after = str(self.prompts[PLAIN]), self.head + before, after + self.tail
            if mark and plain.startswith(before) and plain.endswith(after):
                self.system = plain[len(before) : len(plain) - len(after)] or None
        return True

    def made(self, conversation: Conversation, system: str | None = None) -> str:
        return evaluate(self.nodes, conversation.for_ollama(system))

    def same(self, conversation: Conversation) -> bool:
        prompt = self.prompts[conversation]
        if prompt is None:
            return True
        made = self.head + self.made(conversation, self.system) + self.tail
        return made == prompt or (bool(conversation.tools) and _packed(made) == _packed(prompt))


def _packed(text: str) -> str:
    return text.replace('": ', '":').replace(', "', ',"')
