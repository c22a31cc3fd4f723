"""Prices of work: what is fitted must come back, disturbed measurements must not count, and unknown kernels get a guess."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.pricing.kernel_times import KernelTimes, Row, among, footprint
from graphopt.pricing.kernel_work import KernelWork


def machine(amounts: dict[str, float]) -> float:
    """A machine that takes 2 us, 0.1 ns per MAC and 1 ns per element."""
    return 2e-6 + 1e-10 * amounts["macs"] + 1e-9 * amounts["elements"]


def measured(count: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for _ in range(count):
        amounts = {"macs": float(np.exp(rng.uniform(8, 17))), "elements": float(np.exp(rng.uniform(5, 12)))}
        rows.append(("conv", amounts, machine(amounts)))
    return rows


@pytest.mark.parametrize("size", [1e3, 1e6, 1e9])
def test_sums_of_prices_are_recovered_within_and_beyond_what_was_measured(size: float) -> None:
    amounts = {"macs": 10 * size, "elements": size}
    found = KernelTimes(measured(30)).seconds(KernelWork("conv", amounts))
    assert found == pytest.approx(machine(amounts), rel=0.02)


def test_kernels_that_were_disturbed_hardly_count() -> None:
    rows = measured(60)
    slow: list[Row] = [(family, amounts, 8 * seconds) for family, amounts, seconds in rows[:6]]
    amounts = {"macs": 1e6, "elements": 1e4}
    found = KernelTimes([*slow, *rows[6:]]).seconds(KernelWork("conv", amounts))
    assert found == pytest.approx(machine(amounts), rel=0.3)


def test_a_kernel_that_is_always_slow_is_believed() -> None:
    rows = measured(30)
    place = {"macs": 1e10, "elements": 1e3}
    rows += [("conv", place, 8 * machine(place))] * 2
    assert KernelTimes(rows).seconds(KernelWork("conv", place)) == pytest.approx(8 * machine(place), rel=0.1)


def test_what_is_fetched_depends_on_what_runs_around() -> None:
    small, large = (footprint([{"elements": size, "weights": size}]) for size in (1e3, 1e8))
    amounts = {"macs": 1.0, "elements": 1e4, "weights": 1e5}
    assert among(amounts, small)["streamed"] < 0.01 * among(amounts, large)["streamed"]
    assert among(amounts, large)["streamed"] == pytest.approx(1e5, rel=0.1)
    assert among(amounts, large)["fetched"] == pytest.approx(1.1e5, rel=0.01)


def test_what_the_sum_leaves_over_is_taken_from_kernels_of_about_the_same_size() -> None:
    rows: list[Row] = [
        ("conv", {"macs": macs}, 1e-10 * macs * (1.3 if macs > 1e6 else 0.9)) for macs in np.geomspace(1e4, 1e8, 60)
    ]
    times = KernelTimes(rows)
    for macs, factor in ((1e5, 0.9), (2e7, 1.3)):
        assert times.seconds(KernelWork("conv", {"macs": macs})) == pytest.approx(1e-10 * macs * factor, rel=0.05)


def test_families_that_were_not_measured_are_priced_as_passes_over_memory_if_at_all() -> None:
    rows: list[Row] = [("Relu", {"elements": n, "moved": 2 * n}, 1e-6 + 1e-9 * n) for n in np.geomspace(10, 1e6, 12)]
    times = KernelTimes(rows)
    assert times.seconds(KernelWork("Celu", {"elements": 1e5, "moved": 2e5})) == pytest.approx(1e-4, rel=0.1)
    assert times.seconds(KernelWork("conv", {"macs": 1e6})) is None
    assert KernelTimes(()).seconds(KernelWork("Relu", {"elements": 1.0})) is None


def test_all_rows_at_once_take_what_each_takes_alone() -> None:
    rows: list[Row] = [
        *measured(20),
        *[("Relu", {"elements": 10.0**n, "moved": 10.0**n}, 1e-9 * 10.0**n) for n in range(1, 6)],
    ]
    times = KernelTimes(rows).fitted()
    asked: list[Row] = [rows[3], ("Elu", {"elements": 50.0, "moved": 50.0}, 0.0), rows[22], ("Magic", {}, 0.0), rows[0]]
    alone = [times.seconds(KernelWork(family, amounts)) or 0.0 for family, amounts, _ in asked]
    assert times.seconds_of_rows(asked) == pytest.approx(alone, rel=1e-9)
    assert alone[1] > 0 == alone[3]
