"""A choice that is no slower than the original: choose, measure (`racing`), and choose again without what gains nothing.

Under a budget what one layer does not give others must: the integer program says who, at the least harm. Replacements that take
as long as their layer stay there, for they save what is asked for; without a budget they are given up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from graphopt.errors import TargetNotMetError
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.latency import Latency
from graphopt_passes.factorization import racing
from graphopt_passes.factorization.candidates import Candidate
from graphopt_passes.factorization.racing import EQUAL, Comparison
from graphopt_passes.factorization.units import TOGETHER, Proposal

_ROUNDS = 8
_SMALLER = 0.75
"""Predicted time over that of a replacement by the same scheme that was not faster, below which another may be."""

Choose: TypeAlias = Callable[[Mapping[str, Proposal]], dict[str, Candidate]]
"""One candidate per layer; raises TargetNotMetError."""


@dataclasses.dataclass(frozen=True)
class Settled:
    """A choice that is not slower than the original, as far as the budget allows.

    Attributes:
        chosen: one candidate per layer.
        comparison: of the choice; None where nothing is replaced.
        slower: replacements that measured slower and were given up, and their times, by the layer's key.
    """

    chosen: dict[str, Candidate]
    comparison: Comparison | None
    slower: Mapping[str, tuple[Candidate, Latency]]


def settle(
    model: ir.Model, proposals: Mapping[str, Proposal], choose: Choose, evidence: Evidence, *, bounded: bool
) -> Settled:
    """Choose, measure, and choose again without the replacements that gain nothing.

    Those are the ones that take longer than before, or without a budget as long, and where there are none but the whole model is
    slower, the half that gains least. Of a layer that was tried, what measured faster and what may be faster are still offered.

    Args:
        model: the original, not changed.
        proposals: candidates of every layer, the first of which keeps it.
        choose: one candidate per layer, or TargetNotMetError; then as many are given up as the budget allows.
        evidence: gives inputs, and the clock.
        bounded: whether there is a budget.
    """
    chosen, slower = choose(proposals), dict[str, tuple[Candidate, Latency]]()
    faster: set[tuple[str, Candidate]] = set()
    for round_ in range(_ROUNDS):
        replaced = {key: one for key, one in chosen.items() if one.scheme not in (*TOGETHER, "keep")}
        if not replaced:
            return Settled(chosen, None, slower)
        found = racing.compare(model, replaced, evidence)
        losing = _losing(found, bounded=bounded)
        faster |= {(key, one) for key, one in replaced.items() if key not in losing}
        faster -= {(key, replaced[key]) for key in losing}
        if not losing or round_ == _ROUNDS - 1:
            break
        without = {key: _without(proposals[key], replaced[key], key, faster) for key in losing}
        again = _given_up(proposals, without, losing, choose)
        if again is None:
            break
        chosen, proposals, gone = again
        slower |= {key: (replaced[key], found.layers[key]) for key in gone}
    return Settled(chosen, found, slower)


def _losing(found: Comparison, *, bounded: bool) -> list[str]:
    """The layers whose replacements gain nothing, the slowest first."""
    ranked = sorted(found.layers, key=lambda key: found.layers[key].ratio, reverse=True)
    if bounded:
        losing = [key for key in ranked if found.layers[key].interval[0] > 1 + EQUAL]
    else:
        losing = [key for key in ranked if found.layers[key].ratio > 1 - EQUAL]
    return losing if losing or found.whole.ratio < 1 else ranked[: len(ranked) - len(ranked) // 2]


def _given_up(
    proposals: Mapping[str, Proposal], without: Mapping[str, Proposal], losing: Sequence[str], choose: Choose
) -> tuple[dict[str, Candidate], Mapping[str, Proposal], list[str]] | None:
    """A choice without the replacements of `losing`, what there is left to choose from, and which were given up.

    Where the budget needs some of them, as many are given up as it allows, the slowest first; None where it needs all.
    """
    offered = {**proposals, **without}
    try:
        return choose(offered), offered, list(losing)
    except TargetNotMetError:
        pass
    chosen, offered, gone = None, dict(proposals), list[str]()
    for key in losing if len(losing) > 1 else ():
        fewer = {**offered, key: without[key]}
        try:
            chosen = choose(fewer)
        except TargetNotMetError:
            continue
        offered, gone = fewer, [*gone, key]
    return None if chosen is None else (chosen, offered, gone)


def _without(proposal: Proposal, tried: Candidate, key: str, faster: set[tuple[str, Candidate]]) -> Proposal:
    """What is still offered of a layer after `tried` was not faster."""
    keep, *others = proposal.candidates

    def may_be_faster(one: Candidate) -> bool:
        return one.seconds < (_SMALLER if one.scheme == tried.scheme else 1) * tried.seconds

    kept = [one for one in others if one != tried and ((key, one) in faster or may_be_faster(one))]
    return dataclasses.replace(proposal, candidates=[keep, *kept])
