from __future__ import annotations

import pytest

from graphopt.report import units


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (999, "999"), (999.9, "1.00 k"), (1000, "1.00 k"), (12_345, "12.3 k"), (99_950, "100 k"),
        (999_499, "999 k"), (999_600, "1.00 M"), (4_089_000_000, "4.09 G"), (2e15, "2000 T"), (None, "unknown"),
    ],
)  # fmt: skip
def test_count(number: float | None, text: str) -> None:
    assert units.count(number) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (17, "17 B"), (97_800_000, "97.8 MB"), (None, "unknown")])
def test_size(number: int | None, text: str) -> None:
    assert units.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.00 µs"), (12e-6, "12.0 µs"), (0.0034, "3.40 ms"), (0.9999, "1.00 s"), (125, "125 s"), (None, "unknown")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (100, 100, "0 %"),
        (100, 64.8, "-35.2 %"),
        (100, 250, "+150 %"),
        (0, 0, "0 %"),
        (0, 5, ""),
        (None, 5, ""),
        (5, None, ""),
    ],
)
def test_change(before: float | None, after: float | None, text: str) -> None:
    assert units.change(before, after) == text
