"""Reshape, Flatten, Squeeze and Unsqueeze in a row.

All of them, and a Transpose that only moves axes of one element, leave the elements as they lie in memory and give
them other extents: of two in a row the last alone decides. What stands in the way is that extents may be open:

    Reshape to constants                        reads past the one before it
    Reshape with 0 (copy that extent)           the 0 means the input's extent, which is now another's
    Squeeze of Squeeze, Unsqueeze likewise      one, with the axes of both
    all others                                  one Reshape, where constants can say what comes out

A target says an open extent by 0 where the input has the same extent on the same axis, or by -1 once. -1 is not
defined beside an extent that is zero, and an extent that is copied may be: so the two are not used together, unless
the model does so itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.analysis.dims import Arithmetic, Dim, Dims
from graphopt_passes.lossless.extents import dims, rank, same, same_but_one
from graphopt_passes.lossless.merging.base import alone, read_past, stand_in
from graphopt_passes.lossless.no_ops.movement import keeps_order, permutation
from graphopt_passes.lossless.parameters import axes, axis, given, integers, spelled
from graphopt_passes.rewriting import Done, Outcome, Rule, Site

_KINDS = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_TARGET_SINCE = 5


class Reshapes(Rule):
    """One Reshape, or none."""

    roots: ClassVar[frozenset[str]] = frozenset(_KINDS)

    def __init__(self) -> None:
        self._arithmetic = Arithmetic()

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Reshape once."""
        inner = site.producer(node.inputs[0], *_KINDS)
        x = None if inner is None else inner.inputs[0]
        if inner is None or x is None or not _keeps_elements(inner) or not _keeps_elements(node):
            return None
        what = f"merged with the {inner.op_type} before it"
        before, wanted = dims(x), self._wanted(node, site)
        if _undoes(node, inner, site) or _same(before, wanted):
            return stand_in(site, node, x, f"removed: it undoes the {inner.op_type} before it")
        if not alone(site, inner, node):
            return "kept: what it reshapes is read elsewhere too"
        if node.op_type == "Reshape" and _says_all(node, site):
            return read_past(site, node, inner, what)
        both = _axes_of_both(node, inner, site)
        if both is not None:
            _give_axes(node, x, both, site)
            site.remove_unread(inner)
            return Done(what, (node,))
        target = None if wanted is None else _target(wanted, before or (), _mixes(node, site))
        if target is None or site.opset < _TARGET_SINCE:
            return "kept: constants cannot say what comes out"
        return _reshape(node, inner, target, what, site)

    def _wanted(self, node: ir.Node, site: Site) -> Dims | None:
        """The extents that come out of `node`, told from those that go in; None for an extent that is not known."""
        before = dims(node.inputs[0])
        if node.op_type == "Reshape":
            target = integers(site, node, "shape")
            copies = not node.attributes.get_int("allowzero", 0)
            return None if target is None else tuple(_entries(target, before or (), copies))
        if before is None:
            return None
        if node.op_type == "Transpose":
            return tuple(before[i] for i in permutation(node) or ())
        if node.op_type == "Flatten":
            cut = axis(node.attributes.get_int("axis", 1), len(before))
            return self._arithmetic.product(before[:cut]), self._arithmetic.product(before[cut:])
        known = _axes(node, site)
        if node.op_type == "Unsqueeze":
            return None if known is None else _with_ones(before, known)
        if known is None and not given(site, node, "axes") and all(isinstance(dim, int) for dim in before):
            known = tuple(i for i, dim in enumerate(before) if dim == 1)
        return None if known is None else tuple(dim for i, dim in enumerate(before) if i not in known)


def _keeps_elements(node: ir.Node) -> bool:
    """Whether the elements stay where they lie in memory."""
    if node.op_type != "Transpose":
        return True
    before, order = dims(node.inputs[0]), permutation(node)
    return before is not None and order is not None and len(order) == len(before) and keeps_order(order, before)


def _entries(target: Sequence[int], before: Dims, copies: bool) -> Iterator[Dim]:
    """The extents that a constant target stands for."""
    for i, entry in enumerate(target):
        if entry == 0 and copies:
            yield before[i] if i < len(before) else None
        else:
            yield None if entry == -1 else entry


