"""The gate: thresholds that were given, and the figures of an earlier run, become findings.

Thresholds come from flags or from a `verify.toml`:

    min_sqnr = 15                          # every tensor
    [type.Q4_K]                            # tensors stored in this type
    min_sqnr = 20
    [[tensor]]                             # tensors whose name the pattern finds
    pattern = 'blk\\..*\\.ffn_down'
    max_nmse = 0.004
    [model]                                # the model as a whole
    max_ppl_increase = 0.01

For each metric the first pattern that finds the tensor decides, else the type, else the threshold for every tensor.
What was asked for and not measured fails: a gate that is silent about it would be open.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from converter.errors import CorruptFile, UnsupportedFeature, UsageError, short
from converter.findings import Finding
from converter.quant.patterns import Pattern, check_count
from converter.storage.files import regular_size
from converter.storage.json import read_json
from converter.tensors.dtypes import DTYPES
from converter.verify.results import SCHEMA, Fidelity, Verification

# Python's reader takes the square of a key's parts, which a line bounds.
MAX_TOML, MAX_LINE = 1 << 18, 512


@dataclass(frozen=True)
class Metric:
    """A number that can have a threshold: `min_` is a lower limit, `max_` an upper one.

    `path` says where it stands: an attribute of `Fidelity`, or a part of `Verification` and the name in it.
    """

    name: str
    path: str
    unit: str
    help: str

    @property
    def lower_limit(self) -> bool:
        return self.name.startswith("min_")

    def keeps(self, value: float, limit: float) -> bool:
        """Whether `value` is on the right side of `limit`; NaN never is."""
        return value >= limit if self.lower_limit else value <= limit


TENSOR_METRICS = (
    Metric("min_sqnr", "sqnr_db", "dB", "signal over quantization noise"),
    Metric("max_nmse", "nmse", "", "squared error over squared values"),
    Metric("max_rmse", "rmse", "", "root of the mean squared error"),
    Metric("max_abs", "max_abs", "", "largest absolute error"),
    Metric("max_rel", "max_rel", "", "largest error relative to its value"),
    Metric("max_p999", "p999", "", "absolute error that one value in a thousand exceeds"),
    Metric("min_cosine", "cosine", "", "cosine between stored and source values"),
    Metric("max_differing", "differing", "blocks", "blocks that differ from what the encoder writes"),
    Metric("max_nonfinite", "nonfinite", "values", "values that are NaN or infinite"),
)
MODEL_METRICS = (
    Metric("min_model_sqnr", "summary.sqnr_db", "dB", "signal over quantization noise of all tensors together"),
    Metric("max_bits_per_weight", "summary.bits_per_weight", "bits", "size of all tensors over their elements"),
    Metric("max_bytes", "summary.bytes", "bytes", "size of all tensors"),
    Metric("max_kl", "behaviour.mean_kl", "nats", "mean KL divergence of the next token"),
    Metric("max_kl_at_position", "behaviour.max_kl", "nats", "largest KL divergence of the next token"),
    Metric("min_top1", "behaviour.top1", "", "share of positions with the same most likely token"),
    Metric("max_logit_error", "behaviour.max_abs", "", "largest absolute difference of two logits"),
    Metric("max_ppl", "behaviour.candidate_ppl", "", "perplexity"),
    Metric("max_ppl_increase", "behaviour.ppl_increase", "", "perplexity over the source's, less one"),
    Metric("min_cosine_embedding", "behaviour.cosine", "", "smallest cosine between embeddings of the same text"),
)
_OF_TENSORS = {metric.name: metric for metric in TENSOR_METRICS}
_OF_MODELS = {metric.name: metric for metric in MODEL_METRICS}
Limits = Mapping[str, float]


@dataclass(frozen=True)
class Gate:
    """Thresholds by metric name: for every tensor, by type, by pattern (the first that matches), for the model."""

    tensors: Limits = field(default_factory=dict)
    types: Mapping[str, Limits] = field(default_factory=dict)
    patterns: tuple[tuple[Pattern, Limits], ...] = ()
    model: Limits = field(default_factory=dict)

    def with_flags(self, given: Mapping[str, float | None]) -> Gate:
        """The gate with thresholds of the command line, by metric name; they replace those for all tensors and the
        model. None is a flag that was not given."""
        limits = {name: _number("the command line", name, limit) for name, limit in given.items() if limit is not None}
        tensors = {name: limit for name, limit in limits.items() if name in _OF_TENSORS}
        model = {name: limit for name, limit in limits.items() if name in _OF_MODELS}
        return replace(self, tensors={**self.tensors, **tensors}, model={**self.model, **model})

    def limits(self, tensor: Fidelity) -> dict[str, tuple[float, str]]:
        """The thresholds of `tensor` by metric, and where each stands."""
        name = tensor.name.lower()
        places = [(self.tensors, "for every tensor"), (self.types.get(tensor.type, {}), f"for {tensor.type}")]
        own = [(limits, f"for {pattern.text}") for pattern, limits in self.patterns if pattern.search(name)]
        return {metric: (limit, where) for limits, where in places + own[::-1] for metric, limit in limits.items()}

    def lines(self) -> tuple[str, ...]:
        """The thresholds for people, a line for each place."""
        places = [
            ("every tensor", self.tensors),
            *self.types.items(),
            *((pattern.text, limits) for pattern, limits in self.patterns),
            ("the model", self.model),
        ]
        return tuple(
            f"{where}: {', '.join(f'{name} {limit:g}' for name, limit in limits.items())}"
            for where, limits in places
            if limits
        )


# ------------------------------------------------------------------------------------------------ verify.toml


def read_gate(path: Path) -> Gate:
    """The thresholds of a `verify.toml`.

    Raises:
        UsageError: not TOML, or a key, type, metric or value that has no meaning; it names the file and the key.
    """
    if regular_size(path) > MAX_TOML:
        raise UsageError(f"{path}: larger than {MAX_TOML} bytes, that is no gate")
    try:
        text = path.read_text("utf-8")
        if any(len(line) > MAX_LINE for line in text.splitlines()):
            raise UsageError(f"{path}: has a line of more than {MAX_LINE} characters, that is no gate")
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # beside TOML's own errors: not UTF-8, numbers of 4,300 digits
        raise UsageError(f"{path}: bad TOML ({error or 'nested too deeply'})") from None
    types = _table(path, "type", content.pop("type", {}))
    patterns = content.pop("tensor", [])
    model = _table(path, "model", content.pop("model", {}))
    if not isinstance(patterns, list):
        raise UsageError(f"{path}: tensor is a list of tables, each begins with [[tensor]]")
    check_count(len(patterns), str(path))
    return Gate(
        tensors=_limits(path, "", content, _OF_TENSORS),
        types=dict(_type(path, name, limits) for name, limits in types.items()),
        patterns=tuple(_pattern(path, at, entry) for at, entry in enumerate(patterns, 1)),
        model=_limits(path, "model", model, _OF_MODELS),
    )


def _table(path: Path, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {key} is a table of thresholds, as in [{key}]")
    return value


def _type(path: Path, name: str, limits: Any) -> tuple[str, Limits]:
    if name.upper() not in DTYPES:
        raise UsageError(f"{path}: [type.{name}]: unknown type {short(name)}; known: {', '.join(DTYPES)}")
    where = f"type.{name}"
    return name.upper(), _limits(path, where, _table(path, where, limits), _OF_TENSORS)


def _pattern(path: Path, at: int, entry: Any) -> tuple[Pattern, Limits]:
    limits = dict(_table(path, "tensor", entry))
    text = limits.pop("pattern", None)
    if not isinstance(text, str) or not limits:
        raise UsageError(f"{path}: [[tensor]] number {at} needs a pattern = '...' and at least one threshold")
    try:
        return Pattern(text), _limits(path, f"tensor {at}", limits, _OF_TENSORS)
    except UsageError as error:
        raise error if str(error).startswith(str(path)) else UsageError(f"{path}: [[tensor]]: {error}") from None


def _limits(path: Path, where: str, given: Mapping[str, Any], known: Mapping[str, Metric]) -> Limits:
    for name in given:
        if name not in known:
            raise UsageError(_unknown(f"{path}: [{where}]" if where else str(path), name, known))
    return {name: _number(f"{path}: [{where}]" if where else str(path), name, value) for name, value in given.items()}


def _unknown(where: str, name: str, known: Mapping[str, Metric]) -> str:
    if name in _OF_MODELS:
        return f"{where}: {name} is a figure of the whole model, it stands under [model]"
    if name in _OF_TENSORS:
        return f"{where}: {name} is a figure of a tensor, it does not stand under [model]"
    more = "" if known is _OF_MODELS else ", and the tables [type.NAME], [[tensor]], [model]"
    return f"{where}: unknown key {short(name)}; known: {', '.join(known)}{more}"


def _number(where: str, name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number beyond all floats
        number = math.inf
    if not math.isfinite(number):
        raise UsageError(f"{where}: {name} = {short(value)} is not a finite number")
    return number


# ------------------------------------------------------------------------------------------------ thresholds


def gated(
    verification: Verification, gate: Gate, baseline: Mapping[str, Any] | None = None, tolerance: float = 0.0
) -> Verification:
    """The verification with the findings of thresholds, and of an earlier report (`read_baseline`) where there is one.

    `tolerance` is that of `against_baseline`.
    """
    found, thresholds = judge(verification, gate), gate.lines()
    if baseline is not None:
        found += against_baseline(verification, baseline, tolerance)
        thresholds += (f"an earlier report: no worse than that by more than {100 * tolerance:.3g} %",)
    findings = (*verification.findings, *found)
    return replace(verification, findings=findings, thresholds=thresholds, baseline=baseline is not None)


def judge(verification: Verification, gate: Gate) -> list[Finding]:
    """Findings (check "threshold") of every number that is beyond its threshold, or was not measured."""
    return [
        *_idle(verification, gate),
        *(finding for tensor in verification.tensors for finding in _judge_tensor(tensor, gate)),
        *_judge_model(verification, gate),
    ]


def _idle(verification: Verification, gate: Gate) -> Iterator[Finding]:
    """Parts of the gate that nothing passes through: they would be open without anybody's knowledge."""
    names = [tensor.name.lower() for tensor in verification.tensors]
    types = dict.fromkeys(tensor.type for tensor in verification.tensors)
    for name in gate.types:
        if name not in types:
            hint = f"there are {', '.join(types)}" if types else ""
            yield Finding("threshold", f"type.{name}", "no tensor is of this type, which the gate names", hint=hint)
    for pattern, _ in gate.patterns:
        if not any(map(pattern.search, names)):
            yield Finding("threshold", pattern.text, "this pattern of the gate matches no tensor")


