"""What calibration samples say about a model, as passes may ask for it: `PassContext.evidence`.

The samples are those that calibrate; what a gate judges by is held out before and never comes here. Everything streams:
asking for more statistics in one call costs one run over the samples, asking in several calls costs several.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.errors import DataError

if TYPE_CHECKING:
    from graphopt.data import Samples
    from graphopt.runtime.kernel_times import KernelTimes
    from graphopt.runtime.requests import Request, Results
    from graphopt.runtime.session import Session
    from graphopt.runtime.statistics_cache import Cache
    from graphopt.runtime.stepping import Stepper

Answer = TypeVar("Answer")


class Progress(Protocol):
    """Told how far a step has come, with what it is called."""

    def __call__(self, step: str, done: float, total: float, /) -> None: ...  # noqa: D102 - said above


class Evidence:
    """Calibration samples, and the runtime to ask them with."""

    def __init__(
        self,
        samples: Samples,
        *,
        threads: int = 1,
        provider: str | None = None,
        progress: Progress | None = None,
        folder: Path | None = None,
    ) -> None:
        """Ask with `samples`; the runtime uses `threads` and `provider`, answers are kept in `folder` between runs."""
        self.samples = samples
        self.threads = threads
        self.provider = provider
        self._progress = progress
        self._folder = folder
        self._remembered: dict[Hashable, Any] = {}

    def subset(self, count: int) -> Evidence:
        """The same with at most `count` of the samples, spread over all of them."""
        total = len(self.samples)
        if total <= count:
            return self
        return self.choose([index * total // count for index in range(count)])

    def choose(self, positions: Sequence[int]) -> Evidence:
        """The same with the samples at `positions` only."""
        return Evidence(
            self.samples.subset(positions),
            threads=self.threads,
            provider=self.provider,
            progress=self._progress,
            folder=self._folder,
        )

    def split(self, seed: int, share: int = 4) -> tuple[Evidence, Evidence]:
        """A seeded one in `share` of the samples apart from the rest, which comes first; at least one on either side.

        Raises:
            DataError: there is one sample only.
        """
        count, key = len(self.samples), ("split", seed, share)
        if count < 2:
            raise DataError("one calibration sample cannot be divided into some to calibrate on and some to judge by")
        if key not in self._remembered:
            apart = set(np.random.default_rng(seed).permutation(count)[: max(1, count // share)].tolist())
            sides: list[list[int]] = [[], []]
            for index in range(count):
                sides[index in apart].append(index)
            self._remembered[key] = self.choose(sides[0]), self.choose(sides[1])
        found: tuple[Evidence, Evidence] = self._remembered[key]
        return found

    def remember(self, what: Hashable, model: ir.Model, compute: Callable[[], Answer]) -> Answer:
        """What `compute` found out about this version of `model`, which it is asked for once in a run.

        Passes must do the same when they are run again, which measured time alone would not see to.
        """
        key = what, self._cache.version(model)
        if key not in self._remembered:
            self._remembered[key] = compute()
        found: Answer = self._remembered[key]
        return found

    @functools.cached_property
    def _cache(self) -> Cache:
        from graphopt.runtime.statistics_cache import Cache

        data = "" if self._folder is None else f"{self.samples.digest} {self.samples.indices()}"
        return Cache(data, self._folder)

    def collect(self, model: ir.Model, requests: Collection[Request[Any]]) -> Results:
        """Answer all `requests` about `model` in one run over the samples; what was asked before is known.

        Raises:
            DataError: an activation is not finite.
            RuntimeFailureError: the model cannot be run on the samples.
        """
        return self._cache.collect(
            model,
            requests,
            self.samples.batches,
            samples=len(self.samples),
            threads=self.threads,
            progress=self._progress,
        )

    def stepper(self, model: ir.Model) -> AbstractContextManager[Stepper]:
        """`model` run piece by piece over the samples, so that what lies behind can still be changed."""
        from graphopt.runtime.stepping import Stepper

        return Stepper(model, self.samples.batches, threads=self.threads, progress=self._progress)

    def session(self, model: ir.Model, *, integer: bool = True) -> Session:
        """`model`, ready to run on feeds of the caller's own; without `integer` kernels, as it is written."""
        from graphopt.runtime.session import Session, SessionOptions

        return Session(model, SessionOptions(threads=self.threads, provider=self.provider, integer=integer))

    def sqnr(self, original: ir.Model, result: ir.Model) -> float:
        """Signal to noise ratio of the outputs of `result` on the samples, in dB."""
        from graphopt.runtime.quality import measure

        return measure(original, [result], self.samples, "sqnr", threads=self.threads, provider=self.provider)[0].after

    def race(self, models: Sequence[ir.Model], *, seconds: float = 1.0) -> list[tuple[float, ...]]:
        """Seconds of each of `models` on one of the samples, round by round; on one thread, of the processor."""
        from graphopt.runtime.latency import race

        rows, _ = race(
            models,
            (batch.feeds for batch in self.samples.batches(1)),
            threads=self.threads,
            provider=self.provider,
            seconds=seconds,
            clock=time.thread_time if self.threads == 1 else time.perf_counter,
        )
        return rows

    def kernel_times(self, models: Sequence[ir.Model], *, seconds: float = 1.0) -> list[KernelTimes]:
        """Time of every kernel of `models`, which take turns, on one of the samples."""
        from graphopt.runtime.kernel_times import measure

        feeds = (batch.feeds for batch in self.samples.batches(1))
        return measure(models, feeds, threads=self.threads, seconds=seconds)
