"""quantize on what is quantized in part already, and on what other lossy passes made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from quantized_models import kernels, outputs, sqnr

import graphopt
from graphopt.ir.walk import constant_tensor

MODELS = Path(__file__).parents[2] / "models"
NAME, DIGITS = "input", np.load(MODELS / "digits.calib.npz")["input"]
CALIBRATION, HELD_OUT = {NAME: DIGITS[:192]}, {NAME: DIGITS[192:]}
PLAIN = "prefer=integer,sensitivity=false"


def convolutions(model: ir.Model) -> list[str]:
    return [node.name or "" for node in model.graph if node.op_type == "Conv"]


def in_float(model: ir.Model) -> set[str]:
    """Convolutions whose weight is float."""
    layers = [node for node in model.graph if node.op_type == "Conv"]
    return {node.name or "" for node in layers if constant_tensor(node.inputs[1]) is not None}


def integers(model: ir.Model) -> dict[str, bytes]:
    """The constants that are stored in integers."""
    tensors = ((value.name, value.const_value) for value in model.graph.initializers.values())
    return {name or "": tensor.tobytes() for name, tensor in tensors if tensor and tensor.dtype == ir.DataType.INT8}


@pytest.mark.parametrize(
    ("first", "last", "more"),
    [(3, 5, 2), (5, 6, 0), (0, 1, 0), (4, 9, 3), (0, 13, 13)],
    ids=["two in a row", "between integers", "the first", "a stage", "everything"],
)
@pytest.mark.parametrize("prefer", ["integer", "fastest"])
def test_what_is_quantized_stays_as_it_is(first: int, last: int, more: int, prefer: str) -> None:
    original = graphopt.load(MODELS / "residual.onnx")
    names = convolutions(original)[first:last]
    keep = ":".join(f'"{name}"' for name in names)
    once = graphopt.optimize(original.clone(), f"quantize{{{PLAIN},keep={keep}}}", data=CALIBRATION)
    assert in_float(once.ir) == set(names)
    twice = graphopt.optimize(once.ir.clone(), f"quantize{{sensitivity=false,prefer={prefer}}}", data=CALIBRATION)
    assert integers(once.ir).items() <= integers(twice.ir).items()
    if prefer == "integer":
        assert len(in_float(once.ir)) - len(in_float(twice.ir)) == more
    exact = outputs(original, HELD_OUT)[0]
    before, after = (sqnr(exact, outputs(result.ir, HELD_OUT)[0]) for result in (once, twice))
    assert after > min(before, 39) - 2.5  # what all on integers comes to
    thrice = graphopt.optimize(twice.ir.clone(), f"quantize{{{PLAIN}}}", data=CALIBRATION)
    assert kernels(thrice.ir) == kernels(twice.ir) or prefer == "fastest"


def test_reasons_tell_layers_in_integers_from_layers_between_them() -> None:
    original = graphopt.load(MODELS / "residual.onnx")
    lonely = convolutions(original)[5]
    once = graphopt.optimize(original, f'quantize{{{PLAIN},keep="{lonely}"}}', data=CALIBRATION)
    twice = graphopt.optimize(once.ir, f"quantize{{{PLAIN}}}", data=CALIBRATION)
    said = {remark.what: remark.where for remark in twice.report.passes[-1].remarks}
    assert lonely in said["stays float: what it reads or makes is quantized already"]
    assert lonely not in said["left alone: it is quantized already"]
    assert any("stays as it is" in what for what in said)


@pytest.mark.parametrize("before", ["prune-channels{macs=0.8}", "factorize{macs=0.8,prefer=macs}"])
def test_after_passes_that_change_layers(before: str) -> None:
    smaller = graphopt.optimize(MODELS / "residual.onnx", before, data=CALIBRATION).ir
    exact = outputs(smaller, HELD_OUT)[0]
    result = graphopt.optimize(smaller.clone(), f"quantize{{{PLAIN}}}", data=CALIBRATION)
    assert kernels(result.ir)["Conv"] == kernels(result.ir)["FusedConv"] == 0
    assert kernels(result.ir)["QLinearConv"] >= 13
    assert sqnr(exact, outputs(result.ir, HELD_OUT)[0]) > 34
