"""The onnx wheel's own node tests: small models that nobody here wrote, with inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import onnx
import pytest


@pytest.fixture(scope="session")
def node_cases() -> list[Any]:
    """All of them; each has a name, a model and data sets of (inputs, outputs)."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        # Making the data overflows and divides by zero on purpose.
        warnings.simplefilter("ignore", RuntimeWarning)
        return list(load_model_tests(kind="node"))


@pytest.fixture(scope="session")
def session() -> Callable[[onnx.ModelProto], Any]:
    """Load a model into onnxruntime as it is written: no graph optimizations, no log."""
    import onnxruntime as ort

    def load(proto: onnx.ModelProto) -> Any:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    return load
