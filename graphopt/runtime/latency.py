"""Measured latency of two models, one beside the other.

A machine's speed drifts (other processes, clock, temperature) by more than many rewrites gain, so the two models take
turns: each round times both, in alternating order, and what counts is the ratio within a round. The median of these
ratios comes with a distribution-free confidence interval: between the order statistics that the sign test does not
reject. Rounds of the same sessions share these sessions' luck in memory (`turns`); where there were enough sessions, their
rounds count as one, so that the interval covers this luck. Short models are repeated within a sample until the clock's
resolution does not matter.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graphopt.errors import RuntimeFailureError
from graphopt.runtime.session import Feeds, ModelSource, Session, SessionOptions, weight_bytes
from graphopt.runtime.turns import turns

_WARM_UP = 3
_FEWEST_ROUNDS = 7
_SAMPLE_SECONDS = 0.002
_SHORT_SECONDS = 0.02
"""Longer runs hardly notice that caches are filled with something else."""
_KEPT_BYTES = 32 << 20
"""Models of the IR up to this size are serialized once for all sessions."""


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

    @property
    def undecided(self) -> bool:
        """Whether the interval contains 1, so that the result may be faster or slower."""
        return self.interval[0] <= 1 <= self.interval[1]

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

    Where sessions were made anew often enough, a row is the median of the rounds of the same sessions. `clock` is what is
    read: `time.thread_time` leaves out what other processes do to a run on one thread.
    """
    field = _Field(models, candidates, SessionOptions(threads=threads, provider=provider), clock)
    rows: dict[int, list[tuple[float, ...]]] = {}
    start = time.perf_counter()
    for count, (number, runs) in enumerate(turns(field.ready, seconds=seconds, fewest=_FEWEST_ROUNDS)):
        order = -1 if count % 2 else 1
        rows.setdefault(number, []).append(tuple([run() for run in runs[::order]][::order]))
        if progress is not None:
            progress(min(1.0, (time.perf_counter() - start) / seconds) if seconds > 0 else 1.0)
    if len(rows) < _FEWEST_ROUNDS:
        return [row for found in rows.values() for row in found], field.feeds
    return [tuple(map(statistics.median, zip(*found, strict=True))) for found in rows.values()], field.feeds


class _Field:
    """The models of a race, and the inputs that they run on."""

    def __init__(
        self,
        models: Sequence[ModelSource],
        candidates: Iterable[Feeds],
        options: SessionOptions,
        clock: Callable[[], float],
    ) -> None:
        self._models = [_serialized(model) for model in models]
        self._candidates = candidates
        self._options = options
        self._clock = clock
        self._sessions: dict[int, Session] = {}
        self.feeds: Feeds = {}

    def ready(self) -> list[Callable[[], float]]:
        """A warm sample of each model.

        A session is made before the one that it replaces is given up, or it would come to lie in the same place; not so
        that of a large model, where that hardly matters and memory does.
        """
        fresh = not self._sessions
        for index, model in enumerate(self._models):
            name = "the result" if index else "the original"
            if isinstance(model, ir.Model):
                self._sessions.pop(index, None)
            self._sessions[index] = Session(model, self._options, name=name)
        if fresh:
            self.feeds = accepted(self._sessions[0], self._candidates)
        return [_repeated(functools.partial(self._run, index), self._clock) for index in range(len(self._models))]

    def _run(self, index: int) -> None:
        """One inference; samples of a session that was given up must not keep it."""
        self._sessions[index].run(self.feeds)


def _serialized(model: ModelSource) -> ModelSource:
    """`model` as it is quickest loaded again, unless that takes much memory."""
    if not isinstance(model, ir.Model) or weight_bytes(model) > _KEPT_BYTES:
        return model
    from graphopt.ir import emit

    return emit.to_bytes(model)


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


def _repeated(run: Callable[[], None], clock: Callable[[], float]) -> Callable[[], float]:
    """A warm sample of `run`: seconds per inference, over as many as make the sample long enough.

    A short run goes ahead of each: else a model that runs twice in a row, at the end of one round and the beginning of the
    next, finds the processor's caches as it left them, and others do not.
    """

    def sample(repeats: int, ahead: int = 0) -> float:
        for _ in range(ahead):
            run()
        start = clock()
        for _ in range(repeats):
            run()
        return (clock() - start) / repeats

    once = min(sample(1) for _ in range(_WARM_UP))
    repeats = max(1, math.ceil(_SAMPLE_SECONDS / max(once, 1e-7)))
    ahead = int(once < _SHORT_SECONDS)
    return lambda: sample(repeats, ahead)
