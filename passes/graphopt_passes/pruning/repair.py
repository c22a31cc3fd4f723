"""The pruned network, layer by layer from the inputs to the outputs, each refitted towards the original.

Both networks are walked side by side (reconstruction/walk.py). At the one layer that reads a group, the units that go are
chosen once more, now with inputs from the network as it has been pruned so far; then the layer is refitted on the columns
that are left, so that it gives what the original gave, shortcut included, as far as the activation behind it lets that
through. Layers that lose nothing are refitted too, as soon as their inputs differ from the original's. Where a convolution
is read by one other alone, itself or through a depthwise one, they are then improved together (pairs.py); in a chain each
layer takes part twice, first as what makes the right thing of its inputs and then as what gives the next one its own.

Removed columns become zeros; nothing is cut out here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import FreshNames
from graphopt_passes.numerics.elimination import Reader, eliminate
from graphopt_passes.numerics.least_squares import Layer, Ridge
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.numerics.relu_refit import flat_targets, refit_through
from graphopt_passes.pruning import pairs
from graphopt_passes.pruning.curves import Seen, block_channels, seen_block, step_share
from graphopt_passes.pruning.structure import MOST_COLUMNS, Structure
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.transposed import layers_of
from graphopt_passes.reconstruction.walk import Observed, Walk

_ROUNDS = 4
_UNTOUCHED = 1e-6
"""A layer whose error is below this share of its targets' variance needs no refit."""
_ROWS_PER_COLUMN = 10
"""With fewer rows a layer that loses no columns keeps its weights, and its bias moves: its refit would fit noise."""
_FEWEST_COLUMNS = 16
"""Layers with fewer columns (depthwise convolutions) keep their weights: refits of these fit noise. Their bias moves."""


@dataclass(frozen=True)
class Method:
    """How the repair goes.

    Attributes:
        choose_again: whether units are chosen anew by elimination where one layer alone reads them.
        work: multiply-accumulates that improving pairs may take, all together; 0 leaves it out.
        seed: of the order of rows in that.
    """

    choose_again: bool = True
    work: float = 0.0
    seed: int = 0


@dataclass
class Repaired:
    """What came out: numbers of the units that go, by group, and how many layers and pairs were refitted."""

    gone: dict[int, Array] = field(default_factory=dict)
    refitted: int = 0
    pairs: int = 0


def repair(
    walk: Walk, compressed: ir.Model, structure: Structure, gone: Mapping[int, Array], method: Method
) -> Repaired:
    """Refit the layers of `compressed`, the walk's compressed network, in place.

    Args:
        walk: at its start; it is led to the end.
        compressed: a clone of the original with all its channels.
        structure: of the original.
        gone: units of each group that go, by number; where they are chosen again only how many counts.
        method: how.
    """
    layers = layers_of(compressed.graph)
    run = _Repair(walk, structure, gone, method, FreshNames(compressed))
    found = run.pairs_of(layers) if method.work else {}
    behind = {layer.key for pair in found.values() for layer in pair.layers[1:]}
    for layer in layers:
        if layer.key in found:
            run.both(found[layer.key], method.work / len(found))
        elif layer.key not in behind:
            run.one(layer)
        walk.advance(layer.key)
    return run.result


