"""hoist-scales: factors move to the linear layer, and only where it can take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

PIPELINE = "hoist-scales,remove-unused-initializers"
HEADS = "{v}r = Reshape({v}a, heads)  {v} = Transpose<perm = [0, 2, {last}]>({v}r)"
LAYERS = "".join(
    f"{v}m = MatMul(x, w{v})  {v}a = Add({v}m, b{v})  {HEADS.format(v=v, last=last)}  "
    for v, last in (("q", "1, 3"), ("k", "3, 1"))
)
INTS = "int64[4] heads = {0, 0, 2, 3}"
SCALARS = (
    "float eight = {8}, float tenth = {0.1}, float[1] half = {0.5}, float two = {2}, float[3] three = {0.5, 0.25, 0.5}"
)


def model(rewriter: Any, body: str, weights: tuple[str, ...] = ("wq", "wk", "bq", "bk"), dtype: str = "float") -> Any:
    rng = np.random.default_rng(0)
    number = np.float16 if dtype == "float16" else np.float32
    tensors = {w: rng.standard_normal((6, 6) if w[0] == "w" else 6).astype(number) for w in weights}
    text = f"g ({dtype}[2,5,6] x) => ({dtype}[2,2,5,5] y) <{INTS}, {SCALARS}> {{ {LAYERS} {body} }}"
    if dtype == "float16":
        text = text.replace(f", {SCALARS}", "")
        tensors["eight"] = np.array(8, np.float16)
    return rewriter.typed(text, tensors)


def operators(value_model: Any) -> str:
    return " ".join(node.op_type for node in value_model.graph)


LAYER = "MatMul Add Reshape Transpose"
HOISTED = "MatMul Add Mul Reshape Transpose"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("s = MatMul(q, k)  y = Div(s, eight)", f"{HOISTED} {LAYER} MatMul"),
        ("s = MatMul(q, k)  y = Mul(tenth, s)", f"{HOISTED} {LAYER} MatMul"),
        ("qs = Mul(q, half)  y = MatMul(qs, k)", f"{HOISTED} {LAYER} MatMul"),
        ("qs = Mul(q, half)  ks = Mul(k, half)  y = MatMul(qs, ks)", f"{HOISTED} {LAYER} MatMul"),
        ("qs = Mul(q, half)  ks = Div(k, two)  y = MatMul(qs, ks)", f"{HOISTED} {LAYER} MatMul"),
        ("ks = Mul(k, half)  y = MatMul(q, ks)", f"{LAYER} {HOISTED} MatMul"),
        ("s = MatMul(q, k)  y = Mul(s, two)", f"{LAYER} {LAYER} MatMul Mul"),
        ("s = MatMul(q, k)  y = Div(eight, s)", f"{LAYER} {LAYER} MatMul Div"),
        ("qs = Mul(q, three)  y = MatMul(qs, k)", f"{LAYER} {LAYER} Mul MatMul"),
        ("s = MatMul(q, k)  t = Div(s, eight)  y = Add(s, t)", f"{LAYER} {LAYER} MatMul Div Add"),
        (
            "s = MatMul(q, k)  t = Div(s, eight)  n = ReduceSum(q)  y = Add(t, n)",
            f"{LAYER} {HOISTED} MatMul ReduceSum Add",
        ),
    ],
)
def test_rewrites(rewriter: Any, body: str, expected: str) -> None:
    changed = model(rewriter, body)
    rewriter.run(changed, PIPELINE)
    assert operators(changed) == expected
    rewriter.same_outputs(model(rewriter, body), changed)


def test_a_weight_that_others_read_is_not_worth_a_copy(rewriter: Any) -> None:
    text = f"""g (float[2,5,6] x) => (float[2,2,5,5] y) <{INTS}, {SCALARS}> {{
               {LAYERS.replace("wk", "wq")} s = MatMul(q, k)  y = Div(s, eight) }}"""
    rng = np.random.default_rng(0)
    tensors = {w: rng.standard_normal((6, 6) if w == "wq" else 6).astype(np.float32) for w in ("wq", "bq", "bk")}
    assert not rewriter.run(rewriter.typed(text, tensors), "hoist-scales").modified


def test_float16_is_left_alone(rewriter: Any) -> None:
    changed = model(rewriter, "s = MatMul(q, k)  y = Div(s, eight)", dtype="float16")
    assert not rewriter.run(changed, "hoist-scales").modified


def test_a_linear_layer_without_constant_weights_takes_nothing(rewriter: Any) -> None:
    text = f"""g (float[2,5,6] x, float[6,6] wq, float[6,6] wk, float[6] bq, float[6] bk) => (float[2,2,5,5] y)
               <{INTS}, {SCALARS}> {{ {LAYERS} s = MatMul(q, k)  y = Div(s, eight) }}"""
    assert not rewriter.run(rewriter.typed(text), "hoist-scales").modified


def test_excluded_nodes_stay(rewriter: Any) -> None:
    changed = model(rewriter, "s = MatMul(q, k)  [scale] y = Div(s, eight)")
    assert not rewriter.run(changed, "hoist-scales", exclude="scale").modified


def test_the_factor_ends_in_the_weight(rewriter: Any) -> None:
    body = "s = MatMul(q, k)  y = Div(s, eight)"
    changed = model(rewriter, body)
    rewriter.run(changed, "hoist-scales,fold-scale,remove-unused-initializers")
    assert operators(changed) == f"{LAYER} {LAYER} MatMul"
    rewriter.same_outputs(model(rewriter, body), changed)
