"""A plan remembers what led to it, is equal to its like, and can be made again by somebody else."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import architectures, builders, importance, models
from support.calibrations import write_calibration

import converter
from converter import workers
from converter.checkpoint import Checkpoint
from converter.errors import ConverterError, MissingImportance
from converter.formats.registry import formats, open_checkpoint
from converter.mixture import Mixture, Rule
from converter.planning.build import build
from converter.planning.draft import begin, run
from converter.planning.passes import ASKED, FILES, MODEL, PASSES, TYPES
from converter.planning.plan import Plan, Route, route
from converter.quant import imatrix
from converter.request import FIELDS, Request, Source
from converter.tensors.encode import encode_rows
from converter.tensors.streams import values
from converter.tensors.tensor import LazyTensor

STORIES = models.FIXTURES / "stories260K"
IMATRIX = models.FIXTURES / "imatrix" / "stories260K.dat"
DOWN = "blk.0.ffn_down.weight"


def planned(source: Path | Source, target: Path | str, request: Request | None = None) -> Plan:
    plan = converter.plan(source, target, request)
    plan.checkpoint.close()
    return plan


# ------------------------------------------------------------------------------------- what a plan remembers


def test_steps_keep_what_led_to_them(tmp_path: Path) -> None:
    """Encoding what a step read, through its intermediate, by its choice and weights, gives the plan's own tensor."""
    request = Request(quant="q4_0", via="f16", imatrix=IMATRIX, tensor_types=(("ffn_up", "q8_0"),))
    with converter.plan(STORIES, tmp_path / "out.gguf", request).checkpoint as checkpoint:
        plan = build(open_checkpoint(STORIES), tmp_path / "out.gguf", formats()["gguf"], request)
        steps = {step.name: step for step in plan.steps}
        assert list(steps) == list(checkpoint.tensors)
        gate, up = steps["blk.0.ffn_gate.weight"], steps["blk.0.ffn_up.weight"]
        assert gate.read.info.dtype.name == "F32" and gate.read.parts == ("model.layers.0.mlp.gate_proj.weight",)
        assert gate.intermediate.info.dtype.name == "F16" == gate.source_type
        assert (gate.choice.type, gate.type, gate.imatrix) == ("Q4_0", "Q4_0", True)
        assert gate.weights is not None and len(gate.weights) == 1 and gate.weights[0].shape == gate.shape[-1:]
        assert (up.type, up.rule, up.weights) == ("Q8_0", "--tensor-type ffn_up", None)
        for step in plan.steps:
            wanted = checkpoint.tensors[step.name]
            assert step.info == wanted.info and step.bytes == wanted.info.nbytes
            numbers = values(step.intermediate, 0, step.info.n_rows)
            made = encode_rows(numbers, step.info.dtype, step.weights, 0, step.info.n_rows or 1)
            assert np.array_equal(made, wanted.rows(0, step.info.n_rows))
        plan.checkpoint.close()


def test_a_step_prints_what_it_printed() -> None:
    """The fields of the JSON, with a source of several tensors and a type that did not fit."""
    plan = planned(STORIES, "out.gguf", Request(quant="q4_k_m"))
    first = plan.steps[0].as_dict()
    assert list(first) == [
        "name",
        "sources",
        "shape",
        "source_type",
        "type",
        "bytes",
        "rule",
        "imatrix",
        "calibrated",
        "codes",
    ]
    down = next(step for step in plan.steps if step.name == DOWN)
    assert down.choice.fallback_from is not None
    assert down.rule.endswith(f"; rows do not fit {down.choice.fallback_from} -> {down.type}")
    assert down.as_dict() == {
        "name": DOWN,
        "sources": ["model.layers.0.mlp.down_proj.weight"],
        "shape": [64, 172],
        "source_type": "F32",
        "type": "F16",
        "bytes": 64 * 172 * 2,
        "rule": down.rule,
        "imatrix": False,
        "calibrated": False,
        "codes": None,
    }


MIB = 1 << 20


