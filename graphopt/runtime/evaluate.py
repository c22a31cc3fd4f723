"""Running a model without inputs, for passes that compute constants: `PassContext.evaluate`.

onnxruntime runs it with its own graph optimizations off, so that a folded constant is bit for bit what the runtime
would have computed. Element types below a byte, which onnxruntime's Python interface cannot hand over, are widened by
a Cast inside the model and narrowed again here; both ways are exact. A model that only gives tensors other shapes or
orders needs no runtime, and most that are folded are such: numpy does it in less time than onnxruntime takes to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis import calculate
from graphopt.analysis.call import Call
from graphopt.analysis.dims import Arithmetic
from graphopt.analysis.facts import UNKNOWN
from graphopt.errors import RuntimeFailureError
from graphopt.ir.walk import constant_tensor
from graphopt.runtime.session import Session, SessionOptions

_REARRANGING = frozenset({"Constant", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that change no element of their first input, and read but few numbers besides."""


def evaluate(program: ir.Model, *, threads: int = 1) -> list[ir.TensorProtocol]:
    """The outputs of a model that has no inputs, in order.

    Args:
        program: the model; types of outputs below a byte must be known. It is changed.
        threads: threads within an operator.

    Raises:
        RuntimeFailureError: onnxruntime cannot load or run it, or an output is not a tensor.
    """
    rearranged = _rearranged(program)
    if rearranged is not None:
        return rearranged
    narrow = [_widen(program.graph, position) for position in range(len(program.graph.outputs))]
    session = Session(program, SessionOptions(optimize=False, threads=threads, arena=False), name="constant nodes")
    outputs = session.run({}).values()
    return [_tensor(output, dtype) for output, dtype in zip(outputs, narrow, strict=True)]


def _rearranged(program: ir.Model) -> list[ir.TensorProtocol] | None:
    """The outputs of a program that does no more than rearrange constants; None for others, and for illegal ones."""
    if any(node.domain != "" or node.op_type not in _REARRANGING for node in program.graph):
        return None
    version, arithmetic = program.opset_imports.get("", 1), Arithmetic()
    found: dict[ir.Value | None, tuple[np.ndarray, ir.DataType]] = {}
    for node in program.graph:
        for value in (*node.inputs, *node.outputs):
            tensor = constant_tensor(value)
            if tensor is not None and tensor.dtype != ir.DataType.STRING and value not in found:
                found[value] = tensor.numpy(), tensor.dtype
        if node.op_type == "Constant":
            continue
        inputs = tuple(None if read is None else UNKNOWN for read in node.inputs)
        contents = tuple(found[read][0] if read in found else None for read in node.inputs)
        call = Call("", node.op_type, version, node.attributes, inputs, contents, outputs=(True,))
        array = calculate.run(call, arithmetic)[0]
        if array is None:
            return None
        found[node.outputs[0]] = array, found[node.inputs[0]][1]
    results = [found.get(output) for output in program.graph.outputs]
    return None if None in results else [_plain(*result) for result in results if result is not None]


def _plain(array: np.ndarray, dtype: ir.DataType) -> ir.TensorProtocol:
    return ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), dtype=dtype)


def _widen(graph: ir.Graph, position: int) -> ir.DataType | None:
    """Cast output `position` to a whole byte where it is narrower, and return its own type then."""
    output = graph.outputs[position]
    dtype = output.dtype
    if dtype is None or dtype == ir.DataType.STRING or dtype.bitwidth >= 8:
        return None
    wide = (
        ir.DataType.FLOAT if dtype.is_floating_point() else ir.DataType.INT8 if dtype.is_signed() else ir.DataType.UINT8
    )
    cast = ir.Node("", "Cast", [output], [ir.AttrInt64("to", wide)], graph=graph)
    cast.outputs[0].name = f"{output.name}_wide"
    cast.outputs[0].type = ir.TensorType(wide)
    graph.outputs[position] = cast.outputs[0]
    return dtype


def _tensor(output: Any, dtype: ir.DataType | None) -> ir.TensorProtocol:
    if not isinstance(output, np.ndarray | np.generic):
        raise RuntimeFailureError(f"onnxruntime returned a {type(output).__name__} where a tensor was expected")
    array = np.asarray(output)
    if array.dtype == object:
        return _string_tensor(array)
    if dtype is not None:
        return ir.Tensor(array.astype(dtype.numpy()), dtype=dtype)
    return ir.Tensor(np.ascontiguousarray(array).reshape(array.shape))


def _string_tensor(array: np.ndarray) -> ir.TensorProtocol:
    encoded: Sequence[bytes] = [text if isinstance(text, bytes) else str(text).encode() for text in array.reshape(-1)]
    return ir.StringTensor(encoded, shape=ir.Shape(array.shape))
