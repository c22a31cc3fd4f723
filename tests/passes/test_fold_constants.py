"""fold-constants: what is computed now, what stays, and that a model does not grow by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.shapes import infer
from graphopt.errors import RuntimeFailureError
from graphopt.pipeline.base import PassContext
from graphopt.runtime.evaluate import evaluate
from graphopt_passes.lossless.fold_constants import FoldConstants

PIPELINE = "fold-constants"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            """g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 5}>
               { a = Add(w, v)  b = Neg(a)  y = Mul(x, b) }""",
            "g (float[2] x) => (float[2] y) <float[2] b = {-4, -7}> { y = Mul(x, b) }",
            id="chain",
        ),
        pytest.param(
            """g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}>
               { a = Neg(w)  b = Exp(w)  z = Add(x, w)  c = Mul(x, a)  y = Add(c, a) }""",
            """g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}, float[2] a = {-1, -2}>
               { b = Exp(w)  z = Add(x, w)  c = Mul(x, a)  y = Add(c, a) }""",
            id="a constant that is still read stays, and what nothing reads is not computed",
        ),
        pytest.param(
            """g (float[2] x) => (float[1] y, float[1] z) <float[2] w = {1, 2}>
               { p, q = Split(w)  y = Mul(x, p)  z = Mul(x, q) }""",
            """g (float[2] x) => (float[1] y, float[1] z) <float[1] p = {1}, float[1] q = {2}>
               { y = Mul(x, p)  z = Mul(x, q) }""",
            id="several outputs",
        ),
        pytest.param(
            "g (float[2,3] x) => (float[6] y) { s = Shape(x)  n = ReduceProd(s)  y = Reshape(x, n) }",
            "g (float[2,3] x) => (float[6] y) <int64[1] n = {6}> { y = Reshape(x, n) }",
            id="shape",
        ),
        pytest.param(
            """g (float[N,3,4] x) => (float[N,M] y) <int64[1] m = {-1}>
               { s = Shape<start = -2>(x)  n = ReduceProd(s)  t = Concat<axis = 0>(m, n)  y = Reshape(x, t) }""",
            "g (float[N,3,4] x) => (float[N,M] y) <int64[2] t = {-1, 12}> { y = Reshape(x, t) }",
            id="the known part of a shape",
        ),
        pytest.param(
            "g (float[2,3] x) => (float[2,3] y) { n = Size(x)  f = Cast<to = 1>(n)  y = Div(x, f) }",
            "g (float[2,3] x) => (float[2,3] y) <float f = {6}> { y = Div(x, f) }",
            id="size",
        ),
        pytest.param(
            """g (int64[2] x) => (int64[2] y) <int64[1] n = {2}, int64 d = {2}>
               { z = ConstantOfShape<value = int64[1] {7}>(n)  h = Div(z, d)  y = Add(x, h) }""",
            "g (int64[2] x) => (int64[2] y) <int64[2] h = {3, 3}> { y = Add(x, h) }",
            id="extents that follow from values, and an integer division",
        ),
        pytest.param(
            """g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = Neg(w)  y = If (c) <
                 then_branch = t () => (float[2] p) { d = Neg(a)  p = Mul(x, d) },
                 else_branch = e () => (float[2] q) <float[2] v = {3, 4}>
                   { d = Exp(v)  k = Sub(d, d)  q = Mul(x, k) }> }""",
            """g (bool c, float[2] x) => (float[2] y) { y = If (c) <
                 then_branch = t () => (float[2] p) <float[2] d = {1, 2}> { p = Mul(x, d) },
                 else_branch = e () => (float[2] q) <float[2] k = {0, 0}> { q = Mul(x, k) }> }""",
            id="in bodies, whose names overlap, and what they capture",
        ),
        pytest.param(
            """<ir_version: 10, opset_import: ["": 17, "local": 1]> g (float[2] x) => (float[2] y) { y = local.f(x) }
               <domain: "local", opset_import: ["": 17]> f (a) => (b) { c = Constant<value = float[2] {1, 2}>()
                 d = Constant<value_float = 2.0>()  e = Mul(c, d)  h = Shape(c)  k = Expand(e, h)  b = Add(a, k) }""",
            """<ir_version: 10, opset_import: ["": 17, "local": 1]> g (float[2] x) => (float[2] y) { y = local.f(x) }
               <domain: "local", opset_import: ["": 17]> f (a) => (b) { c = Constant<value = float[2] {1, 2}>()
                 d = Constant<value_float = 2.0>()  e = Mul(c, d)
                 h = Constant<value = int64[1] {2}>()  k = Expand(e, h)  b = Add(a, k) }""",
            id="in functions",
        ),
        pytest.param(
            """<ir_version: 3, opset_import: ["": 9]> g (bool c, float[2] x, float[2] w) => (float[2] y)
               { y = If (c) <then_branch = t () => (float[2] p)
                   { v = Constant<value = float[2] {3, 4}>()  d = Neg(v)  p = Mul(x, d) },
                 else_branch = e () => (float[2] q) { q = Mul(x, w) }> }""",
            """<ir_version: 3, opset_import: ["": 9]> g (bool c, float[2] x, float[2] w) => (float[2] y)
               { y = If (c) <then_branch = t () => (float[2] p)
                   { d = Constant<value = float[2] {-3, -4}>()  p = Mul(x, d) },
                 else_branch = e () => (float[2] q) { q = Mul(x, w) }> }""",
            id="before IR version 4 bodies cannot have initializers",
        ),
        pytest.param(
            """g (string[1] x) => (string[2] y, bool[1] z) <string[1] w = {"ab"}, bool[1] t = {1}, bool[1] u = {1}>
               { a = Identity(w)  y = Concat<axis = 0>(x, a)  v = Xor(t, u)  b = Not(v)  z = And(b, v) }""",
            """g (string[1] x) => (string[2] y, bool[1] z) <string[1] a = {"ab"}, bool[1] v = {0}, bool[1] b = {1}>
               { y = Concat<axis = 0>(x, a)  z = And(b, v) }""",
            id="strings and truth values",
        ),
    ],
)
def test_rewrites(rewriter: Any, before: str, after: str) -> None:
    outcome = rewriter.golden(before, PIPELINE, after)
    rewriter.same_outputs(rewriter.model(before), outcome.model)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        pytest.param(
            "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { a = Neg(w)  y = Mul(x, a) }",
            "",
            id="an initializer that the caller can override",
        ),
        pytest.param("g (float[N,3] x) => (int64[2] y) { s = Shape(x)  y = Neg(s) }", "", id="symbolic dims"),
        pytest.param("g () => (float[2] y) <float[2] w = {1, 2}> { y = Neg(w) }", "", id="a graph output"),
        pytest.param("g (float[2,3] x) => (int64[2] y) { y = Shape(x) }", "", id="a shape that is a graph output"),
        pytest.param(
            "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = Bernoulli(w)  y = Mul(x, a) }",
            "Bernoulli 'a': not folded: its result may differ from run to run",
            id="random",
        ),
        pytest.param(
            """g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float r = {0.5}, bool t = {1}>
               { a = Dropout(w, r, t)  y = Mul(x, a) }""",
            "may differ from run to run",
            id="dropout in training",
        ),
        pytest.param(
            "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = acme.Secret(w)  y = Mul(x, a) }",
            "acme.Secret 'a': not folded: this operator is not known",
            id="unknown domain",
        ),
        pytest.param(
            """g (float[2] x) => (float[2] y) <int8[2] w = {1, 2}, float s = {0.5}>
               { a = DequantizeLinear(w, s)  y = Mul(x, a) }""",
            "quantized weights stay quantized",
            id="quantized weights",
        ),
        pytest.param(
            """g (float[2] x) => (float[2] y) <bool c = {1}, float[2] w = {1, 2}> { a = If (c) <
                 then_branch = t () => (float[2] p) { p = Neg(w) }, else_branch = e () => (float[2] q) { q = Abs(w) }>
               y = Mul(x, a) }""",
            "it has bodies",
            id="control flow",
        ),
        pytest.param(
            """g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, int64 i = {0}>
               { s = SequenceConstruct(w)  a = SequenceAt(s, i)  y = Mul(x, a) }""",
            "the size of its result is not known",
            id="sequences",
        ),
        pytest.param(
            """<ir_version: 10, opset_import: ["": 18]> g (float[2] x) => (float[2] y) <float[6] w = {1,2,3,4,5,6}>
               { a, b, c = Split<num_outputs = 2>(w)  y = Mul(x, b) }""",
            "the size of its result is not known",
            id="a Split on which ONNX's inference would end the process",
        ),
        pytest.param(
            """g (float[2] x) => (float[2] y) <int64[2] n = {512, 512}> { z = ConstantOfShape(n)  s = ReduceSum(z)
               y = Mul(x, s) }""",
            "ConstantOfShape 'z': not folded: the model would grow by more than max_growth=4096 bytes",
            id="a large constant from a small one",
        ),
        pytest.param(
            """g (float[2] x) => (float[2] y) <int64[1] n = {1152921504606846976}>
               { z = ConstantOfShape(n)  s = ReduceSum(z)  y = Mul(x, s) }""",
            "its result has more than max_bytes",
            id="an absurd constant",
        ),
        pytest.param(
            "g (int64[2] x) => (int64[2] y) <int64[2] w = {1, 0}> { a = Div(w, w)  y = Mul(x, a) }",
            "it divides by zero",
            id="integer division by zero, which would end the process",
        ),
        pytest.param(
            """g (int64[2] x) => (int64[2] y) <int64[1] w = {-9223372036854775808}, int64 m = {-1}>
               { a = Div(w, m)  y = Mul(x, a) }""",
            "the smallest integer by -1",
            id="the division that overflows, which would too",
        ),
        pytest.param(
            """g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, int64[1] i = {9}>
               { a = Gather(w, i)  y = Mul(x, a) }""",
            "not folded: onnxruntime cannot",
            id="what the runtime refuses",
        ),
    ],
)
def test_leaves_alone(rewriter: Any, before: str, reason: str) -> None:
    assert reason in rewriter.golden(before, PIPELINE).reasons


def test_excluded_nodes_stay(rewriter: Any) -> None:
    before = "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { [keep] a = Neg(w)  b = Neg(a)  y = Mul(x, b) }"
    assert not rewriter.run(rewriter.model(before), PIPELINE, exclude="keep").modified


def test_an_element_type_that_the_operator_does_not_have(rewriter: Any) -> None:
    text = "g (float[1,1,1] x) => (float[1,1,1] y) { c = Conv(w, w)  d = Cast<to = 1>(c)  y = Mul(x, d) }"
    model = rewriter.model(text, {"w": np.ones((1, 1, 1), ir.DataType.BFLOAT16.numpy())})
    assert "the size of its result is not known" in rewriter.run(model, PIPELINE).reasons


def test_without_a_runtime_only_shapes_are_folded(rewriter: Any) -> None:
    text = "g (float[2] x) => (float[2] y) <int64[1] w = {2}> { s = Shape(x)  t = Mul(s, w)  y = Expand(x, t) }"
    outcome = rewriter.run(rewriter.model(text), PIPELINE, runtime=False)
    assert [node.op_type for node in outcome.model.graph] == ["Mul", "Expand"]
    assert "Mul 't': not folded: there is no runtime" in outcome.reasons


def test_a_shape_that_changes_from_iteration_to_iteration_stays(rewriter: Any) -> None:
    text = """g (float[1] x, bool c) => (float[N] y, int64[K,1] sizes) <int64 n = {3}> { y, sizes = Loop(n, c, x) <
      body = b (int64 i, bool go, float[P] s) => (bool go2, float[M] s2, int64[1] size)
        { go2 = Identity(go)  s2 = Concat<axis = 0>(s, s)  k = Shape(s2)  size = Neg(k) }> }"""
    model = rewriter.model(text)
    infer(model)
    assert not rewriter.run(model, PIPELINE).modified


def test_a_function_that_overrides_an_operator_is_not_run_as_that_operator(rewriter: Any) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) <float[2] w = {1, 2}>
                { a = Neg(w)  y = Mul(x, a) }
              <domain: "", opset_import: ["": 17]> Neg (p) => (q) { q = Abs(p) }"""
    assert "this operator is not known" in rewriter.golden(text, PIPELINE).reasons


