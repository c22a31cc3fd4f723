"""The user's own metric: `f(outputs: dict, labels) -> float`, higher is better, over all samples at once.

It is called with what the whole data set gave, so all outputs are kept in memory: the one metric of which that is true.
The bootstrap calls it again on resampled outputs; a resample that it fails on (one without any positive, say) is left
out of the interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np

from graphopt.errors import DataError, GraphoptError
from graphopt.runtime.metrics.base import Columns, Metric, Observed, samples_of

_LABELS, _OUTPUT = "labels", "output "


@dataclasses.dataclass(frozen=True)
class UserMetric(Metric):
    """A function of the user's.

    `outputs` holds an array per output with all samples along the first axis; where shapes differ between samples, or an
    output is no tensor, a list with one item per sample. `labels` is None where the data has none.
    """

    name: str
    function: Callable[[dict[str, Any], np.ndarray | None], float]
    against: Literal["labels", "original"] = "labels"
    resamples: ClassVar[int] = 200

    def gather(self, batch: Observed) -> Columns:
        """All outputs and the labels."""
        columns = {f"{_OUTPUT}{name}": self._rows(name, value, batch) for name, value in batch.outputs.items()}
        if batch.labels is not None:
            columns[_LABELS] = np.asarray(batch.labels)
        return columns

    def value(self, columns: Columns) -> float:
        """What the function returns. Raises DataError where it fails or returns no number."""
        outputs = {
            name.removeprefix(_OUTPUT): list(column) if column.dtype == object else column
            for name, column in columns.items()
            if name != _LABELS
        }
        try:
            return float(self.function(outputs, columns.get(_LABELS)))
        except GraphoptError:
            raise
        except Exception as error:  # the user's code may fail in any way, and it is the user who must be told
            raise DataError(f"--metric {self.name} failed: {type(error).__name__}: {error}") from error

    def _rows(self, name: str, value: Any, batch: Observed) -> np.ndarray:
        found = samples_of(value, batch.size) if isinstance(value, np.ndarray) else None
        if found is None and (batch.size == 1 or (isinstance(value, list) and len(value) == batch.size)):
            items = value if isinstance(value, list) and len(value) == batch.size else [value]
            found = as_objects(items)
        if found is None:
            raise DataError(
                f"--metric {self.name}: the first axis of output '{name}' is not the samples, so that it cannot be put "
                "together from batches; give the model a fixed batch of 1 with --shape"
            )
        return found[: batch.count]


def as_objects(items: list[Any]) -> np.ndarray:
    """A column (samples,) of objects."""
    column = np.empty(len(items), object)
    for position, item in enumerate(items):
        column[position] = item
    return column
