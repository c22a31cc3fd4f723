"""The pruned network, layer by layer from the inputs to the outputs, each refitted towards the original.

Both networks are walked side by side (reconstruction/walk.py). At the first layer that reads a group, the units that go are
chosen once more, now with inputs from the network as it has been pruned so far; then the layer is refitted on the columns
that are left, so that it gives what the original gave, shortcut included, as far as the activation behind it lets that
through. Layers that lose nothing are refitted too, as soon as their inputs differ from the original's.

Removed columns become zeros; nothing is cut out here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import FreshNames
from graphopt_passes.numerics.elimination import Reader, eliminate
from graphopt_passes.numerics.least_squares import Layer, Moments, Ridge, moments
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.numerics.relu_refit import flat_targets, refit_through
from graphopt_passes.pruning.curves import Seen, energy, prior_of, step_share
from graphopt_passes.pruning.structure import Structure
from graphopt_passes.reconstruction.linear import Linear, linear_layers
from graphopt_passes.reconstruction.walk import Observed, Walk

_ROUNDS = 4
_UNTOUCHED = 1e-6
"""A layer whose error is below this share of its targets' variance needs no refit."""
_FEWEST_COLUMNS = 16
"""Layers with fewer columns (depthwise convolutions) keep their weights: refits of these fit noise. Their bias moves."""


@dataclass(frozen=True)
class Options:
    """What is done.

    Attributes:
        choose_again: whether units are chosen anew by elimination where one layer alone reads them.
        through: whether refits look through activations.
        producers: whether layers are refitted that lose no columns.
    """

    choose_again: bool = True
    through: bool = True
    producers: bool = True


@dataclass
class Repaired:
    """What came out: numbers of the units that go, by group, and how many layers were refitted."""

    gone: dict[int, Array] = field(default_factory=dict)
    refitted: int = 0


def repair(
    walk: Walk, compressed: ir.Model, structure: Structure, gone: Mapping[int, Array], options: Options
) -> Repaired:
    """Refit all layers of `compressed`, the walk's compressed network, in place.

    Args:
        walk: at its start; it is led to the end.
        compressed: a clone of the original with all its channels.
        structure: of the original.
        gone: units of each group that go, by number; where they are chosen again only how many counts.
        options: what is done.
    """
    result = Repaired({number: np.asarray(units, int) for number, units in gone.items()})
    names = FreshNames(compressed)
    for layer in linear_layers(compressed.graph):
        mask = structure.gone_columns(layer.key, (layer.groups, layer.width), result.gone)
        if options.producers or mask.any():
            seen = walk.observe(layer)
            if options.choose_again:
                _choose_again(layer, seen, structure, result)
                mask = structure.gone_columns(layer.key, (layer.groups, layer.width), result.gone)
            _refit(layer, seen, mask, options, names, result)
        walk.advance(layer.key)
    return result


def _choose_again(layer: Linear, seen: Observed, structure: Structure, result: Repaired) -> None:
    for number in structure.readers.get(layer.key, ()):
        readings = structure.readings[number]
        count = len(result.gone.get(number, ()))
        if not count or {reading.key for reading in readings} != {layer.key}:
            continue
        parts = []
        for reading in readings:
            channels = _channels(layer, reading.block)
            found = moments(seen.inputs[reading.block], seen.targets[channels])
            prior = prior_of(layer.weight()[reading.block], found)
            parts.append(Seen(found, prior, 1.0 / energy(seen, channels)))
        readers = [
            Reader(part.found, part.prior, reading.columns, part.weight)
            for part, reading in zip(parts, readings, strict=True)
        ]
        units = len(readings[0].columns)
        found_order = eliminate(readers, fewest=units - count, at_once=step_share(parts))
        result.gone[number] = found_order.order[:count]


def _channels(layer: Linear, block: int) -> slice:
    count = layer.channels // layer.groups
    return slice(block * count, (block + 1) * count)


def _refit(layer: Linear, seen: Observed, mask: Array, options: Options, names: FreshNames, result: Repaired) -> None:
    weight, bias = layer.weight(), layer.bias()
    old_bias = np.zeros(layer.channels) if bias is None else bias
    changed = False
    for block in range(layer.groups):
        channels = _channels(layer, block)
        x, targets = seen.inputs[block], seen.targets[channels]
        if not mask[block].any() and _is_right(weight[block], old_bias[channels], x, targets):
            continue
        changed = True
        kept = np.flatnonzero(~mask[block])
        if layer.width < _FEWEST_COLUMNS or not len(kept):
            weight[block][:, mask[block]] = 0
            fitted = weight[block] @ x.mean(axis=1, dtype=np.float64)
            old_bias[channels] = targets.mean(axis=1, dtype=np.float64) - fitted
            continue
        found = moments(x, targets)
        prior = prior_of(weight[block], found)[:, kept]
        weight[block] = 0
        new = _fit(found.selected(kept), x if len(kept) == len(x) else x[kept], channels, seen, prior, options)
        weight[block][:, kept] = new.weight
        old_bias[channels] = new.bias
    if changed:
        layer.store(weight, old_bias if layer.takes_bias else None, names)
        result.refitted += 1


def _fit(found: Moments, x: Array, channels: slice, seen: Observed, prior: Array, options: Options) -> Layer:
    ridge = Ridge(found.covariance, found.input_mean)
    plain = ridge.solve(found.cross, found.target_mean, prior)
    activation = seen.activation
    if activation is None or not options.through:
        return plain
    low, high = activation.low, activation.high
    if low == -math.inf and high == math.inf:
        return plain
    offset = None if seen.offset is None else seen.offset[channels]
    wanted = seen.targets[channels] if offset is None else seen.targets[channels] + offset
    return refit_through(
        ridge,
        x,
        wanted,
        prior,
        lambda prediction, z, _: flat_targets(prediction, z, low, high),
        offset=offset,
        start=plain,
        rounds=_ROUNDS,
    )


def _is_right(weight: Array, bias: Array, x: Array, targets: Array) -> bool:
    """Whether the layer gives its targets already."""
    error = targets - (weight.astype(np.float32) @ x + bias.astype(np.float32)[:, None])
    scale = float(np.mean(np.var(targets, axis=1))) + 1e-30
    return float(np.mean(error**2)) < _UNTOUCHED * scale
