"""One run of channel pruning: rank the units, settle widths, repair.

The three criteria differ in what ranks the units: elimination by least squares (`obs`), scores of weights, or statistics of
the channels. Everything behind that is common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from graphopt.pipeline.base import PassContext
from graphopt.pipeline.remarks import Remarks
from graphopt.pricing import price
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.pruning import gains, merging, planning, scores
from graphopt_passes.pruning.branches import branches
from graphopt_passes.pruning.costs import Measure
from graphopt_passes.pruning.planning import Calibration, Ranking
from graphopt_passes.pruning.repair import Method, repair
from graphopt_passes.pruning.structure import Structure
from graphopt_passes.pruning.widths import Budget, Limits
from graphopt_passes.reconstruction import stopwatch

_WALK_WORK, _FEWEST_SAMPLES = 6e11, 64
"""Multiply-accumulates of one run over the samples, and how few of them are used to stay below."""
_ROUNDED = 0.02
"""By how much the share of channels that go may differ from what was asked before it is said."""
_PAIR_WORK = 5e11
"""Multiply-accumulates that improving pairs of layers may take: half a minute on one core of a laptop."""


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Attributes:
        criterion: what ranks units.
        uniform: whether all groups lose the same share.
        ratio: the share; None where `amount` says how much stays.
        measure: of what `amount` is.
        amount: that may stay, as a share of the model or in units of `measure`.
        repair: whether layers are refitted, where there are samples.
        limits: of widths.
        rows: of a layer's input that are looked at.
        branches: whether those of residual additions may go as a whole.
        aligned: whether the user said what widths are multiples of.
    """

    criterion: str
    uniform: bool
    ratio: float | None
    measure: Measure
    amount: float
    repair: bool
    limits: Limits
    rows: int
    branches: bool = True
    aligned: bool = False


