"""Choosing the range of every activation by what it does to the outputs.

Criteria on the tensor alone (squared error, divergence) do not know which of its elements matter. So the candidates of
each criterion are tried in the network: one group of values is quantized, everything else stays float, and a candidate
under which the outputs change clearly less takes the place of the first, the least squared error.

All groups are tried in one session. A quantizer is written out with its numbers as inputs of the model,

    y = (clip(round(x / s), low, high)) · s        low, high: the first and the last integer, less the zero point

and one that is off has a step so small that nothing is lost: 2^-22 of what the tensor holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import FreshNames
from graphopt.pipeline.evidence import Evidence
from graphopt.pricing import price
from graphopt_passes.numerics.quantizer import Grid
from graphopt_passes.quantization import calibration
from graphopt_passes.quantization.insertion import Quantizer
from graphopt_passes.quantization.placement import Placement

CANDIDATES = ("mse", "minmax", "percentile-99.99", "entropy")
"""Ways to choose a range, the one that counts where all do the same first."""

_CLEARLY = 0.9
"""Another candidate than the first is taken where it leaves this part of its error."""
_SAMPLES = 128
"""Fewer mislead: candidates whose clipped ends make up for each other on 32 samples of VWW lost 2 dB on others."""
_FEWEST = 16
"""On fewer nothing is tried, that cost SqueezeNet 0.3 dB on 2 samples, and FastestDet 2 dB on 12; and nothing is clipped:
with 8 samples (FastestDet 6) their smallest and largest numbers did better than the least squared error on held-out samples of
five networks of six, by 0.8 to 1.7 dB, and lost 0.5 dB on KWS."""
_OF_FEW = "minmax"
_WORK = 2e11
"""Multiply-accumulates that all trials together may take, some seconds: a bound on time would not repeat itself."""
_ALIKE = 0.02
_OFF = 2.0**-22


class _Switch(NamedTuple):
    """The inputs of one quantizer."""

    scale: str
    low: str
    high: str


def select(
    model: ir.Model,
    placement: Placement,
    distributions: Mapping[ir.Value, Any],
    evidence: Evidence,
    dtype: ir.DataType,
    *,
    symmetric: bool,
) -> dict[ir.Value, Quantizer]:
    """The best quantizer for every group, under its root.

    Args:
        model: the float model.
        placement: of `model`.
        distributions: of each group, under its root.
        evidence: samples to try on; a few of them are enough.
        dtype: element type of activations.
        symmetric: whether their zero point is 0.
    """
    grid = calibration.grid_of(dtype, symmetric=symmetric)
    if len(evidence.samples) < _FEWEST:
        return calibration.by_method(distributions, dtype, symmetric=symmetric, method=_OF_FEW)
    candidates = {
        root: _distinct([calibration.choose(found, method, grid) for method in CANDIDATES])
        for root, found in distributions.items()
    }
    quantizers = {
        root: [calibration.quantizer(low, high, dtype, symmetric=symmetric) for low, high in ranges]
        for root, ranges in candidates.items()
    }
    open_questions = {root: found for root, found in quantizers.items() if len(found) > 1}
    best = {root: found[0] for root, found in quantizers.items()}
    if open_questions:
        work = (price(model).macs or 1) * sum(map(len, open_questions.values()))
        count = min(_SAMPLES, len(evidence.samples), int(_WORK / work))
        if count < _FEWEST:
            return best
        few = evidence.subset(count)
        trial = _Trial(model, placement, distributions, few, grid)
        for root, found in open_questions.items():
            errors = [trial.error({root: quantizer}) for quantizer in found]
            if min(errors) < _CLEARLY * errors[0]:
                best[root] = found[int(np.argmin(errors))]
    return best


def _distinct(ranges: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Ranges that differ from those before them by more than a little."""
    found: list[tuple[float, float]] = []
    for low, high in ranges:
        width = high - low
        if not any(abs(low - a) + abs(high - b) <= _ALIKE * width for a, b in found):
            found.append((low, high))
    return found


