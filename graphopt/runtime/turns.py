"""Rounds of a measurement, in sessions that are made anew again and again.

Where the weights and buffers of a session come to lie is luck that stays with it, and moves the time of small models by
several percent: more than what measurements decide. Rounds in one and the same session repeat that luck, so they are
spread over several. Making a session takes as long as many runs of it; each is kept until it has run for a part of that
time, so that a measurement of a large model, which luck moves little, is not spent on loading it; nothing is made anew
when the time is over.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

Made = TypeVar("Made")

_SHARE = 0.5
"""What was made is kept until it has run for this part of the time that making it took."""
_FEWEST = 3
"""Rounds that it is kept for at least."""


def turns(make: Callable[[], Made], *, seconds: float, fewest: int) -> Iterator[tuple[int, Made]]:
    """For each round what it is to run, as `make` makes it, and how often that was made anew before.

    Args:
        make: makes sessions, and warms them up.
        seconds: time for all rounds, and for making what they run.
        fewest: rounds that there are however long they take.
    """
    start, rounds = time.perf_counter(), itertools.count(1)
    for number in itertools.count():
        begun = time.perf_counter()
        made = make()
        ready = time.perf_counter()
        for kept in itertools.count(1):
            yield number, made
            now = time.perf_counter()
            is_over = now - start >= seconds
            if next(rounds) >= fewest and is_over:
                return
            if kept >= _FEWEST and now - ready >= _SHARE * (ready - begun) and not is_over:
                break
