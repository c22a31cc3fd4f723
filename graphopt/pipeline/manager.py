"""The pass manager: runs a pipeline over a lifted model, watches every pass, and takes back what goes wrong.

After each pass that says it changed something, the nodes it touched are verified and typed anew, and the model is
priced; a pass that changed nothing costs nothing. The exact passes at the head of a pipeline are run to a fixed point:
what one of them made possible for another is done too, and a second run of the same pipeline finds nothing left.

What happens when something goes wrong:

* a pass raises one of graphopt's own errors: it is the user's to act on (missing data, an illegal option) and goes up
  as it is;
* a pass raises anything else: that is a defect. A crash reproducer is written, and PassError names it;
* an exact pass leaves a model that does not verify, or one that computes something else: the pass is taken back and the
  run goes on without it, with a warning. Which pass made the difference is found by bisection over the history;
* another pass leaves a model that does not verify: as if it had raised, because what follows builds on it;
* the model's opset cannot be raised to what a pass needs: the pass is left out, with a remark.

The comparison in the runtime covers the exact passes at the head of the pipeline; after the first pass that is not
exact the original is no reference any more.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import onnx_ir as ir

from graphopt.errors import EmitError, GraphoptError, PassError
from graphopt.pipeline import reproducer
from graphopt.pipeline.base import Pass, PassContext, PassResult, Remark
from graphopt.pipeline.history import History
from graphopt.pipeline.instruments import Instrument
from graphopt.pipeline.options import to_text
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.records import PassRecord, RunRecord, options_of_record
from graphopt.pipeline.registry import Registry
from graphopt.runtime.equivalence import Status, Verdict

Touched: TypeAlias = Collection[ir.Node] | None
"""Nodes to look at; None is the whole model."""

MOST_GUILTY = 3
"""After this many passes were taken back for changing what the model computes, all exact passes are."""

MOST_SWEEPS = 10
"""Exact passes are run at most this many times more; passes that undo each other would never end."""

PROVENANCE_KEY = "graphopt"
"""The key in a node's metadata that names the passes which touched it."""

_NODE_METADATA_SINCE = 10  # IR version


@dataclasses.dataclass(frozen=True)
class Tools:
    """What the manager needs from the rest of the house. Each can be replaced; those that are None are left out.

    Attributes:
        verify_structure: raises a GraphoptError where the graph is broken.
        infer: gives values types and shapes.
        verify_meaning: raises a GraphoptError where types, shapes or operators are wrong.
        price: the cost of a model, of which only the touched part changed since the last call.
        equivalent: compares a model with the original.
        relift: makes the model anew as it was lifted.
        upgrade: raises the opset in place and returns remarks; raises a GraphoptError where it cannot.
        save: writes a model to a path.
    """

    verify_structure: Callable[[ir.Model, Touched], object]
    infer: Callable[[ir.Model, Touched], object]
    verify_meaning: Callable[[ir.Model, Touched], object]
    save: reproducer.Save
    upgrade: Callable[[ir.Model, int], Iterable[str]] | None = None
    price: Callable[[ir.Model, Touched], Any] | None = None
    equivalent: Callable[[ir.Model], Verdict] | None = None
    relift: Callable[[], ir.Model] | None = None


@dataclasses.dataclass(frozen=True)
class Manager:
    """How pipelines are run.

    Attributes:
        registry: where passes that others require are found.
        context: what passes see of the machine.
        tools: what the manager itself uses of it.
        instruments: watch the run.
        crash_folder: where crash reproducers go.
        crash_options: options of the command line that a reproducer needs beside those of the context, such as the data.
        verify_all: verify the whole model after each pass instead of what it touched.
        provenance: write into each touched node which passes touched it, where the IR version allows it.
    """

    registry: Registry
    context: PassContext
    tools: Tools
    instruments: Sequence[Instrument] = ()
    crash_folder: Path = Path()
    crash_options: Sequence[str] = ()
    verify_all: bool = False
    provenance: bool = True

    def run(self, model: ir.Model, pipeline: Pipeline) -> RunRecord:
        """Run `pipeline`, completed by what its passes require, over `model`.

        The model is changed; the result's is the one to go on with.

        Raises:
            PassError: a pass failed; the message names what reproduces it.
            GraphoptError: a pass needs something that the user must provide.
        """
        return _Run(self, model, pipeline.completed(self.registry)).execute()


