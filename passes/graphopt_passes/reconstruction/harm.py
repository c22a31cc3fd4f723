"""What the replacement of one layer does to the outputs, measured: the currency in which all candidates are compared.

Every replacement amounts to a dense map, so the network is run with the layer's own weights changed and nothing else, from
the layer on (`runtime.stepping`). Outputs that classify are compared by the Kullback-Leibler divergence of their
probabilities, others by squared error over variance. A Softmax at the end is looked through.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import FreshNames
from graphopt.pipeline.evidence import Evidence
from graphopt_passes.numerics.quadratic import Array
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.transposed import layers_of

MOST_CLASSES = 4096
"""Extent of the last axis up to which an output may be a classifier's."""


class Harm:
    """A copy of a network in which one layer at a time is replaced."""

    def __init__(self, model: ir.Model, evidence: Evidence) -> None:
        """Copy `model`; nothing runs yet."""
        self._model = model.clone()
        self._layers = {layer.key: layer for layer in layers_of(self._model.graph)}
        self._names = FreshNames(self._model)
        self._watched = watched(self._model)
        self._stack = ExitStack()
        self._stepper = self._stack.enter_context(evidence.stepper(self._model))
        self._reference: list[list[Array]] = []

    def __enter__(self) -> Harm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def measure(self, layer: Linear, replacements: Sequence[tuple[Array, Array | None]]) -> list[float]:
        """Mean harm per sample of every replacement, (G, O, K) and bias (C,), of a layer of the network.

        Layers must come in topological order. What is not finite counts as infinite harm.
        """
        own = self._layers[layer.key]
        if not self._reference:
            self._reference = self._outputs()
        self._stepper.advance([own.data])
        weight, bias = own.weight(), own.bias()
        harms = []
        for dense, shift in replacements:
            own.store(dense, shift, self._names)
            found = self._outputs()
            pairs = [
                divergence(exact, now)
                for batch, other in zip(self._reference, found, strict=True)
                for exact, now in zip(batch, other, strict=True)
            ]
            total = float(np.concatenate(pairs).sum()) / max(1, self._stepper.samples())
            harms.append(total if np.isfinite(total) else np.inf)
        if bias is None and layer.takes_bias:
            bias = np.zeros(layer.channels)
        own.store(weight, bias, self._names)
        return harms

    def _outputs(self) -> list[list[Array]]:
        return [[seen.values[name] for name in self._watched] for seen in self._stepper.stream(self._watched)]


def watched(model: ir.Model) -> list[str]:
    """Names of the values that outputs are judged by."""
    names = []
    for output in model.graph.outputs:
        if output.dtype is None or not output.dtype.is_floating_point():
            continue
        producer = output.producer()
        if producer is not None and producer.op_type in ("Softmax", "LogSoftmax") and producer.inputs[0] is not None:
            names.append(producer.inputs[0].name or "")
        else:
            names.append(output.name or "")
    return list(dict.fromkeys(names))


def divergence(exact: Array, found: Array) -> Array:
    """Harm per sample, (samples,), of outputs `found` where `exact` were right, both (samples, ...)."""
    exact, found = exact.astype(np.float64), found.astype(np.float64)
    if is_classified(exact):
        logs = _log_softmax(exact.reshape(len(exact), -1)), _log_softmax(found.reshape(len(found), -1))
        result: Array = np.maximum(0, np.sum(np.exp(logs[0]) * (logs[0] - logs[1]), axis=-1))
        return result
    exact, found = exact.reshape(len(exact), -1), found.reshape(len(found), -1)
    energy = max(float(np.square(exact).mean()), 1e-30)
    error: Array = np.square(found - exact).mean(axis=-1) / energy
    return error


def is_classified(scores: Array) -> bool:
    """Whether outputs (samples, ...) are taken as scores of classes."""
    return scores.ndim >= 2 and 1 < scores.shape[-1] <= MOST_CLASSES and scores[0].size == scores.shape[-1]


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
