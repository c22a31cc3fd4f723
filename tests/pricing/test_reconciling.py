"""Chains and their kernels: what the profiler cuts off comes back, and sums are kept."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.pricing.kernel_times import Row
from graphopt.pricing.reconciling import reconciled

_INFERENCE = 3e-6


def measured(chains: int, seed: int = 0) -> tuple[list[Row], list[tuple[int, float]], np.ndarray]:
    """Kernels of two families, microseconds cut off, in chains whose sum is known; and their true seconds."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    sums: list[tuple[int, float]] = []
    truth: list[float] = []
    for _ in range(chains):
        count = int(rng.integers(3, 12))
        own = []
        for _ in range(count):
            elements = float(np.exp(rng.uniform(4, 10)))
            family, seconds = (("short", 0.3e-6), ("long", 0.8e-6 + 1e-10 * elements))[int(rng.integers(2))]
            rows.append((family, {"elements": elements}, 1e-6 * np.floor(1e6 * seconds + 0.4)))
            own.append(seconds)
        sums.append((count, _INFERENCE + sum(own)))
        truth += own
    return rows, sums, np.array(truth)


def test_what_is_cut_off_to_microseconds_comes_back() -> None:
    rows, chains, truth = measured(60)
    found = np.array([seconds for _, _, seconds in reconciled(rows, chains, _INFERENCE)])
    raw = np.abs(np.array([seconds for _, _, seconds in rows]) - truth).mean()
    assert np.abs(found - truth).mean() < 0.4 * raw
    first = 0
    for count, seconds in chains:
        assert found[first : first + count].sum() == pytest.approx(seconds - _INFERENCE, rel=0.02)
        first += count


def test_chains_that_ran_otherwise_leave_their_kernels_as_they_were_measured() -> None:
    rows: list[Row] = [("conv", {"elements": 10.0**n}, 1e-4 * n) for n in range(1, 5)]
    found = reconciled(rows, [(4, 0.0)], _INFERENCE)
    assert [seconds for _, _, seconds in found] == pytest.approx([row[2] for row in rows])


def test_profiles_without_chains_stay_as_they_are() -> None:
    rows: list[Row] = [("conv", {"elements": 10.0}, 1e-4)]
    ((family, amounts, seconds),) = reconciled(rows, [], _INFERENCE)
    assert (family, seconds) == ("conv", 1e-4)
    assert amounts["elements"] == 10.0
