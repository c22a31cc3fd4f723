"""Costs of whole models: sums, control flow, functions, parameters, and pricing again after a change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis import shapes
from graphopt.errors import InvalidModelError, OptionError
from graphopt.lift import lift
from graphopt.pricing import Cost, DeviceProfile, Pricer, price, pricer

ModelOf = Callable[..., ir.Model]
MODELS = Path(__file__).resolve().parents[2] / "models"


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


MLP = """g (float[N,8] x, float[8,16] w, float[16] b, float[16,4] v) => (float[N,4] y) {
    p = MatMul(x, w) a = Add(p, b) r = Relu(a) y = MatMul(r, v) }"""
WEIGHTS = {"w": zeros(8, 16), "b": zeros(16), "v": zeros(16, 4)}


def test_totals(model_of: ModelOf) -> None:
    cost = price(model_of(MLP, **WEIGHTS), batch=3, per_node=True)
    macs = 3 * (8 * 16 + 16 * 4)
    assert cost.macs == macs
    assert cost.flops == 2 * macs + 3 * 16 + 3 * 16
    assert cost.params == 8 * 16 + 16 + 16 * 4
    assert cost.weight_bytes == 4 * cost.params
    assert cost.nodes == 4
    assert cost.unknown_cost_ops == ()
    assert cost.predicted_ms > 0
    assert cost.peak_activation_bytes == (3 * 16 + 3 * 4) * 4
    assert [row.macs for row in cost.per_node] == [3 * 8 * 16, 0, 0, 3 * 16 * 4]
    product = cost.per_node[0]
    assert (product.op_type, product.params, product.weight_bytes) == ("MatMul", 128, 512)
    assert product.activation_bytes == (3 * 8 + 3 * 16) * 4
    assert product.intensity == pytest.approx(2 * 384 / (512 + product.activation_bytes))


def test_rows_add_up(model_of: ModelOf) -> None:
    cost = price(model_of(MLP, **WEIGHTS), per_node=True)
    assert sum(row.macs or 0 for row in cost.per_node) == cost.macs
    assert sum(row.flops or 0 for row in cost.per_node) == cost.flops
    assert sum(row.seconds or 0 for row in cost.per_node) * 1e3 == pytest.approx(cost.predicted_ms)


def test_what_was_assumed_is_said(model_of: ModelOf) -> None:
    model = model_of("g (float[N,C,H] x) => (float[N,C,H] y) { y = Relu(x) }")
    assert dict(price(model).assumed) == {"C": 1, "H": 1}
    assert dict(price(model, shapes={"x": [1, 3, 5]}).assumed) == {}
    assert price(model, shapes={"x": [2, 3, 5]}).flops == 30
    with pytest.raises(OptionError):
        price(model, batch=0)


def test_all_versions_are_priced_for_what_the_first_one_needs(model_of: ModelOf) -> None:
    text = "g (float[N,1,T] x) => (float[N,C,S] y) <float[4,1,40] k = {%s}> { c = Conv<strides = [%d]>(x, k)  y = Relu(c) }"
    numbers = ",".join(["0"] * 160)
    pricer = Pricer()
    first = pricer.price(model_of(text % (numbers, 1)))
    assert dict(first.assumed) == {"T": 64}
    assert first.macs == 25 * 4 * 40
    shorter = text.replace("k = {%s}", "m = {%s}").replace("4,1,40", "4,1,4").replace("(x, k)", "(x, m)")
    second = pricer.price(model_of(shorter % (",".join(["0"] * 16), 2)))
    assert dict(second.assumed) == {"T": 64}
    assert second.macs == 31 * 4 * 4


def test_the_report_has_the_promised_keys(model_of: ModelOf) -> None:
    keys = [
        "macs",
        "params",
        "bytes",
        "weight_bytes",
        "peak_activation_bytes",
        "nodes",
        "latency_ms",
        "unknown_cost_ops",
    ]
    found = price(model_of(MLP, **WEIGHTS)).to_dict()
    assert list(found) == keys
    assert found["latency_ms"] is None


# --- unknown is never zero ------------------------------------------------------------------------------------------


def test_unknown_operators_are_listed(model_of: ModelOf) -> None:
    cost = price(
        model_of(
            """g (float[1,4,4] boxes, float[1,2,4] scores, float[4] x) => (int64[N,3] y, float[4] z) {
            y = NonMaxSuppression(boxes, scores) z = my.Magic(x) }"""
        ),
        per_node=True,
    )
    assert cost.unknown_cost_ops == ("NonMaxSuppression", "my.Magic")
    assert cost.macs == 0
    assert [(row.macs, row.flops, row.seconds) for row in cost.per_node] == [(None, None, None)] * 2


def test_a_known_operator_on_unknown_extents_is_unknown(model_of: ModelOf) -> None:
    model = model_of("g (float[9] x) => (float[1,N] z) { y = NonZero(x) f = Cast<to=1>(y) z = Exp(f) }")
    assert price(model).unknown_cost_ops == ("Cast", "Exp")


# --- control flow ---------------------------------------------------------------------------------------------------

BRANCHES = """g (bool c, float[2,8] x, float[8,8] w) => (float[2,8] y) {
    y = If (c) <
        then_branch = t () => (float[2,8] a) { p = MatMul(x, w) a = MatMul(p, w) },
        else_branch = e () => (float[2,8] b) { b = THEN(x) }>
}"""


def test_the_dearer_branch_counts(model_of: ModelOf) -> None:
    cost = price(model_of(BRANCHES.replace("THEN", "Exp"), w=zeros(8, 8)), per_node=True)
    assert cost.macs == 2 * 2 * 8 * 8
    assert cost.params == 64
    assert cost.nodes == 1 + 2 + 1
    assert [row.op_type for row in cost.per_node] == ["If", "MatMul", "MatMul"]
    assert cost.per_node[1].name == "y/p"


def test_unknown_operators_in_the_other_branch_are_listed_too(model_of: ModelOf) -> None:
    cost = price(model_of(BRANCHES.replace("THEN", "my.Magic"), w=zeros(8, 8)))
    assert (cost.macs, cost.unknown_cost_ops) == (256, ("my.Magic",))


LOOP = """g (int64 m, bool k, float[2,8] x, float[8,8] w) => (float[2,8] y) {
    y = Loop (m, k, x) <body = b (int64 i, bool c, float[2,8] h) => (bool d, float[2,8] o) {
        d = CONDITION o = MatMul(h, w) }>
}"""


@pytest.mark.parametrize(
    ("trips", "start", "condition", "macs", "unknown"),
    [
        (5, True, "Identity(c)", 5 * 128, ()),
        (5, None, "Identity(c)", 0, ("Loop",)),  # the condition comes with the inputs
        (5, False, "Identity(c)", 0, ()),
        (5, True, "Not(c)", 0, ("Loop",)),
        (None, True, "Identity(c)", 0, ("Loop",)),
    ],
)
def test_loops(
    trips: int | None, start: bool | None, condition: str, macs: int, unknown: tuple[str, ...], model_of: ModelOf
) -> None:
    weights: dict[str, Any] = {"w": zeros(8, 8)}
    if trips is not None:
        weights["m"] = np.array(trips, np.int64)
    if start is not None:
        weights["k"] = np.array(start)
    cost = price(model_of(LOOP.replace("CONDITION", condition), **weights), per_node=True)
    assert (cost.macs, cost.unknown_cost_ops) == (macs, unknown)
    product = cost.per_node[-1]
    assert product.op_type == "MatMul"
    assert product.macs == (None if unknown else macs)


def test_scans_run_once_per_slice(model_of: ModelOf) -> None:
    text = """g (float[3,8] s, float[3,7,8] x, float[8,8] w) => (float[3,8] y) {
        y = Scan <num_scan_inputs = 1, scan_input_axes = [1],
            body = b (float[3,8] h, float[3,8] z) => (float[3,8] o) { p = MatMul(h, w) o = Add(p, z) }> (s, x)
    }"""
    cost = price(model_of(text, w=zeros(8, 8)))
    assert (cost.macs, cost.unknown_cost_ops) == (7 * 3 * 64, ())


# --- functions ------------------------------------------------------------------------------------------------------

FUNCTIONS = """g (float[2,8] x, float[8,8] w) => (float[2,8] y, float[4,8] z) {
    y = local.twice(x, w) c = Concat<axis=0>(y, y) z = local.twice(c, w) }
