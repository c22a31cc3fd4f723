"""The accuracy gate: `--max-drop X` on samples that no pass has seen.

A seeded quarter of the calibration samples is held out before anything is calibrated; a result passes where its metric
on them is at most X worse than the original's. That is decided by the measured value. The interval beside it (90 %, paired
bootstrap) says how far a few dozen samples can be trusted, and whether more of them would be worth having.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from graphopt.errors import DataError, TargetNotMetError
from graphopt.runtime import quality
from graphopt.runtime.bootstrap import CONFIDENCE
from graphopt.runtime.metrics.choice import Wanted
from graphopt.runtime.quality import Quality
from graphopt.runtime.session import ModelSource

if TYPE_CHECKING:
    from graphopt.data import Samples

ROUNDING = 1e-9
"""Means of the same hits in another order differ by this much."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the gate says about one result.

    Attributes:
        quality: the metric on the held-out samples.
        max_drop: how much worse it may be.
    """

    quality: Quality
    max_drop: float

    @property
    def passed(self) -> bool:
        """Whether the gate holds; a metric that is NaN never passes."""
        return within(self.quality, self.max_drop)

    def require(self) -> None:
        """Raise TargetNotMetError, which says how far the result came, where the gate does not hold."""
        if not self.passed:
            raise TargetNotMetError(f"the gate does not hold: {self}; nothing was written")

    def __str__(self) -> str:
        measured = self.quality
        unit = f" {measured.unit}" if measured.unit else ""
        low, high = measured.interval
        return (
            f"{measured.metric} {measured.before:.4g} -> {measured.after:.4g}{unit} on {measured.samples} held-out "
            f"samples ({100 * CONFIDENCE:.0f} % interval {low:.4g} to {high:.4g}), a drop of {measured.drop:.4g} where "
            f"--max-drop allows {self.max_drop:g}"
        )


def within(measured: Quality, max_drop: float) -> bool:
    """Whether the metric got worse by at most `max_drop`, in its own unit."""
    return bool(measured.drop <= max_drop + ROUNDING)


@dataclasses.dataclass(frozen=True)
class Gate:
    """The gate of one run.

    Attributes:
        max_drop: how much worse the metric may get, in its unit.
        metric: what the user asked for; None for the default.
        held_out: samples that nothing was calibrated on.
        seed: of the bootstrap.
        threads: threads of onnxruntime.
        provider: execution provider, None for the CPU.
    """

    max_drop: float
    metric: Wanted
    held_out: Samples
    seed: int = 0
    threads: int = 1
    provider: str | None = None

    def prepare(self, original: ModelSource) -> None:
        """Find out on one batch, before any work, whether the metric fits the original and the samples.

        Raises:
            DataError: it does not.
            RuntimeFailureError: the original cannot be run on them.
        """
        quality.check(original, self.held_out, self.metric, threads=self.threads, provider=self.provider)

    def check(
        self, original: ModelSource, result: ModelSource, progress: Callable[[float], None] | None = None
    ) -> Outcome:
        """Measure `result` on the held-out samples.

        Raises:
            DataError: the metric is not a number for the original itself.
        """
        measured = quality.measure(
            original,
            [result],
            self.held_out,
            self.metric,
            seed=self.seed,
            threads=self.threads,
            provider=self.provider,
            progress=progress,
        )[0]
        if measured.before != measured.before:
            raise DataError(f"--metric {measured.metric} is not a number for the original on the held-out samples")
        return Outcome(measured, self.max_drop)
