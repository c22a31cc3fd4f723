from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.lift import lift
from graphopt.runtime.equivalence import TOLERANCE, Equivalence, Status, compare


def model(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]> {text}')


def scaled(factor: float, kind: str = "float") -> ir.Model:
    """y = factor * x, in `kind`; its output type is stated, as lifting does."""
    graph = model(f"g ({kind}[N, 64] x) => ({kind}[N, 64] y) <{kind}[1] w = {{1}}> {{ y = Mul(x, w) }}")
    dtype = graph.graph.inputs[0].dtype
    assert dtype is not None
    array = np.array([factor], np.float64).astype(dtype.numpy())
    graph.graph.initializers["w"].const_value = ir.Tensor(array, dtype=dtype)
    return graph


@pytest.mark.parametrize(
    ("kind", "factor", "status"),
    [
        ("float", 1 + 0.5e-4, Status.SAME),
        ("float", 1 + 2e-4, Status.DIFFERENT),
        ("float16", 1 + 5e-3, Status.SAME),
        ("float16", 1 + 2e-2, Status.DIFFERENT),
        ("double", 1 + 1e-8, Status.SAME),
        ("double", 1 + 1e-5, Status.DIFFERENT),
        ("int32", 1, Status.SAME),
        ("int32", 2, Status.DIFFERENT),
    ],
)
def test_tolerance_by_type(kind: str, factor: float, status: Status) -> None:
    verdict = Equivalence(scaled(1, kind)).verdict(scaled(factor, kind))
    assert verdict.status == status, verdict
    assert (verdict.detail == "") == (status == Status.SAME)
    if kind != "int32":
        assert verdict.max_error == pytest.approx(factor - 1, rel=0.3)
    elif status == Status.DIFFERENT:
        assert "elements differ" in verdict.detail


def test_float_output_of_a_float16_body_is_as_coarse_as_float16() -> None:
    def body(factor: float) -> ir.Model:
        return model(
            f"""g (float[8, 8] x) => (float[8, 8] y) <float[1] w = {{{factor}}}, float16[8, 8] h> {{
            m = Mul(x, w)  h = Cast<to = 10>(m)  y = Cast<to = 1>(h) }}"""
        )

    assert Equivalence(body(1)).verdict(body(1.004)).status == Status.SAME
    assert Equivalence(body(1)).verdict(body(1.03)).status == Status.DIFFERENT


LIMIT = {"limit": lambda dtype: TOLERANCE[dtype.name]}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ([1.0, NAN], [1.0, NAN], True),
        ([1.0, NAN], [NAN, 1.0], False),
        ([1.0, 2.0], [1.0, NAN], False),
        ([1.0, INF], [1.0, INF], True),
        ([1.0, INF], [1.0, -INF], False),
        ([1.0, 2.0], [1.0, INF], False),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([0.0, 0.0], [0.0, 1e-3], False),
        ([], [], True),
        ([100.0, 0.0], [100.0, 5e-3], True),
        ([1.0, 2.0], [[1.0, 2.0]], False),
    ],
)
def test_float_arrays(expected: Any, actual: Any, same: bool) -> None:
    difference = compare("y", np.array(expected, np.float32), np.array(actual, np.float32), **LIMIT)
    assert (difference.detail == "") == same


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        (None, None, True),
        (None, np.zeros(2, np.float32), False),
        (np.array(["a", "b"], object), np.array(["a", "b"], object), True),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), False),
        (np.array([True, False]), np.array([True, True]), False),
        (np.zeros(2, np.float32), np.zeros(2, np.float64), False),
        ([np.ones(1, np.float32)], [np.ones(1, np.float32)], True),
        ([np.ones(1, np.float32)], [], False),
        ([{1: 0.5}], [{1: 0.50001}], True),
        ([{1: 0.5}], [{1: 0.6}], False),
        ([{1: 0.5}], [{2: 0.5}], False),
        (np.array([1 + 1j], np.complex64), np.array([1 - 1j], np.complex64), False),
    ],
)
def test_outputs_of_every_kind(expected: Any, actual: Any, same: bool) -> None:
    difference = compare("y", expected, actual, limit=lambda dtype: TOLERANCE.get(dtype.name, 1e-4))
    assert (difference.detail == "") == same


def test_saturated_softmax_does_not_hide_wrong_logits(tmp_path: Path) -> None:
    def network(factor: float) -> ir.Model:
        return model(
            f"""g (float[2, 8] x) => (float[2, 8] y) <float[1] w = {{{factor}}}> {{
            z = Mul(x, w)  y = Softmax(z) }}"""
        )

    verdict = Equivalence(network(1e4)).verdict(network(2e4))
    assert verdict.status == Status.DIFFERENT
    assert "logits of output 'y'" in verdict.detail
    path = tmp_path / "m.onnx"
    ir.save(network(1e4), path)
    assert Equivalence(network(1e4), source=path).verdict(network(2e4)) == verdict


def test_original_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ir.save(scaled(3), path)
    equivalence = Equivalence(scaled(1), source=path)  # the file counts, not the IR beside it
    assert equivalence.verdict(scaled(3)).status == Status.SAME
    assert equivalence.verdict(scaled(1)).status == Status.DIFFERENT


