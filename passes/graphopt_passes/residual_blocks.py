"""Residual blocks, found in the graph: sums of which one operand can go without any shape changing.

    y = Add(branch, rest)  ->  y = rest

The branch is all that is computed for it alone; it holds at least one linear layer. `rest` is what the sum keeps, be it the
identity, an activation of the block's input, or a projection. Where both operands are such branches, the one with more
weights is the one that may go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.ir.surgery import Editor, FreshNames, drop_unread
from graphopt.ir.walk import constant_tensor
from graphopt_passes.reconstruction.linear import linear_of


@dataclass(frozen=True)
class Block:
    """A branch that may go.

    Attributes:
        key: the name of the sum, the same in every copy of the model.
        add: the Add.
        rest: which input of the Add stays.
        nodes: what the branch alone needs, all of which goes with it.
        weights: elements of the weights of its linear layers.
    """

    key: str
    add: ir.Node
    rest: int
    nodes: tuple[ir.Node, ...]
    weights: int


def residual_blocks(graph: ir.Graph) -> list[Block]:
    """The blocks of a graph in its order; nested ones are listed too."""
    found = []
    for node in graph:
        if node.op_type != "Add" or node.domain != "" or not _same_shapes(node):
            continue
        blocks = [block for rest in (0, 1) if (block := _block(node, rest)) is not None]
        if blocks:
            found.append(max(blocks, key=lambda block: block.weights))
    return found


def _same_shapes(add: ir.Node) -> bool:
    one, other = add.inputs
    output = add.outputs[0]
    if one is None or other is None or one is other or output.shape is None:
        return False
    if constant_tensor(one) is not None or constant_tensor(other) is not None:
        return False
    known = all(isinstance(dim, int) or dim.value is not None for dim in output.shape)
    return known and one.shape == output.shape == other.shape


def _block(add: ir.Node, rest: int) -> Block | None:
    branch = add.inputs[1 - rest]
    assert branch is not None
    nodes = _only_for(branch, add)
    layers = [layer for node in nodes if (layer := linear_of(node)) is not None]
    if not layers:
        return None
    weights = sum(layer.channels * layer.width for layer in layers)
    return Block(add.outputs[0].name or "", add, rest, nodes, weights)


def _only_for(value: ir.Value, reader: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes that nothing but `reader`'s reading of `value` needs, readers first."""
    inside: dict[ir.Node, None] = {}
    pending = [value.producer()]
    while pending:
        node = pending.pop()
        if node is None or node in inside or node.graph is not reader.graph:
            continue
        readers = {use for output in node.outputs for use in output.consumers()} - inside.keys() - {reader}
        if readers or any(output.is_graph_output() for output in node.outputs):
            continue
        if any(output in reader.inputs and output is not value for output in node.outputs):
            continue  # the sum reads it twice: as a branch and as the rest
        inside[node] = None
        pending.extend(read.producer() for read in node.inputs if read is not None)
    return tuple(inside)


def remove(model: ir.Model, keys: Sequence[str]) -> list[ir.Node]:
    """Take the branches of the blocks called `keys` out of `model`; returns the Identities that stand for their sums.

    The names of the sums stay, so that the network can be compared with the original value by value.
    """
    graph, names, made = model.graph, FreshNames(model), []
    blocks = {block.key: block for block in residual_blocks(graph)}
    for key in keys:
        block = blocks[key]
        if block.add.graph is None:
            continue  # inside a block that is gone
        old, rest = block.add.outputs[0], block.add.inputs[block.rest]
        new = ir.Value(name=names.fresh(key), type=old.type, shape=old.shape)
        node = ir.Node("", "Identity", [rest], outputs=[new], name=names.fresh(f"{key}_rest"))
        graph.insert_before(block.add, node)
        editor = Editor(graph)
        editor.replace(old, new)
        old.name = None
        new.name = key
        constants = [read for inner in block.nodes for read in inner.inputs]
        for gone in (block.add, *block.nodes):
            editor.remove(gone)
        editor.commit()
        drop_unread(constants)
        made.append(node)
    return made
