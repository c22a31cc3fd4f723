"""Cutting nodes out of a model into a small model of their own that needs no inputs.

What the nodes read that is constant comes along as Constant nodes (tensors are shared, and unlike an initializer a
Constant does not rename its tensor when it is serialized); names are made anew, because nodes may come from bodies
whose names overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

_OPSET_FOR_CONSTANTS = 13


def extract(
    nodes: Sequence[ir.Node],
    outputs: Sequence[ir.Value],
    tensor_of: Callable[[ir.Value], ir.TensorProtocol | None],
    opset_imports: Mapping[str, int],
    ir_version: int,
) -> ir.Model:
    """A model that computes `outputs` from constants alone.

    Args:
        nodes: in topological order, without bodies; they are copied.
        outputs: values that some of `nodes` produce.
        tensor_of: the tensor of a value that the nodes read and none of them produces.
        opset_imports: domain to version.
        ir_version: of the model that the nodes come from.

    Raises:
        ValueError: a value is neither constant nor produced by one of `nodes`.
    """
    values: dict[ir.Value, ir.Value] = {}
    program: list[ir.Node] = []
    for node in nodes:
        for read in node.inputs:
            if read is not None and read not in values:
                tensor = tensor_of(read)
                if tensor is None:
                    raise ValueError(f"'{read.name}' is not constant")
                values[read] = ir.Value(name=f"c{len(values)}")
                constant = ir.AttrTensor("value", tensor)
                program.append(ir.Node("", "Constant", [], [constant], outputs=[values[read]], name=""))
        for output in node.outputs:
            name = f"v{len(values)}" if output.name else ""
            values[output] = ir.Value(name=name, type=output.type)
        program.append(
            ir.Node(
                node.domain,
                node.op_type,
                [None if read is None else values[read] for read in node.inputs],
                node.attributes,
                overload=node.overload,
                outputs=[values[output] for output in node.outputs],
                name=node.name,
            )
        )
    imports = {"": _OPSET_FOR_CONSTANTS, **opset_imports}
    graph = ir.Graph([], [values[output] for output in outputs], nodes=program, opset_imports=imports, name="constants")
    return ir.Model(graph, ir_version=ir_version)
