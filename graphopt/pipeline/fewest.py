"""The least amount that is enough, where trying one is dear: doubling, then bisection."""

from __future__ import annotations

from collections.abc import Callable


def fewest(low: int, high: int, is_enough: Callable[[int], bool]) -> int:
    """The least count above `low` and up to `high` that is enough, if more is never worse; `high` counts as enough.

    Args:
        low: a count that is not enough.
        high: one that is, or that has to do; it is not tried.
        is_enough: tried for about 2 log2(count - low) counts.
    """
    step = 1
    while low + step < high:
        if is_enough(low + step):
            high = low + step
            break
        low, step = low + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high
