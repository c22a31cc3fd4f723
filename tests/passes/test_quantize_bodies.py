"""quantize on layers in bodies of If and Loop: integer there too, unless that is slower or the target cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser
from quantized_models import outputs, sqnr
from test_quantize import samples

import graphopt
from graphopt.ir.walk import all_nodes
from graphopt.pipeline.evidence import Evidence

TEXT = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N,2,6,6] x, bool flag) => (float[N,4,6,6] y) <float[4,2,3,3] w, float[6,6] m>
{
    y = If(flag) <
        then_branch = a () => (float[N,4,6,6] p) { p = Conv<pads=[1,1,1,1]>(x, w) },
        else_branch = b () => (float[N,4,6,6] q) { h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) q = MatMul(r, m) }
    >
}
"""


def model() -> onnx.ModelProto:
    proto = parser.parse_model(TEXT)
    del proto.graph.initializer[:]
    rng = np.random.default_rng(2)
    for name, shape in (("w", (4, 2, 3, 3)), ("m", (6, 6))):
        array = rng.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def run(options: str = "mode=static", flag: bool = True) -> tuple[graphopt.Result, list[str], str]:
    """The result, its operators in all graphs, and what was said."""
    result = graphopt.optimize(model(), f"quantize{{{options}}}", data={**samples(), "flag": np.full(32, flag)})
    said = "\n".join(map(str, result.report.passes[-1].remarks))
    return result, [node.op_type for node in all_nodes(result.ir)], said


@pytest.mark.parametrize("flag", [True, False])
def test_both_branches_run_on_integers(flag: bool) -> None:
    result, kinds, said = run(flag=flag)
    assert "quantized dynamically" in said
    assert kinds.count("ConvInteger") == 2
    assert kinds.count("MatMulInteger") == 1
    assert not {"Conv", "MatMul"} & set(kinds)
    for case in (True, False):  # calibration saw one of them only
        feeds = {**samples(), "flag": np.array(case)}
        assert sqnr(outputs(graphopt.load(model()), feeds)[0], outputs(result.ir, feeds)[0]) > 30


def test_a_target_without_such_kernels_says_so() -> None:
    _, kinds, said = run("mode=static,target=tensorrt")
    assert "If 'y': its bodies stay float" in said
    assert kinds.count("Conv") == 2


def test_kept_nodes_stay_float() -> None:
    _, kinds, _ = run("mode=static,keep=Conv")
    assert kinds.count("Conv") == 2
    assert kinds.count("MatMulInteger") == 1


@pytest.mark.stopwatch
@pytest.mark.parametrize(("time", "is_kept"), [(1.5, True), (1.0, False)])
def test_slow_bodies_stay_float(monkeypatch: pytest.MonkeyPatch, time: float, is_kept: bool) -> None:
    def race(_: Evidence, models: list[ir.Model], **__: Any) -> list[tuple[float, ...]]:
        return [(1.0, time)] * 9

    monkeypatch.setattr("graphopt_passes.quantize.platform.machine", lambda: "x86_64")
    monkeypatch.setattr(Evidence, "race", race)
    _, kinds, said = run()
    assert ("Conv" in kinds) is is_kept
    assert ("takes 1.50 times as long" in said) is is_kept
