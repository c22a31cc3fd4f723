"""numerics.quantizer: against QuantizeLinear of onnxruntime, and ranges that are hardly any."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.runtime.session import Session, SessionOptions
from graphopt_passes.numerics.quantizer import (
    S4_SYMMETRIC,
    S8,
    S8_NARROW,
    S8_SYMMETRIC,
    S16_SYMMETRIC,
    U4,
    U8,
    U16,
    Grid,
    dequantize,
    fake_quantize,
    parameters,
    quantize,
)

GRIDS = [U8, S8, S8_SYMMETRIC, S8_NARROW, U16, S16_SYMMETRIC, U4, S4_SYMMETRIC, Grid(0, 255, symmetric=True)]
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)


@given(NUMBERS, NUMBERS, st.sampled_from(GRIDS))
def test_a_quantizer_covers_its_range_and_has_zero_on_the_grid(a: float, b: float, grid: Grid) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero_point = parameters(low, high, grid)
    assert scale.dtype == np.float32
    assert zero_point.dtype == grid.storage
    assert scale >= np.finfo(np.float32).smallest_normal
    assert np.isfinite(scale)
    assert grid.low <= zero_point <= grid.high
    assert fake_quantize(np.zeros(1, np.float32), scale, zero_point, grid) == 0
    ends = np.array([low, high], np.float64)
    error = np.abs(fake_quantize(ends, scale, zero_point, grid).astype(np.float64) - ends)
    assert (error <= float(scale) * 0.501 + 1e-7 * np.abs(ends)).all()
    if grid.symmetric:
        assert zero_point == grid.middle


def test_symmetric_ranges_use_both_ends_of_the_grid() -> None:
    assert parameters(-128.0, 10.0, S8_SYMMETRIC)[0] == 1
    assert parameters(-128.0, 127.0, S8_SYMMETRIC)[0] == 1
    assert parameters(-127.0, 10.0, S8_NARROW)[0] == 1
    assert parameters(0.0, 127.0, Grid(0, 255, symmetric=True))[0] == 1
    assert [grid.middle for grid in GRIDS] == [128, 0, 0, 0, 32768, 0, 8, 0, 128]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 0), (3, 3), (-3, -3), (0, 1e-44), (0, 1e-20), (-1e-44, 1e-44), (2, 5), (0, 3e38), (-3e38, 3e38)],
)
def test_ranges_that_are_hardly_any(low: float, high: float, grid: Grid, dtype: type) -> None:
    scale, zero_point = parameters(low, high, grid, dtype)
    assert scale.dtype == dtype
    assert float(ml_dtypes.finfo(dtype).smallest_normal) <= float(scale) < np.inf  # type: ignore[no-untyped-call]
    assert grid.low <= zero_point <= grid.high
    assert float(dequantize(zero_point, scale, zero_point)) == 0


def test_a_constant_is_exact() -> None:
    for number in (3.0, -3.0):
        scale, zero_point = parameters(number, number, U8)
        assert fake_quantize(np.array([number, 0], np.float32), scale, zero_point, U8).tolist() == [number, 0]


@pytest.mark.parametrize(("low", "high"), [(0, np.inf), (np.nan, 1), (-np.inf, np.nan), (1, -1)])
def test_what_is_no_range(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="range"):
        parameters(low, high, U8)


@pytest.mark.parametrize(("grid", "name"), [(U8, "uint8"), (S8, "int8"), (U16, "uint16")])
def test_the_same_integers_as_onnxruntime(grid: Grid, name: str) -> None:
    rng = np.random.default_rng(0)
    low, high = -rng.random(4).astype(np.float32), 3 * rng.random(4).astype(np.float32)
    scale, zero_point = parameters(low, high, grid)
    x = rng.uniform(-2, 5, (50, 4)).astype(np.float32)
    x[:3] = (np.array([[0.5], [1.5], [2.5]]) * scale).astype(np.float32)  # ties
    x[3] = [np.inf, -np.inf, 1e38, -1e38]
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[50,4] x, float[4] s, {name}[4] z) => ({name}[50,4] q, float[50,4] y)
        {{ q = QuantizeLinear<axis = 1>(x, s, z)  y = DequantizeLinear<axis = 1>(q, s, z) }}"""
    )
    import onnx_ir as ir

    session = Session(ir.from_proto(model), SessionOptions(optimize=False, arena=False))
    expected = session.run({"x": x, "s": scale, "z": zero_point})
    np.testing.assert_array_equal(quantize(x, scale, zero_point, grid, axis=1), expected["q"])
    np.testing.assert_array_equal(fake_quantize(x, scale, zero_point, grid, axis=1), expected["y"])