TRANSPOSED = """g (float[2] x) => (float[M,2] y, float[K] z)
                {{ t = Transpose(w)  u = Transpose(t)  y = Mul(x, u)  {other} }}"""


@pytest.mark.parametrize(
    ("other", "folds"),
    [("z = ReduceSum(x)", True), ("z = ReduceSum(w)", False), ("v = Transpose(w)  z = ReduceSum(v)", False)],
)
def test_a_weight_that_others_read_is_not_doubled(rewriter: Any, other: str, folds: bool) -> None:
    weight = np.arange(2**17, dtype=np.float32).reshape(-1, 2)
    model = rewriter.model(TRANSPOSED.format(other=other), {"w": weight})
    outcome = rewriter.run(model, PIPELINE)
    assert outcome.modified == folds
    assert list(model.graph.initializers) == ["u" if folds else "w"]


PIECES = """g (float[8192] x) => (float[8192] y)
            <int64[1] o = {{0}}, int64[1] a = {{2048}}, int64[1] b = {{4096}}, int64[1] c = {{8192}}>
  {{ p = Slice(w, o, a)  q = Slice(w, a, b)  r = Slice(w, b, c)  v = Concat<axis = 0>(r, q, p)
     t = Add(x, v)  {other} }}"""


@pytest.mark.parametrize(("other", "folds"), [("y = Neg(t)", True), ("y = Mul(t, w)", False)])
def test_pieces_of_a_weight_count_by_their_size(rewriter: Any, other: str, folds: bool) -> None:
    model = rewriter.model(PIECES.format(other=other), {"w": np.arange(8192, dtype=np.float32)})
    outcome = rewriter.run(model, PIPELINE)
    assert outcome.modified == folds
    assert ("v" in model.graph.initializers) == folds


