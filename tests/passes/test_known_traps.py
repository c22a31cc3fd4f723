"""What simplifiers have got wrong: each trap goes through the whole preset, for all sizes and on unpleasant numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

INT_MIN = np.iinfo(np.int64).min
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-40, 65504.0, -2.5]
"""Numbers that show whether a rewrite holds for all."""

TRAPS = [
    pytest.param("float[n,8] x", "float[n,m] y", "int64[1] s = {1}, int64[1] e = {-1}, int64[1] a = {1}, int64[1] t = {2}",
                 "b = Slice(x, s, e, a, t)  c = Slice(b, s, e, a)  y = Slice(c, s, t, a)",
                 id="slices of slices that step, and end before the end"),
    pytest.param("float[n,8] x", "float[m,k] y", "int64[1] z = {0}, int64[1] e = {1}, int64[1] s = {-1}",
                 "b = Slice(x, s, z, e, s)  c = Slice(x, z, e, z)  y = Concat<axis = 1>(c, c)  u = Neg(b)",
                 id="a slice that is only the whole for one size"),
    pytest.param("float[n,2,3,3] x", "float[n,2,3,3] y, float[n,2,3,3] z",
                 "float[2,2,1,1] w = {1, 2, 3, 4}, float[2] s = {2, -1}, float[2] b = {1, 0}, float[2] m = {0, 1}, "
                 "float[2] v = {4, 1}",
                 "c = Conv(x, w)  y = BatchNormalization<epsilon = 0.0>(c, s, b, m, v)  z = Relu(c)",
                 id="a normalization behind a shared convolution"),
    pytest.param("float[n,2,3,3] x", "float[n,2,3,3] y",
                 "float[2,2,1,1] w = {1, 2, 3, 4}, float[2] s = {2, -1}, float[2] b = {1, 0}, float[2] m = {0, 1}, "
                 "float[2] v = {4, 1}",
                 "c = Conv(x, w)  d = Conv(c, w)  y = BatchNormalization<epsilon = 0.0>(d, s, b, m, v)",
                 id="a normalization behind one of two convolutions with the same weights"),
    pytest.param("float[n,s,6] x", "float[p,q,r] y", "int64 i = {0}, int64 j = {1}, int64[1] o = {0}, int64[2] t = {2, 3}",
                 "sh = Shape(x)  g = Gather(sh, i)  h = Gather(sh, j)  gu = Unsqueeze(g, o)  hu = Unsqueeze(h, o)  "
                 "k = Concat<axis = 0>(hu, gu, t)  r = Reshape(x, k)  m = ReduceSum(r, o)  y = Neg(m)",
                 id="dynamic extents, not the first ones that were seen"),
    pytest.param("float[n,s,6] x", "float[p,q] y, float[a,b,c,d] z", "int64[2] f = {0, -1}, int64[4] g = {0, 0, 3, -1}",
                 "b = Reshape(x, f)  y = Neg(b)  c = Reshape(x, g)  z = Relu(c)", id="0 and -1 in Reshape"),
    pytest.param("float[n,4] x", "float[p,q] y", "int64[2] f = {-1, 4}, int64[3] g = {0, 2, 2}, int64[2] h = {0, -1}",
                 "b = Reshape(x, g)  c = Reshape(b, h)  y = Reshape(c, f)", id="Reshapes, of which each counts on the one before"),
    pytest.param("float[n] x", "float[p,q] y, float[r,s] z", "float[1,1] k = {0}, float[1,1] l = {1}",
                 "y = Add(x, k)  b = Mul(x, l)  z = Neg(b)", id="neutral operands that change the rank"),
    pytest.param("float[n,1] x", "float[p,q] y, float[r,s] z", "float[3] k = {0, 0, 0}, float[1,3] l = {1, 1, 1}",
                 "y = Add(x, k)  b = Div(x, l)  z = Exp(b)", id="neutral operands that broadcast"),
    pytest.param("int64[n] x", "int64[n] y, int64[n] z", "int64 k = {3}, int64 l = {6}, int64 m = {2}",
                 "b = Div(x, k)  y = Mul(b, l)  c = Div(x, m)  z = Div(c, k)", id="integer divisions"),
    pytest.param("int64[n] x", "int64[n] y, int64[n] z", "int64 k = {4611686018427387904}, int64 l = {4}",
                 "b = Mul(x, k)  y = Mul(b, l)  c = Mul(x, l)  z = Div(c, l)", id="integers that wrap"),
    pytest.param("float[n] x", "float[n] y, float[n] z", "float zero = {0}, float inf = {inf}, float nan = {nan}",
                 "b = Mul(x, zero)  y = Add(b, zero)  c = Min(x, inf)  d = Max(c, nan)  z = Add(d, x)",
                 id="zero times infinity, and constants that are no numbers"),
    pytest.param("float[n] x", "float[n] y, float[n] z", "float big = {3e38}, float ten = {10}",
                 "b = Mul(x, big)  y = Div(b, big)  c = Mul(x, ten)  z = Mul(c, big)", id="float32 products that overflow"),
    pytest.param("float16[n] x", "float16[n] y, float16[n] z", "float16 big = {60000}, float16 ten = {10}",
                 "b = Mul(x, big)  y = Div(b, big)  c = Mul(x, ten)  d = Mul(c, big)  z = Div(d, big)",
                 id="float16 products that overflow"),
    pytest.param("float[n] x", "float[n] y", "", "b = Cast<to = 10>(x)  c = Cast<to = 1>(b)  d = Cast<to = 6>(c)  "
                 "e = Cast<to = 7>(d)  f = Cast<to = 1>(e)  y = Cast<to = 1>(f)", id="casts through narrower types"),
    pytest.param("float[n] x", "float[n] y, float[n] z", "", "y = Identity(x)  b = Identity(x)  z = Identity(b)",
                 id="outputs that alias an input"),
    pytest.param("float[n] x", "float[n] y, float[n] z, float[n] w", "float one = {1}",
                 "y = Exp(x)  z = Mul(y, one)  b = Identity(z)  w = Identity(b)", id="outputs that alias each other"),
    pytest.param("float[n,2] x", "float[2,n] y, float[n,2] z, float[n,2] w", "",
                 "y = Transpose(x)  z = Transpose(y)  b = Transpose(z)  w = Transpose(b)",
                 id="a graph output that is also an inner value"),
    pytest.param("float[n,2] x", "float[n,2] y, float[n,2] z", "float l = {0}, float h = {6}, float g = {-1}",
                 "y = Clip(x, l, h)  b = Clip(y, g, h)  z = Relu(b)", id="clips behind a graph output"),
    pytest.param("float[n,3] x", "float[n,3] y", "float h = {0.5}, bool no = {0}, float[3] k = {1, 2, 3}",
                 "b, m = Dropout(x, h, no)  c = Where(m, b, k)  y = Add(c, b)", id="the mask of a dropout that does nothing"),
]  # fmt: skip


def feeds(model: Any, size: int) -> dict[str, np.ndarray]:
    """Special numbers in inputs of one type; open extents are `size`, and `size` + 1."""
    (value,) = model.graph.inputs
    sizes = {"n": size, "s": size + 1}
    dims = [dim if isinstance(dim, int) else sizes[str(dim)] for dim in value.shape]
    dtype = value.dtype.numpy()
    numbers = [0, 1, -1, 7, -7, 100, 2**62, INT_MIN] if dtype.kind == "i" else SPECIAL
    if len(dims) > 2:  # a sum over infinities says little
        numbers = [0, 1, -1, 0.5, 3, -2.5, 7]
    with np.errstate(over="ignore"):
        return {value.name: np.resize(np.array(numbers), dims).astype(dtype)}


@pytest.mark.parametrize(("inputs", "outputs", "constants", "nodes"), TRAPS)
def test_the_preset_is_not_caught(rewriter: Any, inputs: str, outputs: str, constants: str, nodes: str) -> None:
    declared = f"<{constants}>" if constants else ""
    text = f'<ir_version: 10, opset_import: ["": 18]> g ({inputs}) => ({outputs}) {declared} {{ {nodes} }}'
    before, after = rewriter.typed(text), rewriter.run(rewriter.typed(text), "lossless").model
    for size in (12, 3, 1):
        given = feeds(before, size)
        expected, actual = rewriter.outputs(before, given), rewriter.outputs(after, given)
        assert list(actual) == list(expected)
        for name, wanted in expected.items():
            assert actual[name].dtype == wanted.dtype
            np.testing.assert_array_equal(actual[name], wanted, err_msg=f"{name}, size {size}")