def _with_ones(before: Dims, positions: Sequence[int]) -> Dims:
    rest = iter(before)
    return tuple(1 if i in positions else next(rest) for i in range(len(before) + len(positions)))


def _same(before: Dims | None, wanted: Dims | None) -> bool:
    """Whether a tensor with extents `before` comes out as it is."""
    if before is None or wanted is None or len(before) != len(wanted):
        return False
    return same_but_one(before, [same(a, b) for a, b in zip(before, wanted, strict=True)])


def _undoes(node: ir.Node, inner: ir.Node, site: Site) -> bool:
    """Whether one of the two squeezes just the axes that the other adds."""
    if {node.op_type, inner.op_type} != {"Squeeze", "Unsqueeze"}:
        return False
    first, second = _axes(inner, site), _axes(node, site)
    return first is not None and second is not None and sorted(first) == sorted(second)


def _axes(node: ir.Node, site: Site) -> tuple[int, ...] | None:
    """The axes of a Squeeze, in its input, or of an Unsqueeze, in its output; None where they are not constant."""
    found = integers(site, node, "axes")
    value = node.inputs[0] if node.op_type == "Squeeze" else node.outputs[0]
    return None if found is None else axes(found, rank(value))


def _axes_of_both(node: ir.Node, inner: ir.Node, site: Site) -> tuple[int, ...] | None:
    """The axes of one Squeeze or Unsqueeze in the place of two; None where there is none."""
    if node.op_type != inner.op_type or node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    outer, inside = (node, inner) if node.op_type == "Unsqueeze" else (inner, node)
    taken, between = _axes(outer, site), _axes(inside, site)
    if taken is None or between is None:
        return None
    free = (i for i in itertools.count() if i not in taken)
    places = list(itertools.islice(free, max(between, default=-1) + 1))
    return tuple(sorted((*taken, *(places[i] for i in between))))


def _give_axes(node: ir.Node, x: ir.Value, both: Sequence[int], site: Site) -> None:
    inputs, attributes = spelled(site, node.op_type, {"axes": both}, node.outputs[0].name or "axes", node)
    node.attributes.update({name: ir.AttrInt64s(name, numbers) for name, numbers in attributes.items()})
    site.set_inputs(node, [x, *inputs])


def _says_all(node: ir.Node, site: Site) -> bool:
    """Whether the target of a Reshape means the same whatever is reshaped."""
    target = integers(site, node, "shape")
    return bool(node.attributes.get_int("allowzero", 0)) or (target is not None and 0 not in target)


def _mixes(node: ir.Node, site: Site) -> bool:
    """Whether a Reshape uses 0 and -1 together."""
    target = integers(site, node, "shape") if node.op_type == "Reshape" else None
    return target is not None and 0 in target and -1 in target


def _target(wanted: Dims, before: Dims, may_mix: bool) -> list[int] | None:
    """A target by which a tensor with extents `before` comes out with extents `wanted`; None where there is none.

    Args:
        wanted: the extents; None for one that is not known.
        before: the extents that are there.
        may_mix: whether 0 and -1 may be used together.
    """
    target = [
        dim if isinstance(dim, int) else 0 if i < len(before) and same(dim, before[i]) else -1
        for i, dim in enumerate(wanted)
    ]
    copied = any(entry == 0 and not isinstance(dim, int) for entry, dim in zip(target, wanted, strict=True))
    if 0 in wanted or target.count(-1) > 1 or (copied and -1 in target and not may_mix):
        return None
    return target


def _reshape(node: ir.Node, inner: ir.Node, target: Sequence[int], what: str, site: Site) -> Done:
    """Put one Reshape to `target` in the place of `node` and what it reads from."""
    output = node.outputs[0]
    constant = site.new_constant(np.array(target, np.int64), f"{output.name}_shape", node)
    inputs = [inner.inputs[0], constant]
    if node.op_type == "Reshape":
        site.set_inputs(node, inputs)
        site.remove_unread(inner)
        return Done(what, (node,))
    reshape = site.new_node("Reshape", inputs, output, node)
    readers = site.replace(node, reshape.outputs[0])
    site.remove_unread(inner)
    return Done(what, (reshape, *readers))
