"""Ranges of activations: which statistics are asked for, and the quantizer that each group of values gets.

A group's numbers come from the values that fill it, not from those that move its numbers around: of a Conv -> MaxPool ->
Reshape chain the Conv's output is looked at, of a Concat its inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.errors import OptionError
from graphopt.runtime.requests import Histogram, HistogramResult, Results
from graphopt_passes.numerics import ranges
from graphopt_passes.numerics.quantizer import Array, Grid, parameters
from graphopt_passes.quantization import visible
from graphopt_passes.quantization.groups import Groups
from graphopt_passes.quantization.insertion import Quantizer
from graphopt_passes.quantization.placement import Placement

METHODS = ranges.METHODS

_FEW = 20_000
"""Elements of which none is clipped: the ends of so few say too little about what will be seen."""
_MARGIN = 4.0
"""Over the root of their number, the part by which the range of so few is made wider: others will pass their ends."""
_NEARLY = 0.99
"""A scale is made smaller, so that a range is covered from inside, down to this part of it."""


def grid_of(dtype: ir.DataType, *, symmetric: bool) -> Grid:
    """The integers of an element type."""
    return Grid(int(dtype.min), int(dtype.max), symmetric=symmetric)


def requests(placement: Placement) -> list[Histogram]:
    """What has to be known to choose all ranges."""
    return [Histogram(name) for group in sources(placement).values() for name in group]


def sources(placement: Placement) -> Mapping[ir.Value, list[str]]:
    """Per group, under its root, the names of the values that fill it."""
    return {
        root: list(_names(members, placement.groups, placement)) for root, members in placement.groups.members().items()
    }


def _names(members: Iterable[ir.Value], groups: Groups, placement: Placement) -> Iterator[str]:
    members = list(members)
    filling = [value for value in members if not _moved(value, groups, placement)]
    for value in filling or members:
        yield value.name or ""


def _moved(value: ir.Value, groups: Groups, placement: Placement) -> bool:
    """Whether an integer node makes `value` from numbers of the same group alone."""
    producer = value.producer()
    form = None if producer is None else placement.others.get(producer)
    if producer is None or form is None:
        return False
    reads = [producer.inputs[index] for index in form.data]
    return all(read in groups and groups.root(read) is groups.root(value) for read in reads if read is not None)


def distributions(placement: Placement, results: Results) -> dict[ir.Value, ranges.Distribution]:
    """The numbers of each group, under its root, as far as its readers tell them apart."""
    members = placement.groups.members()
    return {
        root: distribution(names, results).within(*visible.bounds(members[root], names, placement))
        for root, names in sources(placement).items()
    }


def distribution(names: Iterable[str], results: Results) -> ranges.Distribution:
    """All numbers of some values, as one histogram."""
    found = [results[Histogram(name)] for name in names]
    if len(found) == 1:
        return _distribution(found[0])
    width = max((result.high - result.low) / len(result.counts) for result in found)
    low, high = min(result.low for result in found), max(result.high for result in found)
    bins = max(1, round((high - low) / width))
    counts = np.zeros(bins)
    for result in found:
        index = np.clip(((result.centers - low) / (high - low) * bins).astype(int), 0, bins - 1)
        np.add.at(counts, index, result.counts)
    bounds = min(result.minimum for result in found), max(result.maximum for result in found)
    return ranges.Distribution(counts, low, high, *bounds)


def _distribution(result: HistogramResult) -> ranges.Distribution:
    return ranges.Distribution(result.counts, result.low, result.high, result.minimum, result.maximum)


def choose(found: ranges.Distribution, method: str, numbers: Grid) -> tuple[float, float]:
    """The range that `method` covers of a distribution, no wider than that and 0. Raises OptionError for another method."""
    if method not in METHODS:
        raise OptionError(f"quantize: unknown way to choose ranges '{method}' (known: {', '.join(METHODS)})")
    count = float(np.sum(found.counts))
    if count < _FEW:
        return _widened(found, 1 + _MARGIN / math.sqrt(max(count, 1)), numbers)
    low, high = METHODS[method](found, numbers)
    return max(low, min(found.minimum, 0.0)), min(high, max(found.maximum, 0.0))


def _widened(found: ranges.Distribution, factor: float, numbers: Grid) -> tuple[float, float]:
    """The range of all elements and some more, but not beyond what there can be, where it ends at a step."""
    least, most = found.limits
    low, high = (max(found.bounds[0] * factor, min(least, 0.0)), min(found.bounds[1] * factor, max(most, 0.0)))
    steps = -low / (high - low) * numbers.steps if high > low else 0.0
    if low == least and high < most and steps >= 1:
        high = -low * (numbers.steps / math.floor(steps) - 1)
    return low, high


def quantizer(low: float, high: float, dtype: ir.DataType, *, symmetric: bool) -> Quantizer:
    """A quantizer that covers [low, high]; unless it is symmetric, from inside where that costs next to nothing.

    The zero point and a float32 scale are rounded, and a Clip is only absorbed by a range that lies inside of its own.
    """
    numbers = grid_of(dtype, symmetric=symmetric)
    scale, zero_point = parameters(low, high, numbers)
    if not symmetric:
        zero = int(zero_point)
        for steps, bound in ((numbers.high - zero, high), (zero - numbers.low, -low)):
            scale = _within(scale, steps, np.float32(max(bound, 0.0)))
    return Quantizer(float(scale), int(zero_point), dtype)


def _within(scale: Array, steps: int, bound: np.float32) -> Array:
    """`scale`, so small that `steps` of it do not exceed `bound`; as it is where that would take more than a percent."""
    smaller = scale
    while np.float32(steps) * smaller > bound:
        smaller = np.nextafter(np.minimum(smaller, np.float32(bound / steps)), np.float32(0))
    return smaller if smaller >= _NEARLY * scale else scale


def by_method(
    distributions: Mapping[ir.Value, ranges.Distribution], dtype: ir.DataType, *, symmetric: bool, method: str
) -> dict[ir.Value, Quantizer]:
    """A quantizer for every group, under its root, whose range `method` chooses."""
    numbers = grid_of(dtype, symmetric=symmetric)
    return {
        root: quantizer(*choose(found, method, numbers), dtype, symmetric=symmetric)
        for root, found in distributions.items()
    }


def by_name(placement: Placement, quantizers: Mapping[ir.Value, Quantizer]) -> dict[str, Quantizer]:
    """The quantizer of every quantized value: the members of a group have the same."""
    return {
        value.name or "": quantizers[root] for root, members in placement.groups.members().items() for value in members
    }
