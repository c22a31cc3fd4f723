"""The size of the file that a model would be written to, added up from its parts without writing it.

A protobuf message is the sum of its fields, so the sizes of nodes can be kept from one version of a model to the next.
A length-delimited field takes its tag, the length as a varint, and the bytes. What emission leaves out or puts back
(`graphopt.ir.carry`) is left out and put back here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from graphopt.ir.carry import carry_of
from graphopt.ir.tensors import SparseTensor
from graphopt.ir.walk import subgraphs


@dataclass(frozen=True, slots=True)
class _Known:
    """Sizes by node, and by tensor (held, so that its id stays its own) under a name."""

    nodes: dict[ir.Node, int] = field(default_factory=dict)
    tensors: dict[int, tuple[ir.TensorProtocol, str, int]] = field(default_factory=dict)


class FileSize:
    """The size of one model's file; sizes of nodes and of tensors are remembered from one version to the next."""

    def __init__(self) -> None:
        self._known = _Known()

    def forget(self, nodes: Iterable[ir.Node]) -> None:
        """Measure these nodes again."""
        for node in nodes:
            self._known.nodes.pop(node, None)

    def of(self, model: ir.Model) -> int:
        """Bytes of `model` as a file, external data included."""
        measure = _Measure(model, self._known)
        size = measure.model()
        self._known = measure.seen
        return size


class _Measure:
    """One version of a model, what is known of the one before, and what of that this version still has."""

    def __init__(self, model: ir.Model, known: _Known) -> None:
        self._model = model
        self._carry = carry_of(model)
        self._known = known
        self.seen = _Known()

    def model(self) -> int:
        model = self._model
        size = _delimited(self._graph(model.graph))
        size += 1 + _varint(model.ir_version) + _opsets(model.opset_imports) + _pairs(model.metadata_props)
        size += sum(map(_text, (model.producer_name, model.producer_version, model.domain, model.doc_string)))
        size += 1 + _varint(model.model_version) if model.model_version else 0
        size += sum(2 + _varint(len(info)) + len(info) for info in self._carry.training)
        return size + sum(1 + _delimited(self._function(function)) for function in model.functions.values())

    def _graph(self, graph: ir.Graph) -> int:
        main = graph is self._model.graph
        legacy = main and bool(self._carry.legacy_inputs) and self._model.ir_version < 4
        size = _text(graph.name) + _text(graph.doc_string) + _pairs(graph.metadata_props, tag=2)
        size += sum(map(self._node, graph))
        for name, value in graph.initializers.items():
            if value.const_value is None:
                continue
            size += self._tensor(value.const_value, name)
            if not value.is_graph_input():
                size += self._described(value)
            if legacy:
                size += _delimited(_declared(name, value.const_value))
        size += sum(_delimited(self._value(value)) for value in graph.inputs)
        for value in graph.outputs:
            stated = self._carry.outputs.get(value.name or "") if main else None
            size += _delimited(self._value(value) if stated is None else len(stated))
        return size

    def _node(self, node: ir.Node) -> int:
        """A node, and the types of its outputs where the file states them."""
        size = self._known.nodes.get(node)
        if size is None:
            if any(subgraphs(node)):  # changes with its bodies, whether it is touched itself or not
                return _delimited(self._with_bodies(node)) + sum(map(self._described, node.outputs))
            own = int(ir.serde.serialize_node(node).ByteSize())
            size = _delimited(own) + sum(map(self._described, node.outputs))
        self.seen.nodes[node] = size
        return size

    def _with_bodies(self, node: ir.Node) -> int:
        """A node of control flow, without looking at the weights in its bodies."""
        names = [value.name if value is not None else "" for value in (*node.inputs, *node.outputs)]
        size = sum(_delimited(len((name or "").encode())) for name in names)
        size += sum(map(_text, (node.name, node.op_type, node.domain, node.overload, node.doc_string)))
        size += _pairs(node.metadata_props)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                body = _delimited(self._graph(attribute.as_graph()))
                size += _delimited(_text(attribute.name) + body + _TYPE_FIELD)
            else:
                size += _delimited(int(ir.serde.serialize_attribute(attribute).ByteSize()))
        return size

    def _tensor(self, tensor: ir.TensorProtocol, name: str) -> int:
        known = self._known.tensors.get(id(tensor))
        if known is None or known[0] is not tensor or known[1] != name:
            known = (tensor, name, _delimited(_tensor(tensor, name)))
        self.seen.tensors[id(tensor)] = known
        return known[2]

    def _described(self, value: ir.Value) -> int:
        """The type of an inner value, where the file states it."""
        stated = value.name in self._carry.described and not value.is_graph_output()
        return _delimited(self._value(value)) if stated else 0

    def _value(self, value: ir.Value) -> int:
        """A ValueInfoProto; symbols that shape inference made up are not written."""
        symbols = [dim.value for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)]
        invented = sum(_text(symbol) for symbol in symbols if symbol not in self._carry.symbols)
        return int(ir.serde.serialize_value(value).ByteSize()) - invented

    def _function(self, function: ir.Function) -> int:
        names = [value.name or "" for value in (*function.inputs, *function.outputs)]
        size = sum(map(_text, (function.name, function.domain, function.overload, function.doc_string)))
        size += sum(_delimited(len(name.encode())) for name in names)
        size += _opsets(function.opset_imports) + _pairs(function.metadata_props)
        for attribute in function.attributes.values():
            if attribute.value is None:
                size += _delimited(len(attribute.name.encode()))
            else:
                size += _delimited(int(ir.serde.serialize_attribute(attribute).ByteSize()))
        return size + sum(map(self._node, function))


_TYPE_FIELD = 3  # two bytes of tag, for field 20, and the value


def _tensor(tensor: ir.TensorProtocol, name: str) -> int:
    """A TensorProto with raw data, or as it came where it is small."""
    if isinstance(tensor, ir.TensorProtoTensor) or tensor.dtype.is_string():
        proto = onnx.TensorProto()
        proto.CopyFrom(ir.serde.serialize_tensor(tensor))  # the tensor may be this very message
        proto.name = name
        return int(proto.ByteSize())
    if isinstance(tensor, SparseTensor):
        parts = (_tensor(tensor.values, name), _tensor(tensor.indices, ""))
        return sum(map(_delimited, parts)) + _dims(tensor)
    return _dims(tensor) + 1 + _varint(int(tensor.dtype)) + _text(name) + _delimited(tensor.nbytes)


def _dims(tensor: ir.TensorProtocol) -> int:
    return sum(1 + _varint(int(extent)) for extent in tensor.shape.numpy())


def _declared(name: str, tensor: ir.TensorProtocol) -> int:
    """The graph input that an initializer is, too, in models before IR version 4."""
    dims = [int(extent) for extent in tensor.shape.numpy()]
    return int(onnx.helper.make_tensor_value_info(name, int(tensor.dtype), dims).ByteSize())


def _opsets(imports: Mapping[str, int]) -> int:
    return sum(
        _delimited(_delimited(len(domain.encode())) + 1 + _varint(version)) for domain, version in imports.items()
    )


def _pairs(metadata: Mapping[str, str], tag: int = 1) -> int:
    sizes: Iterable[int] = (_text(key) + _text(value) for key, value in metadata.items())
    return sum(tag - 1 + _delimited(size) for size in sizes)


def _text(text: str | None) -> int:
    return _delimited(len(text.encode())) if text else 0


def _delimited(size: int) -> int:
    """A length-delimited field with a tag of one byte."""
    return 1 + _varint(size) + size


def _varint(number: int) -> int:
    return max(1, -(-number.bit_length() // 7)) if number >= 0 else 10
