"""Pairs of one operator: Transpose, Cast, Concat, and functions that undo or repeat themselves.

    Transpose_q(Transpose_p(x)) = Transpose_r(x)            r[i] = p[q[i]]
    Cast_b(Cast_a(x)) = Cast_b(x)                           where a can hold every number of x's type
    Concat(.., Concat(u, v), ..) = Concat(.., u, v, ..)     on one axis
    Concat(Split(x)) = x                                    on one axis, all parts in order
    f(f(x)) = x                                             Neg, Not, BitwiseNot
    f(f(x)) = f(x)                                          Abs, Ceil, Floor, Round, Sign
    |f(x)| = f(x), max(f(x), 0) = f(x)                      where f is not negative: Exp, Sigmoid, Softmax, |x| ...

A Cast may not drop what the one in between has lost: float32 -> float16 -> float32 rounds, float32 -> int32 ->
float32 cuts off. Where the way to an integer leads through a float, nothing is merged unless every number is in its
range: what happens to others depends on the type that is cast from.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt_passes.lossless.extents import rank
from graphopt_passes.lossless.merging.base import alone, read_past, stand_in
from graphopt_passes.lossless.no_ops.movement import permutation
from graphopt_passes.lossless.parameters import axis
from graphopt_passes.rewriting import Done, Outcome, Rule, Site


class Transposes(Rule):
    """One Transpose, or none."""

    roots: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Compose the axis orders."""
        inner = site.producer(node.inputs[0], "Transpose")
        x = None if inner is None else inner.inputs[0]
        if inner is None or x is None:
            return None
        if "perm" not in inner.attributes and "perm" not in node.attributes:
            return stand_in(site, node, x, "removed: it undoes the Transpose before it")
        first, second = permutation(inner), permutation(node)
        if first is None or second is None:
            return None
        order = [first[i] for i in second]
        if order == sorted(order):
            return stand_in(site, node, x, "removed: it undoes the Transpose before it")
        readers, value = inner.outputs[0].consumers(), inner.outputs[0]
        if value.is_graph_output() or any(reader.op_type != "Transpose" or reader.domain for reader in readers):
            return "kept: what it transposes is read elsewhere too"
        node.attributes["perm"] = ir.AttrInt64s("perm", order)
        return read_past(site, node, inner, "merged with the Transpose before it")


_HELD_EXACTLY = {
    "BOOL": "INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 FLOAT16 BFLOAT16 FLOAT DOUBLE",
    "INT8": "INT16 INT32 INT64 FLOAT16 BFLOAT16 FLOAT DOUBLE",
    "INT16": "INT32 INT64 FLOAT DOUBLE",
    "INT32": "INT64 DOUBLE",
    "UINT8": "INT16 INT32 INT64 UINT16 UINT32 UINT64 FLOAT16 BFLOAT16 FLOAT DOUBLE",
    "UINT16": "INT32 INT64 UINT32 UINT64 FLOAT DOUBLE",
    "UINT32": "INT64 UINT64 DOUBLE",
    "FLOAT16": "FLOAT DOUBLE",
    "BFLOAT16": "FLOAT DOUBLE",
    "FLOAT": "DOUBLE",
}
"""Element type to those that hold each of its numbers: as wide a range, and as many significant bits."""

_MERGED = frozenset((*_HELD_EXACTLY, "INT64", "UINT64", "DOUBLE"))


class Casts(Rule):
    """One Cast, or none, where the one in between loses nothing."""

    roots: ClassVar[frozenset[str]] = frozenset({"Cast"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Cast directly."""
        inner = site.producer(node.inputs[0], "Cast")
        x = None if inner is None else inner.inputs[0]
        if inner is None or x is None or x.dtype is None:
            return None
        between, last = (ir.DataType(cast.attributes.get_int("to")) for cast in (inner, node))
        held = _HELD_EXACTLY.get(x.dtype.name, "").split()
        if between.name not in held:
            return f"kept: the Cast before it, from {x.dtype.name} to {between.name}, may lose something"
        if last == x.dtype:
            return stand_in(site, node, x, "removed: it undoes the Cast before it")
        if last.name not in _MERGED:
            return f"kept: casts to {last.name} are not merged"
        through_float = x.dtype.is_floating_point() or between.is_floating_point()
        if last.is_integer() and through_float and last.name not in held:
            return f"kept: out of the range of {last.name}, the result depends on the type that is cast from"
        if not alone(site, inner, node):
            return "kept: what it casts is read elsewhere too"
        return read_past(site, node, inner, "merged with the Cast before it")


class Concats(Rule):
    """One Concat, or none."""

    roots: ClassVar[frozenset[str]] = frozenset({"Concat"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Take in what Concats before it join, or see that they put a Split together again."""
        whole = self._split(node, site)
        if whole is not None:
            return stand_in(site, node, whole, "removed: it undoes the Split before it")
        inputs: list[ir.Value | None] = []
        merged: list[ir.Node] = []
        for value in node.inputs:
            inner = site.producer(value, "Concat")
            if inner is not None and alone(site, inner, node) and _axis(inner) == _axis(node):
                inputs += inner.inputs
                merged.append(inner)
            else:
                inputs.append(value)
        if not merged:
            return None
        site.set_inputs(node, inputs)
        for inner in merged:
            site.remove_unread(inner)
        return Done("merged with the Concats before it", (node,))

    @staticmethod
    def _split(node: ir.Node, site: Site) -> ir.Value | None:
        """What was split into just the inputs of `node`."""
        split = site.producer(node.inputs[0], "Split")
        if split is None or list(node.inputs) != list(split.outputs) or _axis(split, default=0) != _axis(node):
            return None
        return split.inputs[0]


def _axis(node: ir.Node, default: int = 1) -> int:
    """The axis of a Concat or Split, from the start where the rank is known."""
    number, axes = node.attributes.get_int("axis", default), rank(node.inputs[0])
    return number if axes is None else axis(number, axes)


_IDEMPOTENT = frozenset({"Abs", "Ceil", "Floor", "Round", "Sign"})
_INVOLUTIONS = frozenset({"BitwiseNot", "Neg", "Not"})
_NEVER_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "Sigmoid", "Softmax", "Softplus"})


class Repetitions(Rule):
    """Functions of one argument that undo or repeat themselves."""

    roots: ClassVar[frozenset[str]] = _IDEMPOTENT | _INVOLUTIONS | {"Relu"}

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Remove the second of two."""
        inner = site.producer(node.inputs[0])
        if inner is None or inner.inputs[0] is None:
            return None
        if inner.op_type == node.op_type and node.op_type in _INVOLUTIONS:
            return stand_in(site, node, inner.inputs[0], f"removed: it undoes the {node.op_type} before it")
        repeats = inner.op_type == node.op_type and node.op_type in _IDEMPOTENT
        dtype = inner.outputs[0].dtype
        is_float = dtype is not None and dtype.is_floating_point()  # |x| of the smallest integer is that integer
        if repeats or (is_float and node.op_type in ("Abs", "Relu") and inner.op_type in _NEVER_NEGATIVE):
            return site.forward(node, inner.outputs[0], f"removed: it changes nothing after {inner.op_type}")
        return None