<domain: "local", opset_import: ["" : 20]> twice (a, m) => (o) { p = MatMul(a, m) o = OTHER(p, m) }"""


def test_each_call_of_a_function_has_its_own_extents(model_of: ModelOf) -> None:
    cost = price(model_of(FUNCTIONS.replace("OTHER", "MatMul"), w=zeros(8, 8)))
    assert cost.macs == 2 * (2 + 4) * 64
    assert cost.params == 64
    assert cost.nodes == 3 + 2
    assert cost.unknown_cost_ops == ()


def test_functions_that_call_each_other_in_a_circle_are_invalid(model_of: ModelOf) -> None:
    model = model_of(FUNCTIONS.replace("OTHER", "MatMul"), w=zeros(8, 8))
    (function,) = model.functions.values()
    function.append(ir.Node("local", "twice", list(function.inputs), outputs=[ir.Value(name="loop")]))
    with pytest.raises(InvalidModelError, match="circle"):
        price(model)


# --- parameters -----------------------------------------------------------------------------------------------------


def test_a_shared_weight_counts_once(model_of: ModelOf) -> None:
    text = "g (float[2,8] x, float[8,8] w) => (float[2,8] y) { p = MatMul(x, w) y = MatMul(p, w) }"
    cost = price(model_of(text, w=zeros(8, 8)), per_node=True)
    assert (cost.params, cost.weight_bytes) == (64, 256)
    assert [row.params for row in cost.per_node] == [64, 64]


def test_shapes_and_quantization_parameters_are_no_parameters(model_of: ModelOf) -> None:
    text = """g (float[1,4,8,8] x, int8[4,4,3,3] w, int32[4] b, float[4] ws, int8[4] wz, float s, uint8 z, int32[4] bz,
        int64[2] shape, int32[4] order) => (float[1,256] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) dw = DequantizeLinear<axis=0>(w, ws, wz)
        db = DequantizeLinear<axis=0>(b, ws, bz) c = Conv<pads=[1,1,1,1]>(d, dw, db)
        o = QuantizeLinear(c, s, z) e = DequantizeLinear(o, s, z) f = Gather<axis=1>(e, order) y = Reshape(f, shape) }"""
    weights = {
        "w": zeros(4, 4, 3, 3, dtype=np.int8),
        "b": zeros(4, dtype=np.int32),
        "ws": zeros(4),
        "wz": zeros(4, dtype=np.int8),
        "s": zeros(),
        "z": zeros(dtype=np.uint8),
        "bz": zeros(4, dtype=np.int32),
        "shape": np.array([1, 256]),
        "order": zeros(4, dtype=np.int32),
    }
    cost = price(model_of(text, **weights))
    assert cost.params == 4 * 4 * 9 + 4
    assert cost.weight_bytes == 144 + 16 + 16 + 4 + 4 + 1 + 16 + 16 + 16


def test_packed_weights_have_packed_bytes(model_of: ModelOf) -> None:
    packed = ir.PackedTensor(zeros(8, dtype=np.uint8), ir.DataType.INT4, shape=ir.Shape([3, 5]))
    text = "g (float[2,3] x, int4[3,5] w, float s) => (float[2,5] y) { d = DequantizeLinear(w, s) y = MatMul(x, d) }"
    cost = price(model_of(text, w=packed, s=zeros()))
    assert (cost.params, cost.weight_bytes) == (15, 8 + 4)


# --- pricing again --------------------------------------------------------------------------------------------------


def without_time(cost: Cost) -> Cost:
    return dataclasses.replace(cost, predicted_ms=round(cost.predicted_ms, 9))


def narrow(model: ir.Model) -> list[ir.Node]:
    """Prune a hidden layer to half its width."""
    graph = model.graph
    for name, shape in (("w", (8, 8)), ("b", (8,)), ("v", (8, 4))):
        value = graph.initializers[name]
        value.const_value = ir.tensor(zeros(*shape), name=name)
        value.shape = ir.Shape(shape)
    return list(graph)


def insert(model: ir.Model) -> list[ir.Node]:
    last = model.graph[-1]
    added = ir.Node("", "Exp", [last.inputs[0]], outputs=[ir.Value(name="exp")])
    last.prepend(added)
    last.replace_input_with(0, added.outputs[0])
    return [added, last]


def remove(model: ir.Model) -> list[ir.Node]:
    node = next(node for node in model.graph if node.op_type == "Relu")
    reader = model.graph[-1]
    reader.replace_input_with(0, node.inputs[0])
    model.graph.remove(node, safe=True)
    return [reader]


@pytest.mark.parametrize("change", [narrow, insert, remove], ids=lambda change: change.__name__)
def test_pricing_the_touched_part_again_is_pricing_everything(
    change: Callable[[ir.Model], list[ir.Node]], model_of: ModelOf
) -> None:
    model = model_of(MLP, **WEIGHTS)
    again = Pricer(batch=3)
    before = again.price(model)
    touched = change(model)
    shapes.infer(model, touched)
    after = again.price(model, touched=touched, per_node=True)
    assert without_time(after) == without_time(price(model, batch=3, per_node=True))
    assert after != before


def test_a_node_that_is_not_touched_is_not_looked_at_again(model_of: ModelOf, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(MLP, **WEIGHTS)
    again = Pricer()
    again.price(model)
    looked_at: list[str] = []
    work = pricer._work

    def watched(node: ir.Node, *arguments: Any) -> Any:
        looked_at.append(node.op_type)
        return work(node, *arguments)

    monkeypatch.setattr(pricer, "_work", watched)
    again.price(model, touched=[])
    assert looked_at == []
    again.price(model, touched=[model.graph[2]])
    assert sorted(looked_at) == ["Add", "MatMul", "Relu"]  # the Relu and its neighbours


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_own_models(path: Path) -> None:
    cost = price(lift(path).model, device=DeviceProfile())
    assert cost.unknown_cost_ops == ()
    assert min(cost.macs, cost.params, cost.peak_activation_bytes, cost.predicted_ms) > 0
    double = price(lift(path).model, batch=2, device=DeviceProfile())
    assert double.macs == 2 * cost.macs
    assert double.params == cost.params


def test_corpus(corpus: Path) -> None:
    found = {path.stem: price(lift(path).model) for path in sorted(corpus.rglob("*.onnx"))}
    assert found["resnet20_bn"].macs == found["resnet20_dynamo"].macs == pytest.approx(40.55e6, rel=1e-3)
    assert found["squeezenet"].params == pytest.approx(1.248e6, rel=1e-3)
    assert all(cost.params > 0 and cost.bytes > 0 for cost in found.values())
    assert "com.microsoft.extensions.DecodeImage" in found["superres_prepost_op18"].unknown_cost_ops


CHOICE = """g (float[n,4] x, bool c, float[4,8] w, float[4,2] v) => (float[n,m] y) <int64[1] first = {0}, int64[1] two = {2}> {
    s = Shape(x)  b = Gather(s, first)  small = Equal(b, two)  one = Squeeze(small)
    y = If (CONDITION) <then_branch = t () => (float[n,8] p) { p = MatMul(x, w) },
                        else_branch = e () => (float[n,2] q) { q = MatMul(x, v) }>
}"""


@pytest.mark.parametrize(("condition", "rows", "columns"), [("c", 2, 8), ("c", 3, 8), ("one", 2, 8), ("one", 3, 2)])
def test_of_an_if_the_branch_counts_that_runs(model_of: ModelOf, condition: str, rows: int, columns: int) -> None:
    """By a condition that follows from extents; where it does not, the dearer one."""
    weights = {"w": np.ones((4, 8), np.float32), "v": np.ones((4, 2), np.float32)}
    model = model_of(CHOICE.replace("CONDITION", condition), **weights)
    assert price(model, shapes={"x": [rows, 4]}).macs == rows * 4 * columns


def test_a_branch_that_cannot_run_does_not_count(model_of: ModelOf) -> None:
    text = """g (float[n,4] x, bool c, float[4,8] w) => (float[m] y) <int64[1] zero = {0}> {
        y = If (c) <then_branch = t () => (float[r] p) { z = Squeeze(x, zero)  q = MatMul(z, w)  p = d.Magic(q) },
                    else_branch = e () => (float[k] o) { o = ReduceMax<keepdims = 0>(x) }>
    }"""
    weights = {"w": np.ones((4, 8), np.float32)}
    one, two = (price(model_of(text, **weights), shapes={"x": [rows, 4]}) for rows in (1, 2))
    assert (one.macs, one.unknown_cost_ops) == (32, ("d.Magic",))
    assert (two.macs, two.unknown_cost_ops) == (0, ())
