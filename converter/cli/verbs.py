"""The table of verbs: one module in `commands/` each. Parsers, help and docs/commands.md are made of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from converter.cli import commands
from converter.cli.arguments import HELP_ALL, Parser, common_arguments
from converter.errors import exit_codes

DEFAULT = "convert"  # the verb that is not named
GROUPS = ("convert", "change what is there", "prove what was made", "look at what is there", "set up the shell")


class Verb(NamedTuple):  # a dataclass would cost `--help` 10 ms
    """What help says about a verb.

    `arguments` are its positional ones, `help` is its line in the list of all verbs, `description` opens its own help.
    Of the `examples` (command, what it does) the first stands in the overall help, too; of the default verb all do.
    `exit_codes` are those that no error has.
    """

    name: str
    group: str
    arguments: str
    help: str
    description: str
    examples: tuple[tuple[str, str], ...] = ()
    exit_codes: tuple[tuple[int, str], ...] = ()


class Outcome(NamedTuple):
    """What a verb did: `data` for programs (--json), `show` prints it for people, `report` makes one of the verb's
    reports by its extension (`--report -`); only one of them is called."""

    data: Callable[[], Mapping[str, Any]]
    show: Callable[[], None]
    exit_code: int = 0
    report: Callable[[str], str] | None = None


def names() -> list[str]:
    """All verbs by name; nothing is imported."""
    # pkgutil.iter_modules would do, but imports `inspect`, which costs as much as all else that help needs.
    return sorted(
        path.stem.replace("_", "-") for folder in commands.__path__ for path in Path(folder).glob("[a-z]*.py")
    )


def module(name: str) -> ModuleType:
    """The module of a verb, with _ where it has -: `VERB`, `add_arguments(parser)`, `run(args) -> Outcome`."""
    return import_module(f"{commands.__name__}.{name.replace('-', '_')}")


def all_verbs() -> list[Verb]:
    """In the order of help: by group, in each by name, the default verb first."""
    verbs: list[Verb] = [module(name).VERB for name in names()]
    return sorted(verbs, key=lambda verb: (GROUPS.index(verb.group), verb.name != DEFAULT, verb.name))


HELP = ("help", "-h", "--help")
FLAGS = ("--json", "--quiet", "--offline", "--debug")  # all verbs have them, and they may stand in front


def chosen(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that a command line names, or the default one, and what is left of it."""
    count = next((at for at, word in enumerate(argv) if word not in FLAGS), 0)
    front, (first, *rest) = list(argv[:count]), argv[count:] or ["--help"]
    if first in HELP and len(rest) < 2 and (not rest or rest[0] in names()):
        return (rest or [DEFAULT])[0], [HELP_ALL if rest and first == HELP[0] else "--help"]
    if first != DEFAULT and first in names():
        return first, front + rest
    return DEFAULT, list(argv or ["--help"])


def parser(name: str) -> Parser:
    """The parser of a verb."""
    made_of = module(name)
    verb: Verb = made_of.VERB
    usage = f"convert {_command(verb).removeprefix('convert ')} [options]"
    made = Parser(
        front=overview if name == DEFAULT else None,
        prog="convert" if name == DEFAULT else f"convert {name}",
        usage=usage.replace("%", "%%"),
        description=verb.description,
        epilog=_block("examples", _aligned(verb.examples)),
        formatter_class=_HelpFormatter,
    )
    made_of.add_arguments(made)
    common_arguments(made)
    return made


class _HelpFormatter(argparse.HelpFormatter):
    """As wide as the terminal; wraps a description, and leaves what has lines of its own as it is."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=_width())

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


# ------------------------------------------------------------------------------------------------ made of the table


MORE = """\
`convert help convert` has all options of a conversion, `convert help COMMAND` those of a command; all take --json."""


def overview() -> str:
    """The page of `convert --help`: how it is called, verbs by group, exit codes."""
    verbs = all_verbs()
    named = [verb for verb in verbs if verb.name != DEFAULT]
    width = max(len(verb.name) for verb in named)
    parts = [f"usage: {_command(verbs[0])} [options]\n       convert COMMAND ...\n"]
    parts.append(_block("examples", _aligned(verbs[0].examples[:5])))
    for group in GROUPS:
        own = [(verb.name, verb.help.replace("`", "")) for verb in named if verb.group == group]
        parts.append(_block(f"commands to {group}", _aligned(own, width, _width())))
    parts.append(_block("exit codes", _wrapped(_said_codes(), _width() - 2)))
    parts.append("\n".join(_wrapped(MORE.split(), _width(), " ")) + "\n")
    return "\n".join(filter(None, parts))


def _width() -> int:
    import shutil  # takes its time, and only help needs it

    return max(60, min(120, shutil.get_terminal_size().columns - 2))


def markdown() -> str:
    """The list of verbs in docs/commands.md."""
    rows = [(f"`{_command(verb)}`", verb.help) for verb in all_verbs()]
    return _table("command", "what it does", rows)


def exit_code_markdown() -> str:
    """The list of exit codes in docs/commands.md."""
    rows = [("0", "done")]
    rows += [(str(code), f"`{verb.name}`: {words}") for verb in all_verbs() for code, words in verb.exit_codes]
    for family, kinds in exit_codes():
        words = ", ".join(words for _, words in kinds if words)
        rows.append((" ".join(str(code) for code, _ in kinds), f"{family}: {words}" if words else family))
    rows.sort(key=lambda row: int(row[0].split()[0]))
    return _table("exit code", "meaning", rows)


def _table(left: str, right: str, rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join((f"| {left} | {right} |", "|---|---|", *(f"| {one} | {other} |" for one, other in rows)))


def _command(verb: Verb) -> str:
    return f"convert {verb.arguments if verb.name == DEFAULT else _usage(verb)}".rstrip()


def _usage(verb: Verb) -> str:
    return f"{verb.name} {verb.arguments}".rstrip()


def _said_codes() -> list[str]:
    """Exit codes in a few words: one for each family of errors, those of single verbs among them."""
    said: list[tuple[tuple[int, ...], str]] = [((0,), "done")]
    said += [((code,), f"{verb.name}: {words}") for verb in all_verbs() for code, words in verb.exit_codes]
    said += [(tuple(code for code, _ in kinds), family) for family, kinds in exit_codes()]
    return [f"{_span(codes)} {words}" for codes, words in sorted(said)]


def _span(codes: Sequence[int]) -> str:
    return str(codes[0]) if len(codes) == 1 else f"{codes[0]}-{codes[-1]}"


def _block(title: str, lines: Sequence[str]) -> str:
    return f"{title}:\n" + "".join(f"  {line}\n" for line in lines) if lines else ""


def _aligned(rows: Sequence[tuple[str, str]], left: int = 0, width: int = 1000) -> list[str]:
    """Two columns, of which the second is wrapped where the line has an end."""
    left = max([left, *(len(name) for name, _ in rows)])
    lines = []
    for name, words in rows:
        first, *more = _wrapped(words.split(), width - left - 4, " ")
        lines += [f"{name:<{left}}  {first}".rstrip(), *(f"{'':<{left}}  {line}" for line in more)]
    return lines


def _wrapped(words: Sequence[str], width: int, between: str = "  ") -> list[str]:
    lines = [""]
    for each in words:
        if lines[-1] and len(lines[-1]) + len(between) + len(each) > width:
            lines.append("")
        lines[-1] += f"{between}{each}" if lines[-1] else each
    return lines
