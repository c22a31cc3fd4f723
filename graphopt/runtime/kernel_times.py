"""Time of every kernel, from onnxruntime's own profiler, of several models that take turns.

A machine's speed drifts by more than a kernel's choice gains, so that only what ran at nearly the same time is compared:
each round runs every model once, and times come by round. They are wall-clock microseconds of the operator itself.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphopt.runtime.latency import accepted
from graphopt.runtime.session import Feeds, ModelSource, Session, SessionOptions

KernelTimes: TypeAlias = Mapping[str, npt.NDArray[np.float64]]
"""Seconds per round, (rounds,), by the name of the node in the graph that onnxruntime made."""

_WARM_UP = 3
_FEWEST_ROUNDS = 9
_MOST_ROUNDS = 200
_ENDING = "_kernel_time"


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
        return [_read(session.end_profiling(), rounds) for session in sessions]


def _read(path: Path, rounds: int) -> KernelTimes:
    """The last `rounds` runs of a profile."""
    events: list[dict[str, Any]] = json.loads(path.read_text())
    starts = np.array(sorted(event["ts"] for event in events if event["name"] == "model_run"))[-rounds:]
    found: dict[str, npt.NDArray[np.float64]] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(_ENDING):
            continue
        run = int(np.searchsorted(starts, event["ts"], side="right")) - 1
        if run >= 0:
            name = event["name"].removesuffix(_ENDING)
            found.setdefault(name, np.zeros(rounds))[run] += 1e-6 * event["dur"]
    return found
