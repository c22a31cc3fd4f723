"""runtime.turns: when what runs is made anew, by a clock that only the test moves."""

from __future__ import annotations

import pytest

from graphopt.runtime.turns import turns


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("graphopt.runtime.turns.time.perf_counter", lambda: self.now)


def rounds(monkeypatch: pytest.MonkeyPatch, *, making: float, running: float, seconds: float, fewest: int) -> list[int]:
    """The number of the session of every round, where making one and running a round take so long."""
    clock = Clock(monkeypatch)

    def make() -> object:
        clock.now += making
        return object()

    found = []
    for number, _ in turns(make, seconds=seconds, fewest=fewest):
        found.append(number)
        clock.now += running
    return found


def test_a_session_is_kept_for_half_the_time_that_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rounds(monkeypatch, making=10, running=1, seconds=45, fewest=7)
    assert found == [0] * 5 + [1] * 5 + [2] * 5


def test_but_for_three_rounds_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rounds(monkeypatch, making=1, running=4, seconds=39, fewest=7) == [0] * 3 + [1] * 3 + [2] * 3


def test_there_are_so_many_rounds_whatever_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last session, when the time is over."""
    assert rounds(monkeypatch, making=100, running=10, seconds=0, fewest=7) == [0] * 7
    assert rounds(monkeypatch, making=10, running=2, seconds=30, fewest=12) == [0] * 3 + [1] * 9
