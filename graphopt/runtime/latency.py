"""Measured latency of two models, one beside the other.

A machine's speed drifts (other processes, clock, temperature) by more than many rewrites gain, so the two models take
turns: each round times both, in alternating order, and what counts is the ratio within a round. The median of these
ratios comes with a distribution-free confidence interval: between the order statistics that the sign test does not
reject. Short models are repeated within a sample until the clock's resolution does not matter.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from graphopt.errors import RuntimeFailureError
from graphopt.runtime.session import Feeds, ModelSource, Session, SessionOptions

_WARM_UP = 3
_FEWEST_ROUNDS = 7
_SAMPLE_SECONDS = 0.002


@dataclasses.dataclass(frozen=True)
class Latency:
    """One inference, before and after.

    Attributes:
        before_ms: median milliseconds of the original.
        after_ms: `before_ms` times `ratio`, so that all figures of a report agree; a median of its own would not be paired.
        ratio: median of after / before within a round; below 1 the result is faster.
        interval: confidence interval of that median, 95 % unless another was asked for.
        rounds: how many rounds were measured.
        threads: threads of onnxruntime.
        shapes: extents of the inputs, by name.
    """

    before_ms: float
    after_ms: float
    ratio: float
    interval: tuple[float, float]
    rounds: int
    threads: int
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The measurement as reports hold it."""
        return dataclasses.asdict(self)


def measure(
    before: ModelSource,
    after: ModelSource,
    candidates: Iterable[Feeds],
    *,
    threads: int = 1,
    provider: str | None = None,
    seconds: float = 3.0,
    confidence: float = 0.95,
    progress: Callable[[float], None] | None = None,
) -> Latency:
    """Time both models as users run them: onnxruntime's own optimizations on.

    Args:
        before: the original.
        after: the result.
        candidates: inputs to try; both are timed on the first ones that the original accepts.
        threads: threads of onnxruntime.
        provider: execution provider, None for the CPU.
        seconds: time budget; at least 7 rounds are measured whatever it is.
        confidence: of the interval.
        progress: told the fraction of the budget that is used up.

    Raises:
        RuntimeFailureError: one of the models cannot be run on any of the inputs.
    """
    rows, feeds = race(
        [before, after], candidates, threads=threads, provider=provider, seconds=seconds, progress=progress
    )
    shapes = {name: array.shape for name, array in feeds.items()}
    return dataclasses.replace(summarize(rows, threads, confidence), shapes=shapes)


def race(
    models: Sequence[ModelSource],
    candidates: Iterable[Feeds],
    *,
    threads: int = 1,
    provider: str | None = None,
    seconds: float = 3.0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] | None = None,
) -> tuple[list[tuple[float, ...]], Feeds]:
    """Seconds of one inference of each of `models`, round by round, and the inputs; otherwise as `measure`.

    `clock` is what is read: `time.thread_time` leaves out what other processes do to a run on one thread.
    """
    options = SessionOptions(threads=threads, provider=provider)
    names = ["the original", *["the result"] * (len(models) - 1)]
    sessions = [Session(model, options, name=name) for model, name in zip(models, names, strict=True)]
    feeds = accepted(sessions[0], candidates)
    runs = [_repeated(session, feeds, clock) for session in sessions]
    rows: list[tuple[float, ...]] = []
    start = time.perf_counter()
    while len(rows) < _FEWEST_ROUNDS or time.perf_counter() - start < seconds:
        if len(rows) % 2:
            rows.append(tuple([run() for run in reversed(runs)][::-1]))
        else:
            rows.append(tuple(run() for run in runs))
        if progress is not None:
            progress(min(1.0, (time.perf_counter() - start) / seconds) if seconds > 0 else 1.0)
    return rows, feeds


def summarize(samples: Sequence[tuple[float, ...]], threads: int, confidence: float = 0.95) -> Latency:
    """Medians and the paired ratio of rounds of (before, after) seconds."""
    ratios = [after / before for before, after in samples]
    before_ms, ratio = 1e3 * statistics.median(before for before, _ in samples), statistics.median(ratios)
    return Latency(
        before_ms=before_ms,
        after_ms=before_ms * ratio,
        ratio=ratio,
        interval=median_interval(ratios, confidence),
        rounds=len(samples),
        threads=threads,
    )


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the median: order statistics around n/2, by the normal form of the sign test."""
    ordered = sorted(values)
    count = len(ordered)
    deviations = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    rank = max(0, math.floor(count / 2 - deviations * math.sqrt(count) / 2 - 0.5))
    return ordered[rank], ordered[count - 1 - rank]


def accepted(session: Session, candidates: Iterable[Feeds]) -> Feeds:
    """The first inputs that `session` runs on. Raises RuntimeFailureError where there are none."""
    failure: RuntimeFailureError | None = None
    for feeds in candidates:
        try:
            session.run(feeds)
        except RuntimeFailureError as error:
            failure = failure or error
        else:
            return feeds
    raise failure or RuntimeFailureError("there are no inputs to measure time on")


def _repeated(session: Session, feeds: Feeds, clock: Callable[[], float]) -> Callable[[], float]:
    """A warm sample of `session`: seconds per inference, over as many as make the sample long enough."""

    def sample(repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            session.run(feeds)
        return (clock() - start) / repeats

    once = min(sample(1) for _ in range(_WARM_UP))
    repeats = max(1, math.ceil(_SAMPLE_SECONDS / max(once, 1e-7)))
    return lambda: sample(repeats)
