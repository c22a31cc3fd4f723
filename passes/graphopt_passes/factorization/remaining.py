"""How much of the harm of a replaced layer remains when the layers behind it have been refitted.

Harm is measured with all other layers as they are. In the end all are refitted towards the original (`sequential`), and those
behind a replacement make up for much of it: of a first layer's harm a tenth may remain, of the last layer's all. One
replacement per layer is put into the network alone, the layers behind it are refitted on most of the samples, and its harm is
measured before and after on the others: on its own samples a refit makes up for more. Other replacements of the layer are
taken to keep the same share of theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import FreshNames
from graphopt.pipeline.evidence import Evidence
from graphopt.pricing import price
from graphopt_passes.factorization import sequential
from graphopt_passes.factorization.candidates import Candidate
from graphopt_passes.factorization.units import Proposal
from graphopt_passes.numerics.quadratic import Array
from graphopt_passes.reconstruction.harm import divergence, watched
from graphopt_passes.reconstruction.transposed import layers_of
from graphopt_passes.reconstruction.walk import Walk

_ROWS = 16_000
"""Of a layer that are looked at."""
_MOST_WORK = 2e12
"""Multiply-accumulates that all refits may take."""
_FEWEST, _MOST = 4, 8
"""Layers whose shares are measured; with fewer, those of the others cannot be told."""
_LEAST_SAMPLES = 32
"""With fewer, those held back say too little."""
_TYPICAL = 0.02
"""Harm near which replacements are measured: large against rounding, small against what the network can bear."""


@dataclasses.dataclass(frozen=True)
class Replacement:
    """The dense map that a layer is replaced by, and its harm.

    Attributes:
        weight: (G, O, K).
        bias: (C,); None where it stays.
        harm: of this replacement alone.
    """

    weight: Array
    bias: Array | None
    harm: float

    @property
    def oddity(self) -> float:
        """How far its harm is from the typical one."""
        return abs(float(np.log(max(self.harm, 1e-12) / _TYPICAL)))


def is_measurable(model: ir.Model, evidence: Evidence) -> bool:
    """Whether there are samples enough to hold some back, and refits are little work."""
    return len(evidence.samples) >= _LEAST_SAMPLES and _FEWEST * _work(model, evidence) <= _MOST_WORK


def shares(
    model: ir.Model,
    replacements: Mapping[str, Replacement],
    refitted: Collection[str],
    evidence: Evidence,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """The share of harm, above 0 and at most 1, that remains of each layer's, by its key.

    At most `_MOST` layers are measured, evenly spread; the shares of the others lie between theirs on a line in logarithms.

    Args:
        model: the original, which `is_measurable`.
        replacements: one per layer, by its key.
        refitted: keys of the layers that will be.
        evidence: calibration samples.
        seed: of the rows.
    """
    keys = [layer.key for layer in layers_of(model.graph) if layer.key in replacements]
    measured = _spread(len(keys), min(_MOST, int(_MOST_WORK / _work(model, evidence))))
    if not keys:
        return {}
    trial, logs = _Trial(model, refitted, evidence, seed), []
    for index in measured:
        before, after = trial.harms(keys[index], replacements[keys[index]])
        known = np.isfinite(before) and np.isfinite(after) and before > 0
        logs.append(float(np.log(np.clip(after / before, 1e-3, 1))) if known else 0.0)
    lines = np.interp(np.arange(len(keys)), measured, logs)
    return {key: float(np.exp(one)) for key, one in zip(keys, lines, strict=True)}


def after_refits(proposal: Proposal, share: float) -> Proposal:
    """A proposal with the `share` of its candidates' harm that remains."""

    def less(candidates: Sequence[Candidate]) -> list[Candidate]:
        return [dataclasses.replace(one, harm=share * one.harm) for one in candidates]

    return dataclasses.replace(proposal, candidates=less(proposal.candidates), shared=less(proposal.shared))


def _spread(layers: int, most: int) -> list[int]:
    """Numbers of at most `most` of so many layers, the first and the last among them."""
    return sorted({round(one) for one in np.linspace(0, layers - 1, min(layers, most))})


def _work(model: ir.Model, evidence: Evidence) -> float:
    """Multiply-accumulates of refitting half of the layers once."""
    samples = len(evidence.samples)
    moments = sum(_ROWS * layer.groups * layer.width**2 for layer in layers_of(model.graph))
    return samples * 2 * price(model).macs + moments / 2


class _Trial:
    """A network with one layer replaced, before and after the layers behind it are refitted."""

    def __init__(self, model: ir.Model, refitted: Collection[str], evidence: Evidence, seed: int) -> None:
        self._model = model
        self._refitted = refitted
        self._evidence, self._held = evidence.split(seed)
        self._seed = seed
        self._names = watched(model)
        self._exact = self._outputs(model)

    def harms(self, key: str, replacement: Replacement) -> tuple[float, float]:
        """Harm of a replacement alone, and what remains of it."""
        changed = self._model.clone()
        names, layers = FreshNames(changed), layers_of(changed.graph)
        place = next(index for index, layer in enumerate(layers) if layer.key == key)
        behind = [layer for layer in layers[place + 1 :] if layer.key in self._refitted]
        layers[place].store(replacement.weight, replacement.bias, names)
        before = self._harm(changed)
        with Walk(self._model, changed, self._evidence, rows=_ROWS, seed=self._seed) as walk:
            walk.advance(key)
            sequential.apply(walk, behind, {}, names)
        return before, self._harm(changed)

    def _harm(self, model: ir.Model) -> float:
        pairs = zip(self._exact, self._outputs(model), strict=True)
        found = np.concatenate([divergence(exact, other) for exact, other in pairs])
        return float(found.sum()) / len(self._held.samples)

    def _outputs(self, model: ir.Model) -> list[Array]:
        with self._held.stepper(model) as stepper:
            return [seen.values[name] for seen in stepper.stream(self._names) for name in self._names]
