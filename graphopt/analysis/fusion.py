"""Kernels: the groups of nodes that onnxruntime's CPU provider runs as one.

What a model costs in memory and time depends on what the runtime makes of it, and that is not one kernel per node: a
residual Add disappears into the convolution before it, a bias into the matrix product, five nodes into one Gelu, and
everything between DequantizeLinear and QuantizeLinear runs on integers. A value inside a kernel never exists.

This is a model of onnxruntime's graph optimizations (level "all", CPU), reduced to those that decide which values
exist. Nodes that depend on constants alone are no kernels: they are computed when the session is made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from graphopt.analysis import composites
from graphopt.analysis.dataflow import Folded, only_reader
from graphopt.analysis.integer_fusion import Group, integer_groups
from graphopt.ir.walk import constant_tensor, graph_and_bodies, subgraphs
from graphopt.ops.base import Extents, input_at, operator

ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish", "Clip"})
"""What onnxruntime fuses into the convolution or matrix product before it."""

_STARTS = composites.STARTS | {"Add", "Pad", "Conv", "MatMul", "Gemm", "MatMulInteger"}


class Tensor(NamedTuple):
    """A value in one memory layout: `block` channels lie together (see `graphopt.analysis.layout`), 0 is plain."""

    value: ir.Value
    block: int = 0

    @property
    def is_output(self) -> bool:
        """Whether it is handed out by the graph; blocked copies never are."""
        return self.block == 0 and self.value.is_graph_output()


@dataclass(frozen=True, slots=True)
class Kernel:
    """Nodes that run as one.

    Attributes:
        nodes: in the graph's order; none for a reorder between layouts.
        main: the node that gives the kernel its work; the others are what surrounds it.
        reads: the tensors it reads that exist and are not constants, each once.
        writes: the tensors it makes that anything outside reads, or that are graph outputs.
        rank: the index that onnxruntime gives it, which decides what runs first (see `graphopt.analysis.schedule`):
            the node's place in the graph; a kernel that is put in the place of several nodes is new and comes after.
        overwrites: those of `reads` whose buffer the first written tensor may take over.
        view_of: the read tensor of which the first written one is a view that moves no data, or None.
        integer: whether it works on 8-bit integers.
        copies: tensors as large as its result that it allocates while it runs, beside the workspace of `main`.
    """

    nodes: tuple[ir.Node, ...]
    main: ir.Node
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    rank: int
    overwrites: tuple[Tensor, ...] = ()
    view_of: Tensor | None = None
    integer: bool = False
    copies: int = 0


def kernels(graph: ir.Graph, extents: Extents) -> list[Kernel]:
    """The kernels of one graph (bodies are graphs of their own), each at the place of its last node.

    Residual sums are not in their convolutions yet: that depends on layouts (`graphopt.analysis.layout`).
    """
    folded = Folded(graph)
    live = [node for node in graph if node not in folded]
    integer = integer_groups(live)
    owner = {node: group for group in integer.groups for node in group.nodes}
    for node in live:
        if node.op_type in _STARTS and node.domain == "" and node not in owner:
            group = _group_from(node, folded, extents)
            if len(group.nodes) > 1 and owner.keys().isdisjoint(group.nodes):
                owner.update(dict.fromkeys(group.nodes, group))
    return list(_assemble(live, owner, folded, integer.dissolved))


def _group_from(node: ir.Node, folded: Folded, extents: Extents) -> Group:
    """The group that starts at `node`: what follows it and disappears into the same kernel."""
    main, op_type = node, node.op_type
    nodes: tuple[ir.Node, ...] = (node,)
    if op_type == "Pad":
        main, nodes = _with_padding(node, folded)
    elif op_type == "Conv":
        nodes = _with_epilogue(node, folded)
    elif op_type in ("MatMul", "Gemm"):
        nodes = _with_bias(node, folded, extents)
    elif op_type == "MatMulInteger":
        nodes = _with_scale(node, folded, extents)
    elif op_type == "Add":
        nodes = _with_reader(node, folded, extents)
        main = nodes[-1]
    else:
        nodes = composites.composite_from(node, folded) or nodes
        main = nodes[-1]
    return Group(main, nodes)


def _with_padding(node: ir.Node, folded: Folded) -> tuple[ir.Node, tuple[ir.Node, ...]]:
    """Zero padding before a convolution becomes the convolution's own."""
    conv, filler = only_reader(node.outputs[0]), constant_tensor(input_at(node, 2))
    zero = input_at(node, 2) is None or (filler is not None and filler.size == 1 and not filler.numpy().any())
    mode = node.attributes.get("mode")
    if conv is None or conv.op_type != "Conv" or not zero or (mode is not None and mode.value != "constant"):
        return node, (node,)
    return conv, (node, *_with_epilogue(conv, folded))


