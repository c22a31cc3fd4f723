"""A report to look at: a run of three passes on a model whose names are hostile to markup."""

from __future__ import annotations

import dataclasses

import pytest

from graphopt.analysis.liveness import Held
from graphopt.pipeline.base import Remark
from graphopt.pipeline.records import PassRecord
from graphopt.pricing import Cost, NodeCost
from graphopt.report.model import Comparison, Gate, Input, Quality, Report
from graphopt.runtime.equivalence import Status, Verdict
from graphopt.runtime.latency import Latency

NODES = (
    NodeCost("small", "Relu", 0, 100, 0, 0, 800, 0.125, 1e-6),
    NodeCost("/body/conv<1>[red]", "Conv", 4_000_000_000, 8_000_000_000, 2_000, 8_000, 1_000_000, 33.3, 0.02),
    NodeCost("mystery", "com.example.Magic", None, None, 0, 0, None, None, None),
)
BEFORE = Cost(
    macs=4_000_000_000, flops=8_000_000_100, params=25_600_000, bytes=102_400_000, weight_bytes=102_000_000,
    peak_activation_bytes=7_200_000, nodes=176, predicted_ms=33.1, unknown_cost_ops=("com.example.Magic",),
    latency_ms=33.2, predicted_by="the roofline of 'box'",
    assumed={"N": 1}, peak_node="conv", peak_held=(Held("a", 4_200_000), Held("b", 1_000_000)), per_node=NODES,
)  # fmt: skip
MIDDLE = dataclasses.replace(BEFORE, nodes=160, latency_ms=None)
FOLDED = dataclasses.replace(MIDDLE, nodes=123, params=12_800_000, bytes=51_200_000)
AFTER = dataclasses.replace(FOLDED, latency_ms=30.1)


@pytest.fixture
def report() -> Report:
    """A run that measured everything there is to measure."""
    return Report(
        graphopt="0.1.0",
        input=Input("models/net<b>.onnx", "ab" * 32, 102_400_000, ("models/net.data",)),
        pipeline="eliminate-identity,fold-constants,fold-batch-norm",
        costs=lambda: (BEFORE, AFTER),
        passes=[
            PassRecord(
                "eliminate-identity", {}, 0.012, True, BEFORE, MIDDLE, (Remark("Identity 'x'", "removed", True),)
            ),
            PassRecord("fold-constants", {"max_bytes": 1024}, 0.0001, False, MIDDLE, MIDDLE),
            PassRecord(
                "fold-batch-norm", {}, 0.2, True, MIDDLE, FOLDED, (Remark("bn <script>", "its input has two uses"),)
            ),
        ],
        quality=Quality("top1", 0.91, 0.905, 500, 256, Gate(0.92, 0.915, 128, (0.86, 0.95), 0.01)),
        check=Verdict(Status.SAME, "", 1.3e-6),
        latency=Latency(33.2, 30.1, 0.907, (0.9, 0.91), 31, 1, {"x": (1, 3, 224, 224)}),
        plan=[{"what": "keep"}],
        warnings=["the model <i>declares</i> opset 8"],
        seconds=2.3,
        peak_rss_bytes=331_000_000,
        output="models/net.opt.onnx",
    )


@pytest.fixture
def comparison(report: Report) -> Comparison:
    """Two models that differ."""
    source = report.input
    return Comparison(source, source, BEFORE, AFTER, Verdict(Status.DIFFERENT, "output 'y': far away", float("inf")))
