"""What a pass is: a frozen dataclass with a name, whose fields are its options.

    @dataclass(frozen=True)
    class MyPass(graphopt.Pass):
        \"\"\"One line that `graphopt passes` shows.\"\"\"
        name: ClassVar[str] = "my-pass"
        ratio: float = 0.5
        def run(self, model, context) -> PassResult: ...

The fields are at once the options, their help text (`option(default, help)`) and the textual form
`my-pass{ratio=0.3}`. A pass mutates the model it is given, says in its result what it touched and why it left other
things alone, and sees the machine only through its `PassContext`. docs/writing-passes.md is the guide.
"""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.pipeline.evidence import Evidence

if TYPE_CHECKING:
    from graphopt.pricing import DeviceProfile

Evaluate: TypeAlias = Callable[[ir.Model], Sequence[ir.TensorProtocol]]
"""Runs a model that has no inputs and returns its outputs; raises RuntimeFailureError where the runtime cannot."""


@dataclasses.dataclass(frozen=True)
class Remark:
    """One sentence about one place, or a few alike: what a pass did there, or why it did not."""

    where: str
    what: str
    applied: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclasses.dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        modified: whether anything in the model changed. Where it says no, nothing is verified, priced or dumped.
        touched: the nodes that were made or changed and are still in the model; verification and pricing look at these
            and their neighbours only. None means "not tracked": the whole model is looked at again.
        remarks: what was done where, and above all why not.
        warnings: what the user must not overlook.
        facts: figures for the report, under keys of the pass's own: numbers, texts, lists and dicts. Reports print
            `notes` (a list of sentences), `unchanged` (why there was nothing to do) and `time` (`ratio` and `interval` of
            the time after over the time before, as measured).
        sparable: how many places a harmful pass could still leave alone; see `Pass.sparing`.
    """

    modified: bool
    touched: Collection[ir.Node] | None = None
    remarks: Sequence[Remark] = ()
    warnings: Sequence[str] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sparable: int = 0


@dataclasses.dataclass(frozen=True)
class PassContext:
    """The machine as a pass sees it.

    Attributes:
        seed: of everything random; two runs of a pass under one context do the same, which rollback relies on.
        threads: threads that the runtime may use.
        exclude: names of nodes that no pass touches.
        keep: names and operators of nodes that the pass at hand leaves alone, by an option of its own.
        evaluate: runs a small model without inputs; None where there is no runtime.
        evidence: calibration samples and the runtime to ask them with; None where there is no data.
        profile: the device profile that the user named; None for the built-in one.
    """

    seed: int = 0
    threads: int = 1
    exclude: re.Pattern[str] | None = None
    keep: frozenset[str] = frozenset()
    evaluate: Evaluate | None = None
    evidence: Evidence | None = None
    profile: DeviceProfile | None = None

    @cached_property
    def device(self) -> DeviceProfile:
        """The machine that the model is to run on: `alignment` is what widths should be multiples of."""
        from graphopt.pricing.device import this_machine  # here, because few passes ask

        return self.profile or this_machine()

    def predicted_ms(self, model: ir.Model) -> float:
        """Milliseconds that one inference of `model` takes on `device` by its profile: a prediction, not a measurement.

        Extents that the model leaves open count as they do in reports (`graphopt.analysis.extents`).
        """
        from graphopt.pricing import price

        return price(model, device=self.device).predicted_ms

    def excluded(self, node: ir.Node) -> bool:
        """Whether the user asked that the pass does not touch `node`."""
        if node.op_type in self.keep or node.name in self.keep:
            return True
        return self.exclude is not None and bool(node.name) and self.exclude.fullmatch(node.name or "") is not None

    def rng(self) -> np.random.Generator:
        """A fresh generator, the same in every run with the same seed."""
        return np.random.default_rng(self.seed)


class Pass(abc.ABC):
    """A rewrite of the model. Subclasses are frozen dataclasses; their fields are the options.

    Attributes:
        name: what the pass is called in pipelines.
        exact: whether the result computes the same as before, up to rounding; such passes are checked in the runtime.
        requires: names of passes that must have run before; the manager inserts what is missing.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ()

    @property
    def min_opset(self) -> int:
        """The model's opset is raised to this version before the pass runs; said like `needs_data`."""
        return 1

    @property
    def needs_data(self) -> bool:
        """Whether it cannot run without `context.evidence`; a run without data then stops before any work.

        A pass that always does says `needs_data: ClassVar[bool] = True`; a property may look at the options.
        """
        return False

    @property
    def reads_data(self) -> bool:
        """Whether it asks `context.evidence` where there is data, though it may do without; said like `needs_data`."""
        return self.needs_data

    def sparing(self, places: int) -> Pass | None:
        """The same pass that leaves so many places alone, the most harmful first; None where it has no such choice.

        Where the accuracy gate does not hold, the run is repeated with more and more of them (`planning.sparing`).
        """
        return None

    @abc.abstractmethod
    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Rewrite `model` in place."""


def option(
    default: Any,
    help: str,  # noqa: A002 - the field's own word
    *,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A dataclass field that is a pass option.

    Args:
        default: its value where a pipeline says nothing.
        help: the sentence that `graphopt passes NAME` prints.
        minimum: smallest legal number, itself included.
        maximum: largest legal number, itself included.
    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata=metadata)
