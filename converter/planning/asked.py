"""What is asked of a source: refused where it contradicts itself, the source or the target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from converter.errors import ArchitectureError, UnsupportedFeature, UsageError
from converter.events import NamesUnknown
from converter.formats.torch.exported import SAVE_A_GRAPH, ExportedProgram, ScriptedProgram
from converter.graphs.profiles import PROFILES
from converter.planning.draft import PLAIN, Draft
from converter.quant.recipes import ALIASES, RECIPES, STATIC, recipe
from converter.request import EFFORTS, SCALES, Types

EXTERNAL_DATA = ("auto", "always", "never")


def check(draft: Draft) -> Draft:
    """Refuse what contradicts itself, the source or the target.

    Raises:
        UsageError: options that do not go together, or have no effect on this target.
        ArchitectureError: nothing says what the names would be in a GGUF.
    """
    target, request = draft.target, draft.request
    if target.runs and not request.model.tensors_only:
        _check_program(draft)
    if request.types.quant and draft.to_trace:
        raise UsageError(
            f"--quant {request.types.quant}: a graph that torch traces has plain numbers; --dtype f16 or f32"
        )
    if request.types.quant and not draft.to_gguf:
        raise UsageError(
            f"--quant {request.types.quant}: {target.name} holds plain types; --dtype f16|bf16|f32 is for it"
        )
    if request.types.scheme and not target.folder:
        raise UsageError(
            f"--scheme {request.types.scheme}: packs the weights of a folder; end the output's name in a slash"
        )
    if draft.whole and not (target.folder or draft.to_graph or draft.to_trace):
        raise UsageError(f"{draft.path}: a folder of {target.name} is for models that run; a file takes tensors alone")
    if request.types.scale != SCALES[0] and not request.types.scheme:
        raise UsageError(f"--scale {request.types.scale}: says how --scheme finds scales, and has no effect without")
    _check_imatrix(request.types)
    _check_effort(request.types)
    _check_calibrate(draft)
    if draft.opened.dialect == "peft" and target.dialect != "peft":
        _check_adapter(draft)
    elif draft.opened.base is not None and draft.route.map != "hf->gguf":
        raise UsageError(
            f"--base {draft.opened.base.path}: has a part in a GGUF of a draft model, and in no other file"
        )
    if request.types.dtype and draft.to_gguf and not draft.to_graph:
        name = request.types.dtype.strip().upper()
        known = name in RECIPES or name in ALIASES
        say = f"say --quant {request.types.dtype}" if known else "--quant TYPE says it; `convert quants` lists types"
        raise UsageError(f"--dtype {request.types.dtype}: for GGUF output {say}")
    if isinstance(request.model.mmproj, Path) and draft.route.map != "gguf->hf":
        raise UsageError("--mmproj FILE makes a GGUF the folder of a whole model, and has no effect on others")
    for option, asked in request.model.parts.items():
        if asked and draft.route.map != "hf->gguf":
            raise UsageError(
                f"--{option.replace('_', '-')} says which parts of a Hugging Face model a GGUF has, "
                "and has no effect on others"
            )
    if request.types.exact and not draft.to_graph:
        raise UsageError(f"--exact: says how a graph computes with blocks of codes, and {target.name} gets none here")
    _check_profile(draft)
    _check_calibration(request.types)
    if request.output.external_data not in EXTERNAL_DATA:
        raise UsageError(f"--external-data {request.output.external_data}: say {', '.join(EXTERNAL_DATA)}")
    if request.output.external_data != "auto" and not target.runs:
        raise UsageError(f"--external-data {request.output.external_data}: only ONNX has data files, not {target.name}")
    if draft.opened.dialect is None and not request.model.tensors_only:
        _check_names(draft)
    return draft


def _check_names(draft: Draft) -> None:
    """Refuse names that nobody reads."""
    unknown = next((event for event in draft.opened.events if isinstance(event, NamesUnknown)), None)
    if unknown is not None and (draft.to_gguf or draft.target.folder):
        raise ArchitectureError(
            f"{draft.opened.path}: {unknown}\n"
            "is config.json that of this model? --tensors-only keeps the names as they are"
        )
    if draft.to_gguf:
        raise ArchitectureError(
            f"{draft.opened.path}: no config.json beside it, so the names cannot be mapped to GGUF\n"
            "--config DIR takes config and tokenizer from a folder, --tensors-only keeps names as they are"
        )


def _check_program(draft: Draft) -> None:
    """What a file of PyTorch with a program in it can become, where the target runs."""
    path, structure = draft.opened.path, draft.opened.structure
    if isinstance(structure, ScriptedProgram):
        raise UnsupportedFeature(
            f"{path}: TorchScript is code, which is never run here, so that no graph can be made of it\n"
            f"{SAVE_A_GRAPH}, where the model is made\n"
            "--tensors-only writes its tensors without a graph"
        )
    if isinstance(structure, ExportedProgram):
        if structure.refused:
            raise UnsupportedFeature(
                f"{path}: no graph can be made of it: {structure.refused}\n"
                "--tensors-only writes its tensors without a graph"
            )
        if draft.request.types.dtype:
            raise UsageError(f"--dtype {draft.request.types.dtype}: an exported program calculates in its own types")


def _check_adapter(draft: Draft) -> None:
    base, quant = draft.opened.base, draft.request.types.quant
    assert base is not None
    if draft.route.map != "peft->gguf":
        raise UsageError(
            f"--base {base.path}: makes a GGUF adapter, with its own names, and nothing else\n"
            f"to merge {draft.opened.path} into the model: convert {base.path} OUT --lora {draft.opened.path}"
        )
    if quant is not None and recipe(quant).base not in PLAIN:
        raise UsageError(f"--quant {quant}: the matrices of an adapter are small; f32, f16 and bf16 are for them")


def _check_profile(draft: Draft) -> None:
    asked = draft.request.types.profile
    if asked not in (None, *PROFILES):
        raise UsageError(f"--profile {asked}: say {', '.join(PROFILES)}")
    if asked is not None and not draft.to_graph:
        raise UsageError(f"--profile {asked}: says what a graph is made of, and {draft.target.name} gets none here")


def _check_calibration(types: Types) -> None:
    static = (types.quant or "").strip().upper() == STATIC
    if types.calibration is not None and not static:
        raise UsageError("--calibration TEXT: finds ranges for --quant int8-static, and has no effect on others")
    if static and types.calibration is None:
        raise UsageError(f"--quant {types.quant}: ranges of activations are found on a text; pass --calibration TEXT")
    if static and types.exact:
        raise UsageError(f"--exact: leaves activations as they are, and --quant {types.quant} rounds them")


def _check_imatrix(types: Types) -> None:
    if types.imatrix is not None and (types.quant is None or recipe(types.quant, graph=True).base is None):
        raise UsageError("--imatrix has no effect without a type to encode to; say --quant TYPE")
    if types.imatrix is None and (types.include_weights or types.exclude_weights):
        raise UsageError("--include-weights and --exclude-weights choose from an importance matrix: pass --imatrix")
    if types.include_weights and types.exclude_weights:
        raise UsageError("--include-weights and --exclude-weights cannot be used together")


def _check_effort(types: Types) -> None:
    if types.effort not in EFFORTS:
        raise UsageError(f"--effort {types.effort}: there are {EFFORTS[0]} to {EFFORTS[-1]}")
    if types.effort and (types.quant is None or not recipe(types.quant, graph=True).quantized):
        raise UsageError("--effort has no effect without blocks to encode; say --quant TYPE")


def _check_calibrate(draft: Draft) -> None:
    types = draft.request.types
    if types.calibrate is None:
        return
    if draft.to_graph or types.quant is None or not recipe(types.quant, graph=True).quantized:
        raise UsageError("--calibrate: makes good what blocks of a GGUF lose; say --quant TYPE, and a GGUF as OUT")


def detach(draft: Draft) -> Draft:
    """Leave what the source has around its tensors, which only a target of its own format can keep.

    Raises:
        UnsupportedFeature: that is too much to lose.
    """
    structure = draft.checkpoint.structure
    if structure is None or draft.target.name == draft.opened.format or draft.to_trace:
        return draft
    draft.report.extend(list(structure.leave()))
    return replace(draft, checkpoint=draft.checkpoint.replace(structure=None))