def _with_epilogue(conv: ir.Node, folded: Folded) -> tuple[ir.Node, ...]:
    """Scale and shift that onnxruntime folds into the weights of a convolution, and one activation."""
    nodes = [conv]
    while (reader := only_reader(nodes[-1].outputs[0])) is not None and reader.domain == "":
        if reader.op_type in ("BatchNormalization", "Add", "Mul"):
            if not _others_are_constant(reader, nodes[-1].outputs[0], folded):
                break
            nodes.append(reader)
        else:
            if reader.op_type in ACTIVATIONS:
                nodes.append(reader)
            break
    return tuple(nodes)


def _with_bias(product: ir.Node, folded: Folded, extents: Extents) -> tuple[ir.Node, ...]:
    """A constant bias makes a MatMul a Gemm, if its rows can be counted beforehand; a Gemm takes an activation."""
    nodes = [product]
    reader = only_reader(product.outputs[0])
    if product.op_type == "MatMul":
        if reader is None or reader.op_type != "Add" or not _is_bias(reader, product.outputs[0], folded, extents):
            return (product,)
        rows = product.inputs[0].shape if product.inputs[0] is not None else None
        if rows is None or (len(rows) != 2 and not rows.is_static()):
            return (product,)
        nodes.append(reader)
        reader = only_reader(reader.outputs[0])
    if reader is not None and reader.op_type in ACTIVATIONS and reader.domain == "":
        nodes.append(reader)
    return tuple(nodes)


def _with_scale(product: ir.Node, folded: Folded, extents: Extents) -> tuple[ir.Node, ...]:
    """The way back from int32 sums to float numbers, and the bias: MatMulIntegerToFloat."""
    nodes = [product]
    for op_type in ("Cast", "Mul", "Add"):
        reader = only_reader(nodes[-1].outputs[0])
        if reader is None or reader.op_type != op_type:
            break
        if op_type == "Add" and not _is_bias(reader, nodes[-1].outputs[0], folded, extents):
            break
        nodes.append(reader)
    return tuple(nodes) if len(nodes) > 2 else (product,)


def _with_reader(add: ir.Node, folded: Folded, extents: Extents) -> tuple[ir.Node, ...]:
    """The sum before a layer normalization, if nothing else reads it, and the bias before a Gelu."""
    total = add.outputs[0]
    reader = only_reader(total)
    if reader is not None and reader.op_type == "LayerNormalization" and reader.graph is add.graph:
        return (add, reader)
    if any(_is_bias(add, value, folded, extents) for value in add.inputs if value is not None):
        gelu = composites.gelu_of(total, folded)
        if all(node.graph is add.graph for node in gelu):
            return (add, *gelu)
    return (add,)


def _others_are_constant(node: ir.Node, value: ir.Value, folded: Folded) -> bool:
    return all(other is value or (other is not None and folded.is_constant(other)) for other in node.inputs)


