"""planning.sparing: the gate decides how many places passes spare."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from graphopt.errors import TargetNotMetError
from graphopt.pipeline.base import Pass, PassContext, PassResult
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.records import PassRecord, RunRecord
from graphopt.planning import sparing


class Harmful(Pass):
    """Does harm in four places, less those that it spares."""

    name = "harmful"
    exact = False

    def __init__(self, spared: int = 0) -> None:
        self.spared = spared

    def sparing(self, places: int) -> Harmful:
        return Harmful(self.spared + places)

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        raise NotImplementedError


class Manager:
    """Runs nothing, and notes with how many places spared."""

    def __init__(self, sparable: int) -> None:
        self.sparable, self.runs = sparable, list[int]()

    def run(self, model: Any, pipeline: Pipeline) -> RunRecord:
        (pass_,) = pipeline.passes
        assert isinstance(pass_, Harmful)
        self.runs.append(pass_.spared)
        record = PassRecord("harmful", {}, 0.0, True, None, None, sparable=self.sparable)
        return RunRecord(f"spared {pass_.spared}", "harmful", (record,), ())  # type: ignore[arg-type]


class Outcome:
    """Of a gate."""

    def __init__(self, passed: bool) -> None:
        self.passed = passed

    def require(self) -> None:
        raise TargetNotMetError("the gate does not hold: kl 1")

    def __str__(self) -> str:
        return "kl 1"


def anew() -> Any:
    return "anew"


def run(needed: int | None, sparable: int = 4) -> tuple[str, list[int]]:
    """What came out, and what was tried, where `needed` places must be spared."""
    manager = Manager(sparable)

    def judge(model: Any) -> Any:
        return None if needed is None else Outcome(int(str(model).split()[-1]) >= needed)

    record, _ = sparing.run(manager, "lifted", Pipeline((Harmful(),)), judge, anew)  # type: ignore[arg-type]
    return str(record.model), manager.runs


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 4])
def test_the_fewest_places_that_pass(needed: int) -> None:
    found, runs = run(needed)
    assert found == f"spared {needed}"
    assert len(runs) == len(set(runs))


def test_without_a_gate_it_runs_once() -> None:
    assert run(None) == ("spared 0", [0])


def test_how_far_it_came() -> None:
    with pytest.raises(TargetNotMetError, match="even with all 4 places left alone that passes could spare: kl 1"):
        run(5)


def test_passes_that_cannot_spare_anything_are_not_run_again() -> None:
    with pytest.raises(TargetNotMetError, match="the gate does not hold: kl 1"):
        run(1, sparable=0)
