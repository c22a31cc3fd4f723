"""What a model file holds and onnx-ir does not: set aside on reading, put back on writing.

onnx-ir drops sparse initializers and training information without a word and refuses map types and sparse attributes.
Sparse tensors become initializers of their own kind (`SparseTensor`), which look dense to every pass and are written
back as they came. The rest is carried in the main graph's `meta`, which clones share. Declared types of graph outputs
are carried too, so that shape inference may refine the values and the file still says what its author wrote.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence

import onnx
import onnx_ir as ir
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from graphopt.errors import InvalidModelError, UnsupportedModelError
from graphopt.ir.tensors import SparseTensor
from graphopt.ir.wire import mark_of, marked_tensor

_KEY = "graphopt.carry"


@dataclasses.dataclass(frozen=True)
class Carry:
    """Facts of the input file that emission needs.

    Attributes:
        types: serialized TypeProto of graph inputs and outputs that onnx-ir cannot hold, by value name.
        outputs: serialized ValueInfoProto of the main graph's outputs as declared, by name.
        described: names of inner values whose type the input file states; emission states these and no others.
        symbols: names of the symbolic dims that the input file uses; others were invented by shape inference.
        legacy_inputs: main-graph inputs of an IR < 4 model in order, initializers included.
        training: serialized TrainingInfoProto messages.
        external: whether the input had external data.
    """

    types: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    outputs: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    described: frozenset[str] = frozenset()
    symbols: frozenset[str] = frozenset()
    legacy_inputs: tuple[str, ...] = ()
    training: tuple[bytes, ...] = ()
    external: bool = False


def carry_of(model: ir.Model) -> Carry:
    """What was set aside when `model` was read; an empty carry for a model made in memory."""
    carry = model.graph.meta.get(_KEY)
    return carry if isinstance(carry, Carry) else Carry()


def attach(model: ir.Model, carry: Carry) -> None:
    """Let `model` and its clones remember `carry`."""
    model.graph.meta[_KEY] = carry


def proto_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and every body inside it."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        pending.extend(bodies(current.node))


def bodies(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    """The graphs that the attributes of `nodes` hold."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield attribute.g
            elif attribute.type == AttributeProto.GRAPHS:
                yield from attribute.graphs


def all_proto_graphs(proto: ModelProto) -> Iterator[GraphProto]:
    """Every GraphProto of a model; function bodies are not GraphProtos, but graphs inside them are."""
    yield from proto_graphs(proto.graph)
    for function in proto.functions:
        for body in bodies(function.node):
            yield from proto_graphs(body)


def set_aside(proto: ModelProto, tensors: list[ir.TensorProtocol], warnings: list[str]) -> Carry:
    """Take out of a stub what onnx-ir cannot hold and return it; sparse tensors are appended to `tensors`."""
    types: dict[str, bytes] = {}
    described: set[str] = set()
    symbols: set[str] = set()
    for graph in all_proto_graphs(proto):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_as_marked(sparse, sparse.values.name, tensors))
        del graph.sparse_initializer[:]
        _dense_constants(graph.node, tensors)
        described.update(info.name for info in graph.value_info)
        for info in (*graph.input, *graph.output, *graph.value_info):
            symbols.update(_symbols(info.type))
            if _has_map(info.type):
                types[info.name] = info.type.SerializeToString()
                info.ClearField("type")
    for function in proto.functions:
        if _dense_constants(function.node, tensors):
            warnings.append(
                f"function '{function.name}': sparse constants are written dense (a function has no initializers)"
            )
        described.update(info.name for info in function.value_info)
    legacy = tuple(info.name for info in proto.graph.input) if proto.ir_version < 4 else ()
    carry = Carry(
        types=types,
        outputs={info.name: info.SerializeToString() for info in proto.graph.output if info.name not in types},
        described=frozenset(described),
        symbols=frozenset(symbols),
        legacy_inputs=legacy,
        training=tuple(info.SerializeToString() for info in proto.training_info),
    )
    del proto.training_info[:]
    return carry


def _as_marked(sparse: SparseTensorProto, name: str, tensors: list[ir.TensorProtocol]) -> TensorProto:
    values, indices = sparse.values, sparse.indices
    dims, count = tuple(sparse.dims), values.dims[0] if len(values.dims) == 1 else -1
    where = f"sparse tensor '{name}'"
    if min(dims, default=0) < 0 or count < 0 or tuple(indices.dims) not in ((count,), (count, len(dims))):
        raise InvalidModelError(
            f"{where}: dims {dims}, values {tuple(values.dims)} and indices {tuple(indices.dims)} do not fit"
        )
    tensor = SparseTensor(
        ir.serde.deserialize_tensor(values), ir.serde.deserialize_tensor(indices), ir.Shape(dims), name
    )
    array = tensor.indices.numpy()
    limits = dims if array.ndim == 2 else tensor.size
    if count and ((array < 0).any() or (array >= limits).any()):
        raise InvalidModelError(f"{where}: an index lies outside of {dims}")
    marked = marked_tensor(len(tensors))
    marked.name, marked.data_type = name, values.data_type
    marked.dims.extend(dims)
    tensors.append(tensor)
    return marked


