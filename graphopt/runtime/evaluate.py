"""Running a model without inputs, for passes that compute constants: `PassContext.evaluate`.

onnxruntime runs it with its own graph optimizations off, so that a folded constant is bit for bit what the runtime
would have computed. Element types below a byte, which onnxruntime's Python interface cannot hand over, are widened by
a Cast inside the model and narrowed again here; both ways are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import RuntimeFailureError
from graphopt.runtime.session import Session, SessionOptions


def evaluate(program: ir.Model, *, threads: int = 1) -> list[ir.TensorProtocol]:
    """The outputs of a model that has no inputs, in order.

    Args:
        program: the model; types of outputs below a byte must be known. It is changed.
        threads: threads within an operator.

    Raises:
        RuntimeFailureError: onnxruntime cannot load or run it, or an output is not a tensor.
    """
    narrow = [_widen(program.graph, position) for position in range(len(program.graph.outputs))]
    session = Session(program, SessionOptions(optimize=False, threads=threads, arena=False), name="constant nodes")
    outputs = session.run({}).values()
    return [_tensor(output, dtype) for output, dtype in zip(outputs, narrow, strict=True)]


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
