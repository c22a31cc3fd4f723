"""Gathering the remarks of a pass: places with the same thing to say share one remark, however many they are."""

from __future__ import annotations

from graphopt.pipeline.base import Remark

PLACES = 3
"""How many places a remark names; the others are counted."""


class Remarks:
    """The remarks of one run of a pass."""

    def __init__(self) -> None:
        """Nothing to say yet."""
        self._places: dict[tuple[str, bool], tuple[list[str], int]] = {}

    def applied(self, where: str, what: str) -> None:
        """The pass did `what` at `where`."""
        self._add(where, what, applied=True)

    def missed(self, where: str, why: str) -> None:
        """The pass left `where` alone because of `why`."""
        self._add(where, why, applied=False)

    def listed(self) -> tuple[Remark, ...]:
        """All remarks in the order in which they first came up."""
        return tuple(
            Remark(", ".join(places) + (f" and {count - PLACES:,} more" if count > PLACES else ""), what, applied)
            for (what, applied), (places, count) in self._places.items()
        )

    def _add(self, where: str, what: str, *, applied: bool) -> None:
        places, count = self._places.get((what, applied), ([], 0))
        self._places[what, applied] = ([*places, where] if count < PLACES else places, count + 1)