class _Trial:
    """The model with a switch at every group."""

    def __init__(
        self,
        model: ir.Model,
        placement: Placement,
        distributions: Mapping[ir.Value, Any],
        evidence: Evidence,
        grid: Grid,
    ) -> None:
        self._grid = grid
        copy = model.clone()
        self._watched = _expose_logits(copy)
        self._switches, self._off = _add_switches(copy, placement, distributions)
        self._session = evidence.session(copy)
        self._batches = list(evidence.samples.batches())
        self._reference = [self._run(batch, {}) for batch in self._batches]

    def error(self, chosen: Mapping[ir.Value, Quantizer]) -> float:
        """Squared error over squared signal of the outputs, their mean, with these groups quantized."""
        feeds: dict[str, np.ndarray] = {}
        for root, quantizer in chosen.items():
            switch = self._switches[root]
            feeds[switch.scale] = np.array(quantizer.scale, np.float32)
            feeds[switch.low] = np.array(self._grid.low - quantizer.zero_point, np.float32)
            feeds[switch.high] = np.array(self._grid.high - quantizer.zero_point, np.float32)
        errors = [_Error() for _ in self._watched]
        for batch, reference in zip(self._batches, self._reference, strict=True):
            for error, exact, found in zip(errors, reference, self._run(batch, feeds), strict=True):
                error.add(exact, found)
        return float(np.mean([error.ratio() for error in errors])) if errors else 0.0

    def _run(self, batch: Any, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        outputs = self._session.run({**self._off, **batch.feeds, **feeds})
        return [np.atleast_1d(outputs[name])[: batch.count] for name in self._watched]


class _Error:
    """Squared error over squared signal of one output, without the mean error, which biases will take up."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0
        self._mean: np.ndarray | float = 0.0
        self._count = 0

    def add(self, exact: np.ndarray, found: np.ndarray) -> None:
        finite = np.isfinite(exact) & np.isfinite(found)  # masks are infinite
        exact, found = np.where(finite, exact, 0), np.where(finite, found, 0)
        difference = found.astype(np.float64) - exact
        self._signal += float(np.square(exact, dtype=np.float64).sum())
        self._noise += float(np.square(difference).sum())
        if np.shape(self._mean) in ((), difference.shape[1:]):
            self._mean = self._mean + difference.sum(axis=0)
        self._count += len(difference)

    def ratio(self) -> float:
        centred = self._noise - float(np.square(self._mean).sum()) / max(1, self._count)
        return max(0.0, centred) / self._signal if self._signal else 0.0


def _expose_logits(model: ir.Model) -> list[str]:
    """Names of the outputs to watch; where one is a Softmax, what goes in too, which says more than what saturates."""
    watched = []
    for output in list(model.graph.outputs):
        if output.dtype is None or not output.dtype.is_floating_point():
            continue
        watched.append(output.name or "")
        producer = output.producer()
        if producer is not None and producer.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
            logits = producer.inputs[0]
            if logits is not None and not logits.is_graph_output() and not logits.is_graph_input():
                model.graph.outputs.append(logits)
                watched.append(logits.name or "")
    return watched


def _add_switches(
    model: ir.Model, placement: Placement, distributions: Mapping[ir.Value, Any]
) -> tuple[dict[ir.Value, _Switch], dict[str, np.ndarray]]:
    """Put a switchable quantizer behind every value that fills a group; returns them, and the feeds that turn all off."""
    values = {output.name: output for node in model.graph for output in node.outputs}
    values.update({value.name: value for value in model.graph.inputs})
    names = FreshNames(model)
    switches, off = {}, dict[str, np.ndarray]()
    for root, filling in calibration.sources(placement).items():
        switch = _Switch(*(names.fresh(f"{root.name}_{what}") for what in _Switch._fields))
        inputs = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(())) for name in switch]
        model.graph.inputs.extend(inputs)
        for name in filling:
            _quantize(model.graph, values[name], inputs, names)
        found = distributions[root]
        step = max(abs(found.minimum), abs(found.maximum), 1e-30) * _OFF
        numbers = (step, -math.inf, math.inf)
        off.update({name: np.array(number, np.float32) for name, number in zip(switch, numbers, strict=True)})
        switches[root] = switch
    return switches, off


def _quantize(graph: ir.Graph, value: ir.Value, inputs: Sequence[ir.Value], names: FreshNames) -> None:
    scale, low, high = inputs
    uses = list(value.uses())
    nodes, current = [], value
    for op_type, others in (("Div", [scale]), ("Round", []), ("Clip", [low, high]), ("Mul", [scale])):
        output = ir.Value(name=names.fresh(f"{value.name}_{op_type}"), type=value.type, shape=value.shape)
        nodes.append(ir.Node("", op_type, [current, *others], outputs=[output], name=f"{output.name}_node"))
        current = output
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
    for use in uses:
        use.node.replace_input_with(use.idx, current)
