"""Meeting the gate by sparing places: a pass that does too much harm is run again with more of its sites left alone.

Passes that can (`Pass.sparing`) leave the most harmful places alone, by their own measurements on calibration samples;
how many that takes, the gate alone decides on its held-out samples. The least number is found by doubling and bisection.
What a pass measured in the first run it remembers (`Evidence.remember`), so that the others are shorter.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphopt.errors import TargetNotMetError
from graphopt.pipeline.fewest import fewest
from graphopt.pipeline.manager import Manager
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.records import RunRecord
from graphopt.planning.gate import Outcome

Judge = Callable[[ir.Model], Outcome | None]


def run(
    manager: Manager, model: ir.Model, pipeline: Pipeline, judge: Judge, relift: Callable[[], ir.Model]
) -> tuple[RunRecord, Outcome | None]:
    """Run `pipeline` as it is, and where the gate does not hold with as few places spared as it takes.

    Args:
        manager: runs pipelines.
        model: as lifted; changed.
        pipeline: the passes.
        judge: the gate's word on a result.
        relift: makes the model anew as it was lifted.

    Raises:
        TargetNotMetError: the gate does not hold even with every such place left alone; the message says how far it came.
    """
    record = manager.run(model, pipeline)
    outcome = judge(record.model)
    if outcome is None or outcome.passed:
        return record, outcome
    most = max((passed.sparable for passed in record.passes), default=0)
    if not most:
        outcome.require()
    return _Search(manager, pipeline, judge, relift, outcome).run(most)


class _Search:
    def __init__(
        self, manager: Manager, pipeline: Pipeline, judge: Judge, relift: Callable[[], ir.Model], failed: Outcome
    ) -> None:
        self.manager = manager
        self.pipeline = pipeline
        self.judge = judge
        self.relift = relift
        self.failed = failed
        self.found: dict[int, tuple[RunRecord, Outcome]] = {}

    def run(self, most: int) -> tuple[RunRecord, Outcome]:
        """The result with the fewest places spared."""
        count = fewest(0, most, self._holds)
        if count not in self.found and not self._holds(count):
            raise TargetNotMetError(
                f"the gate does not hold, even with all {most} places left alone that passes could spare: {self.failed}; "
                "nothing was written"
            )
        return self.found[count]

    def _holds(self, count: int) -> bool:
        passes = tuple(pass_.sparing(count) or pass_ for pass_ in self.pipeline)
        record = self.manager.run(self.relift(), Pipeline(passes))
        outcome = self.judge(record.model)
        assert outcome is not None
        if outcome.passed:
            self.found[count] = record, outcome
        else:
            self.failed = outcome
        return outcome.passed
