"""Pad as the legacy torch exporter writes it, which the general passes turn into a Pad with constant pads.

The exporter computes the pads of an operator whose pads it knows: it fills the list with zeros up to twice the rank
(Shape, Gather, Mul, Sub, ConstantOfShape, Concat), and brings it from torch's order, last axis first, into ONNX's
(Reshape, Slice backwards, Transpose, Reshape, Cast).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.ir.walk import constant_tensor
from graphopt.lift import lift
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.registry import Registry
from graphopt.runtime.evaluate import evaluate

CONSTANTS = """int64[2] two = {-1, 2}, int64[1] z = {0}, int64[1] m = {-1}, int64[1] far = {-9223372036854775807},
               int64 rank = {4}, int64 both = {2}, float fill = {0.5}"""
CHAIN = """n = Shape(p)  k = Gather<axis = 0>(n, z)  t = Mul(rank, both)  r = Sub(t, k)  c = Cast<to = 7>(p)
           o = ConstantOfShape<value = int64[1] {0}>(r)  l = Concat<axis = 0>(c, o)  h = Reshape(l, two)
           b = Slice(h, m, far, z, m)  u = Transpose<perm = [1, 0]>(b)  v = Reshape(u, m)  w = Cast<to = 7>(v)"""


@pytest.mark.parametrize(
    ("pads", "expected"),
    [
        ("1, 2", "0, 0, 0, 1, 0, 0, 0, 2"),
        ("1, 1, 2, 3", "0, 0, 2, 1, 0, 0, 3, 1"),
        ("0, 0, 0, 0, 3, 4", "0, 3, 0, 0, 0, 4, 0, 0"),
    ],
)
@pytest.mark.parametrize("x", ["2,3,4,4", "b,3,h,w"])
def test_the_pads_become_constant(rewriter: Any, x: str, pads: str, expected: str) -> None:
    count = len(pads.split(","))
    signature = f"g (float[{x}] x) => (float[b,c,p,q] y)"
    before = f"""{signature} <{CONSTANTS}, int64[{count}] p = {{{pads}}}>
                 {{ {CHAIN}  y = Pad<mode = "constant">(x, w, fill) }}"""
    after = f"""{signature} <float fill = {{0.5}}, int64[8] w = {{{expected}}}> {{ y = Pad<mode = "constant">(x, w, fill) }}"""
    rewriter.rewrites(before, "fold-constants,simplify-shapes", after)


def test_pads_that_depend_on_an_input_stay_computed(rewriter: Any) -> None:
    before = f"""g (float[2,3,4,4] x, int64[4] p) => (float[b,c,h,w] y) <{CONSTANTS}>
                 {{ {CHAIN}  y = Pad<mode = "constant">(x, w, fill) }}"""
    model = rewriter.typed(before.replace("float[b,c,h,w]", "float[a,d,f,g]"))
    rewriter.run(model, "fold-constants,simplify-shapes,eliminate-dead-code")
    pad = next(node for node in model.graph if node.op_type == "Pad")
    assert pad.inputs[1].const_value is None


def test_the_shortcuts_of_a_real_network(corpus: Path) -> None:
    model = lift(corpus / "cifar10_resnet20" / "resnet20_bn.onnx").model
    for pass_ in Pipeline.parse("lossless", Registry()):
        pass_.run(model, PassContext(evaluate=evaluate))
    operators = {node.op_type for node in model.graph}
    assert not operators & {
        "Shape",
        "Gather",
        "Concat",
        "ConstantOfShape",
        "Transpose",
        "Cast",
        "Unsqueeze",
        "Constant",
    }
    pads = [constant_tensor(node.inputs[1]) for node in model.graph if node.op_type == "Pad"]
    assert all(tensor is not None and np.flatnonzero(tensor.numpy()).tolist() == [1, 5] for tensor in pads)
