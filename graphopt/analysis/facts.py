"""What is known about a value: its type and its extents, in a form that hashes and compares fast.

The conversions to and from `onnx_ir` values and ONNX protos stand here, so that the rest of inference deals with one
form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir

from graphopt.analysis import dims as extents
from graphopt.analysis.dims import Dim, Dims


class Fact(NamedTuple):
    """Type and extents of a value.

    Attributes:
        type: the ONNX type without extents; None where it is not known.
        dims: the extents, or None where not even the rank is known. Of a sequence or optional: those of its elements.
    """

    type: ir.TypeProtocol | None
    dims: Dims | None

    @property
    def complete(self) -> bool:
        """Whether nothing is left to find out."""
        return self.type is not None and self.dims is not None and None not in self.dims

    @property
    def dtype(self) -> ir.DataType | None:
        """The element type, or None."""
        return None if self.type is None else self.type.dtype


UNKNOWN = Fact(None, None)


def tensor(dtype: ir.DataType | None, dims: Dims | None) -> Fact:
    """The fact "a dense tensor of this element type and these extents"."""
    return Fact(None if dtype is None or dtype == ir.DataType.UNDEFINED else ir.TensorType(dtype), dims)


def of_tensor(constant: ir.TensorProtocol) -> Fact:
    """What a constant tensor says about the value that holds it; reads none of its elements."""
    return tensor(constant.dtype, tuple(int(dim) for dim in constant.shape))  # type: ignore[arg-type]


def declared(value: ir.Value) -> Fact:
    """What is written on `value` itself, in the model or by earlier inference."""
    if value.const_value is not None and not value.is_graph_input():
        return of_tensor(value.const_value)
    kind = value.type
    if kind is not None and kind.dtype == ir.DataType.UNDEFINED:
        kind = None
    shape = value.shape
    return Fact(kind, None if shape is None else tuple(map(extents.from_ir, shape)))


def shape_of(dims: Dims, denotations: Sequence[str | None] | None = None) -> ir.Shape:
    """A new `onnx_ir.Shape` with these extents."""
    return ir.Shape([extents.to_ir(dim) for dim in dims], denotations)


def is_static(fact: Fact) -> bool:
    """Whether every extent is known as a number."""
    return fact.dims is not None and all(isinstance(dim, int) for dim in fact.dims)


def refine(fact: Fact, other: Fact) -> Fact:
    """`fact` with what it leaves open filled in from `other`. Where they contradict each other, `fact` stands."""
    kind = fact.type if fact.type is not None else other.type
    dims = fact.dims
    if dims is None:
        dims = other.dims
    elif other.dims is not None and None in dims and len(dims) == len(other.dims):
        dims = tuple(b if a is None else a for a, b in zip(dims, other.dims, strict=True))
    return fact if kind is fact.type and dims is fact.dims else Fact(kind, dims)


def contradict(fact: Fact, other: Fact) -> bool:
    """Whether no value can satisfy both."""
    if fact.type is not None and other.type is not None and fact.type != other.type:
        return True
    if fact.dims is None or other.dims is None:
        return False
    if len(fact.dims) != len(other.dims):
        return True
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(fact.dims, other.dims, strict=True))


def common(a: Fact, b: Fact) -> Fact:
    """What holds whichever of the two a value turns out to be."""
    kind = a.type if a.type == b.type else None
    if a.dims is None or b.dims is None or len(a.dims) != len(b.dims):
        return Fact(kind, None)
    return Fact(kind, tuple(x if x == y else None for x, y in zip(a.dims, b.dims, strict=True)))


def to_proto(fact: Fact) -> onnx.TypeProto:
    """`fact` as an ONNX type; empty where the type is not known."""
    proto = onnx.TypeProto()
    if fact.type is None:
        return proto
    ir.serde.serialize_type_into(proto, fact.type)
    if fact.dims is None:
        return proto
    shape = _innermost(proto).shape
    shape.SetInParent()  # a scalar has a shape, too
    for dim in fact.dims:
        if isinstance(dim, int):
            shape.dim.add(dim_value=dim)
        else:
            shape.dim.add(dim_param=dim)
    return proto


def from_proto(proto: onnx.TypeProto) -> Fact:
    """What an ONNX type says. Maps, which onnx-ir cannot express, are unknown."""
    tensor_type = _innermost(proto)
    if tensor_type is None or tensor_type.elem_type == onnx.TensorProto.UNDEFINED:
        return UNKNOWN
    dims = tuple(map(_dim, tensor_type.shape.dim)) if tensor_type.HasField("shape") else None
    return Fact(ir.serde.deserialize_type_proto_for_type(proto), dims)


def _dim(proto: onnx.TensorShapeProto.Dimension) -> Dim:
    kind = proto.WhichOneof("value")
    if kind == "dim_value":
        # A window that is larger than its input comes out negative.
        return int(proto.dim_value) if proto.dim_value >= 0 else None
    return proto.dim_param or None if kind == "dim_param" else None


def _innermost(proto: onnx.TypeProto) -> Any:
    """The message for a tensor inside all sequences and optionals; None where there is none, or a map."""
    kind = proto.WhichOneof("value")
    while kind in ("sequence_type", "optional_type"):
        proto = getattr(proto, kind).elem_type
        kind = proto.WhichOneof("value")
    return None if kind is None or kind == "map_type" else getattr(proto, kind)