class Execution:
    """What is known during one run."""

    def __init__(
        self,
        model: ir.Model,
        structure: Structure,
        settings: Settings,
        context: PassContext,
        remarks: Remarks,
        excluded: Callable[[ir.Node], bool],
    ) -> None:
        """`model` is changed by `repair` only; branches with an excluded node stay."""
        self._excluded = excluded
        self._model = model
        self._structure = structure
        self._settings = settings
        self._context = context
        self._remarks = remarks
        self._blend: float | None = None
        self.refitted = 0
        self.rounded: str | None = None

    @cached_property
    def _calibration(self) -> Calibration | None:
        evidence = self._context.evidence
        if evidence is None:
            return None
        most = max(_FEWEST_SAMPLES, int(_WALK_WORK / max(1.0, self._macs)))
        if len(evidence.samples) > most:
            self._remarks.missed("samples", f"{most} of {len(evidence.samples)} are used: the network is large")
        return Calibration(evidence.subset(most), self._settings.rows, self._context.seed)

    @cached_property
    def _macs(self) -> float:
        return float(price(self._model).macs)

    def decide(self) -> dict[int, Array]:
        """The units that go, by group.

        Raises:
            TargetNotMetError: the budget cannot be met.
        """
        settings = self._settings
        self._find_branches()
        budget = Budget(self._model, self._structure, settings.measure, settings.limits, asked=settings.amount)
        if settings.ratio == 0:
            return {}
        self._say_rounding(budget)
        limit = self._limit(budget)
        ranking = self._ranking()
        if settings.uniform:
            uniform = budget.uniform(settings.ratio) if settings.ratio is not None else budget.uniform_within(limit)
            return ranking.gone(uniform)
        gone = self._gaining(lambda widths: self._least_harm(ranking, widths, limit), budget)
        if self._blend is not None:
            self._remarks.applied("widths", _basis(self._blend))
        return gone

    def _gaining(self, choose: Callable[[Budget], dict[int, Array]], budget: Budget) -> dict[int, Array]:
        """What `choose` lets go, without widths that gain no time where these are ours to choose and time can be measured."""
        clock = None if self._settings.aligned else stopwatch.clock(self._context)
        if clock is None:
            return choose(budget)
        drafts = gains.Drafts(self._model, self._structure, clock)
        gone, back = gains.settle(drafts, choose, budget, self._context.device.alignment)
        for number in back:
            name = self._structure.groups[number].name
            self._remarks.missed(
                name, "slower on this machine: widths without full blocks, or all but its own, are left out"
            )
        return gone

    def _least_harm(self, ranking: Ranking, budget: Budget, limit: float) -> dict[int, Array]:
        """The units that go for the widths that `budget` allows."""
        if self._calibration is None or not ranking.points:
            return ranking.gone(budget.least_harm(ranking.curves(0.0), limit))
        widths, blend = planning.least_harm(
            self._model, self._structure, self._calibration, ranking, budget, limit, self._macs
        )
        self._blend = blend
        return ranking.gone(widths)

    def _find_branches(self) -> None:
        """Let branches go as a whole where what that does is tried and repaired: it is too much to take on trust."""
        settings, calibration = self._settings, self._calibration
        tried = calibration is not None and planning.can_try(calibration, self._macs)
        wanted = settings.branches and not settings.uniform and settings.limits.fewest == 1
        if tried and wanted and settings.criterion == "obs" and settings.repair:
            self._structure.branches = branches(self._model, self._structure, self._excluded)

    def repair(self, gone: Mapping[int, Array]) -> dict[int, Array]:
        """Refit the model's layers in place, where there are samples; the units that go in the end."""
        settings = self._settings
        if not settings.repair:
            return dict(gone)
        if self._calibration is None:
            merged = merging.merge(self._model, self._structure, gone)
            self._remarks.applied("layers", f"{merged} of the channels that go were added to ones that are like them")
            self.refitted = merged
            return dict(gone)
        original = self._model.clone()
        best = settings.criterion == "obs"
        method = Method(choose_again=best, work=_PAIR_WORK if best else 0.0, seed=self._context.seed)
        with self._calibration.walk(original, self._model) as walk:
            done = repair(walk, self._model, self._structure, gone, method)
        self.refitted = done.refitted
        self._remarks.applied("layers", f"{done.refitted} refitted, {done.pairs} pairs improved together")
        return done.gone

    def _say_rounding(self, budget: Budget) -> None:
        """What `align` makes of a ratio: `rounded` has it in words, where it is something else."""
        ratio, limits = self._settings.ratio, self._settings.limits
        if ratio is None:
            return
        share = budget.share_gone(budget.uniform(ratio))
        if abs(share - ratio) > _ROUNDED:
            fewest = f", at least {limits.fewest}" if limits.fewest > 1 else ""
            nearer = "; align=1 comes nearer, on widths that may be slow" if limits.align > 1 else ""
            self.rounded = (
                f"ratio={ratio:g} means {share:.2f} of the channels here: widths are multiples of {limits.align}, or of a half "
                f"or quarter of it where that leaves little choice{fewest}, or stay as they are{nearer}"
            )
            self._remarks.missed("ratio", self.rounded)

    def _limit(self, budget: Budget) -> float:
        settings = self._settings
        full = budget.real(budget.full)
        if settings.ratio is not None:
            return budget.real(budget.uniform(settings.ratio))
        return settings.amount * full if settings.amount <= 1 else settings.amount

    def _ranking(self) -> Ranking:
        model, structure, criterion = self._model, self._structure, self._settings.criterion
        if criterion == "obs" and self._calibration is not None:
            found = planning.rank(model, structure, self._calibration, self._macs)
            for number, group in enumerate(structure.groups):
                if number not in found.eliminations:
                    score = scores.weight_scores(model, group, "l2")
                    found.eliminations[number] = scores.elimination_by(score)
                    self._remarks.missed(
                        group.name, "ranked by weights alone: a layer that reads it is no matrix, or too wide a one"
                    )
            return found
        if criterion == "random":
            random = self._context.rng()
            return planning.by_scores([random.random(len(group.units)) for group in structure.groups])
        if criterion in ("activation", "bn-scale") and self._calibration is not None:
            return planning.by_scores(scores.measured(model, structure.groups, self._calibration.evidence, criterion))
        return planning.by_scores([scores.weight_scores(model, group, criterion) for group in structure.groups])


def _basis(blend: float) -> str:
    """What widths were chosen by, in words."""
    if blend == 0:
        return "chosen by the errors of single layers"
    measured = "the measured changes of the model's outputs"
    if blend == 1:
        return f"chosen by {measured}"
    return f"chosen by the errors of single layers (counted {1 - blend:g}) and {measured} (counted {blend:g})"
