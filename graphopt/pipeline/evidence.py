"""What calibration samples say about a model, as passes may ask for it: `PassContext.evidence`.

The samples are those that calibrate; what a gate judges by is held out before and never comes here. Everything streams:
asking for more statistics in one call costs one run over the samples, asking in several calls costs several.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import onnx_ir as ir

if TYPE_CHECKING:
    from graphopt.data import Samples
    from graphopt.runtime.latency import Latency
    from graphopt.runtime.requests import Request, Results
    from graphopt.runtime.session import Session
    from graphopt.runtime.stepping import Stepper


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
    ) -> None:
        """Ask with `samples`; the runtime uses `threads` and `provider`."""
        self.samples = samples
        self._threads = threads
        self._provider = provider
        self._progress = progress

    def subset(self, count: int) -> Evidence:
        """The same with at most `count` of the samples, spread over all of them."""
        total = len(self.samples)
        if total <= count:
            return self
        return self.choose([index * total // count for index in range(count)])

    def choose(self, positions: Sequence[int]) -> Evidence:
        """The same with the samples at `positions` only."""
        samples = self.samples.subset(positions)
        return Evidence(samples, threads=self._threads, provider=self._provider, progress=self._progress)

    def collect(self, model: ir.Model, requests: Collection[Request[Any]]) -> Results:
        """Answer all `requests` about `model` in one run over the samples.

        Raises:
            DataError: an activation is not finite.
            RuntimeFailureError: the model cannot be run on the samples.
        """
        from graphopt.runtime.statistics import collect

        return collect(
            model,
            requests,
            self.samples.batches,
            samples=len(self.samples),
            threads=self._threads,
            progress=self._progress,
        )

    def stepper(self, model: ir.Model) -> AbstractContextManager[Stepper]:
        """`model` run piece by piece over the samples, so that what lies behind can still be changed."""
        from graphopt.runtime.stepping import Stepper

        return Stepper(model, self.samples.batches, threads=self._threads, progress=self._progress)

    def session(self, model: ir.Model) -> Session:
        """`model`, ready to run on feeds of the caller's own."""
        from graphopt.runtime.session import Session, SessionOptions

        return Session(model, SessionOptions(threads=self._threads, provider=self._provider))

    def latency(self, before: ir.Model, after: ir.Model, *, seconds: float = 1.0, confidence: float = 0.9) -> Latency:
        """Time of `after` against `before`, on one of the samples."""
        from graphopt.runtime.latency import measure

        feeds = (batch.feeds for batch in self.samples.batches(1))
        return measure(
            before,
            after,
            feeds,
            threads=self._threads,
            provider=self._provider,
            seconds=seconds,
            confidence=confidence,
        )
