"""Text for people: what may go to a terminal, sizes, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from converter.address import shown


def printable(text: str) -> str:
    """Text that may hold names out of a file: nothing in it reaches the terminal as a control sequence."""
    text = shown(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def near(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Names that somebody may have meant by `word`, the nearest first: written alike, or begun by it."""
    import difflib

    names = {name.casefold(): name for name in known}
    wanted = word.casefold()
    found = difflib.get_close_matches(wanted, names, count, 0.7)
    begun = [name for name in names if len(wanted) > 2 and name.startswith(wanted)]
    return [names[name] for name in dict.fromkeys([*found, *begun])][:count]


def did_you_mean(word: str, known: Iterable[str], count: int = 1) -> str:
    """`; did you mean A or B?`, or nothing."""
    found = near(word, known, count)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def counted(count: int, what: str, many: str = "") -> str:
    """`1 tensor`, `1,200 tensors`; `many` where an s does not make it."""
    return f"{count:,} {what if count == 1 else many or what + 's'}"


def are(count: int, what: str) -> str:
    """`1 value is`, `3 values are`."""
    return f"{counted(count, what)} {'is' if count == 1 else 'are'}"


def human_bytes(count: float) -> str:
    """1234567 -> '1.23 MB' (decimal units, three digits)."""
    if count < 999.5:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5 or unit == "TB":
            return f"{_three_digits(count)} {unit}"
    raise AssertionError


def human_count(count: float) -> str:
    """1234567 -> '1.23 M' (three digits)."""
    if count < 999.5:
        return f"{count:.0f}"
    for unit in ("k", "M", "B"):
        count /= 1000
        if count < 999.5 or unit == "B":
            return f"{_three_digits(count)} {unit}"
    raise AssertionError


def _three_digits(count: float) -> str:
    return f"{count:.{2 if count < 9.995 else 1 if count < 99.95 else 0}f}"


def human_seconds(count: float) -> str:
    """200 -> '3 min 20 s' (two units at most)."""
    whole = round(count)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(count / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = (), width: int | None = None
) -> list[str]:
    """Lines of columns as wide as they need, those in `right` flush right; plain, so that it can be piped.

    Where lines would be longer than `width`, the widest of the other columns are cut.
    """
    cells = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    flush = frozenset(right)
    if width is not None:
        widths = _narrowed(widths, flush, width)
        cells = [[_cut(cell, most) for cell, most in zip(row, widths, strict=True)] for row in cells]
    return ["  ".join(_aligned(row, widths, flush)).rstrip() for row in cells]


_NARROW = 12  # columns are cut down to that at most


def _narrowed(widths: Sequence[int], kept: frozenset[int], width: int) -> list[int]:
    result, free = list(widths), [at for at, own in enumerate(widths) if at not in kept and own > _NARROW]
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    for _ in range(max(0, excess)):
        widest = max(free, key=lambda at: result[at], default=None)
        if widest is None or result[widest] == _NARROW:
            break
        result[widest] -= 1
    return result


def _cut(cell: str, most: int) -> str:
    return cell if len(cell) <= most else f"{cell[: most - 3]}..."


def _aligned(row: Sequence[str], widths: Sequence[int], right: frozenset[int]) -> Iterable[str]:
    return (
        cell.rjust(width) if at in right else cell.ljust(width)
        for at, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
