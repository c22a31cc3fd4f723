"""Is this ModelProto a graph at all? Checked on the proto, before onnx-ir sees it.

onnx-ir accepts cycles, undefined names and tensors whose bytes do not fit their dims; everything after this module may
rely on their absence. Node order is the one thing that is mended instead of refused: onnxruntime runs
graphs that are not sorted, so lifting sorts them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, MutableSequence

import onnx_ir as ir
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from graphopt.errors import InvalidModelError
from graphopt.ir.carry import all_proto_graphs
from graphopt.ir.tensors import raw_size
from graphopt.ir.wire import MAX_DEPTH


def scan(proto: ModelProto) -> None:
    """Check the structure of a model and put the nodes of unsorted graphs into topological order, in place.

    Raises:
        InvalidModelError: names the graph, node or value that is wrong.
    """
    if not proto.HasField("graph"):
        raise InvalidModelError("the file holds no graph: it is not an ONNX model")
    if not proto.opset_import and proto.ir_version >= 3:
        raise InvalidModelError("the model names no operator set (opset_import is empty)")
    scanner = _Scanner()
    scanner.graph(proto.graph, set(), "the main graph", 0)
    for function in proto.functions:
        where = f"function '{function.name}'"
        names = _unique(list(function.input), where, "input")
        scanner.nodes(function.node, names, set(), where, 0)
        scanner.defined(function.output, names, where)


def _unique(names: Iterable[str], where: str, kind: str) -> set[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidModelError(f"{where}: {kind} '{name}' is there twice")
        seen.add(name)
    return seen


def node_label(node: NodeProto) -> str:
    """How messages name a node that is not yet in the IR."""
    name = node.name or next((output for output in node.output if output), "")
    return f"{node.domain + '.' if node.domain else ''}{node.op_type} '{name}'"


class _Scanner:
    """Checks graphs and the bodies inside them."""

    def graph(self, graph: GraphProto, outer: set[str], where: str, depth: int) -> None:
        """Check one graph; `outer` are the names that enclosing graphs define."""
        if depth > MAX_DEPTH // 3:
            raise InvalidModelError(f"{where}: bodies are nested deeper than protobuf allows")
        names = _unique((info.name for info in graph.input), where, "input")
        for tensor in graph.initializer:
            if not tensor.name:
                raise InvalidModelError(f"{where}: an initializer has no name")
        names.update(_unique((tensor.name for tensor in graph.initializer), where, "initializer"))
        self.nodes(graph.node, names, outer, where, depth)
        _unique((info.name for info in graph.output), where, "output")
        self.defined((info.name for info in graph.output), names | outer, where)

    def defined(self, outputs: Iterable[str], names: set[str], where: str) -> None:
        """Check that every output is a value."""
        for name in outputs:
            if name not in names:
                raise InvalidModelError(f"{where}: output '{name}' is produced by no node")

    def nodes(
        self, nodes: MutableSequence[NodeProto], names: set[str], outer: set[str], where: str, depth: int
    ) -> None:
        """Check the nodes of a graph or function and sort them; `names` gains what they produce."""
        producers: dict[str, int] = {}
        for index, node in enumerate(nodes):
            if not node.op_type:
                raise InvalidModelError(f"{where}: node {index} names no operator")
            for output in node.output:
                if not output:
                    continue
                if output in names or output in producers:
                    raise InvalidModelError(f"{where}: value '{output}' is produced twice, again by {node_label(node)}")
                producers[output] = index
        known = names | outer
        inner = known | producers.keys() if any(map(_has_body, nodes)) else known
        in_order = True
        captured: list[set[str]] = []
        for index, node in enumerate(nodes):
            uses = {name for name in node.input if name}
            uses |= self.attributes(node, inner, where, depth)
            captured.append(uses)
            for name in uses:
                if name in producers:
                    in_order = in_order and producers[name] < index
                elif name not in known:
                    raise InvalidModelError(f"{where}: {node_label(node)} reads '{name}', which nothing defines")
        if not in_order:
            _sort(nodes, producers, captured, where)
        names.update(producers)

    def attributes(self, node: NodeProto, known: set[str], where: str, depth: int) -> set[str]:
        """Check the bodies in a node's attributes; return the outer names that they capture."""
        captured: set[str] = set()
        for attribute in node.attribute:
            for body in _bodies(attribute):
                self.graph(body, known, f"{where}, body '{attribute.name}' of {node_label(node)}", depth + 1)
                captured |= _free_names(body)
        return captured