def _is_bias(add: ir.Node, value: ir.Value, folded: Folded, extents: Extents) -> bool:
    """Whether `add` adds one constant number per column to `value`."""
    other = next((operand for operand in add.inputs if operand is not value), None)
    if other is None or not folded.is_constant(other):
        return False
    bias, dims = extents.dims(other), extents.dims(value)
    if not bias or not dims:
        return False
    return bias[-1] == dims[-1] and all(extent == 1 for extent in bias[:-1])


def _assemble(
    live: list[ir.Node], owner: dict[ir.Node, Group], folded: Folded, dissolved: Collection[ir.Node]
) -> Iterator[Kernel]:
    """One kernel per group, when its last node comes by."""
    waiting: dict[Group, list[ir.Node]] = {}
    place: dict[ir.Node, int] = {}
    for index, node in enumerate(live):
        group = owner.get(node)
        if group is None:
            if node not in dissolved:
                yield _single(node, folded, index)
            continue
        place[node] = index
        members = waiting.setdefault(group, [])
        members.append(node)
        if len(members) == len(group.nodes):
            replaced = not (group.main.op_type == "Conv" and node.op_type not in ACTIVATIONS)
            yield _fused(group, members, folded, place[group.main] + len(live) * int(replaced))


def _fused(group: Group, nodes: list[ir.Node], folded: Folded, rank: int) -> Kernel:
    inside = set(nodes)
    reads: dict[Tensor, None] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.producer() not in inside:
                source = _quantized_source(value) if group.integer else folded.source(value)
                if not folded.is_constant(source):
                    reads[Tensor(source)] = None
    writes = tuple(Tensor(value) for node in nodes for value in node.outputs if _seen_outside(value, inside))
    # An integer Reshape is a view like any other.
    view = operator(group.main).view_of(group.main) if group.integer else None
    # BiasGelu keeps the sum of input and bias beside its result.
    biased_gelu = nodes[0].op_type == "Add" and any(node.op_type in ("Gelu", "Erf", "Tanh") for node in nodes)
    return Kernel(
        tuple(nodes),
        group.main,
        tuple(reads),
        writes,
        rank,
        view_of=None if view is None else next(iter(reads), None),
        integer=group.integer,
        copies=int(biased_gelu),
    )


def _single(node: ir.Node, folded: Folded, rank: int) -> Kernel:
    inputs = [value for value in node.inputs if value is not None and not folded.is_constant(value)]
    if node.attributes:
        inputs += _captured(node, folded)
    reads = {value: Tensor(folded.source(value)) for value in inputs}
    family = operator(node)
    index = family.view_of(node)
    viewed = None if index is None else input_at(node, index)
    return Kernel(
        (node,),
        node,
        tuple(dict.fromkeys(reads.values())),
        tuple([Tensor(value) for value in node.outputs if value.name]),
        rank,
        tuple([reads[value] for index in family.may_overwrite(node) if (value := input_at(node, index)) in reads]),
        None if viewed is None else reads.get(viewed),
    )


def _captured(node: ir.Node, folded: Folded) -> list[ir.Value]:
    """Values of the graph around `node` that its bodies read, at any depth."""
    own: set[ir.Value] = set()
    read: dict[ir.Value, None] = {}
    for body in subgraphs(node):
        for graph in graph_and_bodies(body):
            own.update(graph.inputs, graph.initializers.values())
            for inner in graph:
                own.update(inner.outputs)
                read.update((value, None) for value in inner.inputs if value is not None)
            read.update((value, None) for value in graph.outputs)
    return [value for value in read if value not in own and not folded.is_constant(value)]


def _quantized_source(value: ir.Value) -> ir.Value:
    """The quantized tensor behind a DequantizeLinear."""
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear" and producer.inputs[0] is not None:
        return producer.inputs[0]
    return value


def _seen_outside(value: ir.Value, nodes: Collection[ir.Node]) -> bool:
    return value.is_graph_output() or any(use.node not in nodes for use in value.uses())