def test_a_plan_as_json(tmp_path: Path) -> None:
    """Its own numbers: of files, of what is stored in how many bits, and of memory."""
    plan = planned(STORIES, tmp_path / "out.gguf", Request(quant="q8_0", split_max_tensors=20))
    made = plan.as_dict()
    stored, numbers = sum(step.bytes for step in plan.steps), sum(int(np.prod(step.shape)) for step in plan.steps)
    headers = sum(len(file.header) for file in plan.layout.files)
    working = workers.default_threads() * max(tensor.row_work * tensor.info.n_rows for tensor in all_of(plan))
    assert made == {
        "source": str(STORIES),
        "target": str(tmp_path / "out.gguf"),
        "format": "gguf",
        "quant": "q8_0",
        "stages": ["open", "map hf->gguf", "encode", "save"],
        "tensors": [step.as_dict() for step in plan.steps],
        "files": [{"path": str(file.path), "bytes": file.size} for file in plan.layout.files],
        "parameters": numbers,
        "total_bytes": sum(file.size for file in plan.layout.files),
        "bits_per_weight": round(8 * stored / numbers, 4),
        "memory_bytes": 60 * MIB + 64 * MIB + 4 * headers + working,
        "events": [event.as_dict() for event in plan.report.events],
    }
    assert len(made["files"]) == 3 and made["events"]
    assert str(plan) == json.dumps(made, indent=1)
    one, two = plan.memory(1), plan.memory(2)
    assert two - one == working // workers.default_threads()


def all_of(plan: Plan) -> list[LazyTensor]:
    return list(plan.checkpoint.tensors.values())


