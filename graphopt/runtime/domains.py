"""What values an integer input may take, read off the operators that consume it.

Random integers break most models: a token id must lie inside its embedding table, a length inside the sequence, a mask
is zero or one. The walk follows an input through everything that hands its elements on unchanged (Reshape, Cast,
Concat, subgraph and function inputs ...) or shifted by a constant, up to the operators that restrict it, and intersects
what they allow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.ir.walk import constant_tensor

Extent: TypeAlias = Callable[[ir.Value | None, int], int | None]
"""`extent(value, axis)`: how long `value` is along `axis`, or None where that is not known."""

Bounds: TypeAlias = tuple[int, int | None]
"""Lowest value allowed, and the first one above that is not (None: no upper end)."""

_SMALL_CONSTANT = 4096


@dataclasses.dataclass
class Domain:
    """Values that an input may take: `low <= x < high`, either end None where nothing limits it.

    Attributes:
        choices: constants that the model compares the input with; both sides of the comparison are worth a visit.
        mask: the input is turned into a truth value or a float, as attention masks are.
    """

    low: int | None = None
    high: int | None = None
    choices: set[int] = dataclasses.field(default_factory=set)
    mask: bool = False

    def restrict(self, bounds: Bounds, shift: tuple[int, int]) -> None:
        """Intersect with `bounds` on x + s, for every s in the closed interval `shift`."""
        low, high = bounds[0] - shift[0], None if bounds[1] is None else bounds[1] - shift[1]
        self.low = low if self.low is None else max(self.low, low)
        if high is not None:
            self.high = high if self.high is None else min(self.high, high)


def domain_of(value: ir.Value, model: ir.Model, extent: Extent) -> Domain:
    """What the consumers of the graph input `value` allow."""
    domain = Domain()
    pending: list[tuple[ir.Value, tuple[int, int]]] = [(value, (0, 0))]
    seen = {value}
    while pending:
        current, shift = pending.pop()
        for node, index in current.uses():
            if current.dtype is None or not current.dtype.is_floating_point():
                _restrict(domain, node, index, shift, extent)
            for follower, added in _followers(model, node, index):
                if follower not in seen:
                    seen.add(follower)
                    pending.append((follower, (shift[0] + added[0], shift[1] + added[1])))
    return domain


def _restrict(domain: Domain, node: ir.Node, index: int, shift: tuple[int, int], extent: Extent) -> None:
    limit = _LIMITS.get((node.op_type, index))
    if limit is not None:
        bounds = limit(node, extent)
        if bounds is not None:
            domain.restrict(bounds, shift)
    elif node.op_type == "Equal":
        other = _small_constant(node.inputs[1 - index])
        if other is not None and other.dtype.kind in "iu" and shift[0] == shift[1]:
            domain.choices.update(int(x) - shift[0] for x in other.flat)
    elif node.op_type == "Not" or (node.op_type == "Where" and index == 0) or _leaves_the_integers(node):
        domain.mask = True


def _leaves_the_integers(node: ir.Node) -> bool:
    """Whether `node` casts to a float or a truth value."""
    if node.op_type == "Cast":
        target: ir.DataType | None = ir.DataType(_integer(node, "to"))
    else:
        target = node.outputs[0].dtype if node.op_type == "CastLike" else None
    return target is not None and (target.is_floating_point() or target == ir.DataType.BOOL)


# --- what operators demand of an input -------------------------------------------------------------------------------


def _integer(node: ir.Node, name: str, default: int = 0) -> int:
    """An attribute; a reference to a function's own attribute counts as not given."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_int()


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _below(limit: int | None, low: int = 0) -> Bounds:
    return low, limit


def _gather(node: ir.Node, extent: Extent) -> Bounds:
    return _below(extent(node.inputs[0], _integer(node, "axis")))


def _gather_nd(node: ir.Node, extent: Extent) -> Bounds:
    data, indices = node.inputs[0], node.inputs[1]
    depth = extent(indices, -1) or 0
    batch = _integer(node, "batch_dims") if node.op_type == "GatherND" else 0
    extents = [extent(data, batch + axis) for axis in range(depth)]
    known = [e for e in extents if e is not None]
    return _below(min(known) if known and len(known) == len(extents) else None)


def _one_hot(node: ir.Node, extent: Extent) -> Bounds:
    depth = _small_constant(node.inputs[1])
    return _below(None if depth is None else int(depth.flat[0]))


def _sequence_lengths(node: ir.Node, extent: Extent) -> Bounds:
    axis = 1 if _integer(node, "layout") else 0
    longest = extent(node.inputs[0], axis)
    return 1, None if longest is None else longest + 1


def _reversed_lengths(node: ir.Node, extent: Extent) -> Bounds:
    longest = extent(node.inputs[0], _integer(node, "time_axis"))
    return 1, None if longest is None else longest + 1


def _top_k(node: ir.Node, extent: Extent) -> Bounds:
    longest = extent(node.inputs[0], _integer(node, "axis", -1))
    return 1, None if longest is None else longest + 1


