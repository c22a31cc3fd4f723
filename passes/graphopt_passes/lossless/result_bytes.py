"""How large the results of a node would be, known before it is computed.

The sizes come from the types that shape inference gave the outputs; where it left a dim open, the node's own inference
is run again with the values of its small inputs (ConstantOfShape, Expand, Range, Tile ... say their extents so). A few
operators have extents that depend on every element, but cannot pass a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx
import onnx_ir as ir

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


def result_bytes(
    node: ir.Node, schema: onnx.defs.OpSchema, tensor_of: TensorOf, opset_imports: Mapping[str, int], ir_version: int
) -> list[int] | None:
    """Bytes of each output that `node` has, or None where one cannot be told.

    Args:
        node: all its inputs are constant.
        schema: of its operator.
        tensor_of: the tensor of an input.
        opset_imports: domain to version.
        ir_version: of the model.
    """
    present = [output for output in node.outputs if output.name]
    known = [static_bytes(output) for output in present]
    if None not in known:
        return [size for size in known if size is not None]
    tensors = {read: tensor_of(read) for read in node.inputs if read is not None}
    if any(tensor is None for tensor in tensors.values()):
        return None
    held = {read.name or "": tensor for read, tensor in tensors.items() if tensor is not None}
    if node.op_type in _ROWS_OF_INDICES:
        bound = max(tensor.size * max(len(tensor.shape), 1) for tensor in held.values()) * 8
        return [bound] * len(present)
    inferred = _infer(node, schema, held, opset_imports, ir_version)
    sizes = [_bytes_of_proto(inferred.get(output.name or "")) for output in present]
    return None if None in sizes else [size for size in sizes if size is not None]


def _infer(
    node: ir.Node,
    schema: onnx.defs.OpSchema,
    tensors: Mapping[str, ir.TensorProtocol],
    opset_imports: Mapping[str, int],
    ir_version: int,
) -> Mapping[str, onnx.TypeProto]:
    types = {
        name: onnx.helper.make_tensor_type_proto(int(tensor.dtype), tensor.shape.numpy())
        for name, tensor in tensors.items()
    }
    data = {
        name: ir.serde.serialize_tensor(tensor)
        for name, tensor in tensors.items()
        if tensor.size <= _SMALL and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.FLOAT)
    }
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opset_imports.items()]
    proto = ir.serde.serialize_node(node)
    try:
        return onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=imports, ir_version=ir_version
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
        return {}  # the node is wrong, or its operator infers nothing


def _bytes_of_proto(proto: onnx.TypeProto | None) -> int | None:
    if proto is None or not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
        return None
    dims = proto.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        return None
    return tensor_bytes(ir.DataType(proto.tensor_type.elem_type), [dim.dim_value for dim in dims])