def test_a_plan_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "in.safetensors").write_bytes(builders.safetensors_of({}))
    plan = planned(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert (plan.steps, plan.n_parameters, plan.bits_per_weight) == ((), 0, 0.0)


@pytest.mark.parametrize(
    ("source", "target", "alone", "found"),
    [
        ("hf", "gguf", False, "hf->gguf"), ("gguf", "hf", False, "gguf->hf"),
        ("gguf", "safetensors", False, "gguf->hf"), ("hf", "hf", False, None), ("gguf", "gguf", False, None),
        ("hf", "npz", False, None), (None, "gguf", False, None), ("hf", "gguf", True, None),
    ],
)  # fmt: skip
def test_routes(source: str | None, target: str, alone: bool, found: str | None) -> None:
    """Names are mapped where both sides have a dialect, not the same one, and tensors are not wanted alone."""
    way = route(Checkpoint("a", Path("a"), source, {}), formats()[target], Request(tensors_only=alone))
    assert way == Route("a", target, found)
    assert way.stages == (("open", f"map {found}", "encode", "save") if found else ("open", "encode", "save"))


def test_an_unnamed_target_is_planned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from converter.mapping import tensors

    seen: list[Path] = []
    detect: Callable[..., Any] = tensors.detect
    monkeypatch.setattr(tensors, "detect", lambda *given: seen.append(tmp_path) or detect(*given))
    plan = planned(STORIES, tmp_path, Request(quant="q8_0"))
    assert len(seen) == 1
    assert plan.target == plan.layout.files[0].path and plan.target.parent == tmp_path
    assert plan.target.name.endswith("-Q8_0.gguf")


@pytest.mark.parametrize("source", [None, Source(STORIES, config=STORIES)], ids=["opened", "given"])
def test_a_plan_names_its_ends(source: Source | None, tmp_path: Path) -> None:
    """The source is what was opened unless more is known of it, the target a file unless it is to be named."""
    plan = build(open_checkpoint(source or STORIES), tmp_path / "out.gguf", formats()["gguf"], Request(), source=source)
    plan.checkpoint.close()
    assert (plan.source, plan.target) == (source or Source(STORIES), tmp_path / "out.gguf")


# ---------------------------------------------------------------------------------------------- the passes


def test_the_groups_are_the_whole_way() -> None:
    assert PASSES == (*ASKED, *MODEL, *TYPES, *FILES)
    assert [each.__name__ for each in PASSES] == [
        "check", "detach", "widen", "unpack", "merge", "map_names", "narrow", "pack", "open_matrix",
        "open_calibration", "choose", "weigh", "encode", "speak", "describe", "made_card", "write_graph",
        "name_file", "lay_out",
    ]  # fmt: skip


def test_a_new_stage_is_one_more_pass(tmp_path: Path) -> None:
    """A pass before the mapping that changes tensors (as unpacking and merging will) reaches the output by itself."""

    def doubled(draft: Any) -> Any:
        tensors = {
            name: replace(each, parts=(name, "delta")) if name.endswith("q_proj.weight") else each
            for name, each in draft.checkpoint.tensors.items()
        }
        return replace(draft, checkpoint=draft.checkpoint.replace(tensors=tensors))

    with open_checkpoint(STORIES) as opened:
        draft = begin(opened, formats()["gguf"], Request(quant="q8_0"), tmp_path / "out.gguf")
        made = run(draft, (*ASKED, doubled, *MODEL, *TYPES, *FILES))
    steps = {step.name: step for step in made.steps}
    assert steps["blk.0.attn_q.weight"].sources == ("model.layers.0.self_attn.q_proj.weight", "delta")
    assert steps["blk.0.attn_k.weight"].sources == ("model.layers.0.self_attn.k_proj.weight",)


def test_what_passes_opened_is_closed_when_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    opened = imatrix.open_imatrix

    def watched(*given: Any) -> imatrix.ImportanceMatrix:
        matrix = opened(*given)
        return replace(matrix, close=lambda: (closed.append(True), matrix.close())[1])

    monkeypatch.setattr(imatrix, "open_imatrix", watched)
    stranger = tmp_path / "stranger.dat"
    stranger.write_bytes(importance.dat_bytes({"blk.99.attn_q.weight": np.ones(64, np.float32)}))
    with pytest.raises(MissingImportance, match="is of another model"):
        converter.plan(STORIES, tmp_path / "out.gguf", Request(quant="q4_0", imatrix=stranger))
    assert closed == [True]
    with converter.plan(STORIES, tmp_path / "out.gguf", Request(quant="q4_0", imatrix=IMATRIX)).checkpoint:
        assert closed == [True]
    assert closed == [True, True]


# --------------------------------------------------------------------------------------------- fingerprints


def test_equal_requests_make_equal_plans(tmp_path: Path) -> None:
    request = Request(quant="q4_k_m", imatrix=None)
    one, other = (planned(STORIES, tmp_path / "out.gguf", request) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one.steps == other.steps and hash(one.steps) == hash(other.steps)
    assert one.fingerprint() == other.fingerprint() and len(one.fingerprint()) == 64
    assert one != planned(STORIES, tmp_path / "other.gguf", request)
    assert one != planned(STORIES / "model.safetensors", tmp_path / "out.gguf", request)
    assert one.steps[0] != one.steps[1] and one != "a plan"


#: A conversion that each field of a request has a say in, and what else must be asked for with it.
WITH: dict[str, tuple[str, dict[str, Any]]] = {
    "tensor_types": ("out.gguf", {"quant": "q8_0"}),
    "output_type": ("out.gguf", {"quant": "q8_0"}),
    "embedding_type": ("out.gguf", {"quant": "q8_0"}),
    "imatrix": ("out.gguf", {"quant": "q4_0"}),
    "effort": ("out.gguf", {"quant": "q4_0"}),
    "calibrate": ("out.gguf", {"quant": "q4_0"}),
    "include_weights": ("out.gguf", {"quant": "q4_0", "imatrix": IMATRIX}),
    "exclude_weights": ("out.gguf", {"quant": "q4_0", "imatrix": IMATRIX}),
    "dtype": ("out.safetensors", {}),
    "external_data": ("out.onnx", {"tensors_only": True}),
    "scheme": ("folder", {"format": "hf"}),
    "exact": ("out.onnx", {"quant": "q4_0"}),
    "profile": ("out.onnx", {}),
    "calibration": ("out.onnx", {"quant": "int8-static", "calibration": STORIES / "SOURCE.txt"}),
    "scale": ("folder", {"format": "hf", "scheme": "mlx-4"}),
}
OTHER: dict[str, Any] = {
    "quant": "q8_0", "recipe": Mixture("Q8_0", (Rule("token_embd.weight", "F16"),)), "pure": True,
    "tensor_types": (("ffn_down", "f16"),), "output_type": "q5_0",
    "embedding_type": "f16", "leave_output": True, "no_fallback": True, "allow_requantize": True, "imatrix": IMATRIX,
    "effort": 1,
    "include_weights": ("ffn",), "exclude_weights": ("ffn_up",), "via": "f16", "dtype": "bf16", "arch": "llama",
    "pre": "default", "name": "Another", "tensors_only": True, "no_tokenizer": True, "no_nextn": True, "no_head": True,
    "dense_modules": True,
    "mmproj": True,
    "format": "safetensors", "strict": True, "split_max_size": 100_000, "split_max_tensors": 20,
    "external_data": "always", "keep_codes": "near", "scheme": "fp8", "scale": "mse", "exact": True,
    "spread": (STORIES,), "profile": "opset18", "calibration": models.FIXTURES / "kjv-heldout.txt",
}  # fmt: skip


def calibration(folder: Path) -> Path:
    """One for the small model, of one tensor."""
    name = "blk.0.attn_q.weight"
    return write_calibration(folder / "c.safetensors", {name: [np.eye(64)]}, {name: [name, [0]]})


@pytest.mark.parametrize("name", FIELDS)
def test_different_requests_make_different_plans(name: str, tmp_path: Path) -> None:
    target, also = WITH.get(name, ("out.gguf", {}))
    source = architectures.build("gemma3-mmproj", tmp_path) if name == "mmproj" else STORIES  # which has no other file
    request = Request(**also)
    other = request.replace(**{name: calibration(tmp_path) if name == "calibrate" else OTHER[name]})
    assert planned(source, tmp_path / target, request) != planned(source, tmp_path / target, other)


def test_another_source_makes_another_plan(tmp_path: Path) -> None:
    folder = builders.llama_folder(tmp_path / "model")
    file = folder / "model.safetensors"
    plans = [
        planned(Source(file, *given), tmp_path / "out.gguf")
        for given in ((), ("safetensors",), (None, folder))
    ]  # fmt: skip
    assert len({plan.fingerprint() for plan in plans}) == 3


def test_the_version_and_the_metadata_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from converter.planning import plan as module

    folder = builders.llama_folder(tmp_path / "model")
    before = planned(folder, tmp_path / "out.gguf")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    after = planned(folder, tmp_path / "out.gguf")
    assert before.steps == after.steps and before != after  # the header says so
    old = after.fingerprint()
    monkeypatch.setattr(module, "__version__", "9.9.9")
    assert after.fingerprint() != old


# ------------------------------------------------------------------------------------------ somebody else's plan

AGAIN = """
import json, pickle, sys
import converter
plan = converter.plan(*pickle.load(sys.stdin.buffer))
with plan.checkpoint:
    files = [
        [str(f.path), f.size, len(f.header), [[s.offset, s.tensor.name] for s in f.slots]] for f in plan.layout.files
    ]
    print(json.dumps({"fingerprint": plan.fingerprint(), "files": files, "hash": hash("a text")}))
"""


@pytest.mark.parametrize(
    ("target", "request_"),
    [
        ("out.gguf", Request(quant="q4_0", imatrix=IMATRIX, tensor_types=(("ffn_down", "q8_0"),))),
        ("", Request(quant="q8_0", split_max_tensors=20)),
        ("folder/", Request(dtype="bf16")),
    ],
    ids=["file", "unnamed", "folder"],
)
def test_a_worker_makes_the_same_plan(target: str, request_: Request, tmp_path: Path) -> None:
    plan = planned(Source(STORIES, config=STORIES), f"{tmp_path}/{target}", request_)
    triple = pickle.dumps((plan.source, plan.target, plan.request))
    found = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", AGAIN], input=triple, capture_output=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )  # fmt: skip
        found.append(json.loads(done.stdout))
    assert found[0]["hash"] != found[1]["hash"]  # the seed counts
    files = [
        [str(f.path), f.size, len(f.header), [[s.offset, s.tensor.name] for s in f.slots]] for f in plan.layout.files
    ]
    assert all(each["fingerprint"] == plan.fingerprint() and each["files"] == files for each in found)


def test_what_cannot_be_planned_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConverterError, match="plain types"):
        converter.plan(STORIES, tmp_path / "out.npz", Request(quant="q8_0"))
    assert list(tmp_path.iterdir()) == []
