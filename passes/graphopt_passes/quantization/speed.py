"""Where integers are slower than float on this machine: found by measuring, and left in float (`prefer=fastest`).

Every kernel of the float and of the integer model is timed, and the fastest share-out of the nodes follows (`borders`).
What the borders between float and integers cost is not known before there are any: a model is made of each share-out
and timed, and the next one knows better. In the end whole models race, in processor time: all on integers, the best
share-out, and only those of its regions that are faster in float beyond doubt for themselves. Something is reverted
only where that makes the whole model faster beyond doubt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.latency import Latency, summarize
from graphopt_passes.quantization import layers
from graphopt_passes.quantization.borders import Problem, Region, numbered
from graphopt_passes.quantization.insertion import Quantizer, Recipe, insert
from graphopt_passes.quantization.islands import keep_float
from graphopt_passes.quantization.placement import Placement
from graphopt_passes.quantization.targets import Target

CONFIDENCE = 0.9
_PRICES = (1, 1, 1, 2, 4)
"""What borders are taken to cost, in turn, times what is known of them: first to learn more, then for larger regions."""
_MOST = 3
"""Share-outs that race, the fastest by the times of their kernels."""
_ALIKE = 1.02
_SECONDS = 0.6
WORTH = 0.97
"""Integers save memory as well: a part of the time that is saved must be worth giving them up, unless they are slower than
float as a whole."""

Place = Callable[[ir.Model, Collection[str]], Placement]
"""Places a copy of the model, with the nodes in float that make the values named."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What runs in float to be fast.

    Attributes:
        floats: names of the values that the reverted nodes make.
        regions: what was said of each reverted region: place, and why.
        against_float: time of the model as it is chosen, against float.
        against_integer: against the model with everything on integers; None where nothing is reverted.
    """

    floats: frozenset[str]
    regions: tuple[tuple[str, str], ...]
    against_float: Latency
    against_integer: Latency | None

    def to_dict(self) -> dict[str, Any]:
        """The choice as reports hold it."""
        return {
            "reverted": sorted(self.floats),
            "regions": [{"where": where, "why": why} for where, why in self.regions],
            "against_float": self.against_float.to_dict(),
            "against_integer": None if self.against_integer is None else self.against_integer.to_dict(),
        }


def fastest(model: ir.Model, place: Place, target: Target, dtype: ir.DataType, evidence: Evidence) -> Choice:
    """Find what is to stay float in `model`, a float model that is not changed.

    Args:
        model: as it will be quantized.
        place: decides what runs on integers in a copy.
        target: what the runtime can do; it must be the one at hand.
        dtype: element type of activations.
        evidence: gives inputs, and the clock.
    """
    return _Race(model, place, target, dtype, evidence).run()


class _Race:
    def __init__(self, model: ir.Model, place: Place, target: Target, dtype: ir.DataType, evidence: Evidence) -> None:
        self.model = model
        self.place = place
        self.target = target
        self.evidence = evidence
        # Ranges change no kernel's time; this one lies inside that of any activation, so that it is absorbed.
        self.quantizer = Quantizer(1 / 255, 0 if target.symmetric else int(dtype.min), dtype)
        self.problem = Problem(model, place(model, ()))

    def run(self) -> Choice:
        problem, times = self.problem, self.evidence.kernel_times
        plain, integer = numbered(self.model.clone()), self._draft(frozenset())
        in_float, on_integers = times([plain, integer], seconds=_SECONDS)
        problem.learn(in_float, on_integers)
        tried: dict[frozenset[int], tuple[float, tuple[Region, ...]]] = {}
        for price in _PRICES:
            floats = problem.cut(price)
            if not floats or floats in tried:
                continue
            on_integers, mixed = times([integer, self._draft(self._names(floats))], seconds=_SECONDS)
            problem.learn_mixed(floats, mixed)
            ratio = float(np.median(sum(mixed.values()) / sum(on_integers.values())))
            tried[floats] = ratio, problem.regions(floats, on_integers, mixed, CONFIDENCE)
        ranked = [regions for ratio, regions in sorted(tried.values(), key=lambda found: found[0]) if ratio < 1]
        sure = [tuple(region for region in regions if region.interval[0] > 1) for regions in ranked[:1]]
        return self._judged(plain, integer, [found for found in dict.fromkeys((*ranked[:_MOST], *sure)) if found])

    def _judged(self, plain: ir.Model, integer: ir.Model, candidates: Sequence[tuple[Region, ...]]) -> Choice:
        """What is as fast as the fastest of the candidates, the one with the most on integers.

        None counts that is not faster as a whole than with everything on integers, and clearly so if that beats float.
        """
        names = [self._names(self._numbers(regions)) for regions in candidates]
        rows = self.evidence.race([plain, integer, *map(self._draft, names)], seconds=_SECONDS * (1 + len(names)))

        def compared(first: int, second: int) -> Latency:
            return summarize([(row[first], row[second]) for row in rows], self.evidence.threads, CONFIDENCE)

        found = [Choice(frozenset(), (), compared(0, 1), None)]
        limit = 1.0 if found[0].against_float.interval[0] > 1 else WORTH
        for index, (regions, floats) in enumerate(zip(candidates, names, strict=True), start=2):
            against_integer = compared(1, index)
            if against_integer.interval[1] < limit:
                said = tuple((str(region), region.why) for region in regions)
                found.append(Choice(floats, said, compared(0, index), against_integer))
        best = min(choice.against_float.ratio for choice in found)
        close = [choice for choice in found if choice.against_float.ratio <= _ALIKE * best]
        return min(close, key=lambda choice: len(choice.floats))

    def _numbers(self, regions: Iterable[Region]) -> list[int]:
        return [self.problem.number[node] for region in regions for node in region.nodes]

    def _names(self, floats: Iterable[int]) -> frozenset[str]:
        return frozenset(self.problem.nodes[number].outputs[0].name or "" for number in floats)

    def _draft(self, floats: frozenset[str]) -> ir.Model:
        """The quantized model with plain numbers, which is as fast as the final one."""
        copy = self.model.clone()
        originals = tuple(copy.graph)
        placement = self.place(copy, floats)
        values = {value.name or "": self.quantizer for value in placement.groups}
        rounded = {
            layer.key: layers.nearest(layer, self.target, self.quantizer, biased=True) for layer in placement.layers
        }
        insert(copy, copy.graph, placement, Recipe(values, rounded))
        if self.target.quantizes_floats:
            keep_float(copy, copy.graph)
        return numbered(copy, originals)