def _embedding(table: int) -> Callable[[ir.Node, Extent], Bounds]:
    return lambda node, extent: _below(extent(_input(node, table), 0))


def _fixed(low: int, high: int | None) -> Callable[[ir.Node, Extent], Bounds]:
    return lambda node, extent: (low, high)


_LIMITS: dict[tuple[str, int], Callable[[ir.Node, Extent], Bounds | None]] = {
    ("Gather", 1): _gather,
    ("GatherElements", 1): _gather,
    ("ScatterElements", 1): _gather,
    ("Scatter", 1): _gather,
    ("GatherBlockQuantized", 1): _embedding(0),
    ("GatherND", 1): _gather_nd,
    ("ScatterND", 1): _gather_nd,
    ("OneHot", 0): _one_hot,
    ("EmbedLayerNormalization", 0): _embedding(2),
    ("EmbedLayerNormalization", 1): _embedding(4),
    ("LSTM", 4): _sequence_lengths,
    ("GRU", 4): _sequence_lengths,
    ("RNN", 4): _sequence_lengths,
    ("ReverseSequence", 1): _reversed_lengths,
    ("TopK", 1): _top_k,
    # Amounts: small, so that what they size stays small, and positive where zero ends the process or empties a tensor.
    ("Loop", 0): _fixed(1, 4),
    ("Range", 0): _fixed(0, 2),
    ("Range", 1): _fixed(2, 9),
    ("Range", 2): _fixed(1, 3),
    ("ConstantOfShape", 0): _fixed(1, 4),
    ("Expand", 1): _fixed(1, 4),
    ("Tile", 1): _fixed(1, 3),
    ("Pad", 1): _fixed(0, 3),
    ("Resize", 3): _fixed(1, 9),
    ("OneHot", 1): _fixed(2, 9),
    ("NonMaxSuppression", 2): _fixed(1, 10),
    ("Slice", 1): _fixed(0, 1),
    ("Slice", 2): _fixed(1, None),
    ("Slice", 4): _fixed(1, 2),
    ("CumSum", 1): _fixed(0, 1),
    ("Trilu", 1): _fixed(-1, 2),
    ("BitShift", 1): _fixed(0, 8),
    ("Div", 1): _fixed(1, 8),
    ("Mod", 1): _fixed(1, 8),
}


# --- where elements go unchanged, or shifted by a constant -----------------------------------------------------------

_FIRST = frozenset({0})
_EVERY: frozenset[int] | None = None
_PASSES_ON: dict[str, frozenset[int] | None] = {
    "Identity": _FIRST, "Cast": _FIRST, "CastLike": _FIRST, "Reshape": _FIRST, "Flatten": _FIRST, "Squeeze": _FIRST,
    "Unsqueeze": _FIRST, "Transpose": _FIRST, "Expand": _FIRST, "Slice": _FIRST, "Gather": _FIRST,
    "GatherElements": _FIRST, "GatherND": _FIRST, "Tile": _FIRST, "Split": _FIRST, "Pad": frozenset({0, 2}),
    "ScatterElements": frozenset({0, 2}), "ScatterND": frozenset({0, 2}), "Where": frozenset({1, 2}),
    "Concat": _EVERY, "Max": _EVERY, "Min": _EVERY, "ReduceMax": _FIRST, "ReduceMin": _FIRST, "Clip": _FIRST,
}  # fmt: skip


def _followers(model: ir.Model, node: ir.Node, index: int) -> Iterator[tuple[ir.Value, tuple[int, int]]]:
    """Values that hold the elements of input `index` again, with the interval that has been added to them."""
    unchanged = (0, 0)
    if node.op_type in _PASSES_ON:
        positions = _PASSES_ON[node.op_type]
        if (positions is None or index in positions) and not _leaves_the_integers(node):
            yield from ((output, unchanged) for output in node.outputs)
    elif node.op_type in ("Add", "Sub") and (node.op_type == "Add" or index == 0):
        constant = _small_constant(node.inputs[1 - index])
        if constant is not None and constant.dtype.kind in "iu" and constant.size:
            low, high = int(constant.min()), int(constant.max())
            yield node.outputs[0], (low, high) if node.op_type == "Add" else (-high, -low)
    elif (function := model.functions.get(node.op_identifier())) is not None:
        if index < len(function.inputs):
            yield function.inputs[index], unchanged
    elif node.op_type in ("Loop", "Scan"):
        body = node.attributes["body"].as_graph()
        position = index if node.op_type == "Loop" else index - (len(node.inputs) - len(body.inputs))
        if 0 <= position < len(body.inputs) and not (node.op_type == "Loop" and position == 0):
            yield body.inputs[position], unchanged


def _small_constant(value: ir.Value | None) -> np.ndarray | None:
    tensor = constant_tensor(value)
    if tensor is None or tensor.size > _SMALL_CONSTANT or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()
