"""How large the results of a node would be, known before it is computed.

The sizes come from the types that shape inference gave the outputs; where it left a dim open, the node's own inference
is run again with the values of its small inputs (ConstantOfShape, Expand, Range, Tile ... say their extents so). A few
operators have extents that depend on every element, but cannot pass a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt.analysis import facts, onnx_inference
from graphopt.analysis.call import Call
from graphopt.ir.tensors import raw_size

_SMALL = 4096
_BYTES_OF_A_STRING = 32
_ROWS_OF_INDICES = frozenset({"Compress", "NonZero", "Unique"})
"""Their outputs have at most one row per axis, and one int64 (or element) per element of the input."""

TensorOf = Callable[[ir.Value], ir.TensorProtocol | None]


def tensor_bytes(dtype: ir.DataType, dims: Sequence[int]) -> int:
    """Bytes of a tensor in memory; strings are guessed."""
    return math.prod(dims) * _BYTES_OF_A_STRING if dtype == ir.DataType.STRING else raw_size(dtype, dims)


def static_bytes(value: ir.Value) -> int | None:
    """Bytes of `value` where its type is a tensor and all its dims are known."""
    if not isinstance(value.type, ir.TensorType) or value.shape is None or not value.shape.is_static():
        return None
    return tensor_bytes(value.type.dtype, value.shape.numpy())


def result_bytes(node: ir.Node, tensor_of: TensorOf, version: int) -> list[int] | None:
    """Bytes of each output that `node` has, or None where one cannot be told.

    Args:
        node: all its inputs are constant.
        tensor_of: the tensor of an input.
        version: of the operators of its domain.
    """
    present = [output for output in node.outputs if output.name]
    known = [static_bytes(output) for output in present]
    if None not in known:
        return [size for size in known if size is not None]
    tensors = [None if read is None else tensor_of(read) for read in node.inputs]
    held = [tensor for tensor in tensors if tensor is not None]
    if len(held) < sum(read is not None for read in node.inputs):
        return None
    if node.op_type in _ROWS_OF_INDICES:
        bound = max(tensor.size * max(len(tensor.shape), 1) for tensor in held) * 8
        return [bound] * len(present)
    sizes = [
        size for size, output in zip(_inferred_bytes(node, tensors, version), node.outputs, strict=True) if output.name
    ]
    return None if None in sizes else [size for size in sizes if size is not None]


def _inferred_bytes(node: ir.Node, tensors: Sequence[ir.TensorProtocol | None], version: int) -> list[int | None]:
    call = Call(
        domain=node.domain,
        op_type=node.op_type,
        version=version,
        attributes=node.attributes,
        inputs=tuple(None if tensor is None else facts.of_tensor(tensor) for tensor in tensors),
        contents=tuple(None if tensor is None or not _is_small(tensor) else tensor.numpy() for tensor in tensors),
        outputs=tuple(bool(output.name) for output in node.outputs),
    )
    try:
        return [_fact_bytes(fact) for fact in onnx_inference.infer(call)]
    except onnx_inference.InferenceError:
        return [None] * len(node.outputs)  # the node is wrong, which others will say


def _is_small(tensor: ir.TensorProtocol) -> bool:
    return tensor.size <= _SMALL and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.FLOAT)


def _fact_bytes(fact: facts.Fact) -> int | None:
    """Bytes of a tensor of which everything is known; None for other values."""
    if not isinstance(fact.type, ir.TensorType) or fact.dims is None:
        return None
    numbers = [dim for dim in fact.dims if isinstance(dim, int)]
    return None if len(numbers) < len(fact.dims) else tensor_bytes(fact.type.dtype, numbers)
