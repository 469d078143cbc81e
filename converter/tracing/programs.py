"""Exported programs of torch (`torch.export.save`): their graph, read of clean JSON, with tensors that are only shapes.

What is clean is decided where the file is read (`formats.torch.exported`); no tensor, sample or pickle comes here.
Source: `torch._export.serde.serialize`, whose names are private.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.extras import package
from converter.tracing.answer import Answer
from converter.tracing.export import Exporter
from converter.tracing.guard import close_doors
from converter.tracing.parts import WORK


def translated(torch: Any, program: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Any]]) -> Answer:
    """The graph of a program, under the names that its tensors have in it.

    Args:
        torch: the package.
        program: the clean JSON.
        tensors: of every tensor `shape`, and `dtype` as torch names it.

    Raises:
        Exception: whatever torch raises.
    """
    exporter, serde = Exporter(torch), package("torch._export.serde.serialize", WORK)
    schema = package("torch._export.serde.schema", WORK)
    close_doors()
    made = serde._dict_to_dataclass(schema.ExportedProgram, dict(program))
    specs = made.graph_module.signature.input_specs
    beside = {each.value.tensor_constant_name for each in specs if each.type == "tensor_constant"}
    beside |= {each.value.buffer_name for each in specs if each.type == "buffer" and not each.value.persistent}
    blank = {name: _blank(torch, told) for name, told in tensors.items()}
    learnt = {each.value.parameter_name for each in specs if each.type == "parameter"}
    state = {
        name: torch.nn.Parameter(each, requires_grad=False) if name in learnt else each
        for name, each in blank.items()
        if name not in beside
    }
    constants = {name: each for name, each in blank.items() if name in beside}
    loaded = serde.ExportedProgramDeserializer().deserialize(made, state, constants, None)
    inputs = [str(name) for name in loaded.graph_signature.user_inputs]
    n_output = len(loaded.graph_signature.user_outputs)
    outputs = ["output"] if n_output == 1 else [f"output_{at}" for at in range(n_output)]
    packed = exporter.packed(exporter.of_program(loaded, inputs, outputs, frozenset(tensors)))
    way = f"translated by torch {torch.__version__.partition('+')[0]} from an exported program"
    return Answer(way, (packed,), tuple(name for name in tensors if name not in packed.filled))


def _blank(torch: Any, told: Mapping[str, Any]) -> Any:
    """A tensor without memory: all its elements are one."""
    return torch.zeros((), dtype=getattr(torch, told["dtype"])).expand(tuple(told["shape"]))
