"""Quality: original and results side by side over samples, in one pass.

Every batch goes through all models, the metrics take their rows from the outputs, and the outputs are dropped: what is
kept are a few numbers per sample (see `graphopt.runtime.metrics` for the metrics that keep more). onnxruntime runs the
models as users run them, its own optimizations on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from graphopt.errors import DataError, RuntimeFailureError
from graphopt.runtime import bootstrap, requests
from graphopt.runtime.metrics import Columns, Metric, Observed, choose, fidelities
from graphopt.runtime.metrics.choice import Fidelities, Wanted
from graphopt.runtime.metrics.deviation import decibels
from graphopt.runtime.metrics.user import as_objects
from graphopt.runtime.session import ModelSource, Session, SessionOptions


class Batch(requests.Batch, Protocol):
    """Samples as the model reads them, with their labels (`graphopt.data`)."""

    @property
    def labels(self) -> np.ndarray | None:
        """Of the real samples."""


class Samples(Protocol):
    """Samples that can be read again and again (`graphopt.data`)."""

    def __len__(self) -> int: ...

    def batches(self, size: int | None = None) -> Iterator[Batch]:
        """All samples, a batch at a time."""


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How near outputs are to the original's.

    Attributes:
        sqnr_db: signal to noise ratio over all floating-point outputs, in dB; None where there are none.
        outputs: the same for each of them, by name.
        agreement: share of samples for which both predict the same class; None for what is no classifier.
        max_change: largest change of an element, in the output where it is largest to that output's largest element.
        max_error: that change over that largest element; both None where there are no floating-point outputs.
    """

    sqnr_db: float | None
    outputs: Mapping[str, float]
    agreement: float | None
    max_change: float | None = None
    max_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fidelity as reports hold it."""
        return {**dataclasses.asdict(self), "outputs": dict(self.outputs)}


@dataclasses.dataclass(frozen=True)
class Quality:
    """A metric of the original and of a result on the same samples.

    Attributes:
        metric: its name.
        unit: of its values.
        against: what counts as right: labels, or the original's outputs.
        before: of the original.
        after: of the result.
        drop: how much worse the result is; negative where it is better.
        samples: how many there were.
        standard_error: of the difference of the two, by paired bootstrap.
        interval: where the result's metric lies, given the original's: `before` plus the 90 % interval of the paired
            difference (`bootstrap.CONFIDENCE`).
        fidelity: how near the outputs are, whatever the metric.
    """

    metric: str
    unit: str
    against: Literal["labels", "original"]
    before: float
    after: float
    drop: float
    samples: int
    standard_error: float
    interval: tuple[float, float]
    fidelity: Fidelity


def measure(
    original: ModelSource,
    results: Sequence[ModelSource],
    samples: Samples,
    metric: Wanted = None,
    *,
    seed: int = 0,
    threads: int = 1,
    provider: str | None = None,
    progress: Callable[[float], None] | None = None,
    names: tuple[str, str] = ("the original", "the result"),
) -> list[Quality]:
    """Judge each of `results` beside the original.

    Args:
        original: the model that counts as right.
        results: models with the same inputs and outputs.
        samples: what to run them on.
        metric: see `graphopt.runtime.metrics.choice`.
        seed: of the bootstrap.
        threads: threads of onnxruntime.
        provider: execution provider, None for the CPU.
        progress: told the fraction of the samples that has been run.
        names: what messages call the original, and each of the results.

    Raises:
        DataError: there are no samples, they do not fit the models, or the metric does not fit them.
        RuntimeFailureError: a model cannot be run on them.
    """
    options = SessionOptions(threads=threads, provider=provider)
    reference = _Model(original, options, names[0])
    models = [_Model(result, options, names[1]) for result in results]
    judges: list[_Judge] = []
    done = 0
    for batch, outputs in _runs(reference, samples):
        first = _observed(outputs, outputs, batch)
        if not judges:
            chosen = choose(metric, first, batch.feeds)
            judges = [_Judge(chosen, fidelities(first)) for _ in models]
            own = _Table(chosen)
        own.add(first)
        for judge, model in zip(judges, models, strict=True):
            judge.add(_observed(model.run(batch), outputs, batch))
        done += batch.count
        if progress is not None:
            progress(done / max(len(samples), 1))
    if not done:
        raise DataError("there are no samples to measure quality on")
    before = own.columns()
    return [judge.quality(before, done, seed) for judge in judges]


def check(
    original: ModelSource, samples: Samples, metric: Wanted = None, *, threads: int = 1, provider: str | None = None
) -> Metric:
    """The metric that `measure` would use, found out on the first batch. Raises what `measure` would raise there."""
    reference = _Model(original, SessionOptions(threads=threads, provider=provider), "the original")
    for batch, outputs in _runs(reference, samples):
        first = _observed(outputs, outputs, batch)
        chosen = choose(metric, first, batch.feeds)
        chosen.gather(first)
        return chosen
    raise DataError("there are no samples to measure quality on")


def _runs(reference: _Model, samples: Samples) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """Batches and the original's outputs on them; of one sample each where the original takes no more at a time."""
    batches = samples.batches()
    first = next(batches, None)
    if first is None:
        return
    try:
        outputs = reference.run(first)
    except RuntimeFailureError:
        if first.count == 1:
            raise
        batches = samples.batches(1)
        first = next(batches)
        outputs = reference.run(first)
    yield first, outputs
    for batch in batches:
        yield batch, reference.run(batch)


