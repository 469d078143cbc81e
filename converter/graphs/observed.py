"""A graph that tells between which numbers the activations are that its matrices meet, and computes nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from converter.formats.onnx.program import Node, Program, Value

#: What ends an output's name, behind that of a matrix, and the operator that makes it.
ENDS = {"least": "ReduceMin", "largest": "ReduceMax"}


def observed(program: Program, matrices: Iterable[str]) -> Program:
    """`program` with the ends of what each of `matrices` meets as its outputs, in F32 and without an axis.

    Args:
        program: a graph in F32, whose matrices are plain numbers.
        matrices: names of initializers that activations are multiplied by.
    """
    made = {output: node for node in program.nodes for output in node.outputs}
    met = {
        _matrix(node.inputs[1], made): _all_rows(node.inputs[0], made) for node in program.nodes if _multiplies(node)
    }
    ends = [(f"{name}.{end}", op, met[name]) for name in matrices for end, op in ENDS.items()]
    nodes = tuple(Node(op, (x,), (output,), {"keepdims": 0}) for output, op, x in ends)
    outputs = tuple(Value(output, "F32", ()) for output, *_ in ends)
    return replace(program, nodes=(*program.nodes, *nodes), outputs=outputs, texts={})


def _multiplies(node: Node) -> bool:
    return node.op == "MatMul"


def _matrix(name: str, made: Mapping[str, Node]) -> str:
    """The initializer that an operand is, or is of with its axes exchanged."""
    return made[name].inputs[0] if name in made else name


def _all_rows(name: str, made: Mapping[str, Node]) -> str:
    """What an expert's rows are cut from, which are never none."""
    node = made.get(name)
    by_rows = node is not None and node.op == "Split" and node.attributes.get("axis") == 0
    return node.inputs[0] if node is not None and by_rows else name
