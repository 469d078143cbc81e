"""What both models of a verification do with the same text."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

from converter.findings import Finding
from converter.runtimes.behaviour import behaviour, foreign_text, probe_ids
from converter.storage.slabs import ProgressCallback
from converter.verify.results import Verification


def with_behaviour(
    result: Verification,
    text: str | None = None,
    *,
    tokens: int = 512,
    context: int = 512,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Verification:
    """The result with what both models do with a text; tokenizers that cut it differently are a finding.

    Args:
        text: what both read, of which `tokens` at most, in windows of `context`; None takes the built-in text.
        threads, progress: as for `runtimes.behaviour.behaviour`.

    Raises:
        ConverterError: as `runtimes.behaviour.behaviour`.
    """
    started = time.monotonic()
    source, target = Path(result.source), Path(result.target)
    findings = []
    wanted, got = probe_ids(source, text), probe_ids(target, text)
    if wanted is not None and got is not None and wanted != got:
        pairs = enumerate(zip(wanted, got, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(wanted), len(got)))
        findings.append(Finding("probe", "tokenizer", f"cuts the text differently from token {at} on"))
    found = behaviour(source, target, text, tokens=tokens, context=context, threads=threads, progress=progress)
    if found.mean_kl is not None and not math.isfinite(found.mean_kl):
        findings.append(Finding("behaviour", "logits", "are not finite"))
    if found.foreign:
        message, hint = foreign_text(found), "--text FILE gives it one of its kind"
        findings.append(Finding("behaviour", "perplexity", message, failed=False, hint=hint))
    seconds = result.seconds + time.monotonic() - started
    return replace(result, behaviour=found, findings=(*result.findings, *findings), seconds=seconds)
