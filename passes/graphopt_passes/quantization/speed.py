"""Where integers are slower than float on this machine: found by measuring, and left in float (`prefer=fastest`).

Every kernel of the float and of the integer model is timed, and the fastest share-out of the nodes follows (`borders`).
What the borders between float and integers cost is not known before there are any: a model is made of each share-out
and timed, and the next one knows better. In the end whole models race (`share_outs`): all on integers, the best
share-outs, and only those of the first's regions that are faster in float beyond doubt for themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import onnx_ir as ir

from graphopt.pipeline.evidence import Evidence
from graphopt_passes.quantization import layers
from graphopt_passes.quantization.borders import Problem, Region, numbered
from graphopt_passes.quantization.insertion import Quantizer, Recipe, insert
from graphopt_passes.quantization.islands import keep_float
from graphopt_passes.quantization.placement import Placement
from graphopt_passes.quantization.share_outs import CONFIDENCE, Choice, ShareOut, best
from graphopt_passes.quantization.targets import Target

_PRICES = ((1, 1), (1, 1), (0.5, 1), (0.25, 1), (1, 0.85), (2, 1), (4, 1), (1, 1.1), (2, 1.25))
"""What borders and integers are taken to cost, in turn, times what is known of them: first to learn more, then for larger
regions, then with all in float that is hardly slower there. Times are off by some percent: prices on either side are tried."""
_MOST = 5
"""Share-outs that race, the fastest by the times of their kernels."""
_SECONDS = 0.5
"""For the profiles of two models."""

Place = Callable[[ir.Model, Collection[str]], Placement]
"""Places a copy of the model, with the nodes in float that make the values named."""


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
        self.zero_point = 0 if target.symmetric else int(dtype.min)
        self.dtype = dtype
        self.problem = Problem(model, place(model, ()))

    def run(self) -> Choice:
        problem, times = self.problem, self.evidence.kernel_times
        plain, integer = numbered(self.model.clone()), self._draft(frozenset())
        in_float, on_integers = times([plain, integer], seconds=_SECONDS)
        problem.learn(in_float, on_integers)
        tried: dict[frozenset[int], tuple[float, tuple[Region, ...]]] = {}
        for border, handicap in _PRICES:
            floats = problem.cut(border, handicap)
            if not floats or floats in tried:
                continue
            on_integers, mixed = times([integer, self._draft(self._names(floats))], seconds=_SECONDS)
            problem.learn_mixed(frozenset(), on_integers)
            problem.learn_mixed(floats, mixed)
            ratio = float(np.median(sum(mixed.values()) / sum(on_integers.values())))
            tried[floats] = ratio, problem.regions(floats, on_integers, mixed, CONFIDENCE)
        ranked = [regions for ratio, regions in sorted(tried.values(), key=lambda found: found[0]) if ratio < 1]
        sure = [tuple(region for region in regions if region.interval[0] > 1) for regions in ranked[:1]]
        share_outs = [self._share_out(found) for found in dict.fromkeys((*ranked[:_MOST], *sure)) if found]
        models = [plain, integer, *(self._draft(share_out.floats) for share_out in share_outs)]
        everything = frozenset(output.name or "" for node in problem.movable() for output in node.outputs)
        return best(models, share_outs, everything, self.evidence)

    def _share_out(self, regions: tuple[Region, ...]) -> ShareOut:
        said = tuple((str(region), region.why) for region in regions)
        return ShareOut(self._names(self.problem.number[node] for region in regions for node in region.nodes), said)

    def _names(self, floats: Iterable[int]) -> frozenset[str]:
        return frozenset(self.problem.nodes[number].outputs[0].name or "" for number in floats)

    def _draft(self, floats: frozenset[str]) -> ir.Model:
        """The quantized model with plain numbers, which is as fast as the final one."""
        copy = self.model.clone()
        originals = tuple(copy.graph)
        placement = self.place(copy, floats)
        values = self._plain(placement)
        rounded = {
            layer.key: layers.nearest(layer, self.target, values[layer.data.name or ""], biased=True)
            for layer in placement.layers
        }
        insert(copy, copy.graph, placement, Recipe(values, rounded))
        if self.target.quantizes_floats:
            keep_float(copy, copy.graph)
        return numbered(copy, originals)

    def _plain(self, placement: Placement) -> dict[str, Quantizer]:
        """Quantizers by the name of the value: ranges within that of any activation, so that these are absorbed.

        Each group has a scale of its own, for onnxruntime saves itself conversions between those that are the same.
        """
        groups = placement.groups.members().values()
        return {
            value.name or "": Quantizer(1 / (256 + number), self.zero_point, self.dtype)
            for number, members in enumerate(groups)
            for value in members
        }
