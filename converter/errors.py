"""Every way a conversion can fail, and the exit code it ends with.

ConverterError                    70
├── UsageError                     2   a flag, a pattern or a combination that cannot be meant
├── FormatError                   10
│   ├── UnknownFormat             10   no reader or writer answers to this file or name
│   ├── CorruptFile               11   truncated, contradictory or lying bytes
│   ├── UnsupportedFeature        12   valid, but nothing here can read or hold it
│   ├── MissingDependency         13   an extra is not installed; the message has the command
│   └── MissingPart               14   a shard, a config or a tokenizer file is not there
├── ArchitectureError             20
│   ├── UnknownArchitecture       20   no architecture file answers to this model
│   ├── UnmatchedTensor           21   a tensor that no rule of the architecture names
│   ├── MissingTensor             22   a rule of the architecture finds no tensor
│   ├── ShapeMismatch             23   config and tensor disagree
│   └── TokenizerError            24   tokenizer unreadable, or larger than the embedding
│       └── UnknownPreTokenizer   25   ask for --pre NAME
├── QuantizationError             30   a type that does not fit, or may not be re-encoded
│   └── MissingImportance         31   a type needs an importance matrix that has no entry
├── LossyError                    40   something was lost, under --strict
├── FidelityError                 41   a result lies outside its bounds
│   ├── ProvenButFor              42   blocks that nothing proves, and other arithmetic may explain
│   └── NotFromSource             43   bytes or keys that do not follow from the source
├── OutputError                   50   reading or writing failed
│   ├── SameFile                  51   output equal to input
│   ├── DiskFull                  52   not enough room, found before or while writing
│   ├── OutputExists              53   ask for --force
│   └── EngineError               54   workers that are not there, were lost, or see other files
├── InternalError                70   a fault of this program
├── OutOfMemory                  71   less memory than the work needs
└── Interrupted                  130   Ctrl-C, SIGTERM and the like
    └── Cancelled                130   by the caller: its token, or its progress callback

No error ends with 1: that is what `diff` says where two models differ, and what Python ends with of itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from converter.address import shown


class ConverterError(Exception):
    """Base of all errors; its text is one to three lines a person can act on.

    `family` names what the exit codes of a class and of those below it are about, `words` what its own code says.
    """

    exit_code = 70
    family = ""
    words = ""

    def __str__(self) -> str:
        return shown(super().__str__())


class UsageError(ConverterError):
    """A flag, a pattern or a combination that cannot be meant."""

    exit_code = 2
    family = "usage"


class FormatError(ConverterError):
    """A file's container is unknown, damaged or beyond us."""

    exit_code = 10
    family = "format"


class UnknownFormat(FormatError):
    """No reader or writer answers to this file or name."""

    words = "unknown"


class CorruptFile(FormatError):
    """The bytes contradict themselves or the file's size."""

    exit_code = 11
    words = "corrupt"


class UnsupportedFeature(FormatError):
    """The file is valid, but nothing here can read or hold it."""

    exit_code = 12
    words = "unsupported"


class MissingDependency(FormatError):
    """An optional package is not installed."""

    exit_code = 13
    words = "missing extra"


class MissingPart(FormatError):
    """A shard, a config or a tokenizer file is not there."""

    exit_code = 14
    words = "missing part"


class ArchitectureError(ConverterError):
    """The model's architecture and its tensors do not meet."""

    exit_code = 20
    family = "architecture and tokenizer"


class UnknownArchitecture(ArchitectureError):
    """No architecture file answers to this model."""

    words = "unknown"


class UnmatchedTensor(ArchitectureError):
    """A tensor that no rule of the architecture names."""

    exit_code = 21
    words = "unmatched tensor"


class MissingTensor(ArchitectureError):
    """A rule of the architecture finds no tensor."""

    exit_code = 22
    words = "missing tensor"


class ShapeMismatch(ArchitectureError):
    """The config and a tensor's shape disagree."""

    exit_code = 23
    words = "wrong shape"


class TokenizerError(ArchitectureError):
    """The tokenizer is unreadable or does not fit the embedding."""

    exit_code = 24
    words = "tokenizer"