class _Run:
    """One run: the history of the model, and what each pass did.

    The first sweep leaves a record for each position of the pipeline, in order; later sweeps one for each pass that
    changed something.
    """

    def __init__(self, manager: Manager, model: ir.Model, pipeline: Pipeline) -> None:
        self.manager = manager
        self.tools = manager.tools
        self.pipeline = pipeline
        self.history = History(model, manager.tools.relift)
        self.records: list[PassRecord] = []
        self.positions: list[int] = []  # the position in the pipeline behind each record
        self.changed_by: list[int] = []  # the record behind each step of the history
        self.last_run: dict[int, int] = {}  # per position: how many steps there were when it ran last
        self.taken_back: dict[int, str] = {}
        self.warnings: list[str] = []
        self.repriced = True  # whether the model is another object than when it was last priced
        self.cost = self._price(None)

    def execute(self) -> RunRecord:
        exact = next((i for i, pass_ in enumerate(self.pipeline) if not pass_.exact), len(self.pipeline))
        for instrument in self.manager.instruments:
            instrument.run_started(self.pipeline, self.history.model)
        self._run_exact(0, exact)
        self._settle(exact)
        lossy = len(self.records)
        for position in range(exact, len(self.pipeline)):
            self._run(position)
        if self.changed_by and self.changed_by[-1] >= lossy:
            self.tools.verify_structure(self.history.model, None)
            self.tools.verify_meaning(self.history.model, None)
        return RunRecord(self.history.model, str(self.pipeline), tuple(self.records), tuple(self.warnings))

    def _run_exact(self, first: int, exact: int) -> None:
        """Run the passes from `first` up to `exact`, then all up to there until none of them changes anything."""
        for position in range(first, exact):
            self._run(position)
        for _ in range(MOST_SWEEPS):
            steps = len(self.changed_by)
            for position in range(exact):
                if self.last_run.get(position) != len(self.changed_by) and position not in self.taken_back:
                    self._run(position, again=True)
            if len(self.changed_by) == steps:
                return

    def _run(self, position: int, *, again: bool = False) -> None:
        """Run the pass at `position`; where it is run `again`, it leaves a record only if it changes something."""
        for instrument in self.manager.instruments:
            instrument.pass_started(self.pipeline.passes[position], self.history.model)
        steps = len(self.changed_by)
        record = self._record(position)
        self.last_run[position] = steps  # it runs again after its own step too: that may have told more about types
        if record.modified or not again:
            self.records.append(record)
            self.positions.append(position)
        for instrument in self.manager.instruments:
            instrument.pass_finished(record, self.history.model)

    def _record(self, position: int) -> PassRecord:
        """Run the pass at `position`; the model is as before where that fails."""
        pass_, before = self.pipeline.passes[position], self.cost
        if position in self.taken_back:
            return self._unchanged(pass_, self.taken_back[position])
        step = _Step(pass_, self.manager)
        started = time.perf_counter()
        try:
            result = step.run(self.history.model)
        except _NoUpgradeError as error:
            self._go_back(len(self.changed_by))
            return self._unchanged(pass_, f"left out: it needs opset {pass_.min_opset}, but {error}")
        except GraphoptError:
            raise  # what the user has to provide or to change
        except Exception as error:  # a pass is anybody's code, and may fail in any way
            raise self._crash(position, f"{type(error).__name__}: {error}") from error
        seconds = time.perf_counter() - started
        if result.modified:
            try:
                self._verify(result.touched)
            except GraphoptError as error:
                if not pass_.exact:
                    raise self._crash(position, str(error)) from error
                self._go_back(len(self.changed_by))
                return self._unchanged(pass_, self._took_back(position, str(error)), seconds)
            self.history.record(step.replay, time.perf_counter() - started)
            self.changed_by.append(len(self.records))
            self.cost = self._price(result.touched)
        options = options_of_record(pass_)
        self.warnings += result.warnings
        return PassRecord(
            pass_.name,
            options,
            seconds,
            result.modified,
            before,
            self.cost,
            tuple(result.remarks),
            result.facts,
            result.sparable,
            pass_.exact,
        )

    def _unchanged(self, pass_: Pass, why: str, seconds: float = 0.0) -> PassRecord:
        remark = Remark(f"pass '{pass_.name}'", why)
        options = options_of_record(pass_)
        facts = {"unchanged": why}
        return PassRecord(
            pass_.name, options, seconds, False, self.cost, self.cost, (remark,), facts, exact=pass_.exact
        )

    def _verify(self, touched: Touched) -> None:
        """Check what a pass touched. Types are inferred in between: they follow from a sound structure."""
        scope = None if self.manager.verify_all else touched
        self.tools.verify_structure(self.history.model, scope)
        self.tools.infer(self.history.model, touched)
        self.tools.verify_meaning(self.history.model, scope)

    def _settle(self, exact: int) -> None:
        """Take passes back until the model verifies and computes what the original does."""
        while self.changed_by:
            complaint = self._complaint(self.history.model)
            if complaint is None:
                return
            guilty = 0
            positions = sorted({self.positions[record] for record in self.changed_by})
            if len(self.taken_back) < MOST_GUILTY:
                guilty = self.history.first_step(lambda model: self._complaint(model) is not None)
                positions = [self.positions[self.changed_by[guilty]]]
            for position in positions:
                self._took_back(position, complaint)
            self._forget_from(guilty)
            self._run_exact(len(self.records), exact)

    def _complaint(self, model: ir.Model) -> str | None:
        """What is wrong with `model` after exact passes, or None."""
        try:
            self.tools.verify_structure(model, None)
            self.tools.verify_meaning(model, None)
        except GraphoptError as error:
            return f"the model does not verify any more: {error}"
        verdict = self.tools.equivalent(model) if self.tools.equivalent is not None else None
        if verdict is None or verdict.status is Status.SAME:
            return None
        if verdict.status is Status.DIFFERENT:
            return f"the model computes something else: {verdict.detail}"
        warning = f"the result was not compared with the original: {verdict.detail}"
        if warning not in self.warnings:
            self.warnings.append(warning)
        return None

    def _took_back(self, position: int, why: str) -> str:
        """Note that the pass at `position` is left out from now on."""
        self.taken_back[position] = f"taken back: {why}"
        self.warnings.append(f"pass '{to_text(self.pipeline.passes[position])}' was taken back: {why}")
        return self.taken_back[position]

    def _forget_from(self, step: int) -> None:
        """Go back to before `step`, and to the records before the pass that took it."""
        record = self.changed_by[step]
        self._go_back(step)
        self.cost = self.records[record].before
        del self.changed_by[step:], self.records[record:], self.positions[record:]
        self.last_run.clear()

    def _go_back(self, steps: int) -> None:
        self.history.go_back(steps)
        self.repriced = True

    def _price(self, touched: Touched) -> Any:
        if self.tools.price is None:
            return None
        cost = self.tools.price(self.history.model, None if self.repriced else touched)
        self.repriced = False
        return cost

    def _crash(self, position: int, reason: str) -> PassError:
        """The error for the pass at `position`, with a reproducer where one can be written."""
        self._go_back(len(self.changed_by))
        remaining = Pipeline(self.pipeline.passes[position:])
        what = f"pass '{to_text(remaining.passes[0])}' failed: {reason}"
        folder, context = self.manager.crash_folder, self.manager.context
        try:
            options = self.manager.crash_options
            crash = reproducer.write(folder, self.history.model, remaining, context, what, self.tools.save, options)
        except EmitError as error:
            return PassError(f"{what} (no reproducer could be written: {error})")
        return PassError(f"{what} ({crash} holds the model as the pass got it and the command that reproduces this)")


