"""runtime.kernel_times: a row of times for every kernel, and only for the rounds that are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from graphopt.errors import RuntimeFailureError
from graphopt.runtime import kernel_times
from graphopt.runtime.session import Session, SessionOptions

TEXT = """<ir_version: 8, opset_import: ["": 17]>
net (float[n,4] x) => (float[n,4] y) { a = Erf(x) b = Softmax(a) y = Add(b, a) }"""


@pytest.fixture
def model() -> onnx.ModelProto:
    proto = parser.parse_model(TEXT)
    for number, node in enumerate(proto.graph.node):
        node.name = f"#{number}#"
    return proto


def test_all_kernels_in_every_round(model: onnx.ModelProto) -> None:
    feeds = {"x": np.ones((50_000, 4), np.float32)}
    first, second = kernel_times.measure([model, model], [feeds], seconds=0)
    for times in (first, second):
        assert sorted(times) == ["#0#", "#1#", "#2#"]
        assert {rounds.shape for rounds in times.values()} == {(9,)}
        assert all((rounds >= 0).all() for rounds in times.values())
    assert sum(rounds.sum() for rounds in first.values()) > 0


def test_the_first_inputs_that_fit_are_taken(model: onnx.ModelProto, tmp_path: Path) -> None:
    wrong, right = {"x": np.ones((1, 3), np.float32)}, {"x": np.ones((1, 4), np.float32)}
    kernel_times.measure([model], [wrong, right], seconds=0)
    with pytest.raises(RuntimeFailureError, match=r"(?i)expected: 4"):
        kernel_times.measure([model], [wrong], seconds=0)


def test_each_session_writes_a_profile_of_its_own(model: onnx.ModelProto, tmp_path: Path) -> None:
    sessions = [Session(model, SessionOptions(profile_to=tmp_path / "profile")) for _ in range(20)]
    assert len({session.end_profiling() for session in sessions}) == 20
    assert len(list(tmp_path.glob("profile*"))) == 20