def _dense_constants(nodes: Iterable[NodeProto], tensors: list[ir.TensorProtocol]) -> bool:
    found = False
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.SPARSE_TENSOR and node.op_type == "Constant" and not node.domain:
                marked = _as_marked(attribute.sparse_tensor, node.output[0], tensors)
                attribute.CopyFrom(onnx.AttributeProto(name="value", type=AttributeProto.TENSOR, t=marked))
                found = True
            elif attribute.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
                raise UnsupportedModelError(
                    f"{node.op_type} '{node.name or node.output[0]}': attribute '{attribute.name}' is a sparse tensor, "
                    "which graphopt can only keep in Constant nodes and initializers"
                )
    return found


def _has_map(type_proto: onnx.TypeProto) -> bool:
    kind = type_proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return _has_map(getattr(type_proto, kind).elem_type)
    return kind in ("map_type", "opaque_type")


def _symbols(type_proto: onnx.TypeProto) -> Iterator[str]:
    kind = type_proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        yield from _symbols(getattr(type_proto, kind).elem_type)
    elif kind in ("tensor_type", "sparse_tensor_type"):
        yield from (dim.dim_param for dim in getattr(type_proto, kind).shape.dim if dim.dim_param)


def put_back(
    proto: ModelProto, carry: Carry, tensors: Sequence[ir.TensorProtocol], *, keep_outputs: bool = True
) -> None:
    """Undo `set_aside` on a serialized stub.

    Args:
        proto: the stub that is being written; changed in place.
        carry: what was set aside.
        tensors: the tensors that the stub's marks name; sparse ones are written as sparse initializers.
        keep_outputs: whether outputs keep their declared types (not so when the user fixed dims).
    """
    for graph in all_proto_graphs(proto):
        _describe_only(graph.value_info, carry)
        _write_sparse(graph, tensors)
        for info in (*graph.input, *graph.output):
            if info.name in carry.types:
                info.type.ParseFromString(carry.types[info.name])
            else:
                _forget_invented(info.type, carry)
    for function in proto.functions:
        _describe_only(function.value_info, carry)
    for info in proto.graph.output:
        if keep_outputs and info.name in carry.outputs:
            _declare(info, carry.outputs[info.name])
    if carry.legacy_inputs and proto.ir_version < 4:
        _list_initializers_as_inputs(proto.graph, carry.legacy_inputs)
    for training in carry.training:
        proto.training_info.add().ParseFromString(training)


def _declare(info: onnx.ValueInfoProto, declared: bytes) -> None:
    """Describe an output as the input file did; an element type that a pass has changed on purpose stays changed."""
    element = info.type.tensor_type.elem_type
    info.ParseFromString(declared)
    if element and info.type.WhichOneof("value") == "tensor_type":
        info.type.tensor_type.elem_type = element


def _describe_only(value_info: MutableSequence[onnx.ValueInfoProto], carry: Carry) -> None:
    kept = [info for info in value_info if info.name in carry.described]
    for info in kept:
        _forget_invented(info.type, carry)
    if len(kept) != len(value_info):
        copies = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in kept]
        del value_info[:]
        value_info.extend(copies)


def _forget_invented(type_proto: onnx.TypeProto, carry: Carry) -> None:
    kind = type_proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        _forget_invented(getattr(type_proto, kind).elem_type, carry)
    elif kind == "tensor_type":
        for dim in type_proto.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param not in carry.symbols:
                dim.ClearField("dim_param")


def _write_sparse(graph: GraphProto, tensors: Sequence[ir.TensorProtocol]) -> None:
    for position in reversed(range(len(graph.initializer))):
        mark = mark_of(graph.initializer[position])
        tensor = None if mark is None else tensors[mark]
        if isinstance(tensor, SparseTensor):
            values, indices = ir.to_proto(tensor.values), ir.to_proto(tensor.indices)
            values.name = graph.initializer[position].name
            graph.sparse_initializer.add(values=values, indices=indices, dims=tensor.shape.numpy())
            del graph.initializer[position]


def _list_initializers_as_inputs(graph: GraphProto, order: tuple[str, ...]) -> None:
    """IR versions before 4 demand that every initializer is also an input."""
    inputs = {info.name: info for info in graph.input}
    for tensor in graph.initializer:
        info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        inputs.setdefault(tensor.name, info)
    rank = {name: position for position, name in enumerate(order)}
    ordered = sorted(inputs.values(), key=lambda info: rank.get(info.name, len(rank)))
    copies = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in ordered]
    del graph.input[:]
    graph.input.extend(copies)
