"""Which of a model's multiply-accumulates really run in integer kernels, and what keeps the others in float.

A model with QuantizeLinear and DequantizeLinear is a float model until onnxruntime has fused them; whether it did
decides whether anything was gained. So the answer is read off the graph that onnxruntime itself makes of the model:
every node is given a number for a name, onnxruntime's fusions keep (parts of) the names of what they replace, and each
convolution and matrix product of the model is looked up among the kernels. What it costs is known from the model.

Memory layouts are left out of that graph (see `graphopt.runtime.optimized`); they change no kernel's arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import onnx_ir as ir

from graphopt.ir.walk import all_nodes, constant_tensor
from graphopt.ops import attributes
from graphopt.ops.base import Contraction, input_at, operator
from graphopt.pricing.cost import NodeCost
from graphopt.pricing.obstacles import obstacles
from graphopt.pricing.pricer import inlined, price
from graphopt.pricing.runs import own_name
from graphopt.runtime.optimized import optimized

_WEIGHT_ONLY = frozenset({"MatMulNBits", "MatMulBnb4"})
_EIGHT_BIT_ACCURACY = 4  # MatMulNBits' `accuracy_level` at which it quantizes its input, block by block
_NUMBER = re.compile(r"#(\d+)#")


@dataclass(frozen=True, slots=True)
class NodeKernel:
    """Where the multiply-accumulates of one node run.

    Attributes:
        name: of the node, or of its first output where it has none.
        op_type: its operator in the model, not that of the kernel.
        macs: multiply-accumulates of one inference; None where they are not known.
        runs_in: the arithmetic of the kernel.
        why: what keeps it in float; empty where it runs in integer.
    """

    name: str
    op_type: str
    macs: int | None
    runs_in: Literal["integer", "float"]
    why: str = ""


@dataclass(frozen=True)
class IntegerShare:
    """How much of a model runs in integer kernels of onnxruntime's CPU provider.

    Attributes:
        macs_total: multiply-accumulates of one inference, unknown ones left out.
        macs_integer: those of them that run in integer kernels.
        conversions: QuantizeLinear and DequantizeLinear nodes between activations that are left as kernels of their own.
        nodes: the convolutions and matrix products that run, in the model's order.
    """

    macs_total: int
    macs_integer: int
    conversions: int
    nodes: tuple[NodeKernel, ...]

    @property
    def share(self) -> float:
        """Fraction of the MACs that run in integer kernels; 0 for a model without any."""
        return self.macs_integer / self.macs_total if self.macs_total else 0.0

    @property
    def exceptions(self) -> list[NodeKernel]:
        """The nodes that run in float, the dearest first."""
        left = [node for node in self.nodes if node.runs_in == "float"]
        return sorted(left, key=lambda node: node.macs or 0, reverse=True)

    def to_dict(self) -> dict[str, Any]:
        """The share as reports hold it."""
        exceptions = [asdict(node) for node in self.exceptions]
        for node in exceptions:
            del node["runs_in"]
        return {
            "macs": self.macs_total,
            "macs_integer": self.macs_integer,
            "share": self.share,
            "conversions": self.conversions,
            "exceptions": exceptions,
        }


def is_quantized(model: ir.Model) -> bool:
    """Whether any node works on quantized numbers, makes them or reads them."""
    return any(operator(node).quantization_parameters for node in all_nodes(model))


def integer_share(
    model: ir.Model, *, batch: int | None = None, shapes: Mapping[str, Sequence[int]] | None = None
) -> IntegerShare:
    """State which MACs of `model` run in integer kernels.

    Args:
        model: with inferred shapes, as lifted; not changed.
        batch: the extent of a first axis that the inputs leave open; 1 by default.
        shapes: extents of graph inputs, by name.

    Raises:
        RuntimeFailureError: onnxruntime cannot load the model.
        OptionError: `batch` or `shapes` contradict what the model fixes, or each other.
        InvalidModelError: its functions call each other in a circle.
    """
    copy = inlined(model) if model.functions else model.clone()
    nodes = list(all_nodes(copy))
    names = [own_name(node) for node in nodes]
    for number, node in enumerate(nodes):
        node.name = f"#{number}#"
    rows = price(copy, batch=batch, shapes=shapes, per_node=True).per_node
    graph = optimized(copy, layouts=False)
    for node, name in zip(nodes, names, strict=True):
        node.name = name
    kernels = _kernels(graph)
    found = tuple(
        _judged(nodes[number], row, kernels.get(number))
        for row in rows
        for number in _numbers(row.name.rpartition("/")[2])
        if isinstance(operator(nodes[number]), Contraction) and row.macs != 0
    )
    return IntegerShare(
        macs_total=sum(node.macs or 0 for node in found),
        macs_integer=sum(node.macs or 0 for node in found if node.runs_in == "integer"),
        conversions=sum(_is_conversion(node) for node in all_nodes(graph)),
        nodes=found,
    )


def _numbers(name: str | None) -> Iterator[int]:
    return map(int, _NUMBER.findall(name or ""))


def _kernels(graph: ir.Model) -> dict[int, ir.Node]:
    """The kernel that each numbered node has become, or is in. Only one with MACs counts: others are beside the point."""
    return {
        number: node
        for node in all_nodes(graph)
        if isinstance(operator(node), Contraction)
        for number in _numbers(node.name)
    }


def _judged(node: ir.Node, row: NodeCost, kernel: ir.Node | None) -> NodeKernel:
    if kernel is None:
        why = "onnxruntime made it part of another kernel, or computes it when it loads the model"
    elif _computes_in_integer(kernel):
        return NodeKernel(own_name(node), row.op_type, row.macs, "integer")
    elif kernel.op_type in _WEIGHT_ONLY:
        why = f"only its weight is quantized: {kernel.op_type} multiplies in float"
    else:
        why = "; ".join(obstacles(node)) or "onnxruntime left it in float, for no reason that the graph shows"
    return NodeKernel(own_name(node), row.op_type, row.macs, "float", why)


def _computes_in_integer(kernel: ir.Node) -> bool:
    """Whether the operator takes quantized numbers for its data, not for its weight alone."""
    if kernel.op_type in _WEIGHT_ONLY:
        return attributes.integer(kernel, "accuracy_level", 0) == _EIGHT_BIT_ACCURACY
    return bool(operator(kernel).quantization_parameters)


def _is_conversion(node: ir.Node) -> bool:
    """Whether `node` passes over an activation only to change its type."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
        return False
    return constant_tensor(input_at(node, 0)) is None
