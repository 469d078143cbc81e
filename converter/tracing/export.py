"""From a model of torch to graphs of ONNX, by torch's exporter and the patches that transformers has for it.

No parameter has memory while it is traced, none is looked at: the graph names them, and the engine fills them.
Source: `OnnxExporter.export_program` of transformers 5.13 and later, whose parts are private names. Where they are not
there, torch's exporter is asked alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from converter.errors import UnsupportedFeature
from converter.extras import package
from converter.tracing.answer import Computed, Filled, Traced
from converter.tracing.parts import FLOATS, PRESENT_NAME, WORK, Input, Part

#: The newest set that browsers' runtimes and older ones have whole.
OPSET = 20
PREFIX = "model."
#: Axes that a graph of one size is of no use for.
FREE = ("batch_size", "sequence_length", "past_sequence_length", "total_sequence_length")
OURS = {
    "FLOAT": "F32", "FLOAT16": "F16", "DOUBLE": "F64", "BFLOAT16": "BF16", "BOOL": "BOOL", "INT8": "I8", "UINT8": "U8",
    "INT16": "I16", "INT32": "I32", "INT64": "I64", "COMPLEX64": "C64",
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A graph that was exported, as onnx_ir has it; its initializers stand beside it, each with what it will hold."""

    name: str
    model: Any
    tensors: Mapping[str, tuple[Any, Filled | Computed]]


