"""`convert quants`: quantization types, and what they cost."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from converter.cli.console import print_table
from converter.cli.verbs import Outcome, Verb
from converter.text import human_bytes

VERB = Verb(
    name="quants",
    group="look at what is there",
    arguments="",
    help="quantization types, and what they cost",
    description="Quantization types.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(args: argparse.Namespace) -> Outcome:
    """List them."""
    from converter.inspection.tables import quant_rows

    rows = quant_rows()

    def show() -> None:
        print_table(["", "quant", "bits per weight", "8 B model", "imatrix", "advice"], map(_cells, rows), right=(2, 3))
        print("\nbits and sizes of Llama 3.1 8B as this program would write it; imatrix: needs --imatrix")
        print("`convert compare MODEL` measures size and error of your own")

    return Outcome(lambda: {"quants": rows}, show)


def _cells(row: Mapping[str, Any]) -> list[str]:
    bits = "-" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.2f}"
    size = "-" if row["bytes_8b"] is None else human_bytes(row["bytes_8b"])
    imatrix = "needed" if row["imatrix"] else ""
    return ["*" if row["recommended"] else "", row["quant"], bits, size, imatrix, row["advice"]]
