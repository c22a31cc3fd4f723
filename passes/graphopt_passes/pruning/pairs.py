"""Two convolutions in a row: where they are, and rows of both (numerics/joint_refit.py).

A pair is a convolution whose activation is read by one other convolution and nothing else: the body of a residual block.
In between may lie a depthwise convolution with an activation of its own, where the second is a pointwise one: the bodies of
MobileNets. The rows of the second are those of `reconstruction.walk`; each reads T positions of the first one's output,
itself or through the depthwise convolution, and for each of these the first one's own row is gathered from its input.
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
_ROWS_PER_COLUMN = 2
"""With fewer rows than that, least squares on all rows does better."""


@dataclass(frozen=True)
class Couple:
    """A convolution, the activation behind it, and the one convolution that reads that.

    Attributes:
        first: the convolution.
        activation: what alone reads it.
        second: the convolution that reads that, or what comes of it through `between`.
        between: the depthwise convolution in between, if there is one.
        second_activation: what alone reads `between`.
    """

    first: Linear
    activation: Activation
    second: Linear
    between: Linear | None = None
    second_activation: Activation | None = None

    @property
    def layers(self) -> tuple[Linear, ...]:
        """All of them, in their order."""
        return (self.first, self.second) if self.between is None else (self.first, self.between, self.second)

    @property
    def spread(self) -> Window:
        """How what reads the first layer's output moves over it."""
        return Window.of((self.between or self.second).node)

    @property
    def taps(self) -> int:
        """T."""
        return math.prod(self.spread.kernel)

    @property
    def columns_each(self) -> int:
        """Columns through which the second layer reads each output channel of the first."""
        return self.taps if self.between is None else 1


def couple_of(layer: Linear) -> Couple | None:
    """The pair that begins with `layer`; None where there is none."""
    if not _is_plain(layer):
        return None
    activation, reader = _read_by(layer)
    if activation is None or reader is None:
        return None
    if _is_plain(reader):
        return Couple(layer, activation, reader)
    if not _is_depthwise(reader):
        return None
    middle, last = _read_by(reader)
    if middle is None or last is None or not _is_plain(last) or not _is_pointwise(last):
        return None
    return Couple(layer, activation, last, reader, middle)


def _read_by(layer: Linear) -> tuple[Activation | None, Linear | None]:
    """The activation that alone reads `layer`, and the layer that alone reads that."""
    behind, activated = following(layer.output), only_reader(layer.output)
    if behind.shortcut is not None or behind.activation is None or activated is None:
        return None, None
    reader = only_reader(activated.outputs[0])
    found = None if reader is None else linear_of(reader)
    return behind.activation, found if found is not None and found.data is activated.outputs[0] else None


def _is_plain(layer: Linear) -> bool:
    return layer.node.op_type == "Conv" and layer.groups == 1


def _is_depthwise(layer: Linear) -> bool:
    return layer.node.op_type == "Conv" and layer.groups == layer.channels and _input_channels(layer) == 1


def _input_channels(layer: Linear) -> int:
    return layer.width // math.prod(Window.of(layer.node).kernel)


def _is_pointwise(layer: Linear) -> bool:
    window = Window.of(layer.node)
    ones = (*window.kernel, *window.strides)
    return all(extent == 1 for extent in ones) and not any(window.pads or ())


class TapRows(PatchRows):
    """Rows of a pair: at each position of the second layer all the first one's rows that it reads.

    A matrix (1, T * K + T, rows): first the rows of x, tap by tap, then for each tap whether it is inside.
    """

    def __init__(self, pair: Couple) -> None:
        """Of the input of the pair's first layer."""
        self._first, self._second = Window.of(pair.first.node), pair.spread
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
        behind: of the second layer: all of each of the first one's output channels that is left.
    """

    columns: Array
    behind: Array

    def hidden(self, pair: Couple) -> Array:
        """Numbers of the first layer's output channels that are left."""
        return np.unique(self.behind // pair.columns_each)


def steps_within(pair: Couple, left: Left, work: float) -> int:
    """Gradient steps that are worth taking with `work` multiply-accumulates; 0 where there would be too few of them, or too
    few rows to fit the second layer on."""
    if not len(left.columns) or most_rows(pair) < _ROWS_PER_COLUMN * pair.second.width:
        return 0
    each = len(left.columns) * 2 * pair.taps + 3 * pair.columns_each * pair.second.channels
    steps = min(_STEPS, int(work / max(1, _BATCH * len(left.hidden(pair)) * each)))
    return steps if steps >= _FEWEST_STEPS else 0


def most_rows(pair: Couple) -> int:
    """Rows of a pair whose matrix stays within `MOST_BYTES`."""
    return max(_BATCH, MOST_BYTES // (4 * pair.taps * (pair.first.width + 1)))


def improve(walk: Walk, pair: Couple, seen: Observed, left: Left, steps: int, seed: int) -> list[Layer] | None:
    """The pair's layers with all their columns, improved together; None where that did not help.

    Args:
        walk: has not run the pair's first layer yet.
        pair: refitted one by one.
        seen: of the second layer, with `most_rows`.
        left: what counts; the rest stays as it is.
        steps: of the gradient.
        seed: of the order of rows.
    """
    problem = _problem(walk, pair, seen, left.columns)
    whole = [_layer(layer) for layer in pair.layers]
    hidden = left.hidden(pair)
    rows = [*(hidden for _ in whole[:-1]), np.arange(pair.second.channels)]
    columns = [left.columns, *(np.arange(pair.taps) for _ in whole[1:-1]), left.behind]
    cut = [
        Layer(layer.weight[np.ix_(outputs, inputs)], layer.bias[outputs])
        for layer, outputs, inputs in zip(whole, rows, columns, strict=True)
    ]
    new = refit_pair(problem, cut, steps=steps, batch=_BATCH, rng=np.random.default_rng(seed))
    if pair_error(problem, new) >= pair_error(problem, cut):
        return None
    for layer, better, outputs, inputs in zip(whole, new, rows, columns, strict=True):
        layer.weight[np.ix_(outputs, inputs)], layer.bias[outputs] = better
    return whole


def _problem(walk: Walk, pair: Couple, seen: Observed, columns: Array) -> Pair:
    rows = walk.rows_behind(pair.first.data.name or "", TapRows(pair), pair.second, rows=most_rows(pair))[0].T
    x = rows[:, : pair.taps * pair.first.width].reshape(len(rows), pair.taps, -1)
    targets = seen.targets if seen.offset is None else seen.targets + seen.offset
    return Pair(
        x=x if len(columns) == x.shape[2] else x[:, :, columns],
        inside=rows[:, pair.taps * pair.first.width :],
        wanted=np.ascontiguousarray(targets.T),
        offset=None if seen.offset is None else np.ascontiguousarray(seen.offset.T),
        first_bounds=_bounds(pair.activation),
        between_bounds=_bounds(pair.second_activation),
        second_bounds=_bounds(seen.activation),
    )


def _bounds(activation: Activation | None) -> tuple[float, float]:
    return (-math.inf, math.inf) if activation is None else (activation.low, activation.high)


def _layer(layer: Linear) -> Layer:
    """Its weight as one matrix, (C, T) for a depthwise convolution."""
    bias, weight = layer.bias(), layer.weight()
    return Layer(weight.reshape(layer.channels, -1), np.zeros(layer.channels) if bias is None else np.array(bias))
