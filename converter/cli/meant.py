"""What a command line was meant to say: commands and options by near names, and by those that other programs have."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence

from converter.cli import verbs
from converter.text import did_you_mean, near, printable

#: Commands of other programs, or of people's minds, and what does it here.
COMMANDS = {
    "quantize": "convert IN OUT -q TYPE",
    "quant": "convert IN OUT -q TYPE",
    "info": "convert inspect FILE",
    "show": "convert inspect FILE",
    "dump": "convert inspect FILE",
    "list": "convert formats, convert quants or convert architectures",
    "types": "convert quants",
    "validate": "convert check FILE",
    "test": "convert check FILE",
    "join": "convert merge",
    "rename": "convert edit",
    "set": "convert edit",
    "version": "convert --version",
    "convert": "convert IN OUT, without the word",
}
#: Options of llama.cpp's tools, optimum, ONNX Runtime's and others.
OPTIONS = {
    "--outtype": "-q TYPE",
    "--output": "OUT, the second argument",
    "--out": "OUT, the second argument",
    "--outfile": "OUT, the second argument",
    "-o": "OUT, the second argument",
    "--model": "IN, the first argument",
    "--input": "IN, the first argument",
    "--qtype": "-q TYPE",
    "--ftype": "-q TYPE",
    "--bits": "-q TYPE (`convert quants`)",
    "--nthread": "--threads N",
    "--overwrite": "--force",
    "--yes": "--force",
    "--silent": "--quiet",
    "--model-name": "--name NAME",
    "--token-embedding-type": "--embedding-type TYPE",
    "--output-tensor-type": "--output-type TYPE",
    "--leave-output-tensor": "--leave-output",
    "--format": "--to NAME",
    "-t": "-q TYPE, or -j N for threads",
    "-i": "IN, the first argument",
}


def instead(parser: argparse.ArgumentParser, rest: Sequence[str]) -> str:
    """The message about arguments that a parser did not take."""
    message = f"unrecognized arguments: {' '.join(map(printable, rest))}"
    for word in rest:
        option = word.partition("=")[0]
        if option.startswith("-") and (hint := _option(parser, option)):
            return message + hint
    return message


def _option(parser: argparse.ArgumentParser, option: str) -> str:
    if option in OPTIONS:
        return f"; did you mean {OPTIONS[option]}?"
    others = [name for name in verbs.names() if option in _options(verbs.parser(name))]
    if others:
        return f"; that is an option of convert {' and '.join(others[:3])}"
    return did_you_mean(option, _options(parser))


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings if len(option) > 2]


def command(argv: Sequence[str]) -> str | None:
    """What to say where the first word is neither a command nor anything that is there, but near to a command."""
    word = next(_words(argv), "")
    if not word.isalpha() or os.path.lexists(word):
        return None
    if word.casefold() in COMMANDS:
        return f"no command {word!r}, and no such file; did you mean {COMMANDS[word.casefold()]}?"
    if found := near(word, verbs.names()):
        return f"no command {word!r}, and no such file; did you mean convert {found[0]}?"
    return None


def _words(argv: Sequence[str]) -> Iterator[str]:
    return (word for word in argv if word not in verbs.FLAGS)
