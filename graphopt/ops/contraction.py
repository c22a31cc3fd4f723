"""How channels go through products of matrices: with a constant factor a linear layer, else a tie along the sum.

For L (..., m, k) times R (..., k, n) where R is constant, the k are input channels and the n output channels. Where
both are computed, both must lose the same k; what stands along m or n goes on to the result; and a head, an index of
the leading axes along which labels differ, goes from both factors as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.ops.channels import Ids, Labels, Opaque, Trace, channels, meet, project

WEIGHT_BESIDE = "mixes positions; channels lie along another axis"
SUMMED = "summed up by a product with a tensor that keeps them"


def product(
    trace: Trace, dims: Sequence[int], *, left: int = 0, right: int = 1, swap: tuple[bool, bool] = (False, False)
) -> Labels:
    """Labels of the product of two inputs.

    Args:
        trace: the node.
        dims: of the result.
        left: index of the left factor.
        right: index of the right factor.
        swap: whether the last two axes of each factor are exchanged first.
    """
    if trace.is_constant(left) and trace.is_constant(right):
        return Labels.fixed(dims)
    if trace.is_constant(right):
        return _linear(
            trace, dims, _factor(trace, left, swap[0]), right, summed=-1, weight=(1, 0) if swap[1] else (0, 1)
        )
    if trace.is_constant(left):
        return _linear(
            trace, dims, _factor(trace, right, swap[1]), left, summed=-2, weight=(0, 1) if swap[0] else (1, 0)
        )
    return _of_both(trace, tuple(dims), _factor(trace, left, swap[0]), _factor(trace, right, swap[1]))


def _factor(trace: Trace, index: int, swap: bool) -> Labels:
    labels = trace.labels(index)
    if labels.rank < 2:
        raise Opaque("a product with a vector")
    return labels.transposed((*range(labels.rank - 2), labels.rank - 1, labels.rank - 2)) if swap else labels


def _linear(
    trace: Trace, dims: Sequence[int], data: Labels, constant: int, *, summed: int, weight: tuple[int, int]
) -> Labels:
    """A linear layer on axis `summed` of `data`; `weight` are the axes of the constant for its inputs and outputs."""
    if len(trace.dims(constant)) != 2:
        raise Opaque("a product with a stack of constant matrices")
    axis = data.axis(summed)
    produced = trace.produce(trace.dims(constant)[weight[1]])
    if any(other != axis for other in data.varying):
        trace.pin(produced, WEIGHT_BESIDE)
        return project(trace, data, [axis], WEIGHT_BESIDE, mixing=True).expanded(dims)
    consumed = channels(trace, data, axis)
    trace.consume(consumed)
    trace.cut(constant, {weight[0]: consumed, weight[1]: produced}, shared=True)
    return Labels.along(dims, axis, produced)


def _of_both(trace: Trace, dims: tuple[int, ...], left: Labels, right: Labels) -> Labels:
    rank = len(dims)
    left, right = left.aligned(rank), right.aligned(rank)
    m, n = rank - 2, rank - 1
    summed_left, summed_right = n in left.varying, m in right.varying
    if summed_left and summed_right:
        left, right = _one_along(trace, left, m), _one_along(trace, right, n)
        trace.unite(left.ids.reshape(*left.ids.shape[:-2], -1), right.ids.reshape(*right.ids.shape[:-2], -1))
    elif summed_left:
        left = project(trace, left, [n], SUMMED, mixing=True).expanded(left.dims)
    elif summed_right:
        right = project(trace, right, [m], SUMMED, mixing=True).expanded(right.dims)
    heads = _heads(trace, dims, left, right)
    if n in right.varying:
        trace.pin(
            left.ids if m in left.varying else left.ids[:0], "both factors of a product have channels in its result"
        )
        result = right
    else:
        result = left if m in left.varying else heads
    trace.pin(_beyond(heads, result), "heads are shared by the other factor of a product")
    return result.expanded(dims)


def _one_along(trace: Trace, labels: Labels, axis: int) -> Labels:
    first = labels.ids.take([0], axis)
    trace.unite(labels.ids, first)
    return Labels(labels.dims, first)


def _heads(trace: Trace, dims: tuple[int, ...], left: Labels, right: Labels) -> Labels:
    """Labels along the leading axes alone: what goes there, goes from both factors."""
    last = (len(dims) - 2, len(dims) - 1)
    leading = [project(trace, factor, last, "heads share their width") for factor in (left, right)]
    return meet(trace, leading, (*dims[:-2], 1, 1))


def _beyond(heads: Labels, result: Labels) -> Ids:
    """The labels of heads that `result` does not tell apart."""
    missing = [axis for axis in heads.varying if result.ids.shape[axis] == 1]
    return heads.ids if missing else heads.ids[:0]
