"""Computing constants in the runtime: every element type comes back exactly."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import RuntimeFailureError
from graphopt.runtime.evaluate import evaluate


def program(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]> g () => {text}')


@pytest.mark.parametrize(
    ("kind", "number", "expected"),
    [
        ("float", 1, [1.0, -2.0, 7.0]),
        ("double", 11, [1.0, -2.0, 7.0]),
        ("float16", 10, [1.0, -2.0, 7.0]),
        ("bfloat16", 16, [1.0, -2.0, 7.0]),
        ("float8e4m3fn", 17, [1.0, -2.0, 7.0]),
        ("float8e5m2", 19, [1.0, -2.0, 7.0]),
        ("int64", 7, [1, -2, 7]),
        ("int4", 22, [1, -2, 7]),
        ("bool", 9, [True, True, True]),
    ],
)
def test_numbers(kind: str, number: int, expected: list[float]) -> None:
    text = f"({kind}[3] y) <float[3] w = {{1, -2, 7}}> {{ y = Cast<to = {number}>(w) }}"
    (tensor,) = evaluate(program(text))
    assert tensor.dtype == number
    assert tensor.shape == [3]
    assert tensor.numpy().astype(np.float64).tolist() == expected
    assert len(tensor.tobytes()) == tensor.nbytes


def test_strings_scalars_and_several_outputs() -> None:
    text = """(string[2] s, float p, int64[0] e) <string[2] w = {"a", "é"}, float v = {2}, int64[0] z = {}>
              { s = Identity(w)  p = Neg(v)  e = Neg(z) }"""
    strings, scalar, empty = evaluate(program(text))
    assert strings.numpy().tolist() == [b"a", "é".encode()]
    assert (scalar.numpy().shape, float(scalar.numpy())) == ((), -2.0)
    assert empty.numpy().shape == (0,)


def test_rearranged_as_the_runtime_does(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """(int8[1, 3, 2] a, float[] b, double[2, 3] c, float[0, 2] d)
              <int8[2, 3] w = {1, -2, 7, 0, 3, -8}, float[1, 1] v = {2}, double[3, 2] u = {1, 2, 3, 4, 5, 6},
               float[2, 0] z = {}, int64[1] first = {0}, int64[2] swapped = {-1, 3}, int64[2] same = {2, 0}>
              { t = Transpose<perm = [1, 0]>(w)  a = Unsqueeze(t, first)  b = Squeeze(v)  f = Flatten<axis = 0>(u)
                c = Reshape(f, swapped)  i = Identity(z)  r = Reshape<allowzero = 1>(i, same)  d = Transpose(r) }"""
    plain = evaluate(program(text))
    monkeypatch.setattr("graphopt.runtime.evaluate._REARRANGING", frozenset())
    for mine, theirs in zip(plain, evaluate(program(text)), strict=True):
        assert (mine.dtype, mine.shape, mine.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


@pytest.mark.parametrize(
    "text",
    [
        "(float[1] y) <float[2] w = {1, 2}, int64[1] axes = {0}> { y = Squeeze(w, axes) }",
        "(float[1] y) <float[2] w = {1, 2}, int64[1] i = {5}> { y = Gather(w, i) }",
        "(float[1] y) <float[2] w = {1, 2}> { y = acme.Secret(w) }",
        "(seq(float[2]) y) <float[2] w = {1, 2}> { y = SequenceConstruct(w) }",
    ],
)
def test_what_cannot_be_computed_is_one_error(text: str) -> None:
    with pytest.raises(RuntimeFailureError):
        evaluate(program(text))
