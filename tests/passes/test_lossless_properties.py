"""Every exact pass, alone and all in a row, on generated graphs: sound, same outputs, and nothing left to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from generated_graphs import feeds, models
from hypothesis import HealthCheck, given, settings

from graphopt.analysis import meaning, shapes
from graphopt.ir.verify import verify
from graphopt.lift import lift
from graphopt.pipeline.base import Pass, PassContext
from graphopt.pipeline.manager import MOST_SWEEPS
from graphopt.pipeline.options import configure
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.registry import Registry
from graphopt.runtime.evaluate import evaluate

CONTEXT = PassContext(evaluate=evaluate)
PASSES = [configure(cls, {}) for cls in map(Registry().find, Registry().names()) if cls.exact]
SETTINGS = settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


def run(pass_: Pass, model: Any) -> bool:
    """Run a pass; what it leaves must be legal. Whether it changed anything."""
    result = pass_.run(model, CONTEXT)
    if result.modified:
        verify(model)
        shapes.infer(model, result.touched)
        meaning.check(model)
    return result.modified


def assert_same(rewriter: Any, expected: list[dict[str, np.ndarray]], model: Any, what: str) -> None:
    for seed, wanted in enumerate(expected):
        actual = rewriter.outputs(model, feeds(seed))
        assert list(actual) == list(wanted), what
        for name, array in wanted.items():
            # inputs are about 1: where they cancel, what is left of them is rounding
            scale = max(1.0, float(np.abs(array).max(initial=0))) if array.dtype == np.float32 else 0
            np.testing.assert_allclose(actual[name], array, rtol=0, atol=1e-5 * scale, err_msg=f"{what}: {name}")


@SETTINGS
@given(models())
def test_each_pass_alone(rewriter: Any, proto: onnx.ModelProto) -> None:
    lifted = lift(proto)
    expected = [rewriter.outputs(lifted.model, feeds(seed)) for seed in range(2)]
    for pass_ in PASSES:
        model = lifted.relift()
        if pass_.min_opset <= model.opset_imports[""] and run(pass_, model):
            assert_same(rewriter, expected, model, pass_.name)
            assert not run(pass_, model), f"{pass_.name} is not done after one run"


@SETTINGS
@given(models())
def test_the_preset(rewriter: Any, proto: onnx.ModelProto) -> None:
    lifted = lift(proto)
    expected = [rewriter.outputs(lifted.model, feeds(seed)) for seed in range(2)]
    model = lifted.relift()
    preset = Pipeline.parse("lossless", Registry())
    for _ in range(MOST_SWEEPS):  # as the manager does
        changed = [pass_.name for pass_ in preset if run(pass_, model)]
        if not changed:
            break
    assert_same(rewriter, expected, model, "lossless")
    assert [pass_.name for pass_ in preset if run(pass_, model)] == []
