"""Two convolutions in a row: where they are, and rows of both (numerics/joint_refit.py).

A pair is a convolution whose activation is read by one other convolution and nothing else: the body of a residual block.
The rows of the second are those of `reconstruction.walk`; each reads T positions of the first one's output, and for each of
these the first one's own row is gathered from its input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from graphopt.analysis.dataflow import only_reader
from graphopt.runtime.patches import Window, patches
from graphopt.runtime.rows import PatchRows, Positions
from graphopt_passes.numerics.joint_refit import Pair, pair_error, refit_pair
from graphopt_passes.numerics.least_squares import Layer
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.reconstruction.following import Activation, following
from graphopt_passes.reconstruction.linear import Linear, linear_of
from graphopt_passes.reconstruction.walk import MOST_BYTES, Observed, Walk

_BATCH = 256
_STEPS = 200
_FEWEST_STEPS = 40
"""Fewer are not worth the rows that have to be gathered."""
_NO_BOUNDS = (-math.inf, math.inf)


@dataclass(frozen=True)
class Couple:
    """A convolution, the activation behind it, and the one convolution that reads that."""

    first: Linear
    activation: Activation
    second: Linear


def couple_of(layer: Linear) -> Couple | None:
    """The pair that begins with `layer`; None where there is none."""
    if not _is_plain(layer):
        return None
    behind = following(layer.output)
    activated = only_reader(layer.output)
    if behind.shortcut is not None or behind.activation is None or activated is None:
        return None
    reader = only_reader(activated.outputs[0])
    second = None if reader is None else linear_of(reader)
    if second is None or not _is_plain(second) or second.data is not activated.outputs[0]:
        return None
    return Couple(layer, behind.activation, second)


def _is_plain(layer: Linear) -> bool:
    return layer.node.op_type == "Conv" and layer.groups == 1


class TapRows(PatchRows):
    """Rows of a pair: at each position of the second layer all the first one's rows that it reads.

    A matrix (1, T * K + T, rows): first the rows of x, tap by tap, then for each tap whether it is inside.
    """

    def __init__(self, pair: Couple) -> None:
        """Of the input of the pair's first layer."""
        self._first, self._second = Window.of(pair.first.node), Window.of(pair.second.node)
        super().__init__(self._first)

    def positions(self, shape: tuple[int, ...]) -> int:
        """Those of the second layer's output."""
        return int(np.prod(self._second.extents(self._first.extents(shape[2:]))))

    def take(self, x: Array, positions: Positions | None = None) -> Array:
        """See `RowSource`; positions must be given."""
        assert positions is not None
        samples, flat = positions
        middle = self._first.extents(x.shape[2:])
        taps, inside = _taps(self._second, middle, flat)
        count, each = taps.shape
        rows = patches(x, self._first, (np.repeat(samples, each), taps.reshape(-1)))[0]  # (K, rows * T)
        by_tap = rows.T.reshape(count, -1)
        return np.concatenate([by_tap, inside.astype(x.dtype)], axis=1).T[None]


def _taps(window: Window, spatial: tuple[int, ...], positions: Array) -> tuple[Array, Array]:
    """For output positions (rows,) of a convolution the flat positions (rows, T) of its input that it reads, and which
    of these are inside; those outside are moved to the edge."""
    rank = len(spatial)
    at = np.stack(np.unravel_index(positions, window.extents(spatial)))[:, :, None]
    kernel = np.stack(np.meshgrid(*(np.arange(size) for size in window.kernel), indexing="ij")).reshape(rank, 1, -1)

    def along_axes(numbers: Iterable[int]) -> Array:
        return np.array(list(numbers)).reshape(rank, 1, 1)

    before = along_axes(pad for pad, _ in window.padding(spatial))
    place = at * along_axes(window.strides) + kernel * along_axes(window.dilations) - before
    extents = along_axes(spatial)
    inside = np.all((place >= 0) & (place < extents), axis=0)
    flat = np.ravel_multi_index(tuple(np.clip(place, 0, extents - 1)), spatial)
    return flat, inside


@dataclass(frozen=True)
class Left:
    """What pruning left of a pair.

    Attributes:
        columns: of the first layer.
        behind: of the second layer: all taps of each of the first one's output channels that is left.
    """

    columns: Array
    behind: Array


def most_rows(pair: Couple) -> int:
    """Rows of a pair whose matrix stays within `MOST_BYTES`."""
    return max(_BATCH, MOST_BYTES // (4 * _tap_count(pair) * (pair.first.width + 1)))


def improve(walk: Walk, pair: Couple, seen: Observed, left: Left, work: float, seed: int) -> tuple[Layer, Layer] | None:
    """Both layers with all their columns, improved together; None where that is too much work, or did not help.

    Args:
        walk: has not run the pair's first layer yet.
        pair: refitted one by one.
        seen: of the second layer, with `most_rows`.
        left: what counts; the rest stays as it is.
        work: multiply-accumulates that it may take.
        seed: of the order of rows.
    """
    taps = _tap_count(pair)
    hidden = np.unique(left.behind // taps)
    each = _BATCH * taps * len(hidden) * (2 * len(left.columns) + 3 * pair.second.channels)
    steps = min(_STEPS, int(work / max(1, each)))
    if steps < _FEWEST_STEPS or not len(left.columns):
        return None
    rows = walk.rows_behind(pair.first.data.name or "", TapRows(pair), pair.second, rows=most_rows(pair))[0].T
    x = rows[:, : taps * pair.first.width].reshape(len(rows), taps, -1)
    targets = seen.targets if seen.offset is None else seen.targets + seen.offset
    problem = Pair(
        x=x if len(left.columns) == x.shape[2] else x[:, :, left.columns],
        inside=rows[:, taps * pair.first.width :],
        wanted=np.ascontiguousarray(targets.T),
        offset=None if seen.offset is None else np.ascontiguousarray(seen.offset.T),
        first_bounds=(pair.activation.low, pair.activation.high),
        second_bounds=_NO_BOUNDS if seen.activation is None else (seen.activation.low, seen.activation.high),
    )
    whole = [Layer(layer.weight()[0], _bias(layer)) for layer in (pair.first, pair.second)]
    inner = np.ix_(hidden, left.columns)
    first = Layer(whole[0].weight[inner], whole[0].bias[hidden])
    second = Layer(whole[1].weight[:, left.behind], whole[1].bias)
    new = refit_pair(problem, first, second, steps=steps, batch=_BATCH, rng=np.random.default_rng(seed))
    if pair_error(problem, *new) >= pair_error(problem, first, second):
        return None
    whole[0].weight[inner], whole[0].bias[hidden] = new[0]
    whole[1].weight[:, left.behind] = new[1].weight
    return whole[0], Layer(whole[1].weight, new[1].bias)


def _tap_count(pair: Couple) -> int:
    return math.prod(Window.of(pair.second.node).kernel)


def _bias(layer: Linear) -> Array:
    bias = layer.bias()
    return np.zeros(layer.channels) if bias is None else np.array(bias)
