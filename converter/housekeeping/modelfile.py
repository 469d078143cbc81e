"""Ollama's Modelfile: written of a GGUF, and read by its grammar.

Instructions are `NAME value`; a value ends with its line unless it is quoted by one or three `"`, which nothing
escapes, so that there are texts that no Modelfile can say.
Source: https://docs.ollama.com/modelfile, and the states of `ParseFile` in ollama/parser/parser.go.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from converter.checkpoint import Checkpoint
from converter.errors import CorruptFile, UsageError, about, short
from converter.events import Event, Note
from converter.formats.registry import open_checkpoint
from converter.housekeeping.ollama import Known, known
from converter.housekeeping.package import ollama_files, projector_of
from converter.metadata import text_of
from converter.pipeline import write
from converter.request import PathLike, Source
from converter.storage.disk import Disk
from converter.storage.layout import Layout, whole_file

INSTRUCTIONS = (
    "FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "REQUIRES", "DRAFT", "RENDERER",
    "PARSER",
)  # fmt: skip
ROLES = ("system", "user", "assistant")
_KEYED = {"PARAMETER", "MESSAGE"}
# What may stand around a value, the usual first: of texts, of names of files, of others.
_MARKS = {**dict.fromkeys(("TEMPLATE", "SYSTEM", "LICENSE", "MESSAGE"), ('"""', '"', "")), "stop": ('"', '"""', "")}
_PLAIN = ("", '"', '"""')


class Instruction(NamedTuple):
    """One instruction: `key` is the name of a PARAMETER, the role of a MESSAGE."""

    name: str
    value: str
    key: str = ""


# ---------------------------------------------------------------------------------------------- the grammar


def read(text: str) -> list[Instruction]:
    """The instructions of a Modelfile.

    Raises:
        CorruptFile: it is none; with the line.
    """
    text, found, at = text.removeprefix("\ufeff"), list[Instruction](), 0
    while at < len(text):
        if text[at] in " \t\r\n":
            at += 1
        elif text[at] == "#":
            at = _line_end(text, at)
        else:
            instruction, at = _instruction(text, at)
            found.append(instruction)
    if all(each.name != "FROM" for each in found):
        raise CorruptFile("Modelfile: no FROM line")
    return found


def _instruction(text: str, start: int) -> tuple[Instruction, int]:
    name, at = _word(text, start, str.isalpha)
    key = ""
    if name.upper() not in INSTRUCTIONS:
        raise _wrong(text, start, f"{name[:40]!r} is no instruction")
    if name.upper() in _KEYED:
        at = _spaces(text, at)
        key, at = _word(text, at, lambda sign: sign.isalnum() or sign == "_")
        if name.upper() == "MESSAGE" and key not in ROLES:
            raise _wrong(text, start, f"{key[:40]!r} is no role")
    value, at = _value(text, at)
    return Instruction(name.upper(), value, key), at


def _word(text: str, start: int, belongs: Any) -> tuple[str, int]:
    at = start
    while at < len(text) and text[at].isascii() and belongs(text[at]):
        at += 1
    if at == start or text[at : at + 1] not in (" ", "\t"):
        raise _wrong(text, start, "a word and a space are expected")
    return text[start:at], at + 1


def _value(text: str, start: int) -> tuple[str, int]:
    """A value goes on to the first end of a line where its quotes are closed; signs that do not print are left out."""
    at = start
    while True:
        end = _line_end(text, at)
        value = _unquoted("".join(filter(_kept, text[start:end])).strip())
        if value is not None:
            return value, end
        if end >= len(text):
            raise _wrong(text, start, "a quote is not closed")
        at = end + 1


def _kept(sign: str) -> bool:
    return sign.isprintable() or sign in "\r\n\t"


def _unquoted(value: str) -> str | None:
    """A value without its quotes, None where they are not closed."""
    for mark in ('"""', '"'):
        if value.startswith(mark):
            closed = len(value) >= 2 * len(mark) and value.endswith(mark)
            return value[len(mark) : -len(mark)] if closed else None
    return value


