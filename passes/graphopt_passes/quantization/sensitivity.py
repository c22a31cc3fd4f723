"""How much the quantization of each layer alone changes the outputs: leave one quantized, everything else in float.

A layer counts with its weight, its input and its result; weights are rounded to nearest, so that the figure says what
there is to repair. The mean error of each output is left out, since biases will take it up. All is computed as written,
in float: kernels of one processor have no part in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.walk import label
from graphopt.pipeline.evidence import Evidence
from graphopt.pricing import price
from graphopt.runtime.saturation import logits_of
from graphopt_passes.quantization.insertion import Recipe, insert
from graphopt_passes.quantization.placement import Layer, Placement
from graphopt_passes.quantization.speed import Place

_SAMPLES = 16
_CLASSES_RANK = 2
_WORK = 3e10
"""Multiply-accumulates of all trials together, some seconds: a bound on time would not repeat itself."""

_LEAST = 1e-12


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What one layer does to the outputs.

    Attributes:
        layer: what messages call it.
        key: the name of the value that it makes.
        noise: squared change of the outputs over their square, without the mean change, averaged over outputs.
        kl: divergence of the predicted distribution from the original's, in nats; None for what is no classifier.
    """

    layer: str
    key: str
    noise: float
    kl: float | None

    @property
    def harm(self) -> float:
        """What layers are compared by."""
        return self.noise if self.kl is None else self.kl

    def __str__(self) -> str:
        return f"{self.to_dict()['sqnr_db']:.1f} dB" if self.kl is None else f"KL {self.kl:.2g}"

    def to_dict(self) -> dict[str, Any]:
        """The figures as reports hold them."""
        sqnr = -10 * math.log10(max(self.noise, _LEAST))
        return {"layer": self.layer, "value": self.key, "sqnr_db": sqnr, "kl": self.kl}


def measure(
    model: ir.Model, place: Place, placement: Placement, recipe: Recipe, evidence: Evidence
) -> list[Sensitivity]:
    """The sensitivity of every layer of `placement`, the worst first.

    Args:
        model: the float model, not changed.
        place: places a copy of it as `placement` does.
        placement: of `model`.
        recipe: all layers rounded to nearest.
        evidence: samples to run on; a few of them are enough.
    """
    work = (price(model).macs or 1) * (len(placement.layers) + 1)
    few = evidence.subset(max(2, min(_SAMPLES, int(_WORK / work))))
    outputs = _Outputs(model, few)
    found = []
    for layer in placement.layers:
        copy = model.clone()
        placed = place(copy, ())
        alone = next(other for other in placed.layers if other.key == layer.key)
        insert(copy, copy.graph, _only(placed, alone), recipe)
        noise, kl = outputs.change(copy)
        found.append(Sensitivity(label(layer.node), layer.key, noise, kl))
    return sorted(found, key=lambda sensitivity: -sensitivity.harm)


def _only(placement: Placement, layer: Layer) -> Placement:
    """The part of `placement` that is `layer`, its input and its result."""
    found = Placement(layers=[layer])
    made = layer.node.outputs[0]
    for use in made.uses():
        if use.node in placement.absorbed:
            found.absorbed.add(use.node)
            made = use.node.outputs[0]
    for value in (layer.data, made):
        if value in placement.groups:
            found.groups.add(value)
    return found


class _Outputs:
    """The outputs of the original on some samples, to hold those of changed models against."""

    def __init__(self, model: ir.Model, evidence: Evidence) -> None:
        self._logits = logits_of(model)
        floats = [output for output in model.graph.outputs if output.dtype is not None]
        names = [
            output.name or "" for output in floats if output.dtype is not None and output.dtype.is_floating_point()
        ]
        self._names = [self._logits.get(name, name) for name in names]
        classes = [output for output in floats if output.name in names and len(output.shape or ()) == _CLASSES_RANK]
        self._classes = self._names[names.index(classes[0].name or "")] if len(classes) == 1 else None
        self._evidence = evidence
        self._batches = list(evidence.samples.batches())
        self._exact = self._run(model.clone())

    def change(self, changed: ir.Model) -> tuple[float, float | None]:
        """Noise over signal, and the divergence of the predicted distributions."""
        found = self._run(changed)
        ratios = [_noise(self._exact[name], found[name]) for name in self._names]
        kl = None
        if self._classes is not None:
            exact, scores = self._exact[self._classes], found[self._classes]
            is_sane = exact.shape[1] > 1 and np.isfinite(exact).all() and np.isfinite(scores).all()
            kl = _divergence(exact, scores) if is_sane else None
        return float(np.mean(ratios)) if ratios else 0.0, kl

    def _run(self, model: ir.Model) -> dict[str, npt.NDArray[np.float64]]:
        """The watched values of all samples; `model` gets them as outputs."""
        values = {output.name: output for node in model.graph for output in node.outputs}
        present = {output.name for output in model.graph.outputs}
        model.graph.outputs.extend(values[name] for name in dict.fromkeys(self._names) if name not in present)
        session = self._evidence.session(model, integer=False)
        runs = [(batch.count, session.run(batch.feeds)) for batch in self._batches]
        return {
            name: np.concatenate([np.atleast_1d(outputs[name])[:count].astype(np.float64) for count, outputs in runs])
            for name in self._names
        }


def _noise(exact: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> float:
    finite = np.isfinite(exact) & np.isfinite(found)  # masks are infinite
    exact, found = np.where(finite, exact, 0), np.where(finite, found, 0)
    difference, count, few = found - exact, len(exact), 1.0
    if count > 1:
        difference -= difference.mean(axis=0)
        few = count / (count - 1)  # the mean of few samples takes some of their noise along
    signal = float(np.square(exact).sum())
    return few * float(np.square(difference).sum()) / signal if signal else 0.0


def _divergence(exact: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> float:
    """Mean of KL(softmax(exact) || softmax(found)), in nats."""
    logs = [scores - np.logaddexp.reduce(scores, axis=1, keepdims=True) for scores in (exact, found)]
    return max(0.0, float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean()))


def worst(found: Sequence[Sensitivity], count: int) -> frozenset[str]:
    """Keys of the `count` layers that do most harm."""
    return frozenset(sensitivity.key for sensitivity in found[:count])
