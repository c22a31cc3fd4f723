"""Which numbers a range must hold: what readers tell apart, what producers make, and what few samples say."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Rewriter

from graphopt_passes.numerics.quantizer import U8
from graphopt_passes.numerics.ranges import Distribution, mse
from graphopt_passes.quantization import calibration, visible
from graphopt_passes.quantization.placement import place
from graphopt_passes.quantization.targets import TARGETS

INFINITY = float("inf")
WEIGHTS = {"w": np.ones((4, 4, 1, 1), np.float32), "zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
GATE = "g = HardSigmoid<alpha = 0.16666667, beta = 0.5>(c)"


@pytest.mark.parametrize(
    ("nodes", "name", "expected"),
    [
        (f"{GATE} m = Mul(c, g) y = Conv(m, w)", "c", (-3, INFINITY)),
        (f"{GATE} m = Mul(g, c) y = Conv(m, w)", "c", (-3, INFINITY)),
        (f"{GATE} m = Mul(c, g) d = Conv(c, w) y = Add(d, m)", "c", (-INFINITY, INFINITY)),
        (f"{GATE} h = Relu(g) m = Mul(c, g) y = Conv(m, w)", "c", (-INFINITY, INFINITY)),
        (f"{GATE} m = Mul(x, g) y = Conv(m, w)", "c", (-3, 3)),
        (f"{GATE} p = MaxPool<kernel_shape = [2, 2]>(c) y = Conv(p, w)", "c", (-INFINITY, INFINITY)),
        ("r = Relu(c) y = Conv(r, w)", "r", (0, INFINITY)),
        ("r = Clip(c, zero, six) y = Conv(r, w)", "r", (0, 6)),
        ("y = Conv(c, w)", "c", (-INFINITY, INFINITY)),
    ],
)
def test_bounds(rewriter: Rewriter, nodes: str, name: str, expected: tuple[float, float]) -> None:
    shapes = "(float[1,4,8,8] x) => (float[1,4,u,v] y)"
    model = rewriter.typed(f"agraph {shapes} {{ c = Conv(x, w) {nodes} }}", WEIGHTS)
    placement = place(model.graph, TARGETS["ort-x86"], keep_heads=False)
    names = {root: filling for root, filling in calibration.sources(placement).items() if name in filling}
    ((root, filling),) = names.items()
    found = visible.bounds(placement.groups.members()[root], filling, placement)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_distribution_within_bounds_is_that_of_clipped_numbers() -> None:
    random = np.random.default_rng(0).normal(0, 3, 100_000)
    counts = np.histogram(random, bins=2048, range=(-16, 16))[0]
    found = Distribution(counts, -16, 16, random.min(), random.max()).within(-3, INFINITY)
    clipped = np.maximum(random, -3)
    assert (found.minimum, found.maximum) == (-3, random.max())
    assert found.counts.sum() == len(random)
    low, high = mse(found, U8)
    step = (high - low) / 255
    assert low == pytest.approx(-3, abs=step)
    expected = np.histogram(clipped, bins=len(found.counts), range=(found.low, found.high))[0]
    np.testing.assert_array_equal(found.counts, expected)


def test_the_range_of_few_numbers_has_room_but_not_beyond_what_there_can_be() -> None:
    found = Distribution(np.array([3, 5, 2]), -1.0, 2.0, -1.0, 2.0)
    low, high = calibration.choose(found, "mse", U8)
    assert low < -1.0
    assert high > 2.0
    assert calibration.choose(found.within(-1.0, 2.0), "mse", U8) == (-1.0, 2.0)
    low, high = calibration.choose(found.within(-1.0, INFINITY), "mse", U8)
    steps = 1.0 / ((high - low) / 255)
    assert low == -1.0
    assert high > 2.0
    assert steps == pytest.approx(round(steps))
