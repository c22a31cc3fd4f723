"""Metrics: how good a model's outputs are, against labels or against the original model's outputs."""

from graphopt.runtime.metrics.base import Columns, Metric, Observed
from graphopt.runtime.metrics.choice import METRICS, NEED_LABELS, choose, fidelities

__all__ = ["METRICS", "NEED_LABELS", "Columns", "Metric", "Observed", "choose", "fidelities"]
