"""What measured pairs mean: which tensors a correct conversion could not have made, and what they look like.

Three rules, from strict to lenient:

1. The target's type holds every value of the source: nothing may differ.
2. Most tensors are byte for byte what the encoder makes: the file was made by it (or by llama.cpp, which makes the
   same bytes), so that any block that differs was changed afterwards.
3. Otherwise another encoder, or an importance matrix that is not at hand, made the bytes. Then the error may be at most
   `SLACK` times what a correct encoder without importance reaches on the same data, `EXCESS` times in any 256 elements.

What was not encoded again is held against the bound of its type, which needs no encoder (docs/bounds.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from converter.findings import Finding
from converter.tensors.tensor import LazyTensor
from converter.verify.hints import hint
from converter.verify.measure import GROUP, Measured

#: How much more error than the plain encoder's another correct one may have. Importance trades error in columns that
#: matter little for error in those that matter, so that the plain sum grows: with the tests' matrix at most 2.5 times
#: (IQ2_XXS), and 15 times in one group of 256.
SLACK = 4.0
EXCESS = 64.0
#: Of weights, how many times the expected error is worth a word; a correct encoder has at most 1.5 (docs/bounds.md).
UNUSUAL = 2.0
#: A cast to a plain type has one right result; truncating instead of rounding has four times its squared error.
CAST_SLACK = 2.0
#: Tensors that are looked at again for what they may be; where more are wrong, the first tell enough.
MOST_HINTS = 20


def judge(measured: Sequence[Measured], left_over: Mapping[str, LazyTensor]) -> list[Finding]:
    """Findings about values, with the tensor's name as subject; `left_over` are tensors without a partner."""
    strict = made_by_the_encoder(measured)
    found: list[Finding] = []
    for each in measured:
        finding = _judge_one(each, strict)
        if finding is not None and finding.failed and not each.unreadable and len(found) < MOST_HINTS:
            others = [other.pair for other in measured if other is not each]
            finding = _with_hint(finding, hint(each.pair, others, left_over))
        if finding is not None:
            found.append(finding)
    return found


def made_by_the_encoder(measured: Sequence[Measured]) -> bool:
    """Whether most tensors that lost anything are what the encoder makes."""
    lossy = [each for each in measured if each.tried and not each.lossless]
    same = sum(each.differing == 0 for each in lossy)
    return 2 * same > len(lossy)


def _with_hint(finding: Finding, text: str) -> Finding:
    return Finding(finding.check, finding.subject, finding.message, finding.failed, text) if text else finding


def _judge_one(m: Measured, strict: bool) -> Finding | None:
    name, info = m.pair.name, m.pair.candidate.info
    if m.unreadable:
        return Finding("values", name, m.unreadable)
    if m.found.mismatched:
        return Finding("nonfinite", name, f"{m.found.mismatched:,} values are NaN or infinite on one side only")
    if m.zero and not m.reference_zero:
        return Finding("zero", name, "is all zero, the source is not")
    if m.lossless:
        if m.found.differing_values or (m.tried and m.differing and not m.pair.reference.info.dtype.floating):
            return Finding(
                "values", name, f"{m.found.differing_values:,} of {info.n_elements:,} values differ; none may"
            )
        return None
    if m.pair.spread and not m.tried:
        return _beyond_all(m)
    if not m.tried:
        return _beyond_bound(m) or _beyond_derived(m)
    if not m.differing:
        return None
    worse = _beyond_bound(m)
    if worse is not None:
        return worse
    if strict:
        row, column = divmod(m.first_differing, max(1, info.row))
        where = f"the first in row {row}, column {column}"
        return Finding(
            "blocks", name, f"{m.differing:,} of {m.blocks:,} blocks are not what the encoder writes, {where}",
            hint="changed after it was written, or made by another encoder; read the source again",
        )  # fmt: skip
    return None


def _beyond_all(m: Measured) -> Finding | None:
    """Of blocks whose errors were spread by a calibration, which no bound of their type holds."""
    if m.found.noise <= m.found.energy:
        return None
    return Finding("values", m.pair.name, "the error is larger than what the source holds: these are other weights")


def _beyond_bound(m: Measured) -> Finding | None:
    name, dtype = m.pair.name, m.pair.candidate.info.dtype
    slack = SLACK if dtype.quantized else CAST_SLACK
    if not m.encoder_noise and m.found.noise and (m.tried or dtype.quantized):
        return Finding("values", name, "has errors where a correct encoder has none")
    if m.found.noise > slack * m.encoder_noise > 0:
        ratio = m.found.noise / m.encoder_noise
        return Finding(
            "values", name, f"squared error is {ratio:,.1f} times what a correct {dtype} encoder has on this data"
        )
    if m.excess > EXCESS:
        row, column = divmod(m.excess_at, max(1, m.pair.candidate.info.row))
        where = f"the {GROUP} values from row {row}, column {column} on"
        return Finding("values", name, f"{where} have {m.excess:,.0f} times the squared error of a correct encoder")
    return None


def _beyond_derived(m: Measured) -> Finding | None:
    name, dtype = m.pair.name, m.pair.candidate.info.dtype
    if not m.allowed:
        return None
    if m.found.noise > m.allowed:
        ratio = m.found.noise / m.allowed
        return Finding(
            "values", name, f"squared error is {ratio:,.1f} times the most that {dtype} may have on this data"
        )
    if m.found.noise > UNUSUAL * m.expected:
        ratio = m.found.noise / m.expected if m.expected else math.inf
        message = f"squared error is {ratio:,.1f} times what {dtype} has on weights as a rule"
        return Finding("values", name, message, failed=False, hint="leave out --no-encode to know")
    return None
