"""float32 models in float16 or bfloat16.

Weights and values become 16 bits wide wherever the operators take them and their numbers fit (`half_types` decides);
elsewhere they stay float32. Where the two meet stands a Cast, right behind the node that makes the value, one for all
who read it in the other type, bodies included. Constants have none: each exists in the types in which it is read.

Graph inputs and outputs stay float32 unless asked otherwise. So do the values that Loop and Scan carry, where errors
add up; what the branches of an If return is 16 bits wide where both branches make it so. Functions are left as they are:
what a function computes depends on its callers.

CPUs mostly compute float16 in float32 all the same: onnxruntime puts Casts around the operators. What gets smaller there
is the file; what gets faster is the model on GPUs and NPUs. bfloat16 has no kernels in onnxruntime's CPU provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import Editor, FreshNames
from graphopt.ir.walk import constant_tensor, graph_and_bodies, label, subgraphs
from graphopt.pipeline.base import PassContext, Remark
from graphopt.pipeline.remarks import Remarks
from graphopt_passes.quantization.derived import Derived
from graphopt_passes.quantization.half_range import FLOAT, LOWEST, float_chunks, is_float, limits
from graphopt_passes.quantization.half_types import Decision
from graphopt_passes.rewriting import still_there

SINCE: Mapping[str, int] = {"float16": 7, "bfloat16": 13}
"""The opsets from which on a conversion makes sense."""

WANTED: Mapping[str, int] = {"float16": 13, "bfloat16": 22}
"""The opsets from which on convolutions and nearly all other operators take the types: worth an upgrade."""

_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


def apply(
    model: ir.Model,
    context: PassContext,
    dtype: Literal["float16", "bfloat16"] = "float16",
    *,
    keep_io: bool = True,
    ranges: Mapping[str, float] | None = None,
) -> tuple[list[ir.Node], tuple[Remark, ...]]:
    """Convert `model` in place.

    Args:
        model: its values have their inferred types.
        context: says which nodes are excluded; they stay float32.
        dtype: the type to convert to.
        keep_io: whether graph inputs and outputs stay float32.
        ranges: largest magnitudes of values by name, where they were measured. What fits is converted although one
            could not know otherwise; what does not fit stays float32.

    Returns:
        The nodes that are new or changed, and remarks.
    """
    version = model.opset_imports.get("", 1)
    if version < SINCE[dtype]:
        return [], (Remark("the model", f"left float32: {dtype} needs opset {SINCE[dtype]}, this is {version}"),)
    decision = Decision(model, context, _TYPES[dtype], ranges or {}, float_inputs=keep_io)
    return _Conversion(model, decision, keep_io).run()


class _Conversion:
    def __init__(self, model: ir.Model, decision: Decision, keep_io: bool) -> None:
        self.model = model
        self.decision = decision
        self.half = decision.half
        self.keep_io = keep_io
        self.names = FreshNames(model)
        self.derived = Derived(self.names)
        self.casts: dict[ir.Value, ir.Value] = {}
        self.halves: set[ir.Value] = set()
        self.touched: dict[ir.Node, None] = {}
        self.constants = 0
        self.numbers = 0
        self.small = 0

    def run(self) -> tuple[list[ir.Node], tuple[Remark, ...]]:
        graphs = list(graph_and_bodies(self.model.graph))
        nodes = [node for graph in graphs for node in graph]
        self.halves.update(self.inputs())
        self.halves.update(
            output for node in nodes for output in node.outputs if is_float(output) and self.decision.is_half(output)
        )
        plan = [(node, [self.wanted(node, index) for index in range(len(node.inputs))]) for node in nodes]
        holders = {body: node for node in nodes for body in subgraphs(node)}
        outputs = [(graph, self.wanted_outputs(graph, holders.get(graph))) for graph in graphs]
        for value in self.halves:
            value.type = ir.TensorType(self.half)
        for node, wanted in plan:
            self.convert(node, wanted)
        for graph, types in outputs:
            self.convert_outputs(graph, types)
        self.drop_casts(graphs)
        return still_there(self.touched, self.model), self.remarks(nodes)

    def inputs(self) -> list[ir.Value]:
        """Graph inputs that change their type; those with a default value keep it."""
        if self.keep_io:
            return []
        return [value for value in self.model.graph.inputs if is_float(value) and not value.is_initializer()]

    def wanted(self, node: ir.Node, index: int) -> ir.DataType | None:
        """The type in which `node` reads an input; None where it is no float."""
        if not is_float(node.inputs[index]):
            return None
        return self.half if index in self.decision.slots(node).inputs else FLOAT

    def wanted_outputs(self, graph: ir.Graph, holder: ir.Node | None) -> list[ir.DataType | None]:
        """The types of the outputs of a graph, None where they are no floats; `holder` is the node whose body it is."""
        types: list[ir.DataType | None] = []
        for index, value in enumerate(graph.outputs):
            if not is_float(value):
                types.append(None)
            elif holder is None:
                types.append(FLOAT if self.keep_io else self.half)
            else:
                is_half = index < len(holder.outputs) and holder.outputs[index] in self.halves
                types.append(self.half if is_half else FLOAT)
        return types

    def convert(self, node: ir.Node, wanted: list[ir.DataType | None]) -> None:
        """Let `node` read and make what was decided."""
        for index, dtype in enumerate(wanted):
            value = node.inputs[index]
            if value is not None and dtype is not None and value.dtype != dtype:
                node.replace_input_with(index, self.as_type(value, dtype))
                self.touched[node] = None
        if any(output in self.halves for output in node.outputs):
            self.touched[node] = None
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(self.half))
            elif node.op_type == "ConstantOfShape":
                attribute = node.attributes.get("value")
                filler = np.zeros(1, np.float32) if attribute is None else attribute.as_tensor().numpy()
                node.attributes["value"] = ir.AttrTensor("value", self.converted(filler))

    def as_type(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` in `dtype`: another constant, or a Cast behind what makes it."""
        tensor = constant_tensor(value)
        if tensor is not None:
            return self.constant(value, tensor)
        if value not in self.casts:
            cast = self.cast(value, dtype)
            producer, graph = value.producer(), value.graph
            assert graph is not None
            if producer is not None:
                graph.insert_after(producer, cast)
            else:
                graph.insert_before(graph[0], cast)
            self.casts[value] = cast.outputs[0]
        return self.casts[value]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Node:
        """A Cast of `value` that is in no graph yet."""
        name = self.names.fresh(f"{value.name}_{dtype.name.lower()}")
        shape = None if value.shape is None else value.shape.copy()
        result = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)
        to = ir.AttrInt64("to", int(dtype))
        cast = ir.Node("", "Cast", [value], [to], outputs=[result], name=self.names.fresh(f"{name}_cast"))
        self.touched[cast] = None
        return cast

    def constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        """The constant `value` in 16 bits."""

        def make() -> dict[str, ir.TensorProtocol | np.ndarray[Any, Any]]:
            self.constants += 1
            least = float(limits(self.half).smallest_normal)
            for numbers in float_chunks(tensor):
                self.numbers += numbers.size
                self.small += int(np.count_nonzero((np.abs(numbers) < least) & (numbers != 0)))
            return {self.half.name.lower(): self.converted(tensor.numpy())}

        return self.derived.get(value, "16 bits", make)[0]

    def converted(self, array: np.ndarray[Any, Any]) -> ir.TensorProtocol:
        """Rounded to nearest; what stands for "largest" is the largest of the new type."""
        largest = np.float32(limits(self.half).max)
        extreme = np.isfinite(array) & (np.abs(array) >= LOWEST)
        limited = np.where(extreme, np.copysign(largest, array), array)
        return ir.Tensor(limited.astype(self.half.numpy()), dtype=self.half)

    def convert_outputs(self, graph: ir.Graph, types: list[ir.DataType | None]) -> None:
        """Let the outputs of `graph` have the types that its users expect, under the names that they know."""
        renamed: dict[ir.Value, ir.Value] = {}
        for index, dtype in enumerate(types):
            value = graph.outputs[index]
            if dtype is None or value.dtype == dtype or value.producer() is None:
                continue
            if value not in renamed:
                renamed[value] = self.stand_in(graph, value, dtype)
            graph.outputs[index] = renamed[value]

    def stand_in(self, graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """What `graph` returns in place of `value`."""
        if value.graph is not graph:  # a body that returns what it sees outside
            graph.append(self.cast(value, dtype))
            return graph[-1].outputs[0]
        result, name, own = self.as_type(value, dtype), value.name, value.dtype
        assert own is not None
        result.metadata_props.update(value.metadata_props)
        result.doc_string = value.doc_string
        value.name = self.names.fresh(f"{name}_{own.name.lower()}")
        result.name = name
        return result

    def drop_casts(self, graphs: list[ir.Graph]) -> None:
        """Remove Casts to the type that their input has by now, and constants that are no longer read."""
        for graph in graphs:
            editor = Editor(graph)
            for node in list(graph):
                if node.op_type == "Cast" and node.domain == "" and node.inputs[0] is not None:
                    source, result = node.inputs[0], node.outputs[0]
                    same = source.dtype == result.dtype == self.half
                    if same and editor.why_not_replace(result, source) is None:
                        self.touched.update(dict.fromkeys(editor.replace(result, source)))
                        editor.remove(node)
            editor.commit()
        self.derived.drop_sources()

    def remarks(self, nodes: list[ir.Node]) -> tuple[Remark, ...]:
        """What was converted, and what was not and why."""
        remarks, name = Remarks(), self.half.name.lower()
        for node, reason in self.decision.kept.items():
            if any(map(is_float, (*node.inputs, *node.outputs))):
                remarks.missed(label(node), f"stays float32: {reason}")
        for function in self.model.functions.values():
            remarks.missed(f"function '{function.name}'", "stays float32: what it computes depends on its callers")
        found = []
        count = sum(any(output in self.halves for output in node.outputs) for node in nodes)
        if count or self.constants:
            found.append(Remark(f"{count} nodes", f"compute in {name}, {self.constants} constants are stored so", True))
        if self.small:
            least = float(limits(self.half).smallest_normal)
            what = (
                f"lie below {least:.3g}, the smallest normal {name}: they are rounded to subnormal numbers or 0, and "
                "runtimes that flush subnormal numbers take them for 0"
            )
            found.append(Remark(f"{self.small:,} of {self.numbers:,} weights", what))
        return (*found, *remarks.listed())
