"""quantize: layers that are spared as 16-bit activations, and the conversions where widths meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from quantized_models import outputs, sqnr, weights
from test_quantize import samples, small_model
from test_quantize_insertion import arrays, recipe

import graphopt
from graphopt.analysis import meaning
from graphopt.errors import OptionError
from graphopt.ir.verify import verify
from graphopt.pipeline.evidence import Evidence
from graphopt_passes.numerics.quantizer import Grid, dequantize, quantize
from graphopt_passes.quantization.insertion import Quantizer, insert
from graphopt_passes.quantization.placement import Placement, place
from graphopt_passes.quantization.targets import TARGETS, wide_type
from graphopt_passes.quantization.widths import finer, mixed, widen

if TYPE_CHECKING:
    from conftest import Rewriter

U8, S8, U16 = ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT16
WIDE = (U16, ir.DataType.INT16)
W = np.arange(1, 5, dtype=np.float32).reshape(2, 2, 1, 1)
BRANCHES = """agraph (float[n,2,4,4] x) => (float[n,2,4,4] y) {
    c = Conv(x, w) d = Conv(c, w) r = Relu(d) m = MaxPool<kernel_shape = [1, 1]>(r) e = Conv(m, w) f = Conv(e, w)
    s = Add(f, c) g = Conv(s, w) y = Neg(g)
}"""


def placed(rewriter: Rewriter, text: str = BRANCHES) -> tuple[ir.Model, Placement]:
    model = rewriter.typed(text, {"w": W})
    return model, place(model.graph, TARGETS["qnn"], keep_heads=False)


@pytest.mark.parametrize(
    ("spared", "wide", "crossings"),
    [
        ("", "", set()),
        ("c", "xc", {("c", "d", False), ("c", "s", False)}),
        # the layer in front makes 16 bits, too, and data movement behind takes them along
        ("d", "crm", {("x", "c", True), ("m", "e", False), ("c", "s", False)}),
        ("e", "rme", {("c", "d", True), ("e", "f", False)}),
        ("g", "sg", {("f", "s", True), ("c", "s", True)}),
        ("cdefg", "xcrmefsg", set()),
    ],
)
def test_what_is_wide(rewriter: Rewriter, spared: str, wide: str, crossings: set[tuple[str, str, bool]]) -> None:
    _, placement = placed(rewriter)
    found = widen(placement, set(spared))
    assert {value.name for value in placement.groups if placement.groups.root(value) in found.groups} == set(wide)
    assert {(value.name, node.outputs[0].name, to) for value, node, to in found.crossings} == crossings


@pytest.mark.parametrize(("dtype", "zero_point"), [(U8, 0), (U8, 77), (U8, 255), (S8, 0), (S8, -128)])
def test_integers_of_8_bits_keep_their_numbers(dtype: ir.DataType, zero_point: int) -> None:
    scale = np.array(0.037, np.float32)
    wide = finer(Quantizer(float(scale), zero_point, dtype), wide_type(dtype))
    all_integers = np.arange(int(dtype.min), int(dtype.max) + 1)
    numbers = dequantize(all_integers, scale, np.array(zero_point))
    step, zero = np.array(wide.scale, np.float32), np.array(wide.zero_point)
    integers = quantize(numbers, step, zero, Grid(int(wide.dtype.min), int(wide.dtype.max)))
    np.testing.assert_array_equal(integers, 256 * all_integers)
    np.testing.assert_array_equal(dequantize(integers, step, zero), numbers)


def test_conversions_stand_where_widths_meet(rewriter: Rewriter) -> None:
    """The layer `d` is spared: what `b` makes is converted up for `c`, without loss, and what `d` makes down for `e`."""
    text = """agraph (float[n,2,4,4] x) => (float[n,2,4,4] y) {
        b = Conv(x, w) c = Conv(b, w) d = Conv(c, w) e = Conv(d, w) y = Neg(e)
    }"""
    model, placement = placed(rewriter, text)
    narrow = recipe(placement)
    numbers = mixed(placement, {"d"}, narrow, {name: Quantizer(2.0**-10, 5, U16) for name in narrow.values})
    touched = insert(model, model.graph, placement, numbers)
    model.opset_imports[""] = 21
    verify(model, touched)
    meaning.check(model)
    producers = {output.name: node for node in model.graph for output in node.outputs}
    found = arrays(model)

    def chain(layer: str) -> list[tuple[str, str, float]]:
        """Operators and their numbers from the data of a layer back to what another node makes."""
        steps, value = [], producers[layer].inputs[0]
        while value is not None and (node := value.producer()) is not None and "Linear" in node.op_type:
            scale, zero_point = (found[parameter.name or ""] for parameter in node.inputs[1:] if parameter is not None)
            steps.append((node.op_type[0], str(zero_point.dtype), float(scale)))
            value = node.inputs[0]
        return steps

    assert chain("b") == [("D", "uint8", 1), ("Q", "uint8", 1)]  # x, a group of scale 2^0
    assert chain("c") == [("D", "uint16", 2**-9), ("Q", "uint16", 2**-9), ("D", "uint8", 0.5), ("Q", "uint8", 0.5)]
    assert chain("d") == [("D", "uint16", 2**-10), ("Q", "uint16", 2**-10)]
    assert chain("e") == [
        ("D", "uint8", 0.125),
        ("Q", "uint8", 0.125),
        ("D", "uint16", 2**-10),
        ("Q", "uint16", 2**-10),
    ]
    assert sum(name.endswith("weight_quantized") for name in found) == 1  # the weight of all four stays one


def run(options: str, **others: Any) -> graphopt.Result:
    return graphopt.optimize(small_model(), f"quantize{{{options}}}", data=samples(64), **others)


def wide_kernels(result: graphopt.Result) -> set[str]:
    """Layers that read 16-bit activations."""
    found = set()
    for node in result.ir.graph:
        restored = None if node.op_type not in ("Conv", "Gemm") or node.inputs[0] is None else node.inputs[0].producer()
        integers = None if restored is None else restored.inputs[0]
        if integers is not None and integers.dtype in WIDE:
            found.add(node.outputs[0].name or "")
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_what_16_bits_gain_on_every_target(target: str) -> None:
    model = graphopt.load(small_model())
    exact = outputs(model, samples(64))[0]
    worth = []
    for count in (0, 1, 3):
        options = f"target={target},spare_as=int16,keep_heads=false,prefer=integer"
        result = run(f"{options},spare_layers={count}")
        assert result.ir.opset_imports[""] == (21 if count else 13)
        assert len(wide_kernels(result)) >= count
        worth.append(sqnr(exact, outputs(result.ir, samples(64), optimize=False)[0]))
        if target.startswith("ort"):
            assert sqnr(exact, outputs(result.ir, samples(64))[0]) == pytest.approx(worth[-1], abs=1)
        assert all(tensor.dtype not in WIDE or tensor.size == 1 for tensor in weights(result.ir).values())
    assert worth[0] < worth[1] < worth[2]
    assert worth[2] > worth[0] + 2


def test_the_default_is_the_target_s() -> None:
    assert not wide_kernels(run("spare_layers=1"))
    phone = run("target=qnn,spare_layers=1")
    assert wide_kernels(phone)
    said = [remark for remark in phone.report.passes[-1].remarks if "16-bit activations" in remark.what]
    assert said
    assert said[0].applied
    assert not wide_kernels(run("target=qnn,spare_layers=1,spare_as=float"))


def test_a_second_run_changes_nothing() -> None:
    once = run("spare_as=int16,spare_layers=1,prefer=integer").model
    again = graphopt.optimize(once, "quantize{spare_as=int16,spare_layers=1,prefer=integer}", data=samples(64))
    assert [node.op_type for node in again.model.graph.node] == [node.op_type for node in once.graph.node]


def test_a_bound_is_reached_with_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    worth = iter((20.0, 30.0))  # all on 8 bits, one on 16
    monkeypatch.setattr(Evidence, "sqnr", lambda self, original, result: next(worth))
    assert 0 < len(wide_kernels(run("mode=static,sqnr=25,spare_as=int16"))) < 3


def test_a_bound_of_its_own() -> None:
    plain = sqnr(outputs(graphopt.load(small_model()), samples(64))[0], outputs(run("mode=static").ir, samples(64))[0])
    result = run(f"mode=static,spare_as=int16,sqnr={plain + 4}")
    assert wide_kernels(result)
    assert sqnr(outputs(graphopt.load(small_model()), samples(64))[0], outputs(result.ir, samples(64))[0]) > plain + 2


def test_the_gate_is_met_by_16_bits() -> None:
    loose = run("mode=static,spare_as=int16", metric="kl", max_drop=1.0)
    assert not wide_kernels(loose)
    assert loose.report.quality is not None
    bound = loose.report.quality.after / 2
    tight = run("mode=static,spare_as=int16", metric="kl", max_drop=bound)
    assert tight.report.quality is not None
    assert tight.report.quality.after <= bound
    assert wide_kernels(tight)
    assert 0 < tight.report.passes[-1].options["spare_layers"] <= 3


def test_all_on_16_bits_spares_nothing_so() -> None:
    with pytest.raises(OptionError, match="take spare_as=float"):
        run("activations=16,spare_as=int16")
