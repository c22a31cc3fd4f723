"""Metrics of classifiers: top-k accuracy, area under the ROC curve, F1, and top-1 agreement with the original.

A class output is a float tensor (samples, classes) of scores, logits or probabilities; one score per sample; or
integers (samples,) where the graph itself ends in ArgMax. Axes of extent 1 do not count. A row with NaN predicts nothing
and counts as wrong.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from graphopt.errors import DataError
from graphopt.runtime.metrics.base import Columns, Metric, Observed, is_float, samples_of

NOTHING = -1
"""The prediction of a row with NaN."""


class Kind(enum.Enum):
    """What a class output holds for each sample."""

    SCORES = "a score per class"
    INDEX = "the class itself"
    SCORE = "one score"


@dataclasses.dataclass(frozen=True)
class ClassOutput:
    """An output that tells classes.

    Attributes:
        name: of the output.
        kind: what it holds.
        classes: that it tells apart; 0 where it does not show how many.
        threshold: scores above it mean class 1, where it holds one score.
    """

    name: str
    kind: Kind
    classes: int
    threshold: float = 0.5

    def scores(self, outputs: Mapping[str, Any], batch: Observed) -> np.ndarray:
        """(count, classes) float64, or (count, 1); for an index (count, 1) integers.

        Raises:
            DataError: the output has another shape than in the batches before.
        """
        found = _matrix(outputs.get(self.name), batch.size)
        if found is None:
            raise DataError(f"output '{self.name}' has another shape in one of the batches")
        return found[: batch.count] if self.kind is Kind.INDEX else found[: batch.count].astype(np.float64)

    def predictions(self, outputs: Mapping[str, Any], batch: Observed) -> np.ndarray:
        """(count,) class indices, `NOTHING` where there are NaNs."""
        scores = self.scores(outputs, batch)
        if self.kind is Kind.INDEX:
            return scores[:, 0]
        found = scores[:, 0] > self.threshold if self.kind is Kind.SCORE else scores.argmax(axis=1)
        return np.where(np.isnan(scores).any(axis=1), NOTHING, found)


def class_outputs(batch: Observed) -> dict[Kind, list[ClassOutput]]:
    """Every output of the original that may tell classes, by what it holds."""
    found: dict[Kind, list[ClassOutput]] = {kind: [] for kind in Kind}
    for name, value in batch.original.items():
        matrix = _matrix(value, batch.size)
        if matrix is None:
            continue
        if matrix.shape[1] > 1:
            if is_float(value):
                found[Kind.SCORES].append(ClassOutput(name, Kind.SCORES, matrix.shape[1]))
        elif is_float(value):
            low, high = float(matrix.min()), float(matrix.max())
            found[Kind.SCORE].append(ClassOutput(name, Kind.SCORE, 2, 0.5 if low >= 0 and high <= 1 else 0.0))
        elif value.dtype.kind in "iu":
            found[Kind.INDEX].append(ClassOutput(name, Kind.INDEX, 0))
    return found


def class_labels(metric: str, labels: np.ndarray | None, count: int, classes: int | None) -> np.ndarray:
    """Class indices (count,) from labels that are indices or one row per class (one-hot).

    Args:
        metric: the name of the metric that reads them.
        labels: as the data has them.
        count: samples that they are for.
        classes: how many there are; None where that is not known.

    Raises:
        DataError: they are no class indices, or name a class that there is not.
    """
    if labels is None:
        raise DataError(f"--metric {metric} needs labels, and some samples have none")
    found = np.asarray(labels).reshape(count, -1 if count else 1)
    if found.shape[1] > 1 and found.shape[1] == classes:
        found = found.argmax(axis=1)[:, np.newaxis]
    if found.shape[1] != 1 or not are_indices(found):
        raise DataError(
            f"--metric {metric}: labels of type {labels.dtype} and shape {list(labels.shape)} are no class indices"
        )
    indices = found[:, 0].astype(np.int64)
    if count and (indices.min() < 0 or (classes is not None and indices.max() >= classes)):
        wrong = int(indices.min() if indices.min() < 0 else indices.max())
        there = "" if classes is None else f" (the output has {classes} classes)"
        raise DataError(f"--metric {metric}: the labels hold {wrong}, which is no class{there}")
    return indices


def are_indices(labels: np.ndarray) -> bool:
    """Whether all labels, of any shape, are whole numbers."""
    return labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and bool((labels == np.round(labels)).all()))


@dataclasses.dataclass(frozen=True)
class TopK(Metric):
    """The share of samples whose label is among the `k` highest scores; of equal scores the first counts as higher."""

    name: str
    output: ClassOutput
    k: int
    against: Literal["labels", "original"] = "labels"

    def gather(self, batch: Observed) -> Columns:
        """One hit or miss per sample."""
        if self.output.kind is not Kind.SCORES:
            labels = class_labels(self.name, batch.labels, batch.count, None)
            return {"hit": (self.output.predictions(batch.outputs, batch) == labels).astype(np.float64)}
        scores = self.output.scores(batch.outputs, batch)
        labels = class_labels(self.name, batch.labels, batch.count, self.output.classes)
        own = scores[np.arange(batch.count), labels][:, np.newaxis]
        ahead = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, np.newaxis]))
        hit = (ahead.sum(axis=1) < self.k) & ~np.isnan(scores).any(axis=1)
        return {"hit": hit.astype(np.float64)}

    def value(self, columns: Columns) -> float:
        """The mean."""
        return float(columns["hit"].mean())


@dataclasses.dataclass(frozen=True)
class Agreement(Metric):
    """The share of samples for which the model predicts the class that the original predicts."""

    output: ClassOutput
    name: str = "agreement"
    against: Literal["labels", "original"] = "original"

    def gather(self, batch: Observed) -> Columns:
        """One hit or miss per sample."""
        found = self.output.predictions(batch.outputs, batch)
        wanted = self.output.predictions(batch.original, batch)
        return {"hit": (found == wanted).astype(np.float64)}

    def value(self, columns: Columns) -> float:
        """The mean."""
        return float(columns["hit"].mean())


@dataclasses.dataclass(frozen=True)
class F1(Metric):
    """F1 of class 1 where the output tells two classes apart, else the unweighted mean over the classes that occur.

    Keeps two integers per sample.
    """

    output: ClassOutput
    name: str = "f1"
    against: Literal["labels", "original"] = "labels"

    def gather(self, batch: Observed) -> Columns:
        """Predicted and true class."""
        found = self.output.predictions(batch.outputs, batch)
        classes = None if self.output.kind is Kind.INDEX else self.output.classes
        return {"found": found, "label": class_labels(self.name, batch.labels, batch.count, classes)}

    def value(self, columns: Columns) -> float:
        """From counts of true and false positives."""
        return f1(columns["found"], columns["label"], binary=self.output.classes == 2)


@dataclasses.dataclass(frozen=True)
class Auc(Metric):
    """Area under the ROC curve, averaged over classes (one against the rest) where there are more than two.

    Keeps the scores of all samples.
    """

    output: ClassOutput
    name: str = "auc"
    against: Literal["labels", "original"] = "labels"
    resamples: ClassVar[int] = 200

    def gather(self, batch: Observed) -> Columns:
        """Scores per class, as probabilities where there are several, and the true class."""
        scores = self.output.scores(batch.outputs, batch)
        if scores.shape[1] == 2:
            scores = scores[:, 1:] - scores[:, :1]  # orders samples as the probability does
        elif scores.shape[1] > 2:
            scores = np.exp(log_probabilities(scores, are_probabilities(self.output.scores(batch.original, batch))))
        return {"score": scores, "label": class_labels(self.name, batch.labels, batch.count, self.output.classes)}

    def value(self, columns: Columns) -> float:
        """From the ranks of the scores; NaN where a single class is there."""
        scores, labels = columns["score"], columns["label"]
        if scores.shape[1] == 1:
            return roc_auc(scores[:, 0], labels == 1)
        return float(np.mean([roc_auc(scores[:, c], labels == c) for c in np.unique(labels)]))


def f1(found: np.ndarray, labels: np.ndarray, *, binary: bool) -> float:
    """F1 from predicted and true classes (samples,): of class 1, or the unweighted mean over the classes that occur."""
    per_class = []
    for c in [1] if binary else np.union1d(found[found != NOTHING], labels):
        hits = np.count_nonzero((found == c) & (labels == c))
        total = np.count_nonzero(found == c) + np.count_nonzero(labels == c)
        per_class.append(2 * hits / total if total else 0.0)
    return float(np.mean(per_class))


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive sample's score is above a negative one's, ties counting half (Mann-Whitney U).

    NaN where there are no positives or no negatives, or a score is NaN.
    """
    positives = int(np.count_nonzero(positive))
    pairs = positives * (len(scores) - positives)
    if not pairs or np.isnan(scores).any():
        return float("nan")
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[places][positive].sum() - positives * (positives + 1) / 2) / pairs)


def are_probabilities(scores: np.ndarray) -> bool:
    """Whether every row (samples, classes) is a distribution already; otherwise the rows are logits."""
    return bool((scores >= 0).all()) and bool(np.allclose(scores.sum(axis=1), 1, atol=1e-3))


def log_probabilities(scores: np.ndarray, normalized: bool) -> np.ndarray:
    """Logarithms of the probabilities of rows (samples, classes) of probabilities (`normalized`) or of logits."""
    if normalized:
        found: np.ndarray = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    else:
        shifted = scores - scores.max(axis=1, keepdims=True)
        found = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _matrix(value: Any, size: int) -> np.ndarray | None:
    """(size, classes), where at most one axis besides that of the samples has an extent other than 1."""
    if not isinstance(value, np.ndarray) or not value.size:
        return None
    rows = samples_of(value, size)
    if rows is None or sum(extent != 1 for extent in rows.shape[1:]) > 1:
        return None
    return rows.reshape(size, -1)