class _NoUpgradeError(Exception):
    """The model's opset cannot be raised to what a pass needs."""


class _Step:
    """A pass as a step of the history: with the rise of the opset that it needs, and what it leaves on nodes."""

    def __init__(self, pass_: Pass, manager: Manager) -> None:
        self.pass_ = pass_
        self.manager = manager

    def run(self, model: ir.Model) -> PassResult:
        """Raise the opset where needed, and run the pass. Raises _NoUpgradeError, and what the pass raises."""
        notes = self._raise_opset(model)
        result = self.pass_.run(model, self.manager.context)
        if self.manager.provenance and model.ir_version >= _NODE_METADATA_SINCE:
            for node in result.touched or ():
                _sign(node, self.pass_.name)
        if notes is None:
            return result
        return dataclasses.replace(result, modified=True, touched=None, remarks=(*notes, *result.remarks))

    def replay(self, model: ir.Model) -> None:
        """Do the same again, to a model that the pass changes."""
        self.manager.tools.infer(model, self.run(model).touched)

    def _raise_opset(self, model: ir.Model) -> list[Remark] | None:
        """Remarks of the upgrade, None where none was needed."""
        version = model.opset_imports.get("")
        if version is None or version >= self.pass_.min_opset:
            return None
        upgrade = self.manager.tools.upgrade
        if upgrade is None:
            raise _NoUpgradeError("nothing is there to raise it")
        try:
            notes = upgrade(model, self.pass_.min_opset)
        except GraphoptError as error:
            raise _NoUpgradeError(str(error)) from error
        where = f"opset {version} -> {self.pass_.min_opset}"
        return [Remark(where, "raised", applied=True), *(Remark(where, note) for note in notes)]


def _sign(node: ir.Node, name: str) -> None:
    """Note in the metadata of `node` that the pass called `name` touched it."""
    names = node.metadata_props.get(PROVENANCE_KEY, "").split(",")
    if name not in names:
        node.metadata_props[PROVENANCE_KEY] = ",".join(filter(None, [*names, name]))
