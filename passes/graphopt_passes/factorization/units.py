"""What is decided together: a layer alone, or two layers that share dimensions between them.

Of two such layers each may be replaced on its own, or both give up some of what they share: one option per combination.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

from graphopt_passes.factorization.candidates import Candidate
from graphopt_passes.factorization.sites import Site


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A layer and its candidates; the first is the layer as it is.

    Attributes:
        site: the layer.
        candidates: for the layer alone.
        partner: key of the layer that shares dimensions with it; None without.
        shared: candidates for both layers together.
    """

    site: Site
    candidates: list[Candidate]
    partner: str | None = None
    shared: list[Candidate] = dataclasses.field(default_factory=list)


Option: TypeAlias = dict[str, Candidate]
"""What becomes of the layers of a unit, by their keys."""

TOGETHER = ("heads", "hidden", "partner")
"""Schemes of two layers: of the one that they are judged by, and of the other, whose cost is in the first."""


def units_of(proposals: Mapping[str, Proposal]) -> list[list[Option]]:
    """Layers that are decided together, and what may become of them; the first option keeps them."""
    partners = {one.partner for one in proposals.values()}
    units = []
    for key, one in proposals.items():
        if key in partners:
            continue
        options: list[Option] = [{key: each} for each in one.candidates]
        if one.partner is not None:
            other = proposals[one.partner]
            apart = [{key: each, one.partner: behind} for each in one.candidates for behind in other.candidates]
            nothing = Candidate("partner", (), 0, 0)
            options = [*apart, *({key: each, one.partner: nothing} for each in one.shared)]
        units.append(options)
    return units


def total(option: Option, what: str) -> float:
    """The sum of an attribute of candidates over the layers of a unit."""
    return float(sum(getattr(one, what) for one in option.values()))


def both(one: Candidate, other: Candidate) -> Candidate:
    """Two layers as one, of summed cost."""
    return dataclasses.replace(
        one, macs=one.macs + other.macs, weights=one.weights + other.weights, seconds=one.seconds + other.seconds
    )
