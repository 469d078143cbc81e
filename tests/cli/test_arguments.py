"""What the options take: each unit, and each kind of text at its edge."""

from __future__ import annotations

import argparse

import pytest

from converter.cli import verbs
from converter.cli.arguments import positive, size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0), ("1000", 1000), ("64b", 64), ("64K", 64_000), ("64kb", 64_000), ("500MB", 500_000_000),
        (" 5g ", 5_000_000_000), ("2T", 2_000_000_000_000), ("9" * 15, 10**15 - 1),
        ("1.5G", 1_500_000_000), ("64KiB", 65536), ("8gib", 8 << 30), ("0.1M", 100_000), ("2.5Mi", 2_621_440),
    ],
)  # fmt: skip
def test_sizes_are_decimal_or_say_so(text: str, nbytes: int) -> None:
    assert size(text) == nbytes


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5", "64KiBB", "64 K", "1P", "1" * 16, "0x10", "1.5B", "64iB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size such as 2G, "):
        size(text)


@pytest.mark.parametrize("text", ["1", "8", "999"])
def test_a_small_bare_number_is_not_meant(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"is a few bytes; say {text}G, {text}M or {text}B"):
        size(text)


def test_positive_begins_at_one() -> None:
    assert positive("1") == 1
    for text in ("0", "-1", "", "1.0", "one"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a positive number"):
            positive(text)


@pytest.mark.parametrize("given", [["IN", "--quant", "q8_0", "OUT"], ["--quant", "q8_0", "IN", "OUT"], ["IN", "OUT"]])
def test_what_may_be_left_out_stands_where_one_likes(given: list[str]) -> None:
    args, rest = verbs.parser("convert").parse_known_intermixed_args(given)
    assert (str(args.source), str(args.target), rest) == ("IN", "OUT", [])