class Exporter:
    """What exports the parts of one model."""

    def __init__(self, torch: Any) -> None:
        self._torch, self.ir = torch, package("onnxscript", WORK).ir
        self._fakes = package("torch._subclasses.fake_tensor", WORK)
        self._symbols = package("torch.fx.experimental.symbolic_shapes", WORK)
        try:
            self._patches: Any = package("transformers.exporters.utils", WORK)
            self._onnx: Any = package("transformers.exporters.exporter_onnx", WORK)
            self._table: Any = self._onnx._ONNX_TRANSLATION_TABLE
        except Exception:  # before 5.13, or they are called otherwise since
            self._patches = self._onnx = self._table = None
        self._filled: Mapping[str, str] = {}
        self.kind = "float32"

    def take(self, model: Any, filled: Mapping[str, str], most: int) -> None:
        """The model, and which tensor of the checkpoint fills which of its parameters and buffers.

        Raises:
            UnsupportedFeature: it computes tables of more than `most` bytes.
        """
        self._model, self._filled = model, filled
        self.kind = str(model.dtype).removeprefix("torch.")
        own = sum(b.numel() * b.element_size() for name, b in model.named_buffers() if name not in filled)
        if own > most:
            raise UnsupportedFeature(f"its tables would take {own} bytes; they may take {most}")
        self._begin()

    def _begin(self) -> None:
        """Parameters that only know their shape, of a mode of their own, which collects what is found out of shapes."""
        torch, again = self._torch, dict[int, Any]()
        self._mode = self._fakes.FakeTensorMode(
            allow_non_fake_inputs=True, shape_env=self._symbols.ShapeEnv(duck_shape=False)
        )
        for module in self._model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if id(parameter) not in again:
                        with self._mode:
                            data = torch.empty(parameter.shape, dtype=parameter.dtype)
                        made = torch.nn.Parameter(data, requires_grad=False)
                        again |= {id(parameter): made, id(made): made}
                    module._parameters[name] = again[id(parameter)]

    def inside(self, inputs: Sequence[Input]) -> dict[str, Any]:
        """Values of inputs, in the type that the model calculates in, that are nothing but their shapes."""
        floats = getattr(self._torch, self.kind)
        return {name: value.to(floats) if value.is_floating_point() else value for name, value in self._made(inputs)}

    def _made(self, inputs: Sequence[Input]) -> Iterator[tuple[str, Any]]:
        for each in inputs:
            with self._mode:
                value = self._torch.ones(each.shape, dtype=getattr(self._torch, each.kind))
            yield each.name, value

    def dry(self, run: Callable[[], Any]) -> Any:
        """What a call gives, in shapes alone."""
        with self._mode, self._torch.no_grad():
            return run()

    def export(self, part: Part) -> Made:
        """One graph.

        Raises:
            UnsupportedFeature: it would be of one size of batch or text.
            Exception: whatever torch raises.
        """
        torch = self._torch
        self._begin()
        names: list[str] = []
        wrapped = _wrapped(torch, self._model, part, names, self.kind)
        given = tuple(value for _, value in self._made(part.inputs))
        shapes = (tuple(dict.fromkeys(range(each.dim()), torch.export.Dim.AUTO) for each in given),)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for backend in ("onnx", "dynamo") if self._patches else ():
                stack.enter_context(self._patches.apply_patches(backend))
            program = torch.export.export(wrapped, given, dynamic_shapes=shapes, strict=False)
            made = self._to_onnx(program, [each.name for each in part.inputs], names)
        _name_axes(self.ir, made.model.graph, part)
        return self._settled(part.name, made.model)

    def of_program(self, program: Any, inputs: list[str], outputs: list[str], tensors: Set[str]) -> Made:
        """The graph of a program that torch exported before; `tensors` are the names of those that are filled.

        Raises:
            Exception: whatever torch raises.
        """
        self._filled = {name: name for name in tensors}
        with ExitStack() as stack:
            stack.enter_context(self._torch.no_grad())
            if self._patches:
                stack.enter_context(self._patches.apply_patches("onnx"))
            made = self._to_onnx(program, inputs, outputs)
        graph = made.model.graph
        for value in (*graph.inputs, *graph.outputs):
            value.shape = self.ir.Shape([_any_size(size, f"{value.name}.{at}") for at, size in enumerate(value.shape)])
        return self._settled("model", made.model)

    def _to_onnx(self, program: Any, inputs: list[str], outputs: list[str]) -> Any:
        if self._patches:
            self._patches.apply_fx_node_fixes("onnx", program.graph_module)
        made = self._torch.onnx.export(
            program, (), input_names=inputs, output_names=outputs, opset_version=OPSET, optimize=False, verbose=False,
            custom_translation_table=self._table,
        )  # fmt: skip
        if self._onnx:
            self._onnx._name_graph_outputs(made.model.graph, outputs)
            self._onnx.apply_onnx_ir_fixes(made)
        return made

    def _settled(self, name: str, model: Any) -> Made:
        """The graph without what only its maker wanted to know, its tensors under the checkpoint's names, once each."""
        tensors = self._tensors(model.graph)
        optimizer = package("onnxscript.optimizer", WORK)
        optimizer.optimize_ir(model, should_fold=lambda node: False if node.op_type == "Resize" else None)
        tensors |= self._tensors(model.graph)
        _without_words(model)
        return Made(name, model, {name: each for name, each in tensors.items() if each[0].uses()})

    def _tensors(self, graph: Any) -> dict[str, tuple[Any, Filled | Computed]]:
        """The tensors of a graph: those that the checkpoint fills get its names, and lose what stood for them."""
        found: dict[str, tuple[Any, Filled | Computed]] = {}
        for name, value in list(graph.initializers.items()):
            source = self._filled.get(name) or self._filled.get(name.removeprefix(PREFIX))
            kind = OURS[value.dtype.name]
            if source is None:
                array = value.const_value.numpy()
                found[name] = (value, Computed(kind, tuple(array.shape), array.tobytes()))
            elif source in found:
                self.ir.convenience.replace_all_uses_with(value, found[source][0])
                del graph.initializers[name]
            else:
                del graph.initializers[name]
                value.name, value.const_value = source, None
                found[source] = (value, Filled(source, kind))
        return found

    def packed(self, made: Made) -> Traced:
        """The graph as bytes, without its tensors, and where these come from."""
        made.model.graph.initializers.clear()
        whole = self.ir.to_proto(made.model)
        graph = whole.graph.SerializeToString(deterministic=True)
        whole.ClearField("graph")
        filled = {name: each for name, (_, each) in made.tensors.items() if isinstance(each, Filled)}
        computed = {name: each for name, (_, each) in made.tensors.items() if isinstance(each, Computed)}
        return Traced(made.name, whole.SerializeToString(deterministic=True), graph, filled, computed)


def _wrapped(torch: Any, model: Any, part: Part, names: list[str], kind: str) -> Any:
    """A module of tensors in and tensors out; the names of what comes out are put into `names` as it runs."""
    inside = getattr(torch, kind)

    class Wrapped(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Any) -> tuple[Any, ...]:
            taken = {
                each.name: value.to(inside) if each.kind == FLOATS else value
                for each, value in zip(part.inputs, given, strict=True)
            }
            found = {name: value for name, value in part.run(self.model, taken).items() if torch.is_tensor(value)}
            names[:] = found
            return tuple(
                value.float() if value.dtype is torch.float16 and not name.startswith(PRESENT_NAME) else value
                for name, value in found.items()
            )

    return Wrapped().eval()


# ---------------------------------------------------------------------------------------------------- graphs