def _judge_tensor(tensor: Fidelity, gate: Gate) -> Iterator[Finding]:
    limits = gate.limits(tensor)
    for metric in TENSOR_METRICS:
        found = limits.get(metric.name)
        if found and not metric.keeps(_of_tensor(tensor, metric), found[0]):
            yield Finding("threshold", tensor.name, _beyond(metric, _of_tensor(tensor, metric), *found))


def _of_tensor(tensor: Fidelity, metric: Metric) -> float:
    # The cosine of two vectors of zeros is NaN, and yet they are equal.
    return 1.0 if metric.path == "cosine" and tensor.exact else float(getattr(tensor, metric.path))


def _judge_model(verification: Verification, gate: Gate) -> Iterator[Finding]:
    for name, limit in gate.model.items():
        metric = _OF_MODELS[name]
        value = _of_model(verification, metric)
        if value is None:
            yield Finding("threshold", name, "has a threshold, but was not measured", hint="--runtime measures it")
        elif not metric.keeps(value, limit):
            yield Finding("threshold", name, _beyond(metric, value, limit, "for the model"))


def _of_model(verification: Verification, metric: Metric) -> float | None:
    part, _, name = metric.path.partition(".")
    if part == "summary":
        return float(verification.summary()[name])
    return getattr(verification.behaviour, name, None)


