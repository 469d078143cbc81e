"""What computes with each tensor of a graph, and in which module of the model that it was exported of.

Exporters leave the modules in what they call nodes: torch's TorchScript exporter, mobius and the builder of ONNX
Runtime GenAI in paths (`/model/layers.0/self_attn/q_proj/MatMul`), torch's dynamo exporter in a list of scopes in a
node's metadata, the innermost module before the node itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from converter.checkpoint import Use
from converter.formats.onnx.model import Operator, Site

SCOPES = "pkg.torch.onnx.name_scopes"
_QUOTED = re.compile(r"'([^'\\]{0,1024})'")
#: Operator -> the operand that is the matrix of a linear layer, whose rows are its inputs unless `transB` says not.
LINEAR = {"MatMul": 1, "Gemm": 1, "FusedMatMul": 1, "MatMulInteger": 1}
#: Operators and operands that are added to a result.
BIASES = {
    ("Add", 0), ("Add", 1), ("Gemm", 2), ("LayerNormalization", 2), ("SkipLayerNormalization", 3), ("MatMulNBits", 5),
}  # fmt: skip
#: Operators and operands that are rows as a model has them.
ROWS = {("Gather", 0), ("GatherND", 0), ("MatMulNBits", 1)}
#: Operators and operands that are given on; of Transpose, too, where it exchanges two axes.
SAME = {("Cast", 0), ("Identity", 0), ("DequantizeLinear", 0)}
MAX_STEPS = 16  # of them on the way to what computes


def uses(operators: Iterable[Operator], sites: Mapping[str, Site]) -> dict[str, tuple[Use, ...]]:
    """The tensors at `sites` that nodes compute with."""
    consumers: dict[str, list[tuple[Operator, int]]] = {}
    for node in operators:
        for operand, name in enumerate(node.inputs):
            consumers.setdefault(name, []).append((node, operand))
    return {name: found for name, site in sites.items() if (found := tuple(_uses(site.name, consumers)))}


def _uses(name: str, consumers: Mapping[str, Sequence[tuple[Operator, int]]]) -> Iterator[Use]:
    """What computes with a tensor, be it given on by others first."""
    seen = [(name, False)]
    for name, exchanged in seen:
        for node, operand in consumers.get(name, ()):
            exchanges = node.op == "Transpose" and node.numbers.get("perm", (1, 0)) == (1, 0)
            if (exchanges or (node.op, operand) in SAME) and node.outputs and len(seen) < MAX_STEPS:
                if (step := (node.outputs[0], exchanged ^ exchanges)) not in seen:
                    seen.append(step)
            else:
                use = _use(node, operand)
                yield use if use.turned is None else replace(use, turned=use.turned ^ exchanged)


def _use(node: Operator, operand: int) -> Use:
    turned = False if (node.op, operand) in ROWS else None
    if LINEAR.get(node.op) == operand:
        turned = node.numbers.get("transB", (0,)) != (1,)
    return Use(_module(node), node.op, (node.op, operand) in BIASES, turned)


def _module(node: Operator) -> str:
    if SCOPES in node.said:
        return "".join(_QUOTED.findall(node.said[SCOPES])[-2:-1])
    return ".".join(node.name.strip("/").split("/")[:-1])
