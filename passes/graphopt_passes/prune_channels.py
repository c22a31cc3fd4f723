"""Channel pruning: whole channels go, and the layers around them are refitted so that the outputs stay what they were.

Which channels can only go together is found on any graph by following their labels (`graphopt.analysis.coupling`). Which
of them go, and how many from where, is decided from calibration samples by what their loss does to the layers that read
them and to the outputs (`pruning.planning`). The layers that stay are refitted in the order of the graph (`pruning.repair`).
Without samples the weights alone decide, and what goes is added to what is like it (`pruning.merging`).
docs/pruning.md has more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.analysis.coupling import couple
from graphopt.ir.surgery import FreshNames, drop_unread
from graphopt.pipeline.base import PassContext, PassResult, option
from graphopt.pipeline.remarks import Remarks
from graphopt.runtime.latency import Latency
from graphopt_passes.lossless.eliminate_identity import EliminateIdentity
from graphopt_passes.lossless.merge_consecutive import MergeConsecutive
from graphopt_passes.lossy import LossyPass, check_amounts
from graphopt_passes.pruning.branches import take_out
from graphopt_passes.pruning.execution import Execution, Settings
from graphopt_passes.pruning.gains import counts
from graphopt_passes.pruning.structure import Structure
from graphopt_passes.pruning.widths import Limits
from graphopt_passes.reconstruction import stopwatch
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.transposed import layers_of

_Criterion: TypeAlias = Literal["auto", "obs", "l1", "l2", "bn-scale", "activation", "geometric-median", "random"]
_DEFAULT_RATIO = 0.3
_NEED_DATA = frozenset({"obs", "activation", "bn-scale"})


_NO_SAMPLES = (
    "prune-channels: no samples: channels go by the size of their weights and no layer is refitted, which can cost most of the "
    "accuracy; give samples with -d"
)


@dataclass(frozen=True)
class PruneChannels(LossyPass):
    """Take out whole channels, and refit the layers around them."""

    name: ClassVar[str] = "prune-channels"

    ratio: float | None = option(
        None,
        "share of the channels that go; with scope=global as many MACs as that takes. 0.3 where no amount is given",
    )
    macs: float | None = option(None, "MACs of the whole model that may stay: a share up to 1, or a number", minimum=0)
    params: float | None = option(None, "parameters of the whole model that may stay, likewise", minimum=0)
    criterion: _Criterion = option("auto", "what decides which channels go first; auto: obs with samples, else l2")
    scope: Literal["global", "uniform"] = option("global", "whether layers share the loss by harm, or lose alike")
    repair: bool = option(True, "refit the layers that stay; without samples, add channels that go to ones like them")
    align: int | None = option(
        None,
        "widths are multiples of this, or of its half where it leaves little choice; none: as the device wants it",
        minimum=1,
    )
    min_width: int = option(1, "channels that every layer keeps at least", minimum=1)
    branches: bool = option(True, "let branches of residual additions go as a whole where samples are for it")
    exclude: tuple[str, ...] = option((), "names of layers, or patterns for them, that keep their channels")
    rows: int = option(12_000, "rows of a layer's input that are looked at", minimum=100)

    def __post_init__(self) -> None:
        """Refuse options that contradict each other."""
        given = [name for name in ("ratio", "macs", "params") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} all say how much goes: give one of them")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio:g} is not within [0, 1)")
        check_amounts(macs=self.macs, params=self.params)
        for pattern in self.exclude:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"exclude={pattern}: {error}") from error

    @property
    def needs_data(self) -> bool:
        """Some criteria are measured."""
        return self.criterion in _NEED_DATA

    @property
    def reads_data(self) -> bool:
        """By default everything is measured where there are samples."""
        return True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Prune `model`.

        Raises:
            TargetNotMetError: the widths cannot be made narrow enough.
        """
        remarks = Remarks()
        excluded, warnings = self._excluded(model, context)
        given = _give_biases(model) if self.repair else []  # before channels are followed, so that these are cut too
        coupling = couple(model, excluded=excluded)
        for pin in coupling.pinned:
            remarks.missed(pin.producer, f"channels stay: {pin.reason}")
        if not coupling.groups:
            return _unchanged("no layer has channels that can go", given, remarks, warnings)
        structure = Structure(model, coupling)
        execution = Execution(model, structure, self._settings(context), context, remarks, excluded)
        with structure.threads():
            gone = {number: units for number, units in execution.decide().items() if len(units)}
        if not gone:
            return _unchanged(execution.rounded or "all widths stay as they are", given, remarks, warnings)
        if context.evidence is None:
            warnings = [*warnings, _NO_SAMPLES]
        evidence = stopwatch.clock(context)
        original = model.clone() if evidence is not None else None
        with structure.threads():
            gone = execution.repair(gone)
        _say_widths(structure, gone, remarks)
        touched = take_out(model, structure, gone)
        if touched is None:
            EliminateIdentity().run(model, context)
            MergeConsecutive().run(model, context)  # the activations before and behind a sum that is gone
        facts: dict[str, Any] = {}
        if execution.rounded is not None:
            facts["notes"] = [execution.rounded]
            if self.scope == "global":
                share = _share_gone(structure, gone)
                went = f"chosen where it harms least, a share of {share:.2f} saves as many MACs, and that went"
                facts["notes"] = [f"{execution.rounded}; {went}"]
        if evidence is not None and original is not None:
            taken = evidence.remember(
                ("pruned", counts(gone)), original, lambda: stopwatch.race(original, model, evidence)
            )
            facts["time"] = taken.to_dict()
            remarks.applied("model", f"measured {stopwatch.said(taken)}")
            warnings = [*warnings, *_slower(taken, self.align)]
        whole = execution.refitted or bool(given)
        return PassResult(True, None if whole else touched, remarks.listed(), warnings, facts)

    def _settings(self, context: PassContext) -> Settings:
        criterion = ("l2" if context.evidence is None else "obs") if self.criterion == "auto" else self.criterion
        align = context.device.alignment if self.align is None else self.align
        return Settings(
            criterion=criterion,
            uniform=self.scope == "uniform",
            ratio=_DEFAULT_RATIO if self.macs is None and self.params is None and self.ratio is None else self.ratio,
            measure="macs" if self.params is None else "params",
            amount=next((amount for amount in (self.macs, self.params) if amount is not None), 1.0),
            repair=self.repair,
            limits=Limits(align, self.min_width),
            rows=self.rows,
            branches=self.branches,
            aligned=self.align is not None,
        )

    def _excluded(self, model: ir.Model, context: PassContext) -> tuple[Callable[[ir.Node], bool], list[str]]:
        """Whether a node keeps its channels; and a warning for each name that no node has."""
        patterns = {text: re.compile(text) for text in self.exclude}
        names = {node.name or "" for node in model.graph}
        warnings = [
            f"prune-channels: exclude={text} matches no node"
            for text, pattern in patterns.items()
            if text not in names and not any(map(pattern.fullmatch, names))
        ]

        def excluded(node: ir.Node) -> bool:
            name = node.name or ""
            matches = name in patterns or any(pattern.fullmatch(name) for pattern in patterns.values())
            return matches or context.excluded(node)

        return excluded, warnings


