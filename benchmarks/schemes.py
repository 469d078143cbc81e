"""Size, error, divergence and perplexity of the trained fixture packed by every scheme, on text it has not seen.

    python benchmarks/schemes.py [--markdown] [--tokens N] [--scale nearest|mse] [SCHEME ...]

Each folder is decoded to an F32 GGUF and run by llama.cpp, against the fixture in F32.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import converter
from converter.quant.targets import TARGETS
from converter.runtimes.behaviour import behaviour
from converter.verify.verifier import verify

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "fixtures" / "kjv-llama"
TEXT = ROOT / "fixtures" / "kjv-heldout.txt"
_LINE = "{:<12} {:>6.2f} MB {:>7.2f} dB {:>9.2g} nats {:>+6.2f} %"


def decoded(source: Path, path: Path) -> Path:
    """A model as a GGUF of its numbers in F32."""
    converter.convert(source, path, converter.Request(quant="f32", keep_codes="never"))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schemes", nargs="*", default=list(TARGETS), metavar="SCHEME")
    parser.add_argument("--tokens", type=int, default=2048, help="of the text (2048)")
    parser.add_argument("--scale", default="nearest", help="nearest or mse")
    parser.add_argument("--markdown", action="store_true", help="a table for docs/quantized-sources.md")
    args = parser.parse_args()
    text = TEXT.read_text()
    line = "| `{}` | {:.2f} MB | {:.2f} dB | {:.2g} | {:+.2f} % |" if args.markdown else _LINE
    with tempfile.TemporaryDirectory() as scratch:
        reference = decoded(MODEL, Path(scratch) / "reference.gguf")
        for name in args.schemes:
            folder, made = Path(scratch) / name, Path(scratch) / "made.gguf"
            converter.convert(MODEL, f"{folder}/", converter.Request(scheme=name, scale=args.scale))
            error = verify(reference, decoded(folder, made), encode=False).summary()["sqnr_db"]
            found = behaviour(reference, made, text, tokens=args.tokens)
            size = (folder / "model.safetensors").stat().st_size / 1e6
            print(line.format(name, size, error, found.mean_kl, 100 * (found.ppl_increase or 0)), flush=True)
            made.unlink()


if __name__ == "__main__":
    main()
