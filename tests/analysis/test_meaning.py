"""Illegal nodes are found and named; nothing that onnxruntime loads is rejected."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.defs
import onnx_ir as ir
import pytest

from graphopt.analysis import meaning, schemas, shapes
from graphopt.errors import InvalidModelError, PassError, VerificationError


def parsed(text: str, opset: int = 17, functions: str = "") -> ir.Model:
    header = f'<ir_version: 9, opset_import: ["" : {opset}, "d" : 1, "com.microsoft" : 1]>'
    model = ir.from_onnx_text(f"{header} {text} {functions}")
    for output in model.graph.outputs:
        output.shape = output.shape or None
    shapes.infer(model)
    return model


INPUTS = """float[n,3,8,8] x, float[4,3,3,3] w, float[4,2,3,3] w2, float[5] b, float[2,3] p, float[4,5] q, double[2,3] r,
    int64[2] i, bool c, string[3] s"""


@pytest.mark.parametrize(
    ("node", "opset", "reason"),
    [
        ("y = NoSuchThing(x)", 17, "opset 17 of 'ai.onnx' has no such operator"),
        ("y = Gelu(x)", 17, "opset 17 of 'ai.onnx' has no such operator"),
        ("y = Scatter(p, i, p)", 17, "deprecated"),
        ("y = Relu(x, x)", 17, "input size 2 not in range"),
        ("y, z = Relu(x)", 17, "output size 2 not in range"),
        ("y = Concat(p, p)", 17, "Required attribute 'axis' is missing"),
        ("y = Concat<axis=0.5>(p, p)", 17, "Mismatched attribute type"),
        ("y = Relu<slope=1>(x)", 17, "Unrecognized attribute: slope"),
        ("y = Squeeze<axes=[0]>(x)", 17, "Unrecognized attribute: axes"),
        ("y = Add(p, r)", 17, "input 1 .'B'. is tensor.double., but must be tensor.float."),
        ("y = Relu(s)", 17, "input 0 .'X'. is tensor.string., which the operator does not take"),
        ("y = Gather(p, r)", 17, "input 1 .'indices'. is tensor.double."),
        ("y = MatMul(p, q)", 17, "Incompatible dimensions"),
        ("y = Gemm(p, q)", 17, "Dimension mismatch"),
        ("y = Conv(p, w)", 17, "at least 3 dimensions"),
        ("y = Conv(x, w2)", 17, "its weight takes 2 input channels, but its input has 3"),
        ("y = Conv(x, w, b)", 17, "its bias has 5 elements for 4 output channels"),
        ("y = Conv<group=3>(x, w)", 17, "its weight takes 9 input channels, but its input has 3"),
        ("y = ConvTranspose(x, w)", 17, "its weight takes 4 input channels, but its input has 3"),
        ("y = BatchNormalization(x, b, b, b, b)", 17, "between 5 and 3|mismatch"),
        ("t = Constant<value_ints=[4,-1]>() y = Reshape(p, t)", 17, "Dimension could not be inferred"),
        ("t = Constant<value_ints=[2,2]>() y = Reshape(p, t)", 17, r"6 elements of shape \[2, 3\] cannot become"),
        ("y = Concat<axis=1>(p, q)", 17, "[Ii]nferred|dimension"),
        ("y = If(c) <then_branch = t () => (float a) { a = Foo(x) }, else_branch = e () => (float b) { b = Relu(x) }>",
         17, "Foo 'a'"),
        ("y = If(c) <then_branch = t () => (float a) { a = Add(p, r) }, else_branch = e () => (float b) { b = Relu(x) }>",
         17, "Add 'a'"),
    ],
)  # fmt: skip
def test_illegal_nodes(node: str, opset: int, reason: str) -> None:
    model = parsed(f"g ({INPUTS}) => (float y) {{ {node} }}", opset)
    model.graph.outputs[0].type = None
    with pytest.raises(InvalidModelError, match=reason) as caught:
        meaning.check(model)
    op_type = next(iter(reversed(model.graph))).op_type
    assert str(caught.value).startswith((f"{op_type} 'y'", "Foo 'a'", "Add 'a'"))


@pytest.mark.parametrize(
    ("node", "opset"),
    [
        ("y = d.Whatever<free=1>(x, w, b)", 17),
        ("y = com.microsoft.NoSuchThing(x)", 17),
        ("y = LayerNormalization(x, b)", 12),
        ("y = SimplifiedLayerNormalization(x, b)", 17),
        ("z = Constant<value_ints=[0,-1]>() y = Reshape(x, z)", 17),
        ("z = Constant<value_ints=[7,0]>() y = Reshape<allowzero=1>(k, z)", 17),
        # impossible branches that exporters guard
        ("z = Constant<value_ints=[2]>() y = If(c) <then_branch = t () => (float[?] a) { a = Squeeze(x, z) },"
         " else_branch = e () => (float[?] b) { b = Relu(x) }>", 17),
    ],
)  # fmt: skip
def test_legal_nodes(node: str, opset: int) -> None:
    model = parsed(
        f"g (float[n,3,8,8] x, float[2,2] w, float[8] b, float[0,3] k, bool c) => (float y) {{ {node} }}", opset
    )
    meaning.check(model)


def test_the_type_of_an_output_must_be_what_the_operator_yields() -> None:
    with pytest.raises(InvalidModelError, match="Relu 'y': 'y' is DOUBLE, but the operator yields FLOAT"):
        meaning.check(parsed("g (float[2] x) => (double[2] y) { y = Relu(x) }"))


def test_wrong_extents_declared_on_an_output_bind_nobody() -> None:
    meaning.check(
        parsed("g (float[2,3] x, float[3,4] w) => (float[7,7] y, float[2,4] z) { y = Relu(x) z = MatMul(y, w) }")
    )


def test_missing_and_unknown_opsets() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = ai.onnx.ml.Binarizer(x) }")
    with pytest.raises(InvalidModelError, match=r"imports no opset of the domain 'ai.onnx.ml'"):
        meaning.check(model)
    model = parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model.opset_imports[""] = 99
    with pytest.raises(InvalidModelError, match="the model uses opset 99; the newest"):
        meaning.check(model)


FUNCTION = '<domain: "d", opset_import: ["" : 17]> F <axis> (a, b) => (r) {{ c = {} r = Relu(c) }}'


def test_functions_are_checked_without_types() -> None:
    graph = "g (float[2,3] x, double[2,3] z) => (float y) { y = d.F<axis=0>(x, z) }"
    meaning.check(parsed(graph, functions=FUNCTION.format("Concat<axis: int = @axis>(a, b)")))
    with pytest.raises(InvalidModelError, match=r"Concat 'c': Required attribute 'axis'"):
        meaning.check(parsed(graph, functions=FUNCTION.format("Concat(a, b)")))


def test_only_some_nodes_and_another_error() -> None:
    model = parsed("g (float[2,3] x) => (float y) { a = MatMul(x, x) y = Relu(a) }")
    matmul, relu = model.graph
    meaning.check(model, nodes=[relu])
    with pytest.raises(VerificationError, match="MatMul 'a'"):
        meaning.check(model, nodes=[matmul])
    with pytest.raises(PassError, match="MatMul 'a'"):
        meaning.check(model, nodes=[matmul], error=PassError)


def test_operators_that_onnxruntime_adds_to_the_standard_domain() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    first: dict[tuple[str, str], int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        first[schema.domain, schema.name] = min(schema.since_version, first.get((schema.domain, schema.name), 99))
    added = {
        schema.name
        for schema in runtime.get_all_operator_schema()
        if schema.domain == "" and schema.since_version < first.get(("", schema.name), 99)
    }
    internal = {name for name in added if name.startswith("Memcpy") or name.endswith("_TRT")}
    assert added - internal == schemas.RUNTIME_ONLY


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
def test_nothing_that_onnxruntime_loads_is_rejected(
    symbolic: bool, node_cases: list[Any], session: Callable[[onnx.ModelProto], Any]
) -> None:
    disagreements = []
    for case in node_cases:
        proto = onnx.ModelProto()
        proto.CopyFrom(case.model)
        for index, value in enumerate(proto.graph.input if symbolic else ()):
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                dim.dim_param = f"s{index}_{axis}"
        for output in proto.graph.output if symbolic else ():
            output.type.tensor_type.ClearField("shape")
        model = ir.from_proto(proto)
        shapes.infer(model)
        try:
            meaning.check(model)
            continue
        except InvalidModelError as error:
            reason = str(error)
        try:
            session(proto)
        except Exception:  # onnxruntime's own types have no common base
            continue
        disagreements.append((case.name, reason))
    assert disagreements == []


def test_nothing_in_the_corpus_is_rejected(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    for path in sorted(corpus.glob("*/*.onnx")):
        model = ir.load(path)
        shapes.infer(model)
        meaning.check(model)
