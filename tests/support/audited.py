"""A program that writes down what it opens and runs."""

from __future__ import annotations

TRAP = "import os\nopen(os.environ['MARKER'], 'w').close()\n"
AUDITED = """
import json, os, sys
from pathlib import Path

opened, called = [], []

def hook(event, args):
    if event == "open" and not isinstance(args[0], int):
        opened.append(os.fsdecode(args[0]))
    elif event.split(".")[0] in ("socket", "subprocess", "ctypes", "pty"):
        called.append(event)
    elif event in ("os.system", "os.exec", "os.posix_spawn", "os.fork"):
        called.append(event)
    elif event in ("exec", "compile", "import"):
        called.append(f"{event} {str(args[0])[:200]}")

from converter.cli.main import main
import converter.pipeline, converter.tensors.kernels, converter.tokenizers  # noqa: what the run will need
folder, out = Path(sys.argv[1]), sys.argv[2]
arguments = [str(folder), out, "--quiet", "-j", "1"]
assert main([*arguments, "--force"]) == 0  # imports what it needs
sys.addaudithook(hook)
code = main([*arguments, "--force"])
inside = sorted({Path(path).name for path in opened if Path(path).is_relative_to(folder)})
print(json.dumps({"code": code, "inside": inside, "called": called}))
"""
