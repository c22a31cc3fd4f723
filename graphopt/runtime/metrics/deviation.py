"""Metrics of deviation: from the original's outputs, or from labels that are targets of regression.

With y what counts as right and x what the model gives, over all elements of an output:

    mse = E[(x - y)²]    mae = E|x - y|    sqnr = 10 log10(Σ y² / Σ (x - y)²) dB
    cosine = <x, y> / |x||y|  per sample, then the mean    kl = Σ p log(p / q)  per sample, in nats, then the mean

Elements that only one of the two has, because the number of detections depends on the data, are compared with 0. Where
an output's first axis is not the samples, as in recurrent states, all samples of the batch share its sums evenly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from graphopt.errors import DataError
from graphopt.runtime.metrics.base import Columns, Metric, Observed, described, samples_of
from graphopt.runtime.metrics.classification import ClassOutput, are_probabilities, log_probabilities

CEILING_DB = 20 * float(np.log10(2.0**24))
"""SQNR of outputs that are equal (144.5 dB): what rounding to the 24 bits of a float32 leaves. None is above it."""


@dataclasses.dataclass(frozen=True)
class MeanError(Metric):
    """Mean squared or absolute error over all elements of `outputs`."""

    name: Literal["mse", "mae"]
    outputs: Sequence[str]
    against: Literal["labels", "original"] = "original"
    higher_is_better: ClassVar[bool] = False

    def gather(self, batch: Observed) -> Columns:
        """Summed error and number of elements."""
        total, elements = np.zeros(batch.count), np.zeros(batch.count)
        for name in self.outputs:
            x, y = _pair(name, batch, self._target(name, batch))
            error = np.abs(x - y)
            total += _spread((error**2 if self.name == "mse" else error).sum(axis=1), batch)
            elements += _spread(np.full(len(x), x.shape[1], np.float64), batch)
        return {"error": total, "elements": elements}

    def value(self, columns: Columns) -> float:
        """Error per element."""
        return float(columns["error"].sum() / max(columns["elements"].sum(), 1.0))

    def _target(self, name: str, batch: Observed) -> np.ndarray:
        if self.against == "original":
            return _array(batch.original, name)
        if batch.labels is None:
            raise DataError(f"--metric {self.name}: some samples have labels and others have none")
        rows = np.asarray(batch.labels).reshape(batch.count, -1)
        filling = np.zeros((batch.size - batch.count, rows.shape[1]), rows.dtype)
        return np.concatenate([rows, filling])


@dataclasses.dataclass(frozen=True)
class Sqnr(Metric):
    """Signal to quantization noise ratio over all elements of `outputs`, in dB."""

    outputs: Sequence[str]
    name: str = "sqnr"
    against: Literal["labels", "original"] = "original"
    unit: ClassVar[str] = "dB"

    def gather(self, batch: Observed) -> Columns:
        """Energy of signal and of noise; the largest element, and the largest change of one."""
        signal, noise, largest, change = np.zeros((4, batch.count))
        for name in self.outputs:
            x, y = _pair(name, batch, _array(batch.original, name))
            signal += _spread((y**2).sum(axis=1), batch)
            noise += _spread(((x - y) ** 2).sum(axis=1), batch)
            largest = np.maximum(largest, _peaks(y, batch))
            change = np.maximum(change, _peaks(x - y, batch))
        return {"signal": signal, "noise": noise, "largest": largest, "change": change}

    def value(self, columns: Columns) -> float:
        """The ratio of the sums, within ± `CEILING_DB`."""
        return decibels(float(columns["signal"].sum()), float(columns["noise"].sum()))


@dataclasses.dataclass(frozen=True)
class Cosine(Metric):
    """Cosine similarity of all elements of `outputs`, averaged over samples; 1 where both are zero."""

    outputs: Sequence[str]
    name: str = "cosine"
    against: Literal["labels", "original"] = "original"

    def gather(self, batch: Observed) -> Columns:
        """One cosine per sample."""
        xy, xx, yy = np.zeros((3, batch.count))
        for name in self.outputs:
            x, y = _pair(name, batch, _array(batch.original, name))
            xy += _spread((x * y).sum(axis=1), batch)
            xx += _spread((x**2).sum(axis=1), batch)
            yy += _spread((y**2).sum(axis=1), batch)
        norms = np.sqrt(xx) * np.sqrt(yy)
        cosine = np.divide(xy, norms, out=(xx == yy).astype(np.float64), where=norms != 0)
        return {"cosine": cosine}

    def value(self, columns: Columns) -> float:
        """The mean."""
        return float(columns["cosine"].mean())


@dataclasses.dataclass(frozen=True)
class KullbackLeibler(Metric):
    """Divergence of the model's distribution over classes from the original's, in nats."""

    output: ClassOutput
    name: str = "kl"
    against: Literal["labels", "original"] = "original"
    unit: ClassVar[str] = "nats"
    higher_is_better: ClassVar[bool] = False

    def gather(self, batch: Observed) -> Columns:
        """One divergence per sample; outputs that are no distributions are taken for logits."""
        right, found = (self.output.scores(outputs, batch) for outputs in (batch.original, batch.outputs))
        normalized = are_probabilities(right)
        log_p, log_q = log_probabilities(right, normalized), log_probabilities(found, normalized)
        return {"kl": (np.exp(log_p) * (log_p - log_q)).sum(axis=1)}

    def value(self, columns: Columns) -> float:
        """The mean."""
        return float(columns["kl"].mean())


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), within ± `CEILING_DB`; NaN where one of them is."""
    if np.isnan(signal + noise):
        return float("nan")
    if noise == 0:
        return CEILING_DB
    if signal == 0:
        return -CEILING_DB
    return float(np.clip(10 * (np.log10(signal) - np.log10(noise)), -CEILING_DB, CEILING_DB))


def _array(outputs: object, name: str) -> np.ndarray:
    found = outputs.get(name) if isinstance(outputs, dict) else None
    if not isinstance(found, np.ndarray):
        raise DataError(f"output '{name}' is no tensor, or is missing")
    return found


def _pair(name: str, batch: Observed, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Output `name` and what is right, both (rows, elements) float64 of one shape; rows are samples, or there is one.

    Values that are infinite or NaN in both alike count as equal.
    """
    found = _array(batch.outputs, name)
    x, y = samples_of(found, batch.size), samples_of(right, batch.size)
    if x is None or y is None:
        x, y = found[np.newaxis], right[np.newaxis]
    rows = len(x)
    x, y = (np.ascontiguousarray(array).reshape(rows, -1).astype(np.float64) for array in (x, y))
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in (x, y))
    same = ~np.isfinite(y) & ((x == y) | (np.isnan(x) & np.isnan(y)))
    x[same] = y[same] = 0
    return x, y


def _spread(sums: np.ndarray, batch: Observed) -> np.ndarray:
    """Sums per sample (count,) from sums per row: a single row of several samples is shared out."""
    if len(sums) == batch.size:
        return sums[: batch.count]
    return np.full(batch.count, sums[0] / batch.size)


def _peaks(rows: np.ndarray, batch: Observed) -> np.ndarray:
    """Largest magnitude per sample (count,), of (rows, elements); that of a single row counts for each sample."""
    found = np.abs(rows).max(axis=1, initial=0.0)
    return found[: batch.count] if len(found) == batch.size else np.full(batch.count, found[0])


def mismatch(name: str, labels: np.ndarray, batch: Observed) -> DataError:
    """The error for labels that fit no output."""
    return DataError(
        f"--metric {name}: labels of type {labels.dtype} and shape {list(labels.shape)} fit none of the outputs: "
        f"{described(batch.original)}"
    )
