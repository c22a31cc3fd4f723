"""Going back to before any pass, without a copy of the model per pass.

A clone of a large graph costs as much as many passes do, so the history keeps the *steps* that changed the model and
few states. The first state costs nothing, because the model can be lifted again. Another one is kept only when the
steps since the last took several times as long as a clone, and longer than anybody minds. An earlier state is then the
nearest kept one before it, with the steps in between replayed:

    state(k) = steps[k-1] ( ... steps[j] ( kept[j] ))        j <= k, the largest one kept

Steps must be deterministic: the same step on the same model gives the same model, to the byte.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

Step: TypeAlias = Callable[[ir.Model], object]

CLONE_SECONDS_PER_NODE = 4e-5
"""What a clone is expected to cost until one was made and timed."""

WORTH = 10
"""A state is kept when the steps since the last one took this many times as long as a clone ..."""

WORTH_SECONDS = 2.0
"""... and this many seconds: going back is rare, and most runs are over by then."""


class History:
    """The steps that changed a model, and the way back.

    Args:
        model: the model before the first step. The history owns it: it is changed in place, and after going back
            another object is the model.
        relift: makes the first state anew; without it a clone is kept from the start.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        model: ir.Model,
        relift: Callable[[], ir.Model] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start with no steps."""
        self.model = model
        self._clock = clock
        self._clone_seconds = CLONE_SECONDS_PER_NODE * model.graph.num_nodes()
        self._first = relift or _cloner(self._clone(model))
        self._kept: dict[int, ir.Model] = {}
        self._steps: list[Step] = []
        self._work = 0.0

    @property
    def steps(self) -> Sequence[Step]:
        """The steps that led to the current model."""
        return tuple(self._steps)

    def record(self, step: Step, seconds: float) -> None:
        """Note that `step` has just changed the model, and how long that took."""
        self._steps.append(step)
        self._work += seconds
        if self._work > max(WORTH * self._clone_seconds, WORTH_SECONDS):
            self._work = 0.0
            with contextlib.suppress(RuntimeError):  # damage that a step did not report; it is found at the end
                self._kept[len(self._steps)] = self._clone(self.model)

    def state(self, count: int) -> ir.Model:
        """A new model as it was after the first `count` steps."""
        nearest = max((kept for kept in self._kept if kept <= count), default=0)
        model = self._clone(self._kept[nearest]) if nearest else self._first()
        for step in self._steps[nearest:count]:
            step(model)
        return model

    def first_step(self, is_wrong: Callable[[ir.Model], bool]) -> int:
        """Index of the step that turns a right model into a wrong one, found by bisection.

        The first state is taken to be right and the current one to be wrong.
        """
        right, wrong = 0, len(self._steps)
        while wrong - right > 1:
            middle = (right + wrong) // 2
            if is_wrong(self.state(middle)):
                wrong = middle
            else:
                right = middle
        return right

    def go_back(self, count: int) -> None:
        """Make the current model the one after the first `count` steps, and forget the others."""
        self.model = self.state(count)
        del self._steps[count:]
        self._kept = {kept: model for kept, model in self._kept.items() if kept <= count}
        self._work = 0.0

    def _clone(self, model: ir.Model) -> ir.Model:
        started = self._clock()
        copy = clone(model)
        self._clone_seconds = self._clock() - started
        return copy


def clone(model: ir.Model) -> ir.Model:
    """A copy that shares only tensors with `model`."""
    copy = model.clone()
    copy.meta.update(model.meta)  # onnx-ir copies those of graphs, nodes and values, but not the model's
    return copy


def _cloner(model: ir.Model) -> Callable[[], ir.Model]:
    return lambda: clone(model)