def check_tensor(tensor: TensorProto, where: str, raw_length: int | None = None) -> None:
    """Check that a tensor's dims, type and bytes fit each other, without making an array of it.

    Args:
        tensor: the tensor; one with external data is checked as far as the proto goes.
        where: how messages name it.
        raw_length: bytes of its data where these were cut out of the proto.

    Raises:
        InvalidModelError: they do not fit.
    """
    dims = tuple(tensor.dims)
    if min(dims, default=0) < 0:
        raise InvalidModelError(f"{where}: has a negative dim in {list(dims)}")
    if tensor.data_type not in _ELEMENT_TYPES:
        raise InvalidModelError(f"{where}: has no element type that ONNX knows ({tensor.data_type})")
    if raw_length is None and tensor.data_location == TensorProto.EXTERNAL:
        return
    if raw_length is None and not tensor.HasField("raw_data"):
        field, (numerator, denominator) = _ELEMENT_TYPES[tensor.data_type]
        found, unit = len(getattr(tensor, field)), f"numbers in {field}"
        expected = -(-math.prod(dims) * numerator // denominator)
    else:
        found, unit = (len(tensor.raw_data) if raw_length is None else raw_length), "bytes"
        expected = raw_size(ir.DataType(tensor.data_type), dims)
    if found != expected:
        raise InvalidModelError(f"{where}: holds {found} {unit}, but its type and dims {list(dims)} need {expected}")


def tensor_protos(proto: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor of a model, in initializers and attributes, with how messages name it."""
    for graph in all_proto_graphs(proto):
        for tensor in graph.initializer:
            yield f"initializer '{tensor.name}'", tensor
        yield from _attribute_tensors(graph.node)
    for function in proto.functions:
        yield from _attribute_tensors(function.node)


def _attribute_tensors(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, TensorProto]]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                continue
            if attribute.type == AttributeProto.TENSOR:
                yield f"attribute '{attribute.name}' of {node_label(node)}", attribute.t
            for tensor in attribute.tensors:
                yield f"attribute '{attribute.name}' of {node_label(node)}", tensor


def _element_types() -> dict[int, tuple[str, tuple[int, int]]]:
    """Per element type: the field that holds it number by number, and numbers per element as a fraction."""
    types: dict[int, tuple[str, tuple[int, int]]] = {
        TensorProto.FLOAT: ("float_data", (1, 1)),
        TensorProto.COMPLEX64: ("float_data", (2, 1)),
        TensorProto.DOUBLE: ("double_data", (1, 1)),
        TensorProto.COMPLEX128: ("double_data", (2, 1)),
        TensorProto.INT64: ("int64_data", (1, 1)),
        TensorProto.UINT64: ("uint64_data", (1, 1)),
        TensorProto.UINT32: ("uint64_data", (1, 1)),
        TensorProto.STRING: ("string_data", (1, 1)),
    }
    packed = {"INT4": 2, "UINT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}
    for name, number in TensorProto.DataType.items():
        if number not in types and name != "UNDEFINED":
            types[number] = ("int32_data", (1, packed.get(name, 1)))
    return types


_ELEMENT_TYPES = _element_types()


def _bodies(attribute: AttributeProto) -> Iterator[GraphProto]:
    if attribute.type == AttributeProto.GRAPH and not attribute.ref_attr_name:
        yield attribute.g
    elif attribute.type == AttributeProto.GRAPHS:
        yield from attribute.graphs


def _has_body(node: NodeProto) -> bool:
    return any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute)


def _free_names(graph: GraphProto) -> set[str]:
    """Names that `graph` and its bodies read and do not define."""
    defined = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    used = {info.name for info in graph.output}
    for node in graph.node:
        used.update(node.input)
        defined.update(node.output)
        for attribute in node.attribute:
            for body in _bodies(attribute):
                used |= _free_names(body)
    return used - defined - {""}


def _sort(nodes: MutableSequence[NodeProto], producers: dict[str, int], uses: list[set[str]], where: str) -> None:
    """Kahn's algorithm, keeping the given order where it can. Raises InvalidModelError on a cycle."""
    readers: list[list[int]] = [[] for _ in nodes]
    missing = [0] * len(nodes)
    for index, names in enumerate(uses):
        for source in {producers[name] for name in names if name in producers}:
            readers[source].append(index)
            missing[index] += 1
    ready = deque(index for index, count in enumerate(missing) if not count)
    order = []
    while ready:
        index = ready.popleft()
        order.append(index)
        for reader in readers[index]:
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    if len(order) != len(nodes):
        stuck = next(index for index, count in enumerate(missing) if count)
        raise InvalidModelError(f"{where}: {node_label(nodes[stuck])} is part of a cycle, or reads from one")
    copies = [NodeProto.FromString(nodes[index].SerializeToString()) for index in order]
    del nodes[:]
    nodes.extend(copies)