def _beyond(metric: Metric, value: float, limit: float, where: str) -> str:
    bound = "at least" if metric.lower_limit else "at most"
    unit = f" {metric.unit}" if metric.unit else ""
    return f"{metric.help} is {value:.6g}{unit}, the gate wants {bound} {limit:.6g}{unit} {where} ({metric.name})"


# ------------------------------------------------------------------------------------------------ baseline


@dataclass(frozen=True)
class Figure:
    """A number of a report that must not get worse: further from `best` than it was, by a share and `floor` more."""

    path: str
    floor: float = 0.0
    best: float = 0.0

    def worse(self, now: float, before: float, tolerance: float) -> bool:
        """Whether `now` is further from the best value than `before` allows; NaN is."""
        allowed = abs(before - self.best) * (1 + tolerance) + self.floor
        return not abs(now - self.best) <= allowed


# The floors of behaviour are what the same model shows on another number of threads or another machine.
TENSOR_FIGURES = (Figure("nmse", 1e-12), Figure("max_abs", 1e-12), Figure("nonfinite"))
MODEL_FIGURES = (
    Figure("summary.nmse", 1e-12),
    Figure("summary.bits_per_weight"),
    Figure("behaviour.mean_kl", 1e-4),
    Figure("behaviour.top1", 1e-3, best=1.0),
    Figure("behaviour.candidate_ppl"),
    Figure("behaviour.cosine", 1e-4, best=1.0),
)


def read_baseline(path: Path) -> dict[str, Any]:
    """The JSON report of an earlier run.

    Raises:
        CorruptFile: not such a report.
        UnsupportedFeature: a report of another schema.
    """
    report = read_json(path)
    schema = report.get("schema")
    if type(schema) is int and schema != SCHEMA:
        raise UnsupportedFeature(f"{path}: a report of schema {short(schema)}, this program reads schema {SCHEMA}")
    tensors = report.get("tensors")
    if type(schema) is not int or not isinstance(tensors, list) or not isinstance(report.get("summary"), dict):
        raise CorruptFile(f"{path}: not a report of `convert verify --json`")
    _check_figures(path, "the model", _parts(report), MODEL_FIGURES)
    for tensor in tensors:
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise CorruptFile(f"{path}: a tensor without a name")
        _check_figures(path, short(tensor["name"]), tensor, TENSOR_FIGURES)
    if len({tensor["name"] for tensor in tensors}) != len(tensors):
        raise CorruptFile(f"{path}: a tensor stands in it twice")
    return report


