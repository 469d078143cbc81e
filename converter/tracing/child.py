"""The process that traces: what is asked comes from standard input, the answer goes to standard output.

Whatever torch and transformers raise about a model is one line; they raise nearly anything.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

from converter.errors import ConverterError, UnsupportedFeature
from converter.extras import package
from converter.tracing.answer import Answer, send, send_error
from converter.tracing.parts import WORK


def main() -> None:
    """Answer one question."""
    asked = json.loads(sys.stdin.buffer.read())
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no part of the answer
    with answers:
        _answered(asked, answers)


def _answered(asked: dict[str, Any], stream: BinaryIO) -> None:
    try:
        answer = _trace(asked)
    except ConverterError as error:
        send_error(type(error).__name__, str(error), stream)
    except MemoryError:
        send_error("OutOfMemory", "tracing it takes more memory than there is", stream)
    except Exception as error:
        send_error(UnsupportedFeature.__name__, f"torch does not trace it: {_first_line(error)}", stream)
    else:
        send(answer, stream)


def _trace(asked: dict[str, Any]) -> Answer:
    torch = package("torch", WORK)
    package("onnxscript", WORK)
    if "program" in asked:
        from converter.tracing.programs import translated

        return translated(torch, asked["program"], asked["tensors"])
    package("transformers", WORK)
    from converter.tracing.models import traced

    return traced(torch, asked["config"], {k: tuple(v) for k, v in asked["tensors"].items()}, asked["dtype"])


def _first_line(error: BaseException) -> str:
    """What the first of a chain of errors said: torch wraps them in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]


if __name__ == "__main__":
    main()
