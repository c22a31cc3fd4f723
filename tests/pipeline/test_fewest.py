"""pipeline.fewest: the least count that is enough, with few trials."""

from __future__ import annotations

import math

import pytest

from graphopt.pipeline.fewest import fewest


@pytest.mark.parametrize("low", [0, 3])
@pytest.mark.parametrize("high", [4, 5, 8, 37])
def test_against_all_answers(low: int, high: int) -> None:
    for answer in range(low + 1, high + 1):
        tried: list[int] = []

        def is_enough(count: int, answer: int = answer, tried: list[int] = tried) -> bool:
            tried.append(count)
            return count >= answer

        assert fewest(low, high, is_enough) == answer
        assert all(low < count < high for count in tried)
        assert len(tried) == len(set(tried)) <= 2 * math.ceil(math.log2(answer - low + 1)) + 1