def _spaces(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t"):
        at += 1
    return at


def _line_end(text: str, at: int) -> int:
    ends = [end for end in (text.find("\n", at), text.find("\r", at)) if end >= 0]
    return min(ends, default=len(text))


def _wrong(text: str, at: int, what: str) -> CorruptFile:
    return CorruptFile(f"Modelfile: line {text.count(chr(10), 0, at) + 1}: {what}")


def line(instruction: Instruction) -> str:
    """An instruction as a Modelfile has it.

    Raises:
        UsageError: the grammar has no way to write its value.
    """
    words = f"{instruction.name} {instruction.key}".strip()
    for mark in _MARKS.get(instruction.key or instruction.name, _PLAIN):
        written = f"{words} {mark}{instruction.value}{mark}"
        try:
            if _instruction(written + "\n", 0) == (instruction, len(written)):
                return written
        except CorruptFile:
            continue
    raise UsageError(f"{words}: a Modelfile cannot say {short(repr(instruction.value))}")


# ------------------------------------------------------------------------------------------------ of a model


@dataclass(frozen=True)
class Extras:
    """What a Modelfile says beside what the GGUF does: files that it names, and texts in the place of the GGUF's."""

    projector: Path | None = None
    adapter: Path | None = None
    template: str | None = None
    system: str | None = None
    licences: tuple[str, ...] = ()
    num_ctx: int | None = None


@dataclass(frozen=True)
class Modelfile:
    """A Modelfile; `path` is None where it was not written."""

    text: str
    path: Path | None
    instructions: tuple[Instruction, ...]
    family: str | None
    events: tuple[Event, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "path": None if self.path is None else str(self.path),
            "modelfile": self.text,
            "family": self.family,
            "instructions": [each._asdict() for each in self.instructions],
            "events": [event.as_dict() for event in self.events],
        }


def modelfile(
    source: PathLike | Source, target: PathLike | None = None, extras: Extras = Extras(), *, force: bool = False
) -> Modelfile:
    """The Modelfile of a GGUF.

    Args:
        source: the GGUF, or one of its shards.
        target: the file to write; paths in it are relative to its folder. None writes nothing: relative to this folder.
        extras: what it says beside.
        force: replace an existing file.

    Raises:
        UnsupportedFeature: no whole model in GGUF.
        UsageError: a name or a text that a Modelfile cannot say.
        OutputExists: the target.
        ConverterError: as `convert`.
    """
    place = None if target is None else Path(target)
    with about(Source.of(source).path), open_checkpoint(source) as checkpoint:
        files = ollama_files(checkpoint, "a Modelfile is of")
        said = known(checkpoint.config, template=extras.template is None, num_ctx=extras.num_ctx)
        folder = Path() if place is None else place.parent
        events = list(said.events)
        made = tuple(_instructions(files, folder, said, extras, events))
        text = "".join(f"{line(each)}\n" for each in made)
        if place is not None:
            layout = Layout((whole_file(place, text.encode()),))
            write(checkpoint, Disk(layout, replace=force), force=force, threads=1, progress=None, claimed=events.extend)
    return Modelfile(text, place, made, said.family, (*checkpoint.events, *events))


def _instructions(
    files: Sequence[Path], folder: Path, said: Known, extras: Extras, events: list[Event]
) -> Iterator[Instruction]:
    models = [*files, *([] if extras.projector is None else [projector_of(extras.projector)])]
    yield from (Instruction("FROM", _relative(path, folder)) for path in models)
    if extras.adapter is not None:
        yield Instruction("ADAPTER", _relative(_adapter(extras.adapter), folder))
    licences = extras.licences or ((said.licence,) if said.licence else ())
    texts = [
        ("TEMPLATE", extras.template or said.template),
        ("SYSTEM", extras.system or said.system),
        *(("LICENSE", each) for each in licences),
    ]
    for name, value in texts:
        if value:
            yield from _sayable(Instruction(name, value), events)
    for key, parameter in said.parameters.items():
        for each in parameter if isinstance(parameter, list) else [parameter]:
            yield from _sayable(Instruction("PARAMETER", str(each), key), events)


def _sayable(instruction: Instruction, events: list[Event]) -> Iterator[Instruction]:
    """A text out of the file, left out with a note where a Modelfile cannot say it."""
    try:
        line(instruction)
    except UsageError as error:
        events.append(Note(f"left out: {error}"))
    else:
        yield instruction


def _relative(path: Path, folder: Path) -> str:
    """The way to a file, with `./` in front, without which Ollama would look for a model of that name."""
    try:
        way = Path(os.path.relpath(path, folder))
    except ValueError:  # another drive of Windows
        return path.absolute().as_posix()
    # Names are UTF-8 in the Modelfile, also where the locale has another encoding.
    name = os.fsencode(way.as_posix()).decode("utf-8", "surrogateescape")
    return name if way.parts[0] == ".." else f"./{name}"


def _adapter(path: Path) -> Path:
    """Raises: UsageError, it is no adapter; ConverterError, it cannot be read."""
    with open_checkpoint(path) as checkpoint:
        if not _is_adapter(checkpoint):
            raise UsageError(f"{path}: is no adapter (`convert lora/ lora.gguf --base folder/` makes one)")
    return path


def _is_adapter(checkpoint: Checkpoint) -> bool:
    return checkpoint.format == "gguf" and text_of(checkpoint.config, "general.type") == "adapter"
