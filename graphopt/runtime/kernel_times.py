"""Time of every kernel, from onnxruntime's own profiler, of several models that take turns.

A machine's speed drifts by more than a kernel's choice gains, so that only what ran at nearly the same time is compared:
each round runs every model once, and times come by round. They are wall-clock microseconds of the operator itself.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphopt.runtime.kernel_events import KernelEvent, read_runs
from graphopt.runtime.latency import accepted
from graphopt.runtime.session import Feeds, ModelSource, Session, SessionOptions

KernelTimes: TypeAlias = Mapping[str, npt.NDArray[np.float64]]
"""Seconds per round, (rounds,), by the name of the node in the graph that onnxruntime made."""

_WARM_UP = 3
_FEWEST_ROUNDS = 9
_MOST_ROUNDS = 200


def measure(
    models: Sequence[ModelSource], candidates: Iterable[Feeds], *, threads: int = 1, seconds: float = 1.0
) -> list[KernelTimes]:
    """Profile `models` on onnxruntime's CPU provider, all of its optimizations on.

    Args:
        models: that read the same inputs.
        candidates: inputs to try; all models run on the first ones that the first model accepts.
        threads: threads within an operator.
        seconds: time budget; at least 9 rounds are made whatever it is.

    Raises:
        RuntimeFailureError: one of the models cannot be run on any of the inputs.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        options = SessionOptions(threads=threads, profile_to=Path(folder) / "profile")
        sessions = [Session(model, options) for model in models]
        feeds = accepted(sessions[0], candidates)
        for session in sessions:
            for _ in range(_WARM_UP):
                session.run(feeds)
        rounds, start = 0, time.perf_counter()
        while rounds < _FEWEST_ROUNDS or (rounds < _MOST_ROUNDS and time.perf_counter() - start < seconds):
            for session in sessions:
                session.run(feeds)
            rounds += 1
        return [_by_kernel(read_runs(session.end_profiling(), rounds)) for session in sessions]


def _by_kernel(runs: Sequence[Sequence[KernelEvent]]) -> KernelTimes:
    """Seconds by kernel; those of a body that ran several times in one round are summed."""
    found: dict[str, npt.NDArray[np.float64]] = {}
    for number, run in enumerate(runs):
        for event in run:
            found.setdefault(event.name, np.zeros(len(runs)))[number] += event.seconds
    return found
