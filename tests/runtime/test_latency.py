from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.errors import RuntimeFailureError
from graphopt.runtime import latency
from graphopt.runtime.latency import measure, median_interval, summarize


@pytest.mark.parametrize("count", [7, 10, 25, 100, 1000])
def test_interval_covers_the_median(count: int) -> None:
    """Exactly, by the binomial distribution: the interval of n values misses the median in at most 5 % of samples."""
    low, high = median_interval(range(count))
    missed = 2 * sum(comb(count, i) for i in range(int(low) + 1)) / 2**count
    assert missed <= 0.05
    assert high == count - 1 - low
    assert count < 100 or high - low < count / 4


def test_ratio_is_paired() -> None:
    """The machine slows down tenfold half-way; the ratio within each round does not care."""
    samples = [(speed, 0.5 * speed) for speed in [1.0] * 20 + [10.0] * 21]
    found = summarize(samples, threads=2)
    assert (found.ratio, found.interval) == (0.5, (0.5, 0.5))
    assert (found.before_ms, found.after_ms) == (10_000, 5_000)
    assert found.to_dict() == {
        "before_ms": 10_000,
        "after_ms": 5_000,
        "ratio": 0.5,
        "interval": (0.5, 0.5),
        "rounds": 41,
        "threads": 2,
        "shapes": {},
    }


def chain(length: int) -> onnx.ModelProto:
    nodes = "".join(f"x{i + 1} = MatMul(x{i}, x{i}) " for i in range(length))
    return onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21]> g (float[96, 96] x0) => (float[96, 96] x{length}) {{ {nodes} }}'
    )


def test_a_model_of_half_the_work_is_faster() -> None:
    told: list[float] = []
    feeds = {"x0": np.zeros((96, 96), np.float32)}
    found = measure(chain(40), chain(4), [{}, feeds], seconds=0, progress=told.append)
    assert found.rounds == 7
    assert found.ratio < 0.6
    assert found.interval[0] <= found.ratio <= found.interval[1]
    assert found.shapes == {"x0": (96, 96)}
    assert told == [1.0] * 7


@pytest.mark.parametrize(("candidates", "message"), [([{}], "cannot run the original"), ([], "no inputs")])
def test_models_that_cannot_run_are_an_error(candidates: list[dict[str, np.ndarray]], message: str) -> None:
    with pytest.raises(RuntimeFailureError, match=message):
        measure(chain(1), chain(1), candidates, seconds=0)


def test_the_rounds_of_the_same_sessions_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def turns(make: Callable[[], list[Callable[[], float]]], **_: float) -> Iterator[tuple[int, Any]]:
        for number in range(8):
            made.append(len(make()))
            luck = 1.0 + number
            for noise in (0.5, 1.0, 4.0):
                yield number, [lambda luck=luck, noise=noise: luck * noise] * 2

    monkeypatch.setattr(latency, "turns", turns)
    rows, _ = latency.race([chain(1), chain(1)], [{"x0": np.zeros((96, 96), np.float32)}])
    assert made == [2] * 8
    assert rows == [(1.0 + number, 1.0 + number) for number in range(8)]


def test_no_model_has_an_advantage_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs once in every round, in an order that is turned round."""
    ran: list[int] = []

    def run(index: int) -> float:
        ran.append(index)
        return float(index)

    def turns(*_: Any, **__: Any) -> Iterator[tuple[int, Any]]:
        for number in range(8):
            yield number, [lambda index=index: run(index) for index in range(3)]

    monkeypatch.setattr(latency, "turns", turns)
    rows, _ = latency.race([chain(1)] * 3, [{"x0": np.zeros((96, 96), np.float32)}])
    assert ran == [0, 1, 2, 2, 1, 0] * 4
    assert rows == [(0.0, 1.0, 2.0)] * 8


def test_all_figures_of_a_measurement_agree() -> None:
    found = summarize([(1.0, 0.5), (3.0, 3.0), (4.0, 1.0)], 1)
    assert found.ratio == 0.5
    assert found.after_ms == found.before_ms * found.ratio
