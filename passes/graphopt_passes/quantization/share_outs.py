"""Which share-out between integers and float a model gets: whole models race, in processor time.

Nothing counts that may be slower than float, so that where nothing on integers is as fast as float beyond doubt, everything
stays float. Of the rest, something is left in float only where that makes the whole model clearly faster: integers save
memory as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.latency import Latency, summarize

CONFIDENCE = 0.9
ALL_FLOAT = (
    "quantize: the model stays float: nothing on integers was as fast on this machine beyond doubt; prefer=integer quantizes "
    "it all the same"
)
"""The warning of a model in which nothing is quantized."""
_SLOWER = 1.03
"""What takes at the upper bound no longer than so many times float counts as no slower."""
_WORTH = 0.97
"""What everything on integers must at least be undercut to, to give up some of it, unless it may be slower than float."""
_ALIKE = 1.02
_SECONDS = 0.6
"""For each model in a race."""
_RACES = 3
"""How often models race until it is known whether integers are slower than float."""


@dataclasses.dataclass(frozen=True)
class ShareOut:
    """What stays float.

    Attributes:
        floats: names of the values that the nodes make which do.
        said: of each place, why.
    """

    floats: frozenset[str] = frozenset()
    said: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Choice:
    """A share-out with its time.

    Attributes:
        floats: names of the values that the reverted nodes make.
        regions: what was said of each reverted region: place, and why.
        against_float: time of the model as it is chosen, against float.
        against_integer: against the model with everything on integers; None where nothing is reverted, or everything untried.
    """

    floats: frozenset[str]
    regions: tuple[tuple[str, str], ...]
    against_float: Latency
    against_integer: Latency | None

    def to_dict(self) -> dict[str, Any]:
        """The choice as reports hold it."""
        return {
            "reverted": sorted(self.floats),
            "regions": [{"where": where, "why": why} for where, why in self.regions],
            "against_float": self.against_float.to_dict(),
            "against_integer": None if self.against_integer is None else self.against_integer.to_dict(),
        }


def best(
    models: Sequence[ir.Model], share_outs: Sequence[ShareOut], everything: frozenset[str], evidence: Evidence
) -> Choice:
    """Of the share-outs as fast as the fastest, the one with the most on integers.

    Args:
        models: in float, with everything on integers, and as each of `share_outs` has it.
        share_outs: some in float, some on integers.
        everything: names of the values that there are in integers if everything is on integers.
        evidence: gives inputs, and the clock.
    """
    rows = _until_known(models, evidence)

    def compared(first: int, second: int) -> Latency:
        return summarize([(row[first], row[second]) for row in rows], evidence.threads, CONFIDENCE)

    integer = Choice(frozenset(), (), compared(0, 1), None)
    found = [
        Choice(share_out.floats, share_out.said, compared(0, place), compared(1, place))
        for place, share_out in enumerate(share_outs, start=2)
    ]
    limit = math.inf if _is_slower(integer.against_float) else _WORTH
    counting = [
        choice
        for choice in (integer, *found)
        if not _is_slower(choice.against_float)
        and (choice.against_integer is None or choice.against_integer.interval[1] < limit)
    ]
    if not counting:
        fastest = min((choice.against_float for choice in (integer, *found)), key=lambda latency: latency.ratio)
        return Choice(everything, (("the model", _why_none(fastest)),), compared(0, 0), None)
    least = min(choice.against_float.ratio for choice in counting)
    close = [choice for choice in counting if choice.against_float.ratio <= _ALIKE * least]
    return min(close, key=lambda choice: len(choice.floats))


def _until_known(models: Sequence[ir.Model], evidence: Evidence) -> list[tuple[float, ...]]:
    """Rounds of a race, until something is no slower than float, and it is known whether integers are, or often enough."""
    rows: list[tuple[float, ...]] = []
    for _ in range(_RACES):
        rows += evidence.race(models, seconds=_SECONDS * len(models))
        against_first = [
            summarize([(row[0], row[place]) for row in rows], evidence.threads, CONFIDENCE)
            for place in range(1, len(models))
        ]
        integer = against_first[0]
        if not _is_slower(integer) or (integer.interval[0] > 1 and not all(map(_is_slower, against_first))):
            break
    return rows


def _is_slower(against_float: Latency) -> bool:
    """Whether a model may be slower than float, for all that is known."""
    return against_float.ratio > 1 or against_float.interval[1] > _SLOWER


def _why_none(fastest: Latency) -> str:
    low, high = fastest.interval
    return (
        "stays float: in the trials nothing on integers was as fast as float beyond doubt, the fastest took "
        f"{fastest.ratio:.2f} times as long ({low:.2f} to {high:.2f})"
    )
