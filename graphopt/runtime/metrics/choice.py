"""Which metric it is, and which output it looks at: decided from one batch of the original's outputs.

Where no metric was named: `top1` for classifiers with labels, `agreement` for those without, `sqnr` over all outputs for
everything else. `mse` and `mae` are errors against labels that are targets of regression, and against the original's
outputs where there are none; `agreement`, `cosine`, `sqnr` and `kl` are always against the original's outputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from graphopt.errors import DataError, OptionError
from graphopt.runtime.metrics.base import Metric, Observed, described, is_float, samples_of
from graphopt.runtime.metrics.classification import (
    F1,
    Agreement,
    Auc,
    ClassOutput,
    Kind,
    TopK,
    are_indices,
    class_outputs,
)
from graphopt.runtime.metrics.deviation import Cosine, KullbackLeibler, MeanError, Sqnr, mismatch
from graphopt.runtime.metrics.user import UserMetric
from graphopt.runtime.user_code import load_function

Wanted: TypeAlias = str | Callable[..., Any] | None
"""What the user asked for: a name, a reference to a function, a function, or nothing."""

METRICS = ("top1", "top5", "auc", "f1", "mse", "mae", "cosine", "sqnr", "kl", "agreement")
NEED_LABELS = frozenset({"top1", "top5", "auc", "f1"})

_IN_ORDER = {
    "top1": (Kind.SCORES, Kind.INDEX, Kind.SCORE),
    "agreement": (Kind.SCORES, Kind.INDEX, Kind.SCORE),
    "f1": (Kind.SCORES, Kind.INDEX, Kind.SCORE),
    "auc": (Kind.SCORES, Kind.SCORE),
    "top5": (Kind.SCORES,),
    "kl": (Kind.SCORES,),
}
"""What a metric of classifiers reads, the most telling first."""


def choose(wanted: Wanted, batch: Observed, inputs: Mapping[str, np.ndarray]) -> Metric:
    """The metric for a model that gave `batch` for `inputs`.

    Raises:
        DataError: the metric needs labels or outputs that are not there, or the user's function cannot be loaded.
        OptionError: there is no such metric.
    """
    if callable(wanted):
        return UserMetric(getattr(wanted, "__name__", "metric"), wanted)
    name = default(batch, inputs) if wanted is None else wanted
    if name in NEED_LABELS and batch.labels is None:
        raise DataError(
            f"--metric {name} needs labels, and the samples have none; agreement, cosine, sqnr and kl need none"
        )
    if name in _IN_ORDER:
        return _of_classes(name, _class_output(name, batch))
    if name in ("sqnr", "cosine"):
        outputs = float_outputs(batch)
        if not outputs:
            raise DataError(f"--metric {name}: no output holds floating-point numbers: {described(batch.original)}")
        return Sqnr(outputs) if name == "sqnr" else Cosine(outputs)
    if name in ("mse", "mae"):
        return _mean_error("mse" if name == "mse" else "mae", batch)
    if ":" in name:
        return UserMetric(name, load_function(name, "--metric"))
    raise OptionError(f"--metric: '{name}' is no metric; there are {', '.join(METRICS)}, or FILE.py:FUNCTION")


def default(batch: Observed, inputs: Mapping[str, np.ndarray]) -> str:
    """The name of the metric where the user named none."""
    found = class_outputs(batch)
    floats = float_outputs(batch)
    reconstructs = any(batch.original[name].shape == array.shape for name in floats for array in inputs.values())
    telling = [*found[Kind.SCORES], *([] if floats else found[Kind.INDEX])]
    if batch.labels is not None:
        is_classifier = len(telling) == 1 and _class_indices(batch.labels, telling[0])
        return "top1" if is_classifier else "sqnr"
    if len(telling) == 1 and len(floats) <= 1 and not reconstructs:
        return "agreement"
    return "sqnr"


@dataclasses.dataclass(frozen=True)
class Fidelities:
    """What is reported of every comparison, beside its metric: SQNR per output, agreement of classifiers."""

    outputs: Mapping[str, Sqnr]
    agreement: Agreement | None


def fidelities(batch: Observed) -> Fidelities:
    """Those that make sense for the outputs of `batch`."""
    telling = class_outputs(batch)
    predicted = next((found for kind in (Kind.SCORES, Kind.INDEX) if len(found := telling[kind]) == 1), None)
    return Fidelities(
        {name: Sqnr((name,)) for name in float_outputs(batch)},
        None if predicted is None else Agreement(predicted[0]),
    )


def float_outputs(batch: Observed) -> tuple[str, ...]:
    """Names of the outputs that hold floating-point numbers."""
    return tuple(name for name, value in batch.original.items() if is_float(value))


def _class_indices(labels: np.ndarray, output: ClassOutput) -> bool:
    width = math.prod(labels.shape[1:])
    return are_indices(labels) and (width == 1 or width == output.classes)


def _class_output(metric: str, batch: Observed) -> ClassOutput:
    found = class_outputs(batch)
    for kind in _IN_ORDER[metric]:
        if len(found[kind]) == 1:
            return found[kind][0]
        if found[kind]:
            names = ", ".join(f"'{output.name}'" for output in found[kind])
            raise DataError(f"--metric {metric}: {names} hold {kind.value} each; name a function (FILE.py:FUNCTION)")
    raise DataError(
        f"--metric {metric}: none of the outputs holds {_IN_ORDER[metric][0].value} (samples, classes): "
        f"{described(batch.original)}; FILE.py:FUNCTION can judge any"
    )


def _of_classes(name: str, output: ClassOutput) -> Metric:
    match name:
        case "top1":
            return TopK(name, output, 1)
        case "top5":
            return TopK(name, output, 5)
        case "auc":
            return Auc(output)
        case "f1":
            return F1(output)
        case "kl":
            return KullbackLeibler(output)
        case _:
            return Agreement(output)


def _mean_error(name: Literal["mse", "mae"], batch: Observed) -> Metric:
    """Against labels that have as many numbers per sample as one output; class indices are no targets."""
    floats = float_outputs(batch)
    if batch.labels is None:
        if not floats:
            raise DataError(f"--metric {name}: no output holds floating-point numbers: {described(batch.original)}")
        return MeanError(name, floats)
    width = math.prod(batch.labels.shape[1:])
    fitting = []
    for output in floats:
        rows = samples_of(batch.original[output], batch.size)
        if rows is not None and math.prod(rows.shape[1:]) == width:
            fitting.append(output)
    if len(fitting) == 1:
        return MeanError(name, fitting, "labels")
    if not fitting and any(_class_indices(batch.labels, output) for output in class_outputs(batch)[Kind.SCORES]):
        return MeanError(name, floats)
    raise mismatch(name, batch.labels, batch)
