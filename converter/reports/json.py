"""What programs read: one JSON object with the version of its schema, the verb, and the result or the error.

docs/json.md documents it for every verb.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from converter import __version__
from converter.storage.json import finite

#: Version of a result's schema, where the result has none of its own.
SCHEMA = 1


def as_json(verb: str, result: Mapping[str, Any], indent: int | None = None) -> str:
    """The result of a verb in its envelope; infinities and NaN are null."""
    envelope = {"schema": SCHEMA, "verb": verb, "version": __version__}
    return json.dumps(envelope | finite(dict(result)), indent=indent, allow_nan=False)


def failure(kind: str, exit_code: int, message: str) -> dict[str, Any]:
    """An error as the result of any verb: what went wrong (a class of `converter.errors`), its exit code, the words."""
    return {"error": {"kind": kind, "exit_code": exit_code, "message": message}}