def test_a_weight_that_loses_a_reader_counts_more_for_the_others(rewriter: Any) -> None:
    """Whatever is folded first, a second run has nothing left to do."""
    text = """g (float[4096] x) => (float[4096] y) <int64[1] o = {0}, int64[1] a = {512}, int64[1] c = {4096}>
      { n = Neg(w)  s = Slice(w, o, a)  t = Sum(s, s)  p = ReduceSum(t)  q = Add(x, n)  y = Mul(q, p) }"""
    model = rewriter.model(text, {"w": np.arange(4096, dtype=np.float32)})
    outcome = rewriter.run(model, PIPELINE)
    assert [node.op_type for node in model.graph] == ["Add", "Mul"]
    assert "max_growth" not in outcome.reasons


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("{max_bytes=100}", "reads a tensor of more than max_bytes=100"),
        ("{max_bytes=500}", "its result has more than max_bytes=500"),
        ("{max_growth=100}", "grow by more than max_growth=100"),
        ("{max_growth=1000,max_bytes=1000}", None),
    ],
)
def test_options_bound_what_is_folded(rewriter: Any, options: str, reason: str | None) -> None:
    text = "g (float[2] x) => (float[N] y) { d = Concat<axis = 0>(w, w)  e = Neg(d)  y = Concat<axis = 0>(x, e) }"
    weight = np.arange(100, dtype=np.float32)
    outcome = rewriter.run(rewriter.model(text, {"w": weight}), PIPELINE + options)
    assert outcome.modified == (reason is None)
    assert (reason or "") in outcome.reasons