def _unchanged(why: str, given: list[Linear], remarks: Remarks, warnings: list[str]) -> PassResult:
    """The result where nothing goes: biases that layers were given are taken back."""
    remarks.missed("model", f"nothing to prune: {why}")
    _take_biases(given)
    return PassResult(False, (), remarks.listed(), warnings, {"unchanged": why})


def _slower(taken: Latency, align: int | None) -> list[str]:
    """A warning where the pruned model takes longer beyond doubt."""
    if taken.interval[0] <= 1:
        return []
    advice = "" if align is None else f"; align={align} allows widths that the device has no full blocks for"
    return [f"prune-channels: the result is slower on this machine: {stopwatch.said(taken)}{advice}"]


def _give_biases(model: ir.Model) -> list[Linear]:
    """Give the layers that have none a bias of zeros, which repair may need; returns these layers."""
    names = FreshNames(model)
    given = [layer for layer in layers_of(model.graph) if layer.takes_bias and layer.bias() is None]
    for layer in given:
        layer.store_bias(np.zeros(layer.channels), names)
    return given


def _take_biases(given: list[Linear]) -> None:
    for layer in given:
        bias = layer.node.inputs[2]
        layer.node.resize_inputs(2)
        drop_unread([bias])


def _share_gone(structure: Structure, gone: Mapping[int, NDArray[Any]]) -> float:
    """The share of the channels that can go which do."""
    total = sum(len(group.units) * group.lanes for group in structure.groups)
    return sum(len(units) * structure.groups[number].lanes for number, units in gone.items()) / total


def _say_widths(structure: Structure, gone: Mapping[int, NDArray[Any]], remarks: Remarks) -> None:
    for number, units in gone.items():
        group = structure.groups[number]
        width = len(group.units) * group.lanes
        if structure.goes_whole(number, gone):
            remarks.applied(group.name, f"its branch goes as a whole, {width} channels")
        else:
            remarks.applied(group.name, f"{width - len(units) * group.lanes} of {width} channels stay")
