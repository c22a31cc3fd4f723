"""How far a network's outputs are from the original's: the currency in which all harm is counted.

Where the one output tells classes, the Kullback-Leibler divergence of the class distributions (in nats, mean over samples);
else the squared error of all float outputs over their energy. No labels are read.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.errors import DataError
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.metrics.classification import are_probabilities, log_probabilities
from graphopt_passes.numerics.quantizer import Array

_MOST_CLASSES = 10_000


class Judge:
    """The original's outputs on some samples, and the harm of any other version."""

    def __init__(self, original: ir.Model, evidence: Evidence) -> None:
        """Run `original` once over all samples of `evidence`.

        Raises:
            DataError: no output is a float tensor.
        """
        self._evidence = evidence
        self._outputs = self._run(original)
        self._scale = [max(float(np.sum(array**2)), 1e-30) for array in self._outputs]
        if not self._outputs:
            raise DataError("the model has no float output to judge a pruned network by")
        rows = self._outputs[0]
        self._are_classes = len(self._outputs) == 1 and rows.ndim == 2 and 2 <= rows.shape[1] <= _MOST_CLASSES
        self._normalized = self._are_classes and are_probabilities(rows)

    def harm(self, model: ir.Model) -> float:
        """Of `model`: 0 where it gives the original's outputs, infinite where it gives no finite ones."""
        found = self._run(model)
        if self._are_classes:
            log_p, log_q = (log_probabilities(rows, self._normalized) for rows in (self._outputs[0], found[0]))
            value = float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)))
        else:
            pairs = zip(found, self._outputs, self._scale, strict=True)
            value = sum(float(np.sum((mine - theirs) ** 2)) / scale for mine, theirs, scale in pairs)
        return value if math.isfinite(value) else math.inf

    def _run(self, model: ir.Model) -> list[Array]:
        """Float outputs, all samples: (samples, elements) where every batch gives as many, else (1, elements)."""
        session = self._evidence.session(model)
        parts: dict[str, list[Array]] = {}
        for batch in self._evidence.samples.batches():
            for name, value in session.run(batch.feeds).items():
                if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
                    count = batch.count if value.shape and value.shape[0] >= batch.count else None
                    parts.setdefault(name, []).append(value[:count] if count else value)
        return [_joined(arrays) for arrays in parts.values()]


def _joined(arrays: list[Array]) -> Array:
    rows = [array.reshape(len(array) if array.ndim > 1 else 1, -1).astype(np.float64) for array in arrays]
    if len({row.shape[1] for row in rows}) == 1:
        return np.concatenate(rows)
    return np.concatenate([row.reshape(-1) for row in rows])[None]
