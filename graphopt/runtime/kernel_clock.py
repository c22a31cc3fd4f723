"""How long each kernel of a model runs in onnxruntime, by its own profiler.

The profiler writes one event per kernel and run, in whole microseconds on the clock. On a machine that others use too, a
kernel is put aside now and then. Such runs are slow, never fast, so the lowest twentieth of many runs is what a kernel takes
that is shorter than the time for which the scheduler lets a process run (some milliseconds).
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphopt.runtime.kernel_events import read_runs
from graphopt.runtime.session import Feeds, ModelSource, Session, SessionOptions

_WARM_UP = 3
_TYPICAL = 5
_PACE_RUNS = 51
_SHORTEST = 0.5e-3
_MOST_REFERENCES = 30
_HALF_TICK = 0.5e-6
"""The profiler cuts off what is below a microsecond."""


@dataclass(frozen=True)
class KernelTime:
    """One kernel: the operator that onnxruntime ran, its node's name there, and seconds."""

    op_type: str
    name: str
    seconds: float


def kernel_times(model: ModelSource, feeds: Feeds, *, runs: int = 40, threads: int = 1) -> list[KernelTime]:
    """The kernels of `model` in the order in which they run, bodies of control flow left out.

    Args:
        model: what to run.
        feeds: its inputs.
        runs: how often it is run; the first few do not count.
        threads: threads of onnxruntime.

    Raises:
        RuntimeFailureError: onnxruntime cannot load or run the model.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        session = Session(model, SessionOptions(threads=threads, profile_to=Path(folder) / "profile"))
        for _ in range(_WARM_UP + runs):
            session.run(feeds)
        found = read_runs(session.end_profiling(), runs)
    if not found:
        return []
    first = found[0]
    seconds = np.array([[event.seconds for event in run] for run in found if len(run) == len(first)], np.float64)
    typical = np.percentile(seconds, _TYPICAL, axis=0) + _HALF_TICK
    return [KernelTime(event.op_type, event.name, float(time_)) for event, time_ in zip(first, typical, strict=True)]


class PacedClock:
    """Times inferences on a machine whose speed changes from one second to the next.

    Before and after each sample a reference runs, a model that never changes. What counts is the ratio of their times, in CPU
    time of this thread; the median of the ratios times what the reference takes at its own pace gives seconds.

    Args:
        model: the reference, a fraction of a millisecond long.
        feeds: its inputs.
        pace: seconds that one run of the reference counts for; measured here where it is not given.
    """

    def __init__(self, model: ModelSource, feeds: Feeds, pace: float | None = None) -> None:
        self._session, self._feeds = Session(model), feeds
        for _ in range(_WARM_UP):
            self._session.run(feeds)
        self.pace = pace or float(np.median([self._reference(1) for _ in range(_PACE_RUNS)]))

    def seconds(self, model: ModelSource, feeds: Feeds, *, rounds: int = 15) -> float:
        """Seconds of one inference of `model`. Raises RuntimeFailureError where it does not run."""
        session = Session(model)
        once = min(_cpu_seconds(session, feeds, 1) for _ in range(_WARM_UP))
        repeats = max(1, round(_SHORTEST / max(once, 1e-7)))
        references = min(_MOST_REFERENCES, max(1, round(once * repeats / self.pace / 4)))
        ratios, before = [], self._reference(references)
        for _ in range(rounds):
            taken = _cpu_seconds(session, feeds, repeats)
            after = self._reference(references)
            ratios.append(2 * taken / (before + after))
            before = after
        return float(np.median(ratios)) * self.pace

    def _reference(self, repeats: int) -> float:
        return _cpu_seconds(self._session, self._feeds, repeats)


def _cpu_seconds(session: Session, feeds: Feeds, repeats: int) -> float:
    start = time.thread_time()
    for _ in range(repeats):
        session.run(feeds)
    return (time.thread_time() - start) / repeats
