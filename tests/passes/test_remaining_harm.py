"""factorization.remaining: what refits behind a replaced layer leave of its harm."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

import graphopt
from graphopt.data import open_samples
from graphopt.lift import lift
from graphopt.pipeline.evidence import Evidence
from graphopt_passes.factorization import remaining
from graphopt_passes.factorization.candidates import Candidate
from graphopt_passes.factorization.remaining import Replacement, shares
from graphopt_passes.factorization.units import Proposal
from graphopt_passes.reconstruction.transposed import layers_of

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,4,6,6] x) => (float[N,4,6,6] y)
{
    a = Conv(x, w1, b1)
    b = Conv(a, w2, b2)
    c = Conv(b, w3, b3)
    y = Conv(c, w4, b4)
}
"""
KEYS = ["a", "b", "c", "y"]


@pytest.fixture
def model() -> ir.Model:
    rng = np.random.default_rng(0)
    proto = parser.parse_model(CHAIN)
    for index in range(1, 5):
        turned = np.linalg.qr(rng.normal(size=(4, 4)))[0].reshape(4, 4, 1, 1)
        for name, array in ((f"w{index}", turned), (f"b{index}", rng.normal(size=4))):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return lift(proto).model


@pytest.fixture
def evidence(model: ir.Model) -> Evidence:
    return Evidence(open_samples({"x": np.random.default_rng(1).normal(size=(32, 4, 6, 6)).astype(np.float32)}, model))


def turned(model: ir.Model) -> dict[str, Replacement]:
    """Every layer with its rows mixed up, which a layer behind can undo."""
    mix = np.eye(4) + 0.2 * np.random.default_rng(2).normal(size=(4, 4))
    return {one.key: Replacement(mix @ one.weight(), None, 0.02) for one in layers_of(model.graph)}


def test_what_a_layer_behind_can_undo_is_no_harm(model: ir.Model, evidence: Evidence) -> None:
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    found = shares(model, turned(model), KEYS, evidence)
    assert list(found) == KEYS
    assert max(found["a"], found["b"], found["c"]) < 0.02
    assert found["y"] == 1  # nothing is behind
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before


def test_layers_that_are_not_refitted_make_up_for_nothing(model: ir.Model, evidence: Evidence) -> None:
    assert shares(model, turned(model), [], evidence) == dict.fromkeys(KEYS, 1.0)
    found = shares(model, turned(model), ["b"], evidence)
    assert found["a"] < 0.02
    assert found["b"] == found["c"] == found["y"] == 1


def test_between_measured_layers_shares_lie_on_a_line(
    model: ir.Model, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remaining, "_MOST_WORK", 2.5 * remaining._work(model, evidence))
    found = shares(model, turned(model), KEYS, evidence)
    logs = np.log([found[key] for key in KEYS])
    np.testing.assert_allclose(logs, np.linspace(logs[0], 0, 4), atol=1e-6)
    assert logs[0] < -3


def test_too_much_work_and_too_few_samples_are_left_out(
    model: ir.Model, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert remaining.is_measurable(model, evidence)
    assert not remaining.is_measurable(model, evidence.subset(31))
    monkeypatch.setattr(remaining, "_MOST_WORK", 3.9 * remaining._work(model, evidence))
    assert not remaining.is_measurable(model, evidence)
    assert shares(model, {}, KEYS, evidence) == {}


def test_a_replacement_without_harm_keeps_it(model: ir.Model, evidence: Evidence) -> None:
    same = {one.key: Replacement(one.weight(), one.bias(), 0.0) for one in layers_of(model.graph)}
    assert shares(model, same, KEYS, evidence) == dict.fromkeys(KEYS, 1.0)


def test_the_replacement_nearest_to_typical_harm_is_measured() -> None:
    replacements = [Replacement(np.zeros(1), None, harm) for harm in (0.0, 1e-4, 0.015, 3.0, np.inf)]
    assert min(replacements, key=lambda one: one.oddity).harm == 0.015


def test_candidates_do_what_remains_of_their_harm() -> None:
    proposal = Proposal(None, [Candidate("keep", (), 4, 4), Candidate("channel", (2,), 2, 2, harm=0.5)])  # type: ignore[arg-type]
    found = remaining.after_refits(proposal, 0.1)
    assert [one.harm for one in found.candidates] == [0, 0.05]
    assert proposal.candidates[1].harm == 0.5


NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,8,8] x) => (float[N,5] y)
{
    c1 = Conv<pads=[1,1,1,1]>(x, w1)
    a1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(a1, w2)
    a2 = Relu(c2)
    p = GlobalAveragePool(a2)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w3)
}
"""
SHAPES = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (5, 16)}


def test_choices_count_harm_by_what_remains_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, proto = np.random.default_rng(0), parser.parse_model(NETWORK)
    for name, shape in SHAPES.items():
        array = (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    data = {"x": np.cumsum(rng.normal(size=(32, 3, 8, 8)), axis=-1).astype(np.float32)}

    def run(options: str = "macs=0.8") -> graphopt.Result:
        return graphopt.optimize(
            proto, pipeline=f"factorize{{{options},schemes=channel:spatial,align=1,prefer=macs}}", data=data
        )

    plain = run()
    facts = plain.report.passes[-1].facts
    assert set(facts["harm after refits"]) == {"c1", "c2", "y"}
    assert facts["harm after refits"]["y"] == 1
    assert any("remain after refits" in str(remark) for remark in plain.report.passes[-1].remarks)
    assert run().report.passes[-1].facts == facts  # nothing is left to chance
    assert "harm after refits" not in run("energy=0.9").report.passes[-1].facts

    def replaced(cheap: str) -> str:
        monkeypatch.setattr(remaining, "shares", lambda *_, **__: {"c1": 1.0, "c2": 1.0, "y": 1.0} | {cheap: 1e-6})
        listed = [str(one) for one in run("macs=0.92").report.passes[-1].remarks]
        return "\n".join(one for one in listed if "output error" in one)

    assert "c2" in replaced("c2")
    assert "c1" not in replaced("c2")
    assert "c1" in replaced("c1")
