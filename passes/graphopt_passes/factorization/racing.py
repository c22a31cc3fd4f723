"""What replacements gain on this machine: the original and a draft of the result take turns in onnxruntime.

A draft has the layers' replacements with plain fits, which are as fast as the final ones. Its kernels are timed layer by layer
against those of the original, and the whole models race, in processor time: what a layer loses in front of the next one, in
another memory layout say, shows only there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.dataflow import only_reader
from graphopt.analysis.extents import Extents
from graphopt.analysis.fusion import ACTIVATIONS
from graphopt.errors import TargetNotMetError
from graphopt.ir.surgery import FreshNames
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.kernel_times import KernelTimes
from graphopt.runtime.latency import Latency, summarize
from graphopt_passes.factorization.candidates import Candidate
from graphopt_passes.factorization.emission import emit
from graphopt_passes.factorization.schemes import Fits
from graphopt_passes.factorization.sites import Site, site_of
from graphopt_passes.factorization.units import TOGETHER, Proposal
from graphopt_passes.numerics.quadratic import Array, Quadratic
from graphopt_passes.reconstruction.stopwatch import CONFIDENCE, race
from graphopt_passes.reconstruction.transposed import layers_of

_SECONDS = 0.6
_ROUNDS = 6
_SMALLER = 0.75
"""MACs of a replacement over those of one that was not faster, below which it may be."""
_NUMBER = re.compile(r"#(\d+)#")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Measured time of a result against the original: of the whole model, and of each layer that is replaced, by its key."""

    whole: Latency
    layers: Mapping[str, Latency]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as reports hold it: time of the whole model as any pass reports it, and ratios by layer."""
        layers = {key: {"ratio": one.ratio, "interval": list(one.interval)} for key, one in self.layers.items()}
        return {**self.whole.to_dict(), "layers": layers}


@dataclasses.dataclass(frozen=True)
class Settled:
    """A choice that is not slower than the original, as far as the budget allows.

    Attributes:
        chosen: one candidate per layer.
        comparison: of the choice; None where nothing is replaced.
        slower: replacements that measured slower and were given up, and their times, by the layer's key.
    """

    chosen: dict[str, Candidate]
    comparison: Comparison | None
    slower: Mapping[str, tuple[Candidate, Latency]]


def settle(
    model: ir.Model,
    proposals: Mapping[str, Proposal],
    choose: Callable[[Mapping[str, Proposal]], dict[str, Candidate]],
    evidence: Evidence,
) -> Settled:
    """Choose, measure, and choose again without the replacements that gain nothing.

    Those are the ones whose own kernels take as long as before, and where there are none but the whole model is slower, the
    half that gains least. Of a layer that was tried, smaller replacements are still offered, where there are any.

    Args:
        model: the original, not changed.
        proposals: candidates of every layer, the first of which keeps it.
        choose: one candidate per layer, or TargetNotMetError; then the last choice stays.
        evidence: gives inputs, and the clock.
    """
    chosen, slower = choose(proposals), dict[str, tuple[Candidate, Latency]]()
    for round_ in range(_ROUNDS):
        replaced = {key: one for key, one in chosen.items() if one.scheme not in (*TOGETHER, "keep")}
        if not replaced:
            return Settled(chosen, None, slower)
        found = compare(model, replaced, evidence)
        losing = _losing(found)
        if not losing or round_ == _ROUNDS - 1:
            break
        offered = {key: _without(one, replaced[key]) if key in losing else one for key, one in proposals.items()}
        try:
            again = choose(offered)
        except TargetNotMetError:
            break
        slower |= {key: (replaced[key], found.layers[key]) for key in losing}
        chosen, proposals = again, offered
    return Settled(chosen, found, slower)


def _losing(found: Comparison) -> set[str]:
    losing = {key for key, one in found.layers.items() if one.ratio >= 1}
    if losing or found.whole.ratio < 1:
        return losing
    ranked = sorted(found.layers, key=lambda key: found.layers[key].ratio)
    return set(ranked[len(ranked) // 2 :])


def _without(proposal: Proposal, tried: Candidate) -> Proposal:
    keep, *others = proposal.candidates
    return dataclasses.replace(
        proposal, candidates=[keep, *(one for one in others if one.macs < _SMALLER * tried.macs)]
    )


def compare(model: ir.Model, replaced: Mapping[str, Candidate], evidence: Evidence) -> Comparison:
    """Time `model` with some layers replaced, by their keys, against `model` as it is, which is not changed."""

    def measured() -> Comparison:
        plain, draft = _numbered(model, {}), _numbered(model, replaced)
        whole = race(plain, draft, evidence)
        before, after = map(_by_number, evidence.kernel_times([plain, draft], seconds=_SECONDS))
        layers = {}
        for key, numbers in _stretches(model, replaced).items():
            pairs = zip(_total(before, numbers), _total(after, numbers), strict=True)
            layers[key] = summarize([(max(old, 1e-6), new) for old, new in pairs], evidence.threads, CONFIDENCE)
        return Comparison(whole, layers)

    return evidence.remember(("replacements", frozenset(replaced.items())), model, measured)


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
    found: dict[int, Array] = {}
    for name, seconds in times.items():
        match = _NUMBER.search(name)
        if match is not None:
            number = int(match[1])
            found[number] = found[number] + seconds if number in found else seconds
    return found


def _total(times: Mapping[int, Array], numbers: list[int]) -> Array:
    rounds = next(iter(times.values()), np.zeros(1))
    total: Array = sum((times[number] for number in numbers if number in times), np.zeros_like(rounds))
    return total
