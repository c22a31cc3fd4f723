"""fold-pad: which padding goes into convolutions and pools, and which is not theirs to add."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

PIPELINE = "fold-pad"
ZEROS = "int64[8] p = {0, 0, 1, 2, 0, 0, 0, 1}"
WEIGHT = f"float[1,2,3,3] w = {{{', '.join('123456789' * 2)}}}"
POOL = "kernel_shape = [3, 3]"
INFINITE = "float v = {-inf}"
PADDED = "n = Pad(x, p)"


def model(nodes: str, *constants: str, outputs: str = "float[1,C,H,W] y") -> str:
    return f"g (float[1,2,5,5] x) => ({outputs}) <{', '.join((WEIGHT, *constants))}> {{ {nodes}  z = Relu(w) }}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Conv(n, w)", "Conv<pads = [1, 2, 0, 1]>(x, w)"),
        (
            "Conv<pads = [0, 1, 2, 0], strides = [2, 1]>(n, w)",
            "Conv<pads = [1, 3, 2, 1], strides = [2, 1]>(x, w)",
        ),
        ('Conv<auto_pad = "VALID">(n, w)', "Conv<pads = [1, 2, 0, 1]>(x, w)"),
        ('Conv<auto_pad = "SAME_UPPER">(n, w)', "Conv<pads = [2, 3, 1, 2]>(x, w)"),
        (
            f'Conv<auto_pad = "SAME_LOWER", strides = [2, 3], {POOL}>(n, w)',
            f"Conv<strides = [2, 3], {POOL}, pads = [2, 3, 0, 1]>(x, w)",
        ),
        (f"AveragePool<{POOL}>(n)", f"AveragePool<{POOL}, pads = [1, 2, 0, 1], count_include_pad = 1>(x)"),
        (
            f"AveragePool<count_include_pad = 1, pads = [1, 0, 0, 0], {POOL}>(n)",
            f"AveragePool<count_include_pad = 1, pads = [2, 2, 0, 1], {POOL}>(x)",
        ),
    ],
)
def test_zeros(rewriter: Any, before: str, after: str) -> None:
    rewriter.rewrites(model(f"{PADDED}  y = {before}", ZEROS), PIPELINE, model(f"y = {after}"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            model(f"n = Pad(x, p, v)  y = MaxPool<{POOL}, pads = [0, 0, 1, 0]>(n)", ZEROS, INFINITE),
            model(f"y = MaxPool<{POOL}, pads = [1, 2, 1, 1]>(x)"),
            id="a MaxPool ignores -inf",
        ),
        pytest.param(
            model(f"r = Relu(x)  n = Pad(r, p)  y = MaxPool<{POOL}>(n)", ZEROS),
            model(f"r = Relu(x)  y = MaxPool<{POOL}, pads = [1, 2, 0, 1]>(r)"),
            id="zeros are not above what is not negative",
        ),
        pytest.param(
            model(
                f"""a = Sigmoid(x)  b = Clip(x, k)  c = Concat<axis = 1>(a, b)  d = Transpose<perm = [0, 1, 3, 2]>(c)
                    e = AveragePool<kernel_shape = [1, 1]>(c)  s = Add(d, e)  n = Pad(s, p)
                    y = MaxPool<{POOL}>(n)""",
                "float k = {0}",
                ZEROS,
            ),
            model(
                f"""a = Sigmoid(x)  b = Clip(x, k)  c = Concat<axis = 1>(a, b)  d = Transpose<perm = [0, 1, 3, 2]>(c)
                    e = AveragePool<kernel_shape = [1, 1]>(c)  s = Add(d, e)
                    y = MaxPool<{POOL}, pads = [1, 2, 0, 1]>(s)""",
                "float k = {0}",
            ),
            id="which operators keep",
        ),
        pytest.param(
            f"g (uint8[1,2,5,5] x) => (uint8[1,2,H,W] y) <{ZEROS}> {{ n = Pad(x, p)  y = MaxPool<{POOL}>(n) }}",
            f"g (uint8[1,2,5,5] x) => (uint8[1,2,H,W] y) {{ y = MaxPool<{POOL}, pads = [1, 2, 0, 1]>(x) }}",
            id="and unsigned integers are",
        ),
        pytest.param(
            model(
                f"{PADDED}  c = Conv(n, w)  a = AveragePool<{POOL}>(n)  y = Add(a, c)",
                ZEROS,
            ),
            model(
                f"""c = Conv<pads = [1, 2, 0, 1]>(x, w)
                    a = AveragePool<{POOL}, pads = [1, 2, 0, 1], count_include_pad = 1>(x)  y = Add(a, c)"""
            ),
            id="several readers",
        ),
        pytest.param(
            """g (bool k, float[1,1,4] x) => (float[1,1,M] y) <float[1,1,2] w = {1, 2}, int64[6] p = {0, 0, 1, 0, 0, 0}>
               { y = If (k) <then_branch = t () => (float[1,1,K] a) { n = Pad(x, p)  a = Conv(n, w) },
                             else_branch = e () => (float[1,1,L] b) { b = Conv(x, w) }> }""",
            """g (bool k, float[1,1,4] x) => (float[1,1,M] y) <float[1,1,2] w = {1, 2}>
               { y = If (k) <then_branch = t () => (float[1,1,K] a) { a = Conv<pads = [1, 0]>(x, w) },
                             else_branch = e () => (float[1,1,L] b) { b = Conv(x, w) }> }""",
            id="in a body",
        ),
        pytest.param(
            """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[1,1,4] x) => (float[1,1,M] y)
                 { y = local.f(x) }
               <domain: "local", opset_import: ["": 17]> f (a) => (b) { w = Constant<value = float[1,1,2] {1, 2}>()
                 p = Constant<value = int64[6] {0, 0, 1, 0, 0, 0}>()  n = Pad(a, p)  b = Conv(n, w) }""",
            """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[1,1,4] x) => (float[1,1,M] y)
                 { y = local.f(x) }
               <domain: "local", opset_import: ["": 17]> f (a) => (b) { w = Constant<value = float[1,1,2] {1, 2}>()
                 b = Conv<pads = [1, 0]>(a, w) }""",
            id="in a function",
        ),
    ],
)
def test_rewrites(rewriter: Any, before: str, after: str) -> None:
    rewriter.rewrites(before, PIPELINE, after)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        pytest.param(
            model(f"{PADDED}  y = MaxPool<{POOL}>(n)", ZEROS), "may be the largest", id="zeros above what is negative"
        ),
        pytest.param(
            model(f"r = LeakyRelu(x)  n = Pad(r, p)  y = MaxPool<{POOL}>(n)", ZEROS),
            "may be the largest",
            id="LeakyRelu is negative",
        ),
        pytest.param(
            model(f"n = Pad(x, p, v)  y = MaxPool<{POOL}, dilations = [2, 1]>(n)", ZEROS, INFINITE),
            "nothing but padding",
            id="dilation",
        ),
        pytest.param(
            model(
                f"n = Pad(x, p, v)  y, i = MaxPool<{POOL}>(n)",
                ZEROS,
                INFINITE,
                outputs="float[1,C,H,W] y, int64[1,C,H,W] i",
            ),
            "indices",
            id="indices",
        ),
        pytest.param(
            model(f"n = Pad(x, p, v)  y = MaxPool<{POOL}, ceil_mode = 1, strides = [2, 2]>(n)", ZEROS, INFINITE),
            "rounds its output up",
            id="ceil_mode",
        ),
        pytest.param(
            model(f"{PADDED}  y = AveragePool<{POOL}, pads = [1, 0, 1, 0]>(n)", ZEROS),
            "count one padding in",
            id="padding that does not count",
        ),
        pytest.param(
            model(f"{PADDED}  y = AveragePool<kernel_shape = [2, 2]>(n)", ZEROS),
            "not smaller than the window",
            id="windows of padding",
        ),
        pytest.param(
            model("n = Pad(x, p, v)  y = Conv(n, w)", ZEROS, "float v = {1}"), "zeros only", id="another number"
        ),
        pytest.param(
            model('n = Pad<mode = "reflect">(x, p)  y = Conv(n, w)', ZEROS), "only constant padding", id="reflected"
        ),
        pytest.param(
            model(f"{PADDED}  y = Conv(n, w)", ZEROS.replace("0, 1}", "-1, 1}")), "removes elements", id="negative"
        ),
        pytest.param(
            model(f"{PADDED}  y = AveragePool<{POOL}>(n)", ZEROS.replace("{0, 0", "{0, 1")),
            "other axes than the spatial ones",
            id="channels",
        ),
        pytest.param(
            model(f"{PADDED}  c = Conv(n, w)  r = Relu(n)  y = Add(c, c)", ZEROS, outputs="float[1,C,H,W] y, float r"),
            "not all that reads it",
            id="another reader",
        ),
        pytest.param(
            model(f"{PADDED}  y = Conv(n, w)", ZEROS, outputs="float[1,C,H,W] y, float[1,2,6,8] n"),
            "makes a graph output",
            id="graph output",
        ),
        pytest.param(
            f"g (float[1,2,S,5] x) => (float[1,1,H,W] y) <{WEIGHT}, {ZEROS}>"
            f'{{ {PADDED}  y = Conv<auto_pad = "SAME_UPPER">(n, w) }}',
            "extents that are not known",
            id="automatic padding of an open extent",
        ),
        pytest.param(
            f"g (float[1,2,5,5] x, int64[8] p) => (float[1,1,H,W] y) <{WEIGHT}> {{ {PADDED}  y = Conv(n, w) }}",
            "only constant padding",
            id="padding that the caller gives",
        ),
        pytest.param(
            "g (uint8[1,1,4] x) => (int32[1,1,M] y)"
            "<uint8[1,1,2] w = {1, 2}, int64[6] p = {0, 0, 1, 0, 0, 0}, uint8 z = {3}>"
            "{ n = Pad(x, p)  y = ConvInteger(n, w, z) }",
            "",
            id="ConvInteger pads with its zero point",
        ),
    ],
)
def test_leaves_alone(rewriter: Any, before: str, reason: str) -> None:
    assert reason in rewriter.rewrites(before, PIPELINE).reasons


@pytest.mark.parametrize(
    ("opset", "pad", "constants"),
    [
        (2, "Pad<pads = [0, 0, 1, 0, 0, 1]>(x)", {}),
        (10, "Pad<pads = [0, 0, 1, 0, 0, 1], value = 0.0>(x)", {}),
        (11, "Pad(x, p)", {"p": [0, 0, 1, 0, 0, 1]}),
        (18, "Pad(x, p, , a)", {"p": [1, 1], "a": [-1]}),
        (21, "Pad(x, p, z, a)", {"p": [1, 1], "a": [2], "z": 0.0}),
    ],
)
def test_every_form_of_pad(rewriter: Any, opset: int, pad: str, constants: dict[str, Any]) -> None:
    header = f'<ir_version: 8, opset_import: ["": {opset}]>'
    text = f"{header} g (float[1,2,N] x) => (float[1,1,M] y) {{ n = {pad}  y = Conv(n, w) }}"
    tensors = {"w": np.ones((1, 2, 3), np.float32)}
    tensors |= {name: np.array(data, np.float32 if name == "z" else np.int64) for name, data in constants.items()}
    outcome = rewriter.run(rewriter.typed(text, tensors), PIPELINE)
    (conv,) = outcome.model.graph
    assert tuple(conv.attributes.get_ints("pads")) == (1, 1)
    assert list(outcome.model.graph.initializers) == ["w"]
    if opset >= 7:  # older ones onnxruntime does not run
        rewriter.same_outputs(rewriter.typed(text, tensors), outcome.model)


@pytest.mark.parametrize("excluded", ["pad", "conv"])
def test_excluded_nodes_stay(rewriter: Any, excluded: str) -> None:
    text = model("[pad] n = Pad(x, p)  [conv] y = Conv(n, w)", ZEROS)
    assert not rewriter.run(rewriter.typed(text), PIPELINE, exclude=excluded).modified
