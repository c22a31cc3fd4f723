"""Time of every kernel, from onnxruntime's own profiler, of several models that take turns.

A machine's speed drifts by more than a kernel's choice gains, so that only what ran at nearly the same time is compared:
each round runs every model once, and times come by round. They are wall-clock microseconds of the operator itself. Rounds
are spread over sessions that are made anew (`turns`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphopt.runtime.kernel_events import KernelEvent, read_runs
from graphopt.runtime.latency import accepted
from graphopt.runtime.session import Feeds, ModelSource, Session, SessionOptions
from graphopt.runtime.turns import turns

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
        field = _Field(models, candidates, SessionOptions(threads=threads, profile_to=Path(folder) / "profile"))
        for count, (_, sessions) in enumerate(turns(field.ready, seconds=seconds, fewest=_FEWEST_ROUNDS), start=1):
            for session in sessions:
                session.run(field.feeds)
            field.rounds += 1
            if count == _MOST_ROUNDS:
                break
        field.finish()
        return [_by_kernel(runs) for runs in field.runs]


class _Field:
    """The models that are profiled, and what was read of their runs so far."""

    def __init__(self, models: Sequence[ModelSource], candidates: Iterable[Feeds], options: SessionOptions) -> None:
        self._models = models
        self._candidates = candidates
        self._options = options
        self._sessions: list[Session] = []
        self.feeds: Feeds = {}
        self.rounds = 0
        self.runs: list[list[Sequence[KernelEvent]]] = [[] for _ in models]

    def ready(self) -> list[Session]:
        """Sessions that are warm, in place of those before."""
        fresh = [Session(model, self._options) for model in self._models]
        if self._sessions:
            self.finish()
        else:
            self.feeds = accepted(fresh[0], self._candidates)
        self._sessions = fresh
        for session in fresh:
            for _ in range(_WARM_UP):
                session.run(self.feeds)
        return fresh

    def finish(self) -> None:
        """Read what the sessions have noted."""
        for session, runs in zip(self._sessions, self.runs, strict=True):
            runs += read_runs(session.end_profiling(), self.rounds)
        self.rounds = 0


def _by_kernel(runs: Sequence[Sequence[KernelEvent]]) -> KernelTimes:
    """Seconds by kernel; those of a body that ran several times in one round are summed."""
    found: dict[str, npt.NDArray[np.float64]] = {}
    for number, run in enumerate(runs):
        for event in run:
            found.setdefault(event.name, np.zeros(len(runs)))[number] += event.seconds
    return found
