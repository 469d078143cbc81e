"""Do two versions of the package write the same bytes? Every format pair, every quant, folders and shards.

    python benchmarks/same_bytes.py OLD NEW        two checkouts, each with its extension built or copied in

The inputs are made once, by this checkout: one file of each format that can be read, the fixtures, and the tiny models
of `tests/support/models.py`. Each version converts them all in a process of its own; what is compared is the SHA-256 of
every file, or the exit code and the first line of the message where a conversion is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
PLAIN_TYPES = ("f32", "f16", "bf16")


def inputs(folder: Path) -> dict[str, list[str]]:
    """Paths by kind: `formats` (one file each), `models` (what maps to GGUF)."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support import models, samples

    from converter.formats.registry import readers

    made: dict[str, list[str]] = {
        "formats": [],
        "models": [str(FIXTURES / name) for name in ("stories260K", "kjv-llama")],
    }
    for reader in readers():
        own = folder / reader.name
        own.mkdir()
        made["formats"].append(str(samples.sample(reader, own)))
    for name in models.MODELS:
        made["models"].append(str(models.build_model(name, folder)))
    return made


def jobs(made: dict[str, list[str]]) -> Iterator[tuple[str, list[str]]]:
    """A name for each conversion and its arguments, OUT being where the output goes."""
    from converter.formats.registry import writers
    from converter.quant.recipes import RECIPES

    targets = [each.extensions[0] if each.extensions else "/" for each in writers()]
    for source in made["formats"]:
        kind = Path(source).parent.name
        for end in targets:
            for more in ([], ["--dtype", "bf16"], ["--tensors-only"], ["--split-max-tensors", "2"]):
                yield f"{kind} -> {end} {' '.join(more)}", [source, f"OUT{end}", *more]
    matrix = ["--imatrix", str(FIXTURES / "imatrix" / "stories260K.dat")]
    for source in made["models"]:
        kind = Path(source).name
        for quant in RECIPES:
            yield f"{kind} -> {quant}", [source, "OUT.gguf", "-q", quant]
            if kind == "stories260K":
                yield f"{kind} -> {quant}, imatrix", [source, "OUT.gguf", "-q", quant, *matrix]
        for more in ([], ["--via", "f16", "-q", "q4_k_m"], ["--pure", "-q", "q6_k"], ["--split-max-size", "100K"]):
            yield f"{kind} -> .gguf {' '.join(more)}", [source, "OUT.gguf", *more]
        for type_ in PLAIN_TYPES:
            yield f"{kind} -> folder {type_}", [source, "OUT/", "--dtype", type_, "--shard-size", "200K"]


def convert_all(listed: list[tuple[str, list[str]]], scratch: Path) -> dict[str, list[str]]:
    """What each job wrote: file names with their hashes, or the code and the message of its refusal."""
    try:
        from converter.cli.main import main
    except ImportError:  # before the command line had a folder
        from converter.cli import main  # type: ignore[no-redef, attr-defined]

    found = {}
    for number, (name, arguments) in enumerate(listed):
        folder = scratch / str(number)
        folder.mkdir()
        out = str(folder / "out")
        error = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
            code = main([part.replace("OUT", out, 1) if part.startswith("OUT") else part for part in arguments])
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        found[name] = [f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
        if code:
            found[name].append(f"exit {code}: {error.getvalue().splitlines()[0].replace(str(folder), '')}")
        for path in files:
            path.unlink()
    return found


def run(version: Path, listed: Path) -> dict[str, list[str]]:
    """`convert_all` with the package of `version`."""
    code = (
        "import json, sys, tempfile, runpy, pathlib\n"
        "sys.meta_path[:] = [each for each in sys.meta_path if 'editable' not in type(each).__module__]\n"
        f"own = runpy.run_path({str(Path(__file__).resolve())!r}, run_name='same_bytes')\n"
        "with tempfile.TemporaryDirectory() as scratch:\n"
        "    print(json.dumps(own['convert_all'](json.load(open(sys.argv[1])), pathlib.Path(scratch))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(version)}
    command = [sys.executable, "-c", code, str(listed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    """Print what differs and how much was compared; exit code 1 if anything differs."""
    old, new = (Path(argument).resolve() for argument in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as scratch:
        listed = list(jobs(inputs(Path(scratch))))
        plan = Path(scratch) / "jobs.json"
        plan.write_text(json.dumps(listed))
        before, after = run(old, plan), run(new, plan)
    differing = [name for name, _ in listed if before[name] != after[name]]
    for name in differing:
        print(f"{name}:\n  {before[name]}\n  {after[name]}")
    refused = sum(lines[-1].startswith("exit") for lines in after.values() if lines)
    kinds = Counter(name.partition(" ->")[0] for name, _ in listed)
    files = sum(len(lines) for lines in after.values()) - refused
    print(
        f"{len(listed)} conversions of {len(kinds)} inputs ({files} files, {refused} refusals): {len(differing)} differ"
    )
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