def test_external_data_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(ir.to_proto(scaled(3)), path, save_as_external_data=True, size_threshold=0, location="m.data")
    assert Equivalence(scaled(1), source=path).verdict(scaled(3)).status == Status.SAME


def test_source_is_made_when_it_is_needed() -> None:
    calls = []

    def source() -> ir.Model:
        calls.append(1)
        return scaled(3)

    equivalence = Equivalence(scaled(1), source=source)
    assert calls == []
    assert [equivalence.verdict(scaled(factor)).status for factor in (3, 1)] == [Status.SAME, Status.DIFFERENT]
    assert calls == [1]


def test_model_itself_may_change_afterwards() -> None:
    original = scaled(1)
    equivalence = Equivalence(original)
    original.graph.initializers["w"].const_value = ir.tensor(np.array([2], np.float32))
    assert equivalence.verdict(original).status == Status.DIFFERENT


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[2] x) => (float[2] y) { y = RandomNormalLike(x) }", "RandomNormalLike.*random"),
        (
            "g (float[2] x) => (y) <float r = {0.5}, bool t = {1}> { y = Dropout(x, r, t) }",
            "Dropout.*random",
        ),
        ("g (seq(float[2]) x) => (seq(float[2]) y) { y = Identity(x) }", "input 'x'"),
        ("g (float[2] x) => (float[2] y) { y = nowhere.Magic(x) }", "cannot load the original"),
        ("g (float[N] x, int64[2] s) => (float[A, B] y) { y = Reshape(x, s) }", "cannot run the original"),
    ],
)
def test_not_done_says_why(text: str, reason: str) -> None:
    graph = model(text)
    graph.opset_imports["nowhere"] = 1
    verdict = Equivalence(graph).verdict(graph)
    assert verdict.status == Status.NOT_DONE
    assert re.search(reason, verdict.detail)
    assert verdict.to_dict() == {
        "status": "not_done",
        "detail": verdict.detail,
        "max_error": 0.0,
        "sqnr_db": None,
        "inputs": "",
    }


def test_result_that_fails_or_lost_an_output_is_different() -> None:
    two = "g (float[4] x) => (float[4] y, float[4] z) { y = Neg(x)  z = Abs(x) }"
    equivalence = Equivalence(model(two))
    lost = equivalence.verdict(model("g (float[4] x) => (float[4] y) { y = Neg(x) }"))
    assert (lost.status, lost.detail) == (Status.DIFFERENT, "output 'z' is missing")
    broken = model("g (float[4] x) => (float[4] y, float[4] z) { y = Neg(x)  z = nowhere.Magic(x) }")
    broken.opset_imports["nowhere"] = 1
    failed = equivalence.verdict(broken)
    assert failed.status == Status.DIFFERENT
    assert "cannot load the result" in failed.detail


def test_first_guess_that_the_original_accepts() -> None:
    batch_one = """g (float[N, 16] x) => (float[4, 4] y) <int64[2] s = {4, 4}> { y = Reshape(x, s) }"""
    verdict = Equivalence(model(batch_one)).verdict(model(batch_one))
    assert verdict.status == Status.SAME


@pytest.mark.parametrize(
    "name",
    [
        "structures/silero_vad.onnx",
        "structures/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "structures/ultraface_version-RFB-320.onnx",
        "kws_dscnn/kws.onnx",
    ],
)
def test_real_models_run_on_seeded_inputs(name: str, corpus: Path) -> None:
    model = lift(corpus / name).model
    assert Equivalence(model, source=corpus / name).verdict(model).status == Status.SAME


def test_a_difference_names_the_inputs() -> None:
    one = "g (float[4] x, float[2,3] w) => (float[4] y) { y = Neg(x) }"
    found = Equivalence(model(one)).verdict(model(one.replace("Neg", "Abs")))
    assert found.status == Status.DIFFERENT
    assert found.detail.endswith("on random inputs x[4], w[2x3]")


def test_of_two_outputs_that_differ_the_worse_is_named_and_the_ratio_is_of_both() -> None:
    text = (
        "g (float[4] x) => (float[4] y, float[4] z) <float a = {1.1}, float b = {0.9}> { y = Mul(x, a)  z = Mul(x, b) }"
    )
    other = text.replace("1.1", "1.2").replace("0.9", "1.8")
    found = Equivalence(model(text)).verdict(model(other))
    assert found.status == Status.DIFFERENT
    assert found.detail.startswith("output 'z': max|Δ|")
    assert found.max_error == pytest.approx(1.0, rel=1e-5)
    assert found.sqnr_db == pytest.approx(10 * np.log10((1.1**2 + 0.9**2) / (0.1**2 + 0.9**2)), abs=1e-3)
    assert found.inputs == "x[4]"
    same = Equivalence(model(text)).verdict(model(text))
    assert (same.detail, same.inputs) == ("", "x[4]")


def test_logits_that_are_compared_beside_an_output_do_not_count_in_the_ratio() -> None:
    text = "g (float[2,4] x) => (float[2,4] y) <float a = {1}> { l = Mul(x, a)  y = Softmax(l) }"
    found = Equivalence(model(text)).verdict(model(text.replace("{1}", "{1.05}")))
    assert "logits of output 'y'" in found.detail
    assert found.sqnr_db is not None
    assert found.sqnr_db > 28  # the logits alone differ by 26 dB
