"""The harm of every width of every group, from rows of the layers that read it.

Each reading layer gives the moments of its inputs and targets; block elimination (numerics/elimination.py) removes unit
after unit from all readers of a group at once. The error of a layer counts relative to the energy of what leaves its
activation, summed over its channels, so that layers can be compared. At a few widths of each curve the refitted layers
are kept: with them the network can be run to see what this error does to its outputs (sensitivity.py).

Matrices are freed as soon as the last group that needs them is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt_passes.numerics.elimination import Elimination, Reader, eliminate
from graphopt_passes.numerics.least_squares import Layer, Moments, moments, refit
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.pruning.structure import Reading, Structure
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.transposed import layers_of
from graphopt_passes.reconstruction.walk import Observed, Walk

_PROBES = (0.75, 0.4)
"""Shares of the units at which refitted layers are kept."""
_MANY_COLUMNS = 1500
_AT_ONCE = 0.03
"""Above so many columns units go in groups of this share of what is left: each step costs the whole matrix."""
_STILL = 1e-10
"""A column whose variance is below this share of the largest one never varies."""


@dataclass(frozen=True)
class Probe:
    """A group at one width.

    Attributes:
        width: units kept.
        error: the curve at this width.
        layers: by key and block, the readers refitted to it; all columns, zeros where units went.
    """

    width: int
    error: float
    layers: Mapping[tuple[str, int], Layer]


@dataclass(frozen=True)
class Curve:
    """A group: in which order its units go, what that does, and some widths to try."""

    elimination: Elimination
    probes: Sequence[Probe]


@dataclass(frozen=True)
class Seen:
    """One block of a layer on its rows.

    Attributes:
        found: moments of its inputs and targets.
        prior: (M, K) its weights, zero where an input never varies.
        weight: what one unit of its squared error counts.
    """

    found: Moments
    prior: Array
    weight: float


def seen_block(layer: Linear, seen: Observed, block: int) -> Seen:
    """One group of channels of a layer."""
    channels = block_channels(layer, block)
    found = moments(seen.inputs[block], seen.targets[channels])
    return Seen(found, _prior(layer.weight()[block], found), 1.0 / _energy(seen, channels))


def block_channels(layer: Linear, block: int) -> slice:
    """The output channels of one group of channels."""
    count = layer.channels // layer.groups
    return slice(block * count, (block + 1) * count)


def _prior(weight: Array, found: Moments) -> Array:
    """W0 with zeros where an input never varies: such an input is as good as a bias, and its unit must cost nothing."""
    variance = np.diag(found.covariance)
    return np.where(variance > _STILL * variance.max(initial=0.0), weight, 0.0)


def _energy(seen: Observed, channels: slice) -> float:
    """Σ over `channels` of E[r(z)²], z what the activation r gets; the variance where nothing is known to follow."""
    z = seen.targets[channels]
    if seen.activation is None:
        return max(float(np.sum(np.var(z, axis=1, dtype=np.float64))), 1e-30)
    z = z if seen.offset is None else z + seen.offset[channels]
    return max(float(np.sum(np.mean(seen.activation.apply(z) ** 2, axis=1, dtype=np.float64))), 1e-30)


def curves(walk: Walk, model: ir.Model, structure: Structure) -> dict[int, Curve]:
    """The curves of all groups whose readers can be seen.

    Args:
        walk: at its start; it is led to the end. Its compressed network is `model`.
        model: whose layers are looked at.
        structure: of `model`.
    """
    waiting = {number for number in range(len(structure.groups)) if structure.is_seen(number)}
    known: dict[tuple[str, int], Seen] = {}
    result: dict[int, Curve] = {}
    for layer in layers_of(model.graph):
        wanted = [number for number in structure.readers.get(layer.key, ()) if number in waiting]
        if wanted:
            seen = walk.observe(layer)
            blocks = {
                reading.block for number in wanted for reading in structure.readings[number] if reading.key == layer.key
            }
            for block in sorted(blocks):
                known[layer.key, block] = seen_block(layer, seen, block)
            del seen
        walk.advance(layer.key)
        for number in wanted:
            readings = structure.readings[number]
            if all((reading.key, reading.block) in known for reading in readings):
                result[number] = _curve(readings, known, whole=number in structure.branches)
                waiting.discard(number)
        needed = {(reading.key, reading.block) for number in waiting for reading in structure.readings[number]}
        for name in [name for name in known if name not in needed]:
            del known[name]
    return result


def _curve(readings: Sequence[Reading], known: Mapping[tuple[str, int], Seen], *, whole: bool) -> Curve:
    """`whole` says that all units may go, and what the readers give with them."""
    parts = [known[reading.key, reading.block] for reading in readings]
    readers = [
        Reader(part.found, part.prior, reading.columns, part.weight)
        for part, reading in zip(parts, readings, strict=True)
    ]
    found = eliminate(readers, fewest=0 if whole else 1, at_once=step_share(parts))
    units = len(readings[0].columns)
    probes: list[Probe] = []
    for share in _PROBES:
        width = min(max(1, round(share * units)), units - 1)
        if width < 1 or any(probe.width == width for probe in probes):
            continue
        removed = found.order[: units - width]
        layers = {
            (reading.key, reading.block): without(part.found, part.prior, reading.columns[removed].reshape(-1))
            for part, reading in zip(parts, readings, strict=True)
        }
        probes.append(Probe(width, float(found.errors[units - width]), layers))
    if whole:
        nothing = {
            (reading.key, reading.block): Layer(np.zeros_like(part.prior), np.zeros(len(part.prior)))
            for part, reading in zip(parts, readings, strict=True)
        }
        probes.append(Probe(0, float(found.errors[units]), nothing))
    return Curve(found, probes)


def step_share(parts: Sequence[Seen]) -> float:
    """`at_once` for matrices of this size."""
    widest = max(len(part.found.covariance) for part in parts)
    return _AT_ONCE if widest > _MANY_COLUMNS else 0.0


def without(found: Moments, prior: Array, columns: Array) -> Layer:
    """The least-squares fit with zeros in `columns`."""
    kept = np.setdiff1d(np.arange(prior.shape[1]), columns)
    if not len(kept):
        return Layer(np.zeros_like(prior), found.target_mean)
    layer = refit(found.selected(kept), prior[:, kept])
    weight = np.zeros_like(prior)
    weight[:, kept] = layer.weight
    return Layer(weight, layer.bias)
