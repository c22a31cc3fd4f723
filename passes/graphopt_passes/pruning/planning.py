"""From options to widths: in which order the units of each group go, and how many of each stay.

With calibration samples and the criterion `obs`, curves (curves.py) say what every width of every group costs, and how much
the outputs feel of it is measured (sensitivity.py). How far to believe in either is a matter of the network: a few blends
are tried, with branches that go as a whole and without, each pruned and repaired on most of the samples, and the one whose
outputs are nearest to the original's on the samples that were held out is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphopt.errors import TargetNotMetError
from graphopt.pipeline.evidence import Evidence
from graphopt_passes.numerics.elimination import Elimination
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.pruning import sensitivity
from graphopt_passes.pruning.curves import curves
from graphopt_passes.pruning.harm import Judge
from graphopt_passes.pruning.repair import Method, repair
from graphopt_passes.pruning.scores import elimination_by
from graphopt_passes.pruning.structure import Structure
from graphopt_passes.pruning.widths import Budget, removed
from graphopt_passes.reconstruction.walk import Walk

BLENDS = (0.0, 0.5, 1.0)
"""Shares of the measured sensitivity that are tried; 0 is the relative error of layers alone."""
_HELD_OUT_SHARE = 3
_TRIAL_SAMPLES, _TRIAL_ROWS = 192, 4_000
"""What blends are compared with: their order shows long before the figures settle."""
_PROBE_WORK = 2e11
"""MACs that measuring sensitivity may take; it takes fewer samples where they would be more."""
_TRIAL_WORK = 2e11
"""MACs of one run over the samples up to which choices are compared; beyond, the middle blend is taken with all branches."""


@dataclass(frozen=True)
class Calibration:
    """What is measured with.

    Attributes:
        evidence: the samples.
        rows: at most how many rows of a layer are looked at.
        seed: of their choice.
    """

    evidence: Evidence
    rows: int
    seed: int

    def walk(self, original: ir.Model, compressed: ir.Model) -> Walk:
        """Both networks on these samples."""
        return Walk(original, compressed, self.evidence, rows=self.rows, seed=self.seed)

    def split(self) -> tuple[Calibration, Evidence]:
        """Some samples to prune on for trial, and a third as many more to judge by."""
        order = np.random.default_rng(self.seed).permutation(len(self.evidence.samples))[:_TRIAL_SAMPLES]
        held = max(1, len(order) // _HELD_OUT_SHARE)
        chosen, rest = sorted(order[:held].tolist()), sorted(order[held:].tolist())
        fitting = replace(self, evidence=self.evidence.choose(rest or chosen), rows=min(self.rows, _TRIAL_ROWS))
        return fitting, self.evidence.choose(chosen)


@dataclass(frozen=True)
class Ranking:
    """What is known of each group.

    Attributes:
        eliminations: the order of units, and the harm of each width, by relative error.
        points: (error, harm of the outputs) at some widths, where they were measured.
    """

    eliminations: dict[int, Elimination]
    points: Mapping[int, list[tuple[float, float]]]

    def curves(self, blend: float) -> dict[int, Array]:
        """Harm by width of each group."""
        return {
            number: sensitivity.harms(found.curve(), self.points.get(number, []), blend)
            for number, found in self.eliminations.items()
        }

    def gone(self, widths: Array) -> dict[int, Array]:
        """The units that go at `widths`."""
        order = [
            self.eliminations[number].order if number in self.eliminations else np.arange(width)
            for number, width in enumerate(widths)
        ]
        return removed(order, widths)


def rank(model: ir.Model, structure: Structure, calibration: Calibration, macs: float) -> Ranking:
    """Curves by exact elimination, and what the outputs feel at their probes.

    Args:
        model: the original.
        structure: of the model.
        calibration: samples.
        macs: of one sample.
    """
    with calibration.walk(model, model) as walk:
        found = curves(walk, model, structure)
    probes = sum(len(curve.probes) for curve in found.values())
    samples = int(_PROBE_WORK / max(1.0, macs * probes))
    points = {}
    if found:
        judge = Judge(model, calibration.evidence.subset(max(samples, 4)))
        points = sensitivity.measured(model, found, judge)
    return Ranking({number: curve.elimination for number, curve in found.items()}, points)


def can_try(calibration: Calibration, macs: float) -> bool:
    """Whether a network of so many MACs per sample is small enough for choices to be pruned and repaired on trial."""
    return macs * min(_TRIAL_SAMPLES, len(calibration.evidence.samples)) <= _TRIAL_WORK


def least_harm(
    model: ir.Model,
    structure: Structure,
    calibration: Calibration,
    ranking: Ranking,
    budget: Budget,
    limit: float,
    macs: float,
) -> tuple[Array, float]:
    """The widths within `limit` whose outputs stay nearest to the original's, and the blend that gave them.

    Raises:
        TargetNotMetError: not even the narrowest widths fit.
    """
    if not can_try(calibration, macs):
        middle = BLENDS[1]
        return budget.least_harm(ranking.curves(middle), limit), middle
    choices = _choices(ranking, budget, limit, whole=bool(structure.branches))
    fitting, held_out = calibration.split()
    judge = Judge(model, held_out)
    harms: dict[tuple[int, ...], float] = {}
    for widths, _ in choices:
        if tuple(widths) not in harms:
            harms[tuple(widths)] = judge.harm(pruned(model, structure, fitting, ranking.gone(widths)))
    return min(choices, key=lambda choice: harms[tuple(choice[0])])


def _choices(ranking: Ranking, budget: Budget, limit: float, *, whole: bool) -> list[tuple[Array, float]]:
    """Widths to try, and their blends: with all branches, and where some may go as a whole, with those that are better off."""
    found, failure = [], None
    for some in (False, True) if whole else (False,):
        for blend in BLENDS:
            try:
                found.append((budget.least_harm(ranking.curves(blend), limit, whole=some), blend))
            except TargetNotMetError as error:
                failure = error
    if failure is not None and not found:
        raise failure
    return found


def pruned(
    model: ir.Model,
    structure: Structure,
    calibration: Calibration,
    gone: Mapping[int, Array],
) -> ir.Model:
    """A clone of `model` with its layers refitted for the units in `gone`, whose columns are zeros."""
    clone = model.clone()
    with calibration.walk(model, clone) as walk:
        repair(walk, clone, structure, gone, Method())
    return clone


def by_scores(scores: Sequence[Array]) -> Ranking:
    """A ranking by scores of each group's units."""
    return Ranking({number: elimination_by(score) for number, score in enumerate(scores)}, {})
