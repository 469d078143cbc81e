"""Verify a conversion: open both sides, pair, measure, judge.

result = verify("llama-folder/", "llama-q4_k_m.gguf")
result.passed, result.worst_first[0].sqnr_db, [str(f) for f in result.findings if f.failed]
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import UsageError, about
from converter.findings import Finding
from converter.formats.base import Format
from converter.formats.registry import open_checkpoint, source_format
from converter.mapping.recovered import alike, open_model
from converter.mapping.view import HEADS, view
from converter.metadata import text_of
from converter.pipeline import convert
from converter.request import PathLike, Request, Source
from converter.storage.slabs import ProgressCallback
from converter.telemetry import span
from converter.tensors.tensor import LazyTensor
from converter.text import counted
from converter.verify.distributions import worst_distributions
from converter.verify.measure import Measured, measure
from converter.verify.metadata import compare_metadata
from converter.verify.pairing import Pair, Pairing, named_recipe, pair
from converter.verify.results import Verification
from converter.verify.verdict import judge, made_by_the_encoder

#: Precisions of a file in between that was made first, where the bytes do not follow from the source by itself.
DETOURS = ("f16", "bf16")
#: A detour changes few blocks of a tensor; where more differ, there is another reason.
FEW = 0.05
#: Share of the energy that the noise of two quants of one model has at most; that of two models is about twice it.
ALIKE = 0.3


def verify(
    source: PathLike | Source,
    target: PathLike | Source,
    request: Request | None = None,
    *,
    encode: bool = True,
    any_types: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
    distributions: int = 0,
) -> Verification:
    """Everything that can be said about `target` as a conversion of `source`. Writes nothing.

    Args:
        source, target: files or folders of any formats; the source is the truth.
        request: what the conversion was asked for, where the files do not tell (an importance matrix, overrides).
        encode: encode the source again and compare bytes; without it bounds are those of docs/bounds.md, and single
            damaged blocks go unseen.
        any_types: types other than those of the recipe that the target names are told, and do not fail.
        threads: workers; the result does not depend on it.
        progress: called after every slab; returning False cancels.
        distributions: of how many tensors, the worst first, values are counted before and after, for plots.

    Raises:
        ConverterError: a side cannot be read, or the source cannot be mapped to the target's dialect.
    """
    started = time.monotonic()
    request = (request or Request()).replace(allow_requantize=True)
    source, target = Source.of(source), Source.of(target)
    with about(source.path):
        left = open_model(source, request.model.arch)
    with span("verify") as told, left, about(target.path), open_model(target, request.model.arch) as right:
        told.set_attribute("converter.format", right.format)
        told.set_attribute("converter.bytes", sum(tensor.info.nbytes for tensor in right.tensors.values()))
        writer = source_format(target.path, target.format)
        measured, findings = _verify(left, right, writer, request, encode, threads, progress)
        values = worst_distributions(measured, distributions) if distributions else {}
        left.check()
        right.check()
    tensors = tuple(each.fidelity() for each in measured)
    # Failures first, in the order of the file; what is only worth knowing after them.
    if any_types:
        findings = [replace(each, failed=each.failed and each.check != "type") for each in findings]
    findings.sort(key=lambda finding: not finding.failed)
    seconds = time.monotonic() - started
    files = tuple(dict.fromkeys((*left.files, *right.files)))
    return Verification(
        str(source.path), str(target.path), tensors, tuple(findings), None, seconds, values, named_recipe(right), files
    )


def _verify(
    left: Checkpoint,
    right: Checkpoint,
    writer: Format,
    request: Request,
    encode: bool,
    threads: int | None,
    progress: ProgressCallback | None,
) -> tuple[list[Measured], list[Finding]]:
    left, right = alike(left, right)
    pairing = pair(left, right, writer, request)
    try:
        measured = measure(pairing.pairs, encode=encode, threads=threads, progress=progress)
        measured, by_detour = _by_detour(left, right, writer, request, measured, threads)
        findings = [
            *by_detour,
            *_another(left, right, pairing),
            *_retied(pairing, measured),
            *_swapped(left, right, measured, judge(measured, pairing.left_over)),
        ]
        views = view(left, request.model.arch), view(right, request.model.arch)
        return measured, findings + compare_metadata(pairing.expected, *views, request.model.pre)
    finally:
        for close in pairing.closers:
            close()


def _by_detour(
    left: Checkpoint,
    right: Checkpoint,
    writer: Format,
    request: Request,
    measured: list[Measured],
    threads: int | None,
) -> tuple[list[Measured], list[Finding]]:
    """Whether the few blocks that are not what the encoder makes are so because a file in between rounded the source.

    Returns: what was measured, those tensors again; and a word about it. All as it was where no precision explains all.
    """
    off = {each.pair.name: each for each in measured if each.tried and each.differing and not each.lossless}
    few = all(each.differing <= FEW * each.blocks + 1 for each in off.values())
    if not off or not few or request.types.via != "source" or not made_by_the_encoder(measured):
        return measured, []
    for via in DETOURS:
        pairing = pair(left, right, writer, request.replace(via=via))
        try:
            again = measure([each for each in pairing.pairs if each.name in off], threads=threads)
        finally:
            for close in pairing.closers:
                close()
        if len(again) == len(off) and not any(each.differing for each in again):
            blocks = sum(each.differing for each in off.values())
            rounded = f"{counted(blocks, 'block')} of {counted(len(off), 'tensor')}"
            message = f"made by way of {via.upper()}, which rounded {rounded} otherwise"
            note = Finding("blocks", str(right.path), message, failed=False, hint=f"--via {via} says so")
            by_name = {each.pair.name: each for each in again}
            return [by_name.get(each.pair.name, each) for each in measured], [note]
    return measured, []


def _another(left: Checkpoint, right: Checkpoint, pairing: Pairing) -> list[Finding]:
    """Says so where the target lacks most of what the source gives: it is one mistake, not a hundred."""
    lacking = sum(each.failed and each.check in ("missing", "shape") for each in pairing.findings)
    if pairing.pairs and lacking <= len(pairing.pairs):
        return []
    apart = [f"{len(pairing.pairs)} of {lacking + len(pairing.pairs)} tensors that the source gives are there"]
    layers = [_n_layer(each) for each in (right, left)]
    if layers[0] != layers[1]:
        apart.append(f"{layers[0]} layers, the source has {layers[1]}")
    names = [text_of(config, "general.name") for config in (right.config, pairing.expected)]
    if all(names) and names[0] != names[1]:
        apart.append(f"called {names[0]!r}, the source {names[1]!r}")
    message = f"is of another model than {left.path}: {'; '.join(apart)}"
    return [Finding("source", str(right.path), message, hint="is this the right source?")]


def _swapped(left: Checkpoint, right: Checkpoint, measured: Sequence[Measured], found: list[Finding]) -> list[Finding]:
    """One finding for all values that are off in wider types than the source's, which nothing but a swap makes."""
    finer = {
        each.pair.name
        for each in measured
        if (own := each.pair.reference.info.dtype).quantized
        and each.pair.candidate.info.dtype.bits_per_weight > own.bits_per_weight
        and 0 < each.found.noise < ALIKE * each.found.energy
    }
    off = [each for each in found if each.check == "values" and each.subject in finer]
    if not off or 2 * len(off) < len(finer):
        return found
    finer_now = f"{counted(len(off), 'tensor')} of it finer than those of {left.path}, which was made of it"
    swapped = Finding("source", str(right.path), finer_now, hint="did you swap them? the source comes first")
    return [swapped, *(each for each in found if each not in off)]


