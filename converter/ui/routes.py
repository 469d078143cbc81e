"""What the page can ask, as a table; every answer is made by the function that the command line calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from converter import __version__, pipeline
from converter.compare import QUANTS, compare
from converter.diff import Change, diff
from converter.errors import UsageError
from converter.inspection import running_memory
from converter.inspection.describe import inspect
from converter.inspection.tables import quant_rows
from converter.inspection.tree import tree, where
from converter.mapping.recovered import open_model
from converter.planning.plan import Plan
from converter.planning.preflight import preflight
from converter.reports.described import RUNNING, TUNING
from converter.request import Request, Source
from converter.storage.slabs import ProgressCallback
from converter.tensors.dtypes import DTYPES
from converter.tensors.kernels import encodable
from converter.tensors.tensor import TensorInfo
from converter.ui.command import OPTIONS, command
from converter.ui.jobs import Job, Jobs
from converter.ui.roots import Roots
from converter.ui.sample import sample
from converter.verify.verifier import verify

MAX_METADATA = 1000  # rows
MAX_EVENTS = 200
SHOWN_TENSORS = 200  # of a verification, the worst first

Asked = Mapping[str, Any]
Answer = dict[str, Any]


@dataclass
class State:
    """What a server has: its folders, and its jobs."""

    roots: Roots
    jobs: Jobs = field(default_factory=Jobs)


def about(state: State, asked: Asked) -> Answer:
    """What the page needs to begin."""
    plain = ("F32", "F16", "BF16")
    return {
        "version": __version__,
        "start": str(state.roots.start),
        "model": state.roots.start.is_file() or (state.roots.start / "config.json").is_file(),
        "read": str(state.roots.read),
        "write": str(state.roots.write),
        "quants": quant_rows(),
        "compared": list(QUANTS),
        "types": [name for name, kind in DTYPES.items() if name in plain or (kind.quantized and encodable(kind))],
        "bits": {name: kind.bits_per_weight for name, kind in DTYPES.items()},
        "jobs": [job.as_dict(result=False) for job in state.jobs.all()],
    }


def files(state: State, asked: Asked) -> Answer:
    """What is in a folder: `path`, by default where the server was started on."""
    folder = state.roots.readable(asked.get("path") or str(state.roots.read))
    inside = [root for root in (state.roots.read, state.roots.write) if folder.is_relative_to(root)]
    up = str(folder.parent) if folder not in inside else None
    return {"path": str(folder), "up": up, "entries": list(state.roots.entries(folder))}


def model(state: State, asked: Asked) -> Answer:
    """A model: `path`. Reads nothing but headers."""
    path = state.roots.readable(asked.get("path"))
    found = inspect(path)
    rows = [_place(each.info) for each in found.tensors]
    return {
        "path": str(path),
        "name": path.name,
        "format": found.format,
        "architecture": found.architecture,
        "files": len(found.files),
        "parts": [str(part) for part in found.parts],
        "parameters": found.n_parameters,
        "bytes": found.tensor_bytes,
        "tree": found.tree.as_dict(numbers=True),
        "tensors": rows,
        "metadata": [row for row, _ in zip(found.metadata_rows(full=False), range(MAX_METADATA), strict=False)],
        "running": {"assumes": RUNNING, "table": found.memory_table()},
        "tuning": {"assumes": TUNING, "table": found.tuning_table()},
        "command": command(["inspect", path, "--tree"]),
    }


def tensor(state: State, asked: Asked) -> Answer:
    """A tensor: `path`, `name`. Reads a slab of it."""
    with open_model(Source(state.roots.readable(asked.get("path")))) as checkpoint:
        found = checkpoint.tensors.get(str(asked.get("name")))
        if found is None:
            raise UsageError("no such tensor")
        info = found.info
        whole = sum(each.info.nbytes for each in checkpoint.tensors.values())
        return {
            "name": info.name,
            "shape": list(info.shape),
            "type": info.dtype.name,
            "bits": info.dtype.bits_per_weight,
            "bytes": info.nbytes,
            "elements": info.n_elements,
            "share": info.nbytes / max(1, whole),
            "source": found.source,
            "sample": sample(found),
        }


def plan(state: State, asked: Asked) -> Answer:
    """What a conversion would do: `source`, `target` and the fields of a request that the page sets."""
    source, target = state.roots.readable(asked.get("source")), state.roots.writable(asked.get("target"))
    request = _request(state, asked)
    (made,) = pipeline.plan_several(source, target, [request], foreseen=True)
    made.checkpoint.close()
    steps = [
        [step.name, list(step.shape), step.source_type, step.type, step.bytes, step.rule, *where(step.name)]
        for step in made.steps
    ]
    events = made.report.as_json()
    return {
        "steps": steps,
        "bytes": made.total_bytes,
        "bits_per_weight": made.bits_per_weight,
        "parameters": made.n_parameters,
        "events": events[:MAX_EVENTS],
        "left_out": max(0, len(events) - MAX_EVENTS),
        "costs": preflight([made]).as_dict(),
        "running": _running(made),
        "command": command([source, target], request),
        "plan_command": command(["plan", source, target], request),
    }


def _running(made: Plan) -> list[Answer]:
    """What running the file takes, at several contexts; nothing where it is no language model."""
    tensors = {step.name: (step.shape, step.type) for step in made.steps}
    needs = running_memory.estimate(made.checkpoint.config, tensors).needs
    return [vars(need) | {"total": need.total} for need in needs if need.type == running_memory.STORED]


def _request(state: State, asked: Asked) -> Request:
    """The request in what the page sends; paths in it are within the roots.

    Raises:
        UsageError: a value of another kind than the field has.
    """
    given: dict[str, Any] = {name: asked[name] for name in OPTIONS if asked.get(name)}
    for name, value in given.items():
        flag = isinstance(getattr(Request().types, name), bool)
        if not isinstance(value, bool if flag else str):
            raise UsageError(f"{name}: is of the wrong kind")
    if "imatrix" in given:
        given["imatrix"] = state.roots.readable(given["imatrix"])
    patterns = asked.get("tensor_types") or []
    if not isinstance(patterns, list) or not all(_is_pattern(each) for each in patterns):
        raise UsageError("tensor_types: is a list of a pattern and a type each")
    return Request(**given, tensor_types=[(pattern, kind) for pattern, kind in patterns])


def _is_pattern(each: object) -> bool:
    return isinstance(each, list) and len(each) == 2 and all(isinstance(text, str) and text for text in each)


# ------------------------------------------------------------------------------------------------ jobs


def run_convert(state: State, asked: Asked) -> Answer:
    """Begin a conversion: as for `plan`, and `force` to replace an output."""
    source, target = state.roots.readable(asked.get("source")), state.roots.writable(asked.get("target"))
    request, force = _request(state, asked), asked.get("force") is True

    def work(progress: ProgressCallback | None, stop: threading.Event) -> Answer:
        made = pipeline.convert(source, target, request, force=force, progress=progress, cancel=stop)
        return {
            "path": str(made.written),
            "bytes": made.total_bytes,
            "bits_per_weight": made.bits_per_weight,
            "tensors": len(made.steps),
            "events": made.report.as_json()[:MAX_EVENTS],
        }

    return _started(state, "convert", asked, work)


def run_compare(state: State, asked: Asked) -> Answer:
    """Begin a comparison: `source`, `quants`, and the fields of a request."""
    source, request = state.roots.readable(asked.get("source")), _request(state, asked).replace(quant=None)
    quants = asked.get("quants") or list(QUANTS)
    if not isinstance(quants, list) or not all(isinstance(name, str) for name in quants):
        raise UsageError("quants: is a list of names")

    def work(progress: ProgressCallback | None, stop: threading.Event) -> Answer:
        return compare(source, quants, request, progress=progress).as_dict()

    line = command(["compare", source, "--quants", ",".join(quants)], request)
    return _started(state, "compare", asked, work) | {"command": line}


def run_verify(state: State, asked: Asked) -> Answer:
    """Begin a proof: `source`, `target`, and the fields of a request."""
    source, target = (state.roots.readable(asked.get(name)) for name in ("source", "target"))
    request = _request(state, asked).replace(quant=None)

    def work(progress: ProgressCallback | None, stop: threading.Event) -> Answer:
        found = verify(source, target, request, progress=progress)
        said = found.as_dict()
        worst = [each.as_dict() for each in found.worst_first[:SHOWN_TENSORS]]
        return said | {"tensors": worst, "more": max(0, len(found.tensors) - SHOWN_TENSORS)}

    line = command(["verify", source, target], request, "--report", "proof.html")
    return _started(state, "verify", asked, work) | {"command": line}


def run_diff(state: State, asked: Asked) -> Answer:
    """Begin a comparison of two models, `before` and `after`."""
    before, after = (state.roots.readable(asked.get(name)) for name in ("before", "after"))

    def work(progress: ProgressCallback | None, stop: threading.Event) -> Answer:
        found = diff(before, after, progress=progress)
        changes = {change.name: change for change in found.changes if change.group == "tensors"}
        rows = [[*_place(info), _difference(changes.get(info.name))] for info in found.tensors]
        others = [change.as_dict() for change in found.changes if change.group != "tensors"]
        return {
            "equal": found.equal,
            "compared": dict(found.compared),
            "tensors": rows,
            "tree": tree(found.tensors).as_dict(numbers=True),
            "others": others[:MAX_METADATA],
            "left_out": max(0, len(others) - MAX_METADATA),
        }

    return _started(state, "diff", asked, work) | {"command": command(["diff", before, after])}


def _place(info: TensorInfo) -> list[Any]:
    """A tensor as the page has it: name, shape, type, bytes, and its place in a grid."""
    return [info.name, list(info.shape), info.dtype.name, info.nbytes, *where(info.name)]


def _difference(change: Change | None) -> Answer | None:
    """What is said of a tensor that differs; None of one that does not."""
    if change is None or change.detail == "values equal":
        return None
    return {"kind": change.kind, "said": str(change), "relative": change.facts.get("relative")}


def _started(state: State, verb: str, asked: Asked, work: Callable[..., Answer]) -> Answer:
    return state.jobs.start(verb, dict(asked), work).as_dict()


def job(state: State, asked: Asked) -> Answer:
    """A job: `number`."""
    return _job(state, asked).as_dict()


def cancel(state: State, asked: Asked) -> Answer:
    """End a job: `number`."""
    found = _job(state, asked)
    found.stop.set()
    return found.as_dict(result=False)


def _job(state: State, asked: Asked) -> Job:
    return state.jobs.get(asked.get("number"))


#: What can be asked: method and name -> who answers. Only POST changes anything, or takes its time.
ROUTES: Mapping[tuple[str, str], Callable[[State, Asked], Answer]] = {
    ("GET", "about"): about,
    ("GET", "files"): files,
    ("GET", "model"): model,
    ("GET", "tensor"): tensor,
    ("GET", "job"): job,
    ("POST", "plan"): plan,
    ("POST", "convert"): run_convert,
    ("POST", "compare"): run_compare,
    ("POST", "verify"): run_verify,
    ("POST", "diff"): run_diff,
    ("POST", "cancel"): cancel,
}
#: The page's own files -> where they are, and what they are.
FILES: Mapping[str, tuple[str, str, str]] = {
    "": ("converter.ui", "page.html", "text/html; charset=utf-8"),
    "page.css": ("converter.reports", "page.css", "text/css; charset=utf-8"),
    "ui.css": ("converter.ui", "ui.css", "text/css; charset=utf-8"),
    "icon.svg": ("converter.ui", "icon.svg", "image/svg+xml"),
    "ui.js": ("converter.ui", "ui.js", "text/javascript; charset=utf-8"),
}
