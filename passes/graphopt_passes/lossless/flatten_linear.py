"""Linear layers on tensors of three axes and more, as Gemm on the matrix of their rows.

    y = Reshape(x W + b, s)  ->  y = Reshape(Gemm(X, W, b), s')        X = Reshape(x, [-1, K]),  x: (..., K), W: (K, N)

Attention projects one tensor thrice and splits heads afterwards: MatMul, Add and Reshape for each of query, key and
value. As Gemm each is two nodes, and X is shared. The result is the same product over the same rows; the bias no longer
costs a pass over memory.

Done where it saves nodes: a Reshape alone reads each layer, and at least two such layers read x, or x is made by a
Reshape that nothing else reads, which then makes X. onnxruntime does the same on its own where all extents are fixed
(BERT with the batch open: ratio of times 1.00 to 1.01).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analysis import facts
from graphopt.analysis.dims import Dim, Dims
from graphopt_passes.lossless.partial_values import PartialValues
from graphopt_passes.lossless.shape_operands import reshape_target
from graphopt_passes.rewriting import Done, Outcome, Rule, RulePass, Site

_GEMM = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})


@dataclasses.dataclass(frozen=True)
class FlattenLinear(RulePass):
    """Compute parallel linear layers, whose results are reshaped anyway, as Gemm on matrices."""

    name: ClassVar[str] = "flatten-linear"

    def rules(self) -> Sequence[Rule]:
        """The rule."""
        return (Flatten(PartialValues()),)


class _Layer(NamedTuple):
    """MatMul, Add and Reshape.

    Attributes:
        matmul: multiplies with the weight, (K, N).
        add: adds the bias, (N,).
        bias: that bias.
        width: N.
        reshape: what alone reads the sum.
        target: the shape that it must read behind a Gemm.
    """

    matmul: ir.Node
    add: ir.Node
    bias: ir.Value
    width: int
    reshape: ir.Node
    target: list[int]


class Flatten(Rule):
    """Reshape(x W + b) several times over -> Reshape(Gemm(Reshape(x), W, b))."""

    roots: ClassVar = frozenset({"MatMul"})

    def __init__(self, values: PartialValues) -> None:
        self._values = values

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Rewrite all layers that read what `node` reads."""
        x = node.inputs[0]
        dims = self._values.dims(x, site)
        if x is None or dims is None or len(dims) < 3 or site.opset < 7:
            return None
        if x.dtype not in _GEMM or (self._layer(node, dims, site)) is None:
            return None
        layers = [layer for reader in x.consumers() if (layer := self._layer(reader, dims, site)) is not None]
        width = dims[-1]
        if not isinstance(width, int) or width <= 0:
            return None
        reshape = site.producer(x, "Reshape")
        own = reshape is not None and len(layers) == len(x.uses()) and not x.is_graph_output()
        if len(layers) < 2 and not own:
            return None
        source = reshape.inputs[0] if own and reshape is not None else x
        assert source is not None  # Reshape has its first input
        rows = self._rows(source, self._rows_of(dims), width, node, site)
        touched = [rows]
        for layer in layers:
            touched += self._as_gemm(layer, rows.outputs[0], site)
        if own and reshape is not None:
            site.remove_unread(reshape)
        return Done("as Gemm on the rows", tuple(touched))

    def _layer(self, node: ir.Node, dims: Dims, site: Site) -> _Layer | None:
        """The layer that starts with `node`, where it can be a Gemm."""
        if (node.domain, node.op_type) != ("", "MatMul") or site.graph_of(node) is None or not site.may_touch(node):
            return None
        weight = site.constant(node.inputs[1])
        add = site.only_reader(node.outputs[0])
        if weight is None or len(weight.shape) != 2 or add is None or (add.domain, add.op_type) != ("", "Add"):
            return None
        width = int(weight.shape.numpy()[1])
        bias = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
        tensor, reshape = site.constant(bias), site.only_reader(add.outputs[0])
        if bias is None or tensor is None or tuple(tensor.shape.numpy()) != (width,) or reshape is None:
            return None
        if (reshape.domain, reshape.op_type) != ("", "Reshape") or reshape.inputs[0] is not add.outputs[0]:
            return None
        after = self._values.dims(reshape.outputs[0], site)
        matrix = (self._rows_of(dims), width)
        target = None if after is None or None in after else reshape_target(matrix, after, allowzero=False)
        return None if target is None else _Layer(node, add, bias, width, reshape, target)

    def _rows_of(self, dims: Dims) -> Dim:
        return self._values.arithmetic.product(dims[:-1])

    def _rows(self, x: ir.Value, count: Dim, width: int, before: ir.Node, site: Site) -> ir.Node:
        """A Reshape of `x` into a matrix of `count` rows, before all that reads `x`."""
        shape = site.new_constant(np.array([-1, width], np.int64), f"{x.name}_rows_shape", before)
        node = site.new_node("Reshape", [x, shape], x, before)
        node.outputs[0].shape = facts.shape_of((count, width))
        producer = x.producer()
        if producer is not None and site.graph_of(producer) is not None:
            site.graph.insert_after(producer, node)
        else:
            site.graph.insert_before(site.graph[0], node)
        return node

    def _as_gemm(self, layer: _Layer, rows: ir.Value, site: Site) -> list[ir.Node]:
        """Put a Gemm in the place of the MatMul and the Add of `layer`."""
        gemm = site.new_node("Gemm", [rows, layer.matmul.inputs[1], layer.bias], layer.add.outputs[0], layer.matmul)
        name = f"{layer.reshape.outputs[0].name}_shape"
        target = site.new_constant(np.array(layer.target, np.int64), name, layer.reshape)
        gemm.outputs[0].shape = facts.shape_of((*(self._values.dims(rows, site) or ())[:1], layer.width))
        site.set_inputs(layer.reshape, [gemm.outputs[0], target])
        layer.reshape.attributes.pop("allowzero", None)
        site.remove_unread(layer.add)
        site.remove_unread(layer.matmul)
        return [gemm, layer.reshape]