def _n_layer(model: Checkpoint) -> int:
    """Layers by the numbers in the names of tensors."""
    return max((int(number) + 1 for name in model.tensors for number in re.findall(r"\.(\d{1,4})\.", name)), default=0)


def _retied(pairing: Pairing, measured: Sequence[Measured]) -> list[Finding]:
    """Findings of the pairing; a second copy of a tied output is a fault only where it differs from the embedding."""
    by_name = {each.pair.name: each.pair for each in measured}
    found = []
    for finding in pairing.findings:
        extra, twin = pairing.left_over.get(finding.subject), by_name.get(HEADS.get(finding.subject, ""))
        if finding.check == "tied" and extra is not None and twin is not None and not _is_copy(extra, twin):
            finding = replace(finding, message="is there and differs from the embedding it is tied to", failed=True)
        found.append(finding)
    return found


def _is_copy(extra: LazyTensor, twin: Pair) -> bool:
    if extra.info.shape != twin.reference.info.shape:
        return False
    found = measure([replace(twin, candidate=extra)], encode=False)[0].found
    return found.noise <= 0.05 * found.energy


def round_trip(
    source: PathLike | Source,
    via: Sequence[str],
    request: Request | None = None,
    *,
    folder: PathLike | None = None,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Verification:
    """There and back: `source` through files named as in `via`, back to its own format, and compared with itself.

    Only the first step quantizes, as `request` says. The files are made in a temporary folder (in `folder`, if given)
    and go away; names may have no folder of their own.

    Raises:
        ConverterError: a step is impossible.
        UsageError: nothing to go through, or a name with a folder in it.
    """
    if not via or any(Path(name).name != name.rstrip("/") for name in via):
        raise UsageError("--via takes plain file names such as out.gguf, at least one")
    source, request = Source.of(source), request or Request()
    reader = source_format(source.path, source.format)
    if reader.layout is None:
        raise UsageError(f"{source.path}: nothing writes {reader.name} files, so there is no way back")
    with tempfile.TemporaryDirectory(prefix="model-converter-", dir=folder) as scratch:
        here, step = source, request.replace(format=None)
        for number, name in enumerate(via):
            there = Path(scratch) / str(number) / name.rstrip("/")
            there.parent.mkdir()
            target = f"{there}/" if name.endswith("/") else there
            convert(here, target, step, threads=threads)
            here = _known(there, source)
            step = Request(arch=request.model.arch, pre=request.model.pre, tensors_only=request.model.tensors_only)
        back = Path(scratch) / "back" / source.path.name
        back.parent.mkdir()
        convert(here, back, step.replace(dtype=_plain_dtype(source), format=reader.name), threads=threads)
        plain = request.replace(quant=None, recipe=None, imatrix=None)
        result = verify(source, back, plain, threads=threads, progress=progress)
    return replace(result, target=f"{source.path} by way of {', '.join(via)}")


def _known(made: Path, source: Source) -> Source:
    """A file that was made of `source`; one without a tokenizer, or of tensors alone, has what it lacks from there."""
    with open_checkpoint(made) as checkpoint:
        if view(checkpoint).named and checkpoint.stored is None:
            return Source(made)
    folder = source.config or source.path
    folder = folder if folder.is_dir() else folder.parent
    return Source(made, config=folder if (folder / "config.json").is_file() else None)


def _plain_dtype(source: Source) -> str | None:
    """The one floating type that all of a plain file's tensors have, to go back to."""
    with open_checkpoint(source) as checkpoint:
        if view(checkpoint).keyed:
            return None
        types = {tensor.info.dtype for tensor in checkpoint.tensors.values() if tensor.info.dtype.floating}
        only = types.pop() if len(types) == 1 else None
        return only.name if only is not None and not only.quantized else None