@pytest.mark.parametrize(
    ("kind", "number"),
    [("float16", 10), ("bfloat16", 16), ("double", 11), ("uint4", 21), ("int4", 22), ("float8e4m3fn", 17), ("int8", 3)],
)
def test_element_types_are_exact(rewriter: Any, kind: str, number: int) -> None:
    """Casting there and back again gives the same whether it is done now or at run time."""
    text = f"""<ir_version: 10, opset_import: ["": 21]> g (float[3] x) => (float[3] y, {kind}[3] z)
               <float[3] w = {{1.5, 3.14159, 6}}, {kind}[3] a>
               {{ a = Cast<to = {number}>(w)  b = Cast<to = 1>(a)  y = Mul(x, b)  z = Identity(a) }}"""
    model = rewriter.model(text)
    rewriter.run(model, PIPELINE)
    assert {"a", "b"} <= set(model.graph.initializers)
    assert int(model.graph.initializers["a"].const_value.dtype) == number
    if kind not in ("uint4", "int4"):
        rewriter.same_outputs(rewriter.model(text), model)


class Counting:
    """An evaluator that counts its programs and refuses some operators."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.programs = 0

    def __call__(self, program: ir.Model) -> Sequence[ir.TensorProtocol]:
        self.programs += 1
        if any(node.op_type in self.refused for node in program.graph):
            raise RuntimeFailureError("refused")
        return evaluate(program)


def chains(count: int, refused: int) -> ir.Model:
    """`count` constants behind Neg, one of them behind an Exp before it, each added to the input."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    nodes, initializers, running = [], [], x
    for index in range(count):
        tensor = ir.tensor(np.ones(1, np.float32))
        value = ir.Value(name=f"w{index}", type=ir.TensorType(tensor.dtype), shape=ir.Shape([1]), const_value=tensor)
        initializers.append(value)
        for op_type in ("Exp", "Neg") if index == refused else ("Neg",):
            nodes.append(ir.Node("", op_type, [value], name=f"{op_type}{index}"))
            value = nodes[-1].outputs[0]
        nodes.append(ir.Node("", "Add", [running, value], name=f"add{index}"))
        running = nodes[-1].outputs[0]
    graph = ir.Graph([x], [running], nodes=nodes, initializers=initializers, opset_imports={"": 17}, name="g")
    return ir.Model(graph, ir_version=8)


def test_everything_runs_as_one_program() -> None:
    counting, model = Counting(), chains(64, refused=-1)
    FoldConstants().run(model, PassContext(evaluate=counting))
    assert counting.programs == 1
    assert {node.op_type for node in model.graph} == {"Add"}


def test_a_node_that_cannot_be_computed_is_found_by_halving() -> None:
    counting, model = Counting("Exp"), chains(64, refused=20)
    result = FoldConstants().run(model, PassContext(evaluate=counting))
    assert [node.name for node in model.graph if node.op_type != "Add"] == ["Exp20", "Neg20"]
    assert "Exp 'Exp20': not folded: refused" in map(str, result.remarks)
    assert counting.programs <= 2 * math.ceil(math.log2(65)) + 1


def test_a_runtime_that_refuses_everything_is_not_asked_for_ever() -> None:
    counting, model = Counting("Neg"), chains(1000, refused=-1)
    result = FoldConstants().run(model, PassContext(evaluate=counting))
    assert not result.modified
    assert counting.programs < 300
