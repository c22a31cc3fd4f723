"""eliminate-identity: what goes, what stays, and whose name survives."""

from __future__ import annotations

from typing import Any

import pytest

PIPELINE = "eliminate-identity"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            "g (float[N] x) => (float[N] y) { a = Identity(x)  b = Identity(a)  y = Relu(b) }",
            "g (float[N] x) => (float[N] y) { y = Relu(x) }",
            id="chain behind an input",
        ),
        pytest.param(
            "g (float[N] x) => (float[N] y, float[N] z) { a = Relu(x)  y = Identity(a)  z = Neg(a) }",
            "g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x)  z = Neg(y) }",
            id="a graph output keeps its name",
        ),
        pytest.param(
            "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = Identity(w)  y = Add(x, a) }",
            "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }",
            id="behind an initializer",
        ),
        pytest.param(
            "g (float[N] x) => (float[N] y) { a, mask = Dropout(x)  y = Relu(a) }",
            "g (float[N] x) => (float[N] y) { y = Relu(x) }",
            id="dropout whose mask is not read",
        ),
        pytest.param(
            """g (float[N] x) => (float[N] y) <float r = {0.5}, bool t = {0}>
               { a = Dropout(x, r, t)  b = Dropout(a, r)  y = Relu(b) }""",
            "g (float[N] x) => (float[N] y) { y = Relu(x) }",
            id="dropout with training mode constantly off; its constants go with it",
        ),
        pytest.param(
            """g (float[N] x, bool c) => (float[N] y) { a = Identity(x)  y = If (c) <
                 then_branch = t () => (float[N] ty) { b = Identity(a)  ty = Relu(b) },
                 else_branch = e () => (float[N] ey) { d = Neg(x)  ey = Identity(d) }> }""",
            """g (float[N] x, bool c) => (float[N] y) { y = If (c) <
                 then_branch = t () => (float[N] ty) { ty = Relu(x) },
                 else_branch = e () => (float[N] ey) { ey = Neg(x) }> }""",
            id="in bodies, and captured by them",
        ),
        pytest.param(
            """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[N] x) => (float[N] y) { y = local.f(x) }
               <domain: "local", opset_import: ["": 17]> f (a) => (b)
                 { c = Identity(a)  d = Relu(c)  b = Identity(d) }""",
            """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[N] x) => (float[N] y) { y = local.f(x) }
               <domain: "local", opset_import: ["": 17]> f (a) => (b) { b = Relu(a) }""",
            id="in functions",
        ),
        pytest.param(
            """<ir_version: 3, opset_import: ["": 6]> g (float[2] x) => (float[2] y)
               { a = Dropout<is_test = 1>(x)  y = Relu(a) }""",
            """<ir_version: 3, opset_import: ["": 6]> g (float[2] x) => (float[2] y) { y = Relu(x) }""",
            id="dropout of opset 6 in test mode",
        ),
    ],
)
def test_rewrites(rewriter: Any, before: str, after: str) -> None:
    outcome = rewriter.golden(before, PIPELINE, after)
    if 'opset_import: ["": 6]' not in before:  # onnxruntime has no Dropout that old
        rewriter.same_outputs(rewriter.model(before), outcome.model)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        pytest.param(
            "g (float[N] x) => (float[N] y) { y = Identity(x) }",
            "Identity 'y': kept: a graph input or initializer cannot take the name of a graph output",
            id="input to output",
        ),
        pytest.param(
            "g () => (float[2] y) <float[2] w = {1, 2}> { y = Identity(w) }",
            "cannot take the name of a graph output",
            id="initializer to output",
        ),
        pytest.param(
            "g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x)  z = Identity(y) }",
            "two graph outputs would become one value",
            id="two outputs",
        ),
        pytest.param(
            """g (float[N] x, bool c) => (float[N] y) { a = Relu(x)  y = If (c) <
                 then_branch = t () => (float[N] ty) { ty = Identity(a) },
                 else_branch = e () => (float[N] ey) { ey = Neg(a) }> }""",
            "a body must produce its outputs itself",
            id="captured value as the output of a body",
        ),
        pytest.param(
            """g (float[N] x, int64 n, bool c) => (float[N] y) { y = Loop (n, c, x) <
                 body = b (int64 i, bool go, float[N] state) => (bool still, float[N] next)
                   { still = Identity(go)  next = Relu(state) }> }""",
            "cannot take the name of a graph output",
            id="condition of a loop",
        ),
        pytest.param(
            "g (float[N] x) => (float[N] y, bool[N] z) { a, mask = Dropout(x)  y = Relu(a)  z = Not(mask) }",
            "its mask is read",
            id="mask read by a node",
        ),
        pytest.param(
            "g (float[N] x) => (float[N] y, bool[N] mask) { a, mask = Dropout(x)  y = Relu(a) }",
            "its mask is read",
            id="mask is a graph output",
        ),
        pytest.param(
            """g (float[N] x) => (float[N] y) <float r = {0.5}, bool t = {1}> { a = Dropout(x, r, t)  y = Relu(a) }""",
            "",
            id="dropout in training",
        ),
        pytest.param(
            """g (float[N] x, bool t) => (float[N] y) <float r = {0.5}> { a = Dropout(x, r, t)  y = Relu(a) }""",
            "",
            id="dropout whose mode the caller gives",
        ),
        pytest.param(
            '<ir_version: 3, opset_import: ["": 6]> g (float[2] x) => (float[2] y) { a = Dropout(x)  y = Relu(a) }',
            "",
            id="dropout of opset 6, which trains by default",
        ),
        pytest.param(
            "g (float[N] x) => (float[N] y) { a = acme.Identity(x)  y = Relu(a) }", "", id="another domain's Identity"
        ),
    ],
)
def test_leaves_alone(rewriter: Any, before: str, reason: str) -> None:
    assert reason in rewriter.golden(before, PIPELINE).reasons


def test_excluded_nodes_stay(rewriter: Any) -> None:
    before = "g (float[N] x) => (float[N] y) { [keep_me] a = Identity(x)  b = Identity(a)  y = Relu(b) }"
    after = "g (float[N] x) => (float[N] y) { [keep_me] a = Identity(x)  y = Relu(a) }"
    rewriter.golden(before, PIPELINE, after, exclude=r"keep_.*")


def test_shapes_and_metadata_are_merged_but_signatures_stay(rewriter: Any) -> None:
    model = rewriter.model(
        "g (float[N] x) => (float[M] y, float[K] z) <float[4] b, float[P] a> "
        "{ a = Relu(x)  b = Identity(a)  y = Neg(b)  c = Abs(x)  z = Identity(c) }"
    )
    identity = next(node for node in model.graph if node.op_type == "Identity")
    identity.outputs[0].metadata_props["origin"] = "layer"
    model.graph.outputs[1].doc_string = "the second output"
    model.graph.outputs[1].metadata_props["axis"] = "N"
    rewriter.run(model, PIPELINE)
    (relu,) = (node for node in model.graph if node.op_type == "Relu")
    assert relu.outputs[0].shape == [4]
    assert relu.outputs[0].metadata_props == {"origin": "layer"}
    output = model.graph.outputs[1]
    assert (output.name, output.doc_string, output.metadata_props) == ("z", "the second output", {"axis": "N"})
    assert output.producer().op_type == "Abs"
    assert str(output.shape) == "[K]"
    assert str(model.graph.inputs[0].shape) == "[N]"