class _Model:
    """A session that is fed what it reads of a batch."""

    def __init__(self, source: ModelSource, options: SessionOptions, name: str) -> None:
        self._session = Session(source, options, name=name)
        self._name = name

    def run(self, batch: Batch) -> dict[str, Any]:
        missing = [name for name in self._session.input_names if name not in batch.feeds]
        if missing:
            raise DataError(
                f"{self._name} reads an input '{missing[0]}' that the samples do not have (they have: "
                f"{', '.join(map(repr, batch.feeds)) or 'nothing'})"
            )
        return self._session.run({name: batch.feeds[name] for name in self._session.input_names})


class _Table:
    """The rows that a metric has gathered."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._parts: dict[str, list[np.ndarray]] = {}

    def add(self, batch: Observed) -> None:
        for name, rows in self._metric.gather(batch).items():
            self._parts.setdefault(name, []).append(rows)

    def columns(self) -> Columns:
        return {name: _joined(parts) for name, parts in self._parts.items()}

    def value(self) -> float:
        return self._metric.value(self.columns())


class _Judge:
    """The metrics of one result."""

    def __init__(self, metric: Metric, fidelity: Fidelities) -> None:
        self._metric = metric
        self._table = _Table(metric)
        self._outputs = {name: _Table(sqnr) for name, sqnr in fidelity.outputs.items()}
        self._agreement = None if fidelity.agreement is None else _Table(fidelity.agreement)

    def add(self, batch: Observed) -> None:
        for table in (self._table, self._agreement, *self._outputs.values()):
            if table is not None:
                table.add(batch)

    def quality(self, before: Columns, samples: int, seed: int) -> Quality:
        metric, after = self._metric, self._table.columns()
        values = (metric.value(before), metric.value(after))
        spread = bootstrap.paired(before, after, metric.value, seed=seed, resamples=metric.resamples)
        return Quality(
            metric=metric.name,
            unit=metric.unit,
            against=metric.against,
            before=values[0],
            after=values[1],
            drop=metric.drop(*values),
            samples=samples,
            standard_error=spread.standard_error,
            interval=(values[0] + spread.low, values[0] + spread.high),
            fidelity=self._fidelity(),
        )

    def _fidelity(self) -> Fidelity:
        columns = {name: table.columns() for name, table in self._outputs.items()}
        signal, noise = (sum(float(found[key].sum()) for found in columns.values()) for key in ("signal", "noise"))
        errors = [_largest_error(found) for found in columns.values()]
        max_error, max_change = max(errors, default=(None, None))
        return Fidelity(
            sqnr_db=decibels(signal, noise) if columns else None,
            outputs={name: table.value() for name, table in self._outputs.items()},
            agreement=None if self._agreement is None else self._agreement.value(),
            max_change=max_change,
            max_error=max_error,
        )


def _largest_error(columns: Columns) -> tuple[float, float]:
    """max|Δ| / max|y| and max|Δ| of an output over all samples."""
    change, largest = float(columns["change"].max()), float(columns["largest"].max())
    return (0.0 if change == 0 else change / largest if largest else float("inf")), change


def _observed(outputs: Mapping[str, Any], original: Mapping[str, Any], batch: Batch) -> Observed:
    return Observed(outputs, original, batch_size(batch, original), batch.count, batch.labels)


def batch_size(batch: Batch, outputs: Mapping[str, Any]) -> int:
    """How many samples a model was fed: the extent that its inputs begin with and most of its outputs too.

    Inputs may begin with something else (layers in recurrent states, channels where a model takes one sample), so that
    an extent that no output has is not believed.
    """
    extents: set[int] = {batch.count, *(array.shape[0] for array in batch.feeds.values() if array.ndim)}
    firsts = [value.shape[0] for value in outputs.values() if isinstance(value, np.ndarray) and value.ndim]
    return max(sorted(extent for extent in extents if extent >= batch.count), key=lambda extent: firsts.count(extent))


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """All batches' rows; of different shapes, a column of objects."""
    if len({part.shape[1:] for part in parts}) == 1 and all(part.dtype != object for part in parts):
        return np.concatenate(parts)
    return as_objects([row for part in parts for row in part])