def _name_axes(ir: Any, graph: Any, part: Part) -> None:
    """Axes of inputs and outputs by the names that clients know.

    Raises:
        UnsupportedFeature: an axis has one size that must have any.
    """
    known: dict[str, str] = {}
    for value, each in zip(graph.inputs, part.inputs, strict=True):
        sizes: list[int | str] = []
        for size, axis in zip(value.shape, each.axes, strict=True):
            told = size if isinstance(size, int) else str(size.value)
            told = int(told) if isinstance(told, str) and told.isdigit() else told
            if isinstance(told, int) and axis in FREE:
                raise UnsupportedFeature(f"traced, it takes {each.name} of one {axis} only ({told})")
            if isinstance(told, str) and axis:
                told = known.setdefault(told, axis)
            sizes.append(told)
        value.shape = ir.Shape(sizes)
    for value in graph.outputs:
        axes = part.axes.get(value.name, ())
        made: list[int | str] = []
        for at, size in enumerate(value.shape):
            told = size if isinstance(size, int) else str(size.value)
            if isinstance(told, str):
                axis = axes[at] if at < len(axes) else ""
                told = int(told) if told.isdigit() else known.get(told) or axis or f"{value.name}.{at}"
            made.append(told)
        value.shape = ir.Shape(made)


def _any_size(size: Any, name: str) -> int | str:
    told = size if isinstance(size, int) else str(size.value)
    return int(told) if isinstance(told, str) and told.isdigit() else told if isinstance(told, int) else name


def _without_words(model: Any) -> None:
    """No stack traces of this machine, no shapes of what lies between: runtimes find these themselves."""
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.metadata_props.clear()
        for value in graph.inputs:
            value.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                if not value.is_graph_output():
                    value.shape = value.type = None


CHOICE = "use_cache_branch"


def merged(ir: Any, name: str, begin: Made, go_on: Made) -> Made:
    """A decoder's two ways, without a cache and with one, as one graph that the input `use_cache_branch` chooses from.

    Each tensor stands once. What the first way gives alone (keys and values of the encoder's states, which stay what
    they are) the second gives as nothing, in a tensor of no batch. Source: optimum's `merge_decoders`.
    """
    inputs, tensors = dict[str, Any](), dict[str, tuple[Any, Filled | Computed]]()
    for way, made in (("begin", begin), ("go_on", go_on)):
        _open(ir, way, made, inputs, tensors)
    chosen = ir.Value(name=CHOICE, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.BOOL))
    outer = {each.name.partition(".")[2]: each for each in begin.model.graph.outputs}
    ways = {"then_branch": _with_all(ir, go_on.model.graph, outer), "else_branch": begin.model.graph}
    outputs = [ir.Value(name=each, shape=value.shape, type=value.type) for each, value in outer.items()]
    for value in outputs:
        if ".encoder." in value.name:
            value.shape = ir.Shape([f"{value.name}.0", value.shape[1], f"{value.name}.2", value.shape[3]])
    node = ir.Node("", "If", [chosen], [ir.AttrGraph(*way) for way in ways.items()], outputs=outputs, name="ways")
    sets = begin.model.graph.opset_imports | go_on.model.graph.opset_imports
    graph = ir.Graph([*inputs.values(), chosen], outputs, nodes=[node], opset_imports=sets, name=name)
    model = ir.Model(graph, ir_version=begin.model.ir_version, producer_name=begin.model.producer_name)
    return Made(name, model, tensors)


def _open(ir: Any, way: str, made: Made, inputs: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Make a graph one way of another's: it shares inputs and tensors, and what is its own has names of its own."""
    graph = made.model.graph
    for value in list(graph.inputs):
        shared = inputs.setdefault(value.name, ir.Value(name=value.name, shape=value.shape, type=value.type))
        ir.convenience.replace_all_uses_with(value, shared, replace_graph_outputs=False)
    graph.inputs.clear()
    graph.initializers.clear()
    for name, (value, each) in made.tensors.items():
        own = name if isinstance(each, Filled) else f"{way}.{name}"
        if own in tensors:
            ir.convenience.replace_all_uses_with(value, tensors[own][0])
        else:
            value.name = own
            tensors[own] = (value, each)
    for node in graph.all_nodes():
        for value in node.outputs:
            value.name = f"{way}.{value.name}"


def _with_all(ir: Any, graph: Any, outer: Mapping[str, Any]) -> Any:
    """The second way with an output for all that the first has."""
    own = {value.name.partition(".")[2]: value for value in graph.outputs}
    graph.outputs.clear()
    for name, like in outer.items():
        if name not in own:
            sizes = ir.tensor([0, int(like.shape[1]), 1, int(like.shape[3])], dtype=ir.DataType.INT64)
            shape = ir.node("Constant", [], {"value": sizes})
            zero = ir.tensor([0.0], dtype=like.dtype)
            node = ir.node("ConstantOfShape", [shape.outputs[0]], {"value": zero})
            shape.outputs[0].name, node.outputs[0].name = f"go_on.{name}.sizes", f"go_on.{name}"
            node.outputs[0].type = like.type
            graph.extend([shape, node])
            own[name] = node.outputs[0]
        graph.outputs.append(own[name])
    return graph
