"""What replacements gain on this machine: the original and a draft of the result take turns in onnxruntime.

A draft has the layers' replacements with plain fits, which are as fast as the final ones. Its kernels are timed layer by layer
against those of the original, and the whole models race, in processor time: what a layer loses in front of the next one, in
another memory layout say, shows only there.

The profiler spends about a microsecond of its own on every kernel, and cuts off to whole ones: two short kernels look slower
than one that takes as long. Where a short layer comes out no faster, the original races a draft with this replacement alone,
and what that changes in the whole is held against the time of the layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.dataflow import only_reader
from graphopt.analysis.extents import Extents
from graphopt.analysis.fusion import ACTIVATIONS
from graphopt.ir.surgery import FreshNames
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.kernel_times import KernelTimes
from graphopt.runtime.latency import Latency, summarize
from graphopt_passes.factorization.candidates import Candidate
from graphopt_passes.factorization.emission import emit
from graphopt_passes.factorization.schemes import Fits
from graphopt_passes.factorization.sites import Site, site_of
from graphopt_passes.numerics.quadratic import Array, Quadratic
from graphopt_passes.reconstruction.stopwatch import CONFIDENCE, by_number, race
from graphopt_passes.reconstruction.transposed import layers_of

_SECONDS = 0.6
_SHORT = 5e-5
"""Seconds of a layer that the profiler's own time may decide about: a layer of 50 microseconds looks slower by 2 %."""
_VISIBLE = 0.01
"""Share of the whole time that a layer must have for races to tell its replacements apart."""
_RACES = 5
"""Races, each with sessions of its own, until one replacement is known to be faster or slower, or as fast."""
_NARROW = 0.1
"""Width of the interval, over a layer's own time, from which a replacement counts as being as fast."""
EQUAL = 1e-6
"""Differences of ratios that are rounding: times are sums of whole microseconds."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Measured time of a result against the original: of the whole model, and of each layer that is replaced, by its key."""

    whole: Latency
    layers: Mapping[str, Latency]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as reports hold it: time of the whole model as any pass reports it, and ratios by layer."""
        layers = {key: {"ratio": one.ratio, "interval": list(one.interval)} for key, one in self.layers.items()}
        return {**self.whole.to_dict(), "layers": layers}


def compare(model: ir.Model, replaced: Mapping[str, Candidate], evidence: Evidence) -> Comparison:
    """Time `model` with some layers replaced, by their keys, against `model` as it is, which is not changed."""

    def measured() -> Comparison:
        plain, draft = _numbered(model, {}), _numbered(model, replaced)
        whole = race(plain, draft, evidence)
        before, after = map(_by_number, evidence.kernel_times([plain, draft], seconds=_SECONDS))
        layers = {}
        for key, numbers in _stretches(model, replaced).items():
            pairs = zip(_total(before, numbers), _total(after, numbers), strict=True)
            found = summarize([(max(old, 1e-6), new) for old, new in pairs], evidence.threads, CONFIDENCE)
            if _is_doubtful(found, whole):
                found = _alone(model, key, replaced[key], found, evidence)
            layers[key] = found
        return Comparison(whole, layers)

    return evidence.remember(("replacements", frozenset(replaced.items())), model, measured)


def _is_doubtful(layer: Latency, whole: Latency) -> bool:
    """Whether a layer came out no faster by its kernels, but is too short for them to tell, and not too short for races."""
    short = layer.before_ms < 1e3 * _SHORT
    return layer.ratio > 1 - EQUAL and short and layer.before_ms > _VISIBLE * whole.before_ms


def _alone(model: ir.Model, key: str, candidate: Candidate, kernels: Latency, evidence: Evidence) -> Latency:
    """Time of one replacement over the layer's own, `kernels.before_ms`, from what it alone changes in the whole model."""

    def measured() -> Latency:
        plain, draft = _numbered(model, {}), _numbered(model, {key: candidate})
        rows: list[tuple[float, ...]] = []
        for _ in range(_RACES):
            rows += evidence.race([plain, draft], seconds=_SECONDS)
            found = summarize([(row[0], row[1]) for row in rows], evidence.threads, CONFIDENCE)
            low, high = found.interval
            if not low <= 1 <= high or high - low < _NARROW * kernels.before_ms / found.before_ms:
                break
        return found

    found = evidence.remember(("replacement", key, candidate), model, measured)
    share = kernels.before_ms / found.before_ms
    ratio, low, high = (max(0.0, 1 + (one - 1) / share) for one in (found.ratio, *found.interval))
    after_ms = kernels.before_ms * ratio
    return dataclasses.replace(found, before_ms=kernels.before_ms, after_ms=after_ms, ratio=ratio, interval=(low, high))


def _numbered(model: ir.Model, replaced: Mapping[str, Candidate]) -> ir.Model:
    """A copy with the replacements, in which nodes and values are called by the number of the node that they stand for."""
    copy = model.clone()
    numbers = {node: number for number, node in enumerate(copy.graph)}
    names = FreshNames(copy)
    for site in _sites(copy, replaced):
        candidate, number = replaced[site.layer.key], numbers[site.layer.node]
        fits = Fits(site, [Quadratic.of(one) for one in site.layer.weight()])
        numbers |= dict.fromkeys(emit(site, fits.fit(candidate.scheme, candidate.amount), names), number)
    for index, node in enumerate(copy.graph):
        node.name = f"#{numbers[node]}#{index}"
        for place, output in enumerate(node.outputs):
            output.name = f"{node.name}:{place}"
    return copy


def _sites(model: ir.Model, replaced: Mapping[str, Candidate]) -> list[Site]:
    extents = Extents(model)
    found = [site_of(one, extents) for one in layers_of(model.graph) if one.key in replaced]
    return [one for one in found if not isinstance(one, str)]


def _stretches(model: ir.Model, replaced: Mapping[str, Candidate]) -> dict[str, list[int]]:
    """Per layer the numbers of its node, and of the activation and sum behind it, which its kernel may take in or not."""
    numbers = {node: number for number, node in enumerate(model.graph)}
    found = {}
    for site in _sites(model, replaced):
        nodes = [site.layer.node]
        for _ in range(2):
            reader = only_reader(nodes[-1].outputs[0])
            if reader is None or reader not in numbers or reader.op_type not in (*ACTIVATIONS, "Add"):
                break
            nodes.append(reader)
        found[site.layer.key] = [numbers[node] for node in nodes]
    return found


def _by_number(times: KernelTimes) -> dict[int, Array]:
    return {number: np.sum(kernels, axis=0) for number, kernels in by_number(times).items()}


def _total(times: Mapping[int, Array], numbers: list[int]) -> Array:
    rounds = next(iter(times.values()), np.zeros(1))
    total: Array = sum((times[number] for number in numbers if number in times), np.zeros_like(rounds))
    return total
