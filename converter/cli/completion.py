"""What can be completed in a command line, out of the parsers themselves; `shells` makes scripts of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from converter.cli import verbs

PLAIN_TYPES = ("f32", "f16", "bf16")
FOLDER_NAMES = ("DIR", "FOLDER", "DIR[:STRENGTH]")
MODELS = ("source", "sources", "before", "after")  # arguments that are read


def _quants() -> Iterable[str]:
    from converter.quant.recipes import GRAPH_RECIPES, RECIPES

    return [name.lower() for name in (*RECIPES, *GRAPH_RECIPES)]


def _types() -> Iterable[str]:
    from converter.quant.recipes import RECIPES

    return sorted({recipe.base.lower() for recipe in RECIPES.values() if recipe.base is not None})


def _architectures() -> Iterable[str]:
    from converter.architectures import architectures, plugged

    return [each.gguf for each in (*architectures().values(), *plugged().values())]


def _schemes() -> Iterable[str]:
    from converter.quant.targets import TARGETS

    return list(TARGETS)


def _readers() -> Iterable[str]:
    from converter.formats.registry import readers

    return [each.name for each in readers()]


def _writers() -> Iterable[str]:
    from converter.formats.registry import writers

    return [each.name for each in writers()]


def _verbs() -> Iterable[str]:
    return verbs.names()


#: What an option without choices of its own can be given, by the name that its parser keeps it under.
VALUES: Mapping[str, Callable[[], Iterable[str]]] = {
    "quant": _quants,
    "quants": _quants,
    "output_type": _types,
    "embedding_type": _types,
    "dtype": lambda: PLAIN_TYPES,
    "scheme": _schemes,
    "engine": lambda: ("local", "ray", "dask"),
    "source_type": _readers,
    "before_type": _readers,
    "after_type": _readers,
    "target_type": _writers,
}
LISTS = ("quant", "quants")  # several, with commas
#: What a file is called that an option or an argument takes; a model has an extension of some format.
FILES: Mapping[str, tuple[str, ...]] = {
    "imatrix": (".gguf", ".dat"),
    "arch": (".toml",),
    "recipe": (".toml",),
    "mmproj": (".gguf",),
    "adapter": (".gguf",),
    "gate": (".toml",),
    "baseline": (".json",),
    "report": (".html", ".json", ".md", ".txt", ".xml"),
    "junit": (".xml",),
}


class Choice(NamedTuple):
    """What may stand in one place: words, or names of files that end so (all files, where no ending is named).

    `several` are separated by commas.
    """

    words: tuple[str, ...] = ()
    files: bool = False
    endings: tuple[str, ...] = ()
    folders: bool = False
    several: bool = False


class Flag(NamedTuple):
    """An option: its spellings, what help says, and what follows it; None where nothing does."""

    spellings: tuple[str, ...]
    help: str
    choice: Choice | None


class Command(NamedTuple):
    """A verb: what help says, its options, and what its arguments may be."""

    name: str
    help: str
    flags: tuple[Flag, ...]
    arguments: Choice


def commands() -> list[Command]:
    """Everything that can be completed, the default verb first."""
    found = [_command(verb) for verb in verbs.all_verbs()]
    help_ = Command(verbs.HELP[0], "options of a command", (), Choice(words=tuple(_verbs())))
    return [*found, help_]


def _command(verb: verbs.Verb) -> Command:
    flags, words, endings, files = [], list[str](), list[str](), False
    for action in verbs.parser(verb.name)._actions:
        if action.option_strings:
            flags.append(Flag(tuple(action.option_strings), _first_words(action), _choice(action)))
        elif (choice := _choice(action)) is not None:
            words += choice.words
            endings += choice.endings
            files |= choice.files or choice.folders
    arguments = Choice(tuple(words), files, tuple(dict.fromkeys(endings)))
    return Command(verb.name, verb.help.replace("`", ""), tuple(flags), arguments)


def _first_words(action: argparse.Action) -> str:
    """What help says, as far as it fits in a line beside the option."""
    words = (action.help or "").partition(";")[0].partition(" (")[0].partition(": ")[0]
    return words.replace("`", "").replace("%%", "%")[:70]


def _choice(action: argparse.Action) -> Choice | None:
    if action.nargs == 0:
        return None
    if action.choices is not None:
        return Choice(words=tuple(map(str, action.choices)))
    dest, metavar = action.dest, str(action.metavar)
    if dest == "arch" and action.type is None:
        return Choice(words=tuple(_architectures()))
    if dest in VALUES:
        return Choice(words=tuple(VALUES[dest]()), several=dest in LISTS)
    if dest in FILES:
        return Choice(files=True, endings=FILES[dest])
    if dest in MODELS:
        return Choice(files=True, endings=_endings())
    if metavar in FOLDER_NAMES:
        return Choice(folders=True)
    return Choice(files=action.type is not None and metavar in ("FILE", "OUT", "B", "TEXT", "MANIFEST", "REPORT"))


def _endings() -> tuple[str, ...]:
    from converter.formats.registry import formats

    return tuple(dict.fromkeys(ending for each in formats().values() for ending in each.extensions))