def _parts(report: Mapping[str, Any]) -> dict[str, Any]:
    """The model's figures by path."""
    parts = {part: report.get(part) for part in ("summary", "behaviour")}
    return {
        f"{part}.{name}": value
        for part, values in parts.items()
        if isinstance(values, dict)
        for name, value in values.items()
    }


def _check_figures(path: Path, subject: str, values: Mapping[str, Any], figures: tuple[Figure, ...]) -> None:
    for figure in figures:
        value = values.get(figure.path)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise CorruptFile(f"{path}: {figure.path} of {subject} is {short(value)}, not a number")


def against_baseline(verification: Verification, report: Mapping[str, Any], tolerance: float) -> list[Finding]:
    """Findings (check "baseline") of what got worse since `report`, as `read_baseline` returns it.

    `tolerance` is the share by which a figure may be worse than recorded (0.01: one per cent). A figure that was not
    finite then cannot get worse; one that is not measured any more fails.
    """
    now = {tensor.name: tensor for tensor in verification.tensors}
    before = {tensor["name"]: tensor for tensor in report["tensors"]}
    if (other := _of_another_quant(verification, report)) is not None:
        return [other]
    return [
        *(_gone(name) for name in before if name not in now),
        *(_new(name) for name in now if name not in before),
        *(finding for name in before if name in now for finding in _compare(name, now[name], before[name], tolerance)),
        *_compare_model(verification, report, tolerance),
    ]


def _of_another_quant(verification: Verification, report: Mapping[str, Any]) -> Finding | None:
    """One line in place of a hundred where the report is of another quant: it says nothing about this one.

    Quants are known by their recipes; where a report says none, by most tensors being of other types.
    """
    was, now = report.get("quant"), verification.quant
    was = was if isinstance(was, str) else None
    types = {tensor["name"]: kind for tensor in report["tensors"] if isinstance(kind := tensor.get("type"), str)}
    changed = [tensor for tensor in verification.tensors if types.get(tensor.name, tensor.type) != tensor.type]
    lossy = [tensor for tensor in verification.tensors if not tensor.exact]
    if was is None or now is None:
        if 2 * len(changed) <= len(lossy):
            return None
        was, now = _types(map(types.get, (each.name for each in changed))), _types(each.type for each in changed)
    if was == now:
        return None
    message = f"is of another quant: it was {short(was)[1:-1]}, it is {now}"
    return Finding("baseline", "the earlier report", message, hint="compare with a report of the same quant")


def _types(names: Iterable[Any]) -> str:
    """The type that most have."""
    return str(Counter(names).most_common(1)[0][0])


def _gone(name: str) -> Finding:
    return Finding("baseline", name, "is in the earlier report and not there any more")


def _new(name: str) -> Finding:
    return Finding("baseline", name, "is not in the earlier report", failed=False)


def _compare(name: str, now: Fidelity, before: Mapping[str, Any], tolerance: float) -> Iterator[Finding]:
    was = before.get("type")
    hint = f"it was {short(was)}, it is {now.type}" if was != now.type else ""
    for figure in TENSOR_FIGURES:
        then, value = before.get(figure.path), float(getattr(now, figure.path))
        if then is not None and figure.worse(value, then, tolerance):
            yield Finding("baseline", name, _worse(figure, value, then), hint=hint)


def _compare_model(verification: Verification, report: Mapping[str, Any], tolerance: float) -> Iterator[Finding]:
    before, now = _parts(report), _parts({"summary": verification.summary(), "behaviour": _behaviour(verification)})
    for figure in MODEL_FIGURES:
        then, value = before.get(figure.path), now.get(figure.path)
        if then is None:
            continue
        if value is None:
            message, hint = "is in the earlier report and was not measured", "--runtime measures it"
            yield Finding("baseline", figure.path, message, hint=hint)
        elif figure.worse(value, then, tolerance):
            yield Finding("baseline", figure.path, _worse(figure, value, then))


def _behaviour(verification: Verification) -> dict[str, Any] | None:
    return vars(verification.behaviour) if verification.behaviour else None


def _worse(figure: Figure, now: float, then: float) -> str:
    return f"{figure.path.rpartition('.')[2]} is {now:.6g}, in the earlier report it was {then:.6g}"
