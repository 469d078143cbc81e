"""What a quant loses in llama.cpp, and what each way to lose less in the same bytes buys, alone and together.

    python benchmarks/better.py [--model DIR --text FILE] [--quants q4_k_m,q3_k_m,q2_k] [--tokens 12288]

KL divergence (nats) and perplexity against the model in its own precision, over `--tokens` tokens of a text that the
model has not seen, in windows of 256. Nothing is measured on that text before: matrices, calibrations and mixtures are
made of what the model writes itself. Memory and time are in docs/quantization.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from converter.runtimes.behaviour import Behaviour, behaviour

ROOT = Path(__file__).resolve().parent.parent
MATRIX, CALIBRATION, MIXTURE = "matrix.gguf", "model.calibration.safetensors", "mixture.toml"
#: Options beside the quant; files that they name are made first.
WAYS: dict[str, list[str]] = {
    "reference": [],
    "effort 1": ["--effort", "1"],
    "effort 2": ["--effort", "2"],
    "effort 3": ["--effort", "3"],
    "imatrix": ["--imatrix", MATRIX],
    "imatrix, effort 1": ["--imatrix", MATRIX, "--effort", "1"],
    "imatrix, effort 2": ["--imatrix", MATRIX, "--effort", "2"],
    "error feedback": ["--calibrate", CALIBRATION],
    "error feedback, effort 2": ["--calibrate", CALIBRATION, "--effort", "2"],
    "mixture": ["--recipe", MIXTURE],
    "mixture, effort 2": ["--recipe", MIXTURE, "--effort", "2"],
    "mixture, error feedback": ["--recipe", MIXTURE, "--calibrate", CALIBRATION],
}


def convert(folder: Path, *arguments: object) -> None:
    """Run the program in a folder; its words go to standard error."""
    command = [sys.executable, "-m", "converter", *map(str, arguments), "--force", "--quiet"]
    subprocess.run(command, check=True, cwd=folder, stdout=sys.stderr)


def line(way: str, size: int, found: Behaviour, reference: float) -> str:
    """A row of the table."""
    assert found.mean_kl is not None and found.candidate_ppl is not None and found.top1 is not None
    kl = f"{found.mean_kl:.3e} ± {found.mean_kl_error:.0e}"
    change, perplexity = f"{found.mean_kl / reference - 1:+.0%}", f"{found.candidate_ppl:.3f}"
    cells = [way, f"{size:,}", kl, change, perplexity, f"{found.top1:.2%}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "fixtures" / "kjv-llama")
    parser.add_argument("--text", type=Path, default=ROOT / "fixtures" / "kjv-heldout.txt")
    parser.add_argument("--quants", default="q4_k_m,q3_k_m,q2_k")
    parser.add_argument("--tokens", type=int, default=12288)
    args = parser.parse_args()
    model, text = args.model.resolve(), args.text.read_text("utf-8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain, made = folder / "plain.gguf", folder / "made.gguf"
        convert(folder, model, plain)
        convert(folder, "imatrix", plain, "-o", MATRIX, "--calibrate", "own")
        convert(folder, model, made, "-q", "q4_k_m", "--calibrate", "own", "--calibrate-to", CALIBRATION)
        for quant in args.quants.split(","):
            print(f"\n| {quant} | bytes | KL | | perplexity | same token |\n|---|{'---|' * 5}", flush=True)
            reference = 0.0
            for way, options in WAYS.items():
                convert(folder, model, made, "-q", quant, *options)
                if not options:
                    convert(folder, "recipe", model, "--target-size", made.stat().st_size, "-o", MIXTURE)
                found = behaviour(plain, made, text, tokens=args.tokens, context=256)
                reference = reference or found.mean_kl or 1.0
                print(line(way, made.stat().st_size, found, reference), flush=True)


if __name__ == "__main__":
    main()
