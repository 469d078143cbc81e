"""Go's own text/template with Ollama's types, where Go is installed (`make templates`)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "chat" / "ollama.go"


def answers(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What Go makes of cases: `text`, and `error` where it is none."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"GOCACHE": folder, "GO111MODULE": "off", "GOFLAGS": ""}
        command = ["go", "run", str(PROGRAM)]
        asked = json.dumps(cases).encode()
        done = subprocess.run(command, input=asked, capture_output=True, env=environment, check=True)
    return list(json.loads(done.stdout))