class _Repair:
    """One walk."""

    def __init__(
        self, walk: Walk, structure: Structure, gone: Mapping[int, Array], method: Method, names: FreshNames
    ) -> None:
        self._walk = walk
        self._structure = structure
        self._method = method
        self._names = names
        self._seconds: set[str] = set()  # those of pairs so far: refitted, before their turn
        self.result = Repaired({number: np.asarray(units, int) for number, units in gone.items()})

    def pairs_of(self, layers: Sequence[Linear]) -> dict[str, pairs.Couple]:
        """Pairs between which units go that nothing else reads, by their first layer; the second of one may begin another."""
        found: dict[str, pairs.Couple] = {}
        for layer in layers:
            pair = pairs.couple_of(layer)
            if pair is not None and self._own_groups(pair.second) and not self._is_nothing(pair.second):
                found[layer.key] = pair
        return found

    def one(self, layer: Linear, rows: int | None = None) -> Observed | None:
        """Refit one layer; what was seen of it."""
        if self._is_nothing(layer):
            layer.store(
                np.zeros_like(layer.weight()), np.zeros(layer.channels) if layer.takes_bias else None, self._names
            )
            self.result.refitted += 1
            return None
        mask = self._mask(layer)
        if not self.result.refitted and not mask.any():  # until then both networks are the same
            return None
        seen = self._walk.observe(layer, rows=rows)
        if layer.width > MOST_COLUMNS:
            self._shift(layer, seen, mask)
            return seen
        blocks = {block: seen_block(layer, seen, block) for block in _needed(layer, seen, mask)}
        if self._method.choose_again and self._choose_again(layer, blocks):
            mask = self._mask(layer)
        if blocks:
            self._refit(layer, seen, blocks, mask)
            self.result.refitted += 1
        return seen

    def both(self, pair: pairs.Couple, work: float) -> None:
        """Refit both layers of a pair one after the other, then together."""
        for layer in pair.layers[:-1]:
            if layer.key not in self._seconds:
                self.one(layer)
        self._seconds.add(pair.second.key)
        steps = pairs.steps_within(pair, self._left(pair), work)
        seen = self.one(pair.second, pairs.most_rows(pair) if steps else None)
        if seen is None or not steps:
            return
        improved = pairs.improve(self._walk, pair, seen, self._left(pair), steps, self._method.seed)
        if improved is not None:
            for layer, new in zip(pair.layers, improved, strict=True):
                layer.store(new.weight, new.bias, self._names)
            self.result.pairs += 1

    def _left(self, pair: pairs.Couple) -> pairs.Left:
        first, second = (np.flatnonzero(~self._mask(layer)[0]) for layer in (pair.first, pair.second))
        return pairs.Left(first, second)

    def _shift(self, layer: Linear, seen: Observed, mask: Array) -> None:
        """Zero the columns that go; the bias makes up for what they gave on average."""
        weight = layer.weight()
        weight.transpose(0, 2, 1)[mask] = 0
        means = np.einsum("gmk,gk->gm", weight, seen.inputs.mean(axis=2, dtype=np.float64)).reshape(-1)
        bias = seen.targets.mean(axis=1, dtype=np.float64) - means
        layer.store(weight, bias if layer.takes_bias else None, self._names)
        self.result.refitted += 1

    def _mask(self, layer: Linear) -> Array:
        return self._structure.gone_columns(layer.key, (layer.groups, layer.width), self.result.gone)

    def _is_nothing(self, layer: Linear) -> bool:
        """Whether it ends a branch that goes as a whole."""
        gone = self.result.gone
        return any(self._structure.goes_whole(number, gone) for number in self._structure.readers.get(layer.key, ()))

    def _own_groups(self, layer: Linear) -> list[int]:
        """Groups that lose units and that `layer` alone reads."""
        return [
            number
            for number in self._structure.readers.get(layer.key, ())
            if len(self.result.gone.get(number, ()))
            and all(reading.key == layer.key for reading in self._structure.readings[number])
        ]

    def _choose_again(self, layer: Linear, blocks: Mapping[int, Seen]) -> bool:
        """Choose anew what goes of the groups that this layer alone reads; whether there are any."""
        own = self._own_groups(layer)
        for number in own:
            readings = self._structure.readings[number]
            parts = [blocks[reading.block] for reading in readings]
            readers = [
                Reader(part.found, part.prior, reading.columns, part.weight)
                for part, reading in zip(parts, readings, strict=True)
            ]
            count = len(self.result.gone[number])
            fewest = len(readings[0].columns) - count
            self.result.gone[number] = eliminate(readers, fewest=fewest, at_once=step_share(parts)).order[:count]
        return bool(own)

    def _refit(self, layer: Linear, seen: Observed, blocks: Mapping[int, Seen], mask: Array) -> None:
        weight, bias = layer.weight(), _bias(layer)
        for block, known in blocks.items():
            channels = block_channels(layer, block)
            kept = np.flatnonzero(~mask[block])
            weight[block][:, mask[block]] = 0
            few = len(kept) == layer.width and seen.inputs.shape[2] < _ROWS_PER_COLUMN * layer.width
            if few or layer.width < _FEWEST_COLUMNS or not len(kept):
                bias[channels] = known.found.target_mean - weight[block] @ known.found.input_mean
                continue
            new = _fit(known, seen, block, channels, kept)
            weight[block][:, kept] = new.weight
            bias[channels] = new.bias
        layer.store(weight, bias if layer.takes_bias else None, self._names)


def _bias(layer: Linear) -> Array:
    bias = layer.bias()
    return np.zeros(layer.channels) if bias is None else np.array(bias)


def _needed(layer: Linear, seen: Observed, mask: Array) -> list[int]:
    """Blocks that lose columns, or whose inputs are no longer those of the original."""
    weight, bias = layer.weight(), _bias(layer)
    return [
        block
        for block in range(layer.groups)
        if mask[block].any() or not _is_right(weight[block], bias, seen, block_channels(layer, block), block)
    ]


def _is_right(weight: Array, bias: Array, seen: Observed, channels: slice, block: int) -> bool:
    """Whether the layer gives its targets already."""
    targets = seen.targets[channels]
    error = targets - (weight.astype(np.float32) @ seen.inputs[block] + bias[channels].astype(np.float32)[:, None])
    scale = float(np.mean(np.var(targets, axis=1))) + 1e-30
    return float(np.mean(error**2)) < _UNTOUCHED * scale


def _fit(known: Seen, seen: Observed, block: int, channels: slice, kept: Array) -> Layer:
    every = len(kept) == len(known.found.input_mean)
    found = known.found if every else known.found.selected(kept)
    prior = known.prior[:, kept]
    ridge = Ridge(found.covariance, found.input_mean)
    plain = ridge.solve(found.cross, found.target_mean, prior)
    activation = seen.activation
    if activation is None:
        return plain
    offset = None if seen.offset is None else seen.offset[channels]
    wanted = seen.targets[channels] if offset is None else seen.targets[channels] + offset
    return refit_through(
        ridge,
        seen.inputs[block] if every else seen.inputs[block][kept],
        wanted,
        prior,
        lambda prediction, z, _: flat_targets(prediction, z, activation.low, activation.high),
        offset=offset,
        start=plain,
        rounds=_ROUNDS,
    )