class UnknownPreTokenizer(TokenizerError):
    """The pre-tokenizer has no known name; `--pre NAME` supplies one."""

    exit_code = 25
    words = "pre-tokenizer"


class QuantizationError(ConverterError):
    """A type that does not fit a tensor, or a tensor that may not be re-encoded."""

    exit_code = 30
    family = "quantization"
    words = "does not fit"


class MissingImportance(QuantizationError):
    """A type needs an importance matrix and the tensor has no entry in it."""

    exit_code = 31
    words = "needs an importance matrix"


class LossyError(ConverterError):
    """Something was lost while --strict forbids it."""

    exit_code = 40
    family = "lossy under --strict"


class FidelityError(ConverterError):
    """A result lies outside its bounds."""

    exit_code = 41
    family = "fidelity"
    words = "outside its bounds"


class ProvenButFor(FidelityError):
    """`certify`: all but some blocks are proven; other arithmetic may have written these."""

    exit_code = 42
    words = "proven but for some blocks"


class NotFromSource(FidelityError):
    """`certify`: tensors or keys do not follow from the source."""

    exit_code = 43
    words = "not from this source"


class OutputError(ConverterError):
    """Reading or writing the file system failed."""

    exit_code = 50
    family = "input, output and disk"
    words = "I/O"


class SameFile(OutputError):
    """The output is the input."""

    exit_code = 51
    words = "same as input"


class DiskFull(OutputError):
    """Not enough room for the output."""

    exit_code = 52
    words = "no room"


class OutputExists(OutputError):
    """The output is already there; `--force` replaces it."""

    exit_code = 53
    words = "exists"


class InternalError(ConverterError):
    """What is not meant to happen: a fault of this program."""

    exit_code = 70
    family = "internal error"


class OutOfMemory(ConverterError):
    """Less memory than the work needs."""

    exit_code = 71
    family = "out of memory"


class EngineError(OutputError):
    """Workers of --engine cannot be reached, were lost again and again, or see other files."""

    exit_code = 54
    words = "workers"


class Interrupted(ConverterError):
    """Ctrl-C, SIGTERM and the like."""

    exit_code = 130
    family = "interrupted"


class Cancelled(Interrupted):
    """The caller's token was set, or its progress callback returned False."""


def exit_codes() -> list[tuple[str, list[tuple[int, str]]]]:
    """Every code that an error ends with, by family: code and words; help and docs/commands.md list them."""
    return [(head.family, sorted(_codes(head).items())) for head in _below(ConverterError)]


def _codes(kind: type[ConverterError]) -> dict[int, str]:
    found = {kind.exit_code: kind.words}
    for below in _below(kind):
        found |= _codes(below)
    return found


def _below(kind: type[ConverterError]) -> list[type[ConverterError]]:
    """Those of this module: what others derive from them is theirs."""
    return [below for below in kind.__subclasses__() if below.__module__ == __name__]


@contextmanager
def about(source: Path) -> Iterator[None]:
    """Errors that pass through name `source`, the file or folder that was given; usage errors need not, nor those that
    begin with the option whose file they are about.

    What may not be read, or looked into, is an OutputError, wherever it was met.
    """
    try:
        yield
    except UsageError:
        raise
    except PermissionError as error:
        raise OutputError(f"{error.filename or source}: {error.strerror or 'permission denied'}") from error
    except ConverterError as error:
        if not re.search(rf"^--|(?<![\w.-]){re.escape(source.name)}(?![\w.-])", str(error)):
            joint = f"{source.name} -> " if isinstance(error, OutputError) else f"{source}: "
            error.args = (f"{joint}{error}",)
        raise


def said_of(path: Path, error: Exception) -> str:
    """What an error says of a file, less the file's name, for where that stands already."""
    return str(error).removeprefix(shown(f"{path}: "))


def short(value: object, limit: int = 80) -> str:
    """A name or a text out of a file, quoted on one line and of bounded length, for messages."""
    if isinstance(value, str | bytes):
        return repr(value[:limit]) + ("..." if len(value) > limit else "")
    try:
        return repr(value)[:limit]
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return f"a number of too many digits, or a {type(value).__name__} with one"
