"""onnx's own backend node tests: whatever onnxruntime runs goes through the compiler and computes the same."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphopt

SHARDS = 20
TOLERANCE = {"float16": 1e-2, "bfloat16": 4e-2}


@functools.cache
def cases() -> Sequence[Any]:
    from onnx.backend.test.loader import load_model_tests

    return load_model_tests(kind="node")


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, values: Sequence[Any]) -> Mapping[str, Any]:
    loaded = session(model)
    feeds = dict(zip([value.name for value in loaded.get_inputs()], values, strict=False))  # trailing ones are optional
    return dict(zip([value.name for value in loaded.get_outputs()], loaded.run(None, feeds), strict=True))


def assert_same(wanted: Any, found: Any) -> None:
    if isinstance(wanted, list):
        assert len(wanted) == len(found)
        for one, other in zip(wanted, found, strict=True):
            assert_same(one, other)
    elif wanted is None:
        assert found is None
    else:
        one, other = np.asarray(wanted), np.asarray(found)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if one.dtype.kind == "f" or one.dtype.name == "bfloat16":
            limit = TOLERANCE.get(one.dtype.name, 1e-4)
            np.testing.assert_allclose(other.astype(np.float64), one.astype(np.float64), rtol=limit, atol=limit)
        else:
            assert one.tobytes() == other.tobytes() if one.dtype.kind != "O" else (one == other).all()


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_case_that_onnxruntime_runs_computes_the_same(shard: int) -> None:
    ran = 0
    for case in cases()[shard::SHARDS]:
        inputs = case.data_sets[0][0]
        try:
            wanted = run(case.model, inputs)
        except Exception:  # onnxruntime raises many types for operators that it does not have
            wanted = None
        try:
            result = graphopt.optimize(case.model, check=False, verify="full").model
        except graphopt.GraphoptError:
            assert wanted is None, f"{case.name} is refused, but onnxruntime runs it"
            continue
        if wanted is not None:
            ran += 1
            found = run(result, inputs)
            assert list(found) == list(wanted), case.name
            try:
                assert_same(list(wanted.values()), list(found.values()))
            except AssertionError as error:
                raise AssertionError(f"{case.name}: {error}") from error
    assert ran > 50
