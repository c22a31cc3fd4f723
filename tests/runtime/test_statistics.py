from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import DataError, UnsupportedModelError
from graphopt.lift import lift
from graphopt.runtime import streaming
from graphopt.runtime.patches import Window, patches
from graphopt.runtime.pieces import Piece
from graphopt.runtime.requests import (
    ChannelRange,
    Channels,
    CrossGram,
    Gram,
    Histogram,
    Moments,
    Patches,
    PatchGram,
    Range,
    Request,
)
from graphopt.runtime.session import Session
from graphopt.runtime.statistics import collect, collect_cross
from graphopt.runtime.streaming import ModelStream


@dataclasses.dataclass(frozen=True)
class Batch:
    feeds: Mapping[str, np.ndarray]
    count: int


def cut(feeds: Mapping[str, np.ndarray], size: int) -> Callable[[], Iterator[Batch]]:
    total = len(next(iter(feeds.values())))

    def batches() -> Iterator[Batch]:
        for start in range(0, total, size):
            part = {name: array[start : start + size] for name, array in feeds.items()}
            yield Batch(part, min(size, total - start))

    return batches


NETWORK = """<ir_version: 10, opset_import: ["": 21]> g (float[{batch}, 4, 6, 6] x, float[6, 2, 3, 3] w1, float[6] b1,
    float[3, 6] w2) => (float[{batch}, 3] y) {{
    [first] a = Conv <group = 2, pads = [1, 1, 1, 1], strides = [2, 1]> (x, w1, b1)
    r = Relu(a)
    m = GlobalAveragePool(r)
    f = Flatten(m)
    y = Gemm <transB = 1> (f, w2)
    }}"""


def network(batch: str = "N", seed: int = 1) -> ir.Model:
    model = ir.from_onnx_text(NETWORK.format(batch=batch))
    rng = np.random.default_rng(seed)
    while len(model.graph.inputs) > 1:
        value = model.graph.inputs.pop()
        assert value.shape is not None
        value.const_value = ir.Tensor(rng.standard_normal(value.shape.numpy()).astype(np.float32), name=value.name)
        model.graph.register_initializer(value)
    return model


X = np.random.default_rng(0).standard_normal((11, 4, 6, 6)).astype(np.float32)
REQUESTS: list[Request[Any]] = [
    Range("x"), Range("r"), Range("y"), Histogram("a", 64), Histogram("x"), ChannelRange("a", 1), ChannelRange("y", -1),
    Moments("a", 1), Moments("f", 1), Moments("x", -1), Gram("a", 1), Gram("f", -1), PatchGram("first"), Range("w1"),
    Moments("w1", 0), Moments("a", 1, magnitudes=True),
]  # fmt: skip


def values(model: ir.Model, x: np.ndarray, names: tuple[str, ...] = ("a", "r", "f", "y")) -> dict[str, np.ndarray]:
    known = {output.name: output for node in model.graph for output in node.outputs}
    inputs = {model.graph.inputs[0]: x}
    piece = Piece(model, [known[name] for name in names], {value: array.dtype for value, array in inputs.items()})
    return {value.name or "": array.astype(np.float64) for value, array in piece.run(inputs).items()}


def rows(x: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])


@pytest.mark.parametrize("size", [1, 4, 11])
def test_every_statistic_against_numpy(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "PIECE_BYTES", 3 * 4 * 6 * 3 * 6)  # so that batches are cut as well
    model = network()
    found = collect(model, REQUESTS, cut({"x": X}, size))
    seen = {"x": X.astype(np.float64), **values(model, X)}
    tensor = model.graph.initializers["w1"].const_value
    assert tensor is not None
    seen["w1"] = tensor.numpy().astype(np.float64)
    for request in REQUESTS:
        answer: Any = found[request]
        arrays = [x for field in dataclasses.fields(answer) if isinstance(x := getattr(answer, field.name), np.ndarray)]
        assert all(array.dtype == np.float64 for array in arrays)
        match request:
            case Range(name):
                assert (answer.low, answer.high) == pytest.approx((seen[name].min(), seen[name].max()), rel=1e-5)
                assert (answer.finite, answer.count) == (True, seen[name].size)
            case Histogram(name, bins):
                assert (answer.counts.shape, answer.counts.sum()) == ((bins,), seen[name].size)
                expected, _ = np.histogram(seen[name], bins, (answer.low, answer.high))
                assert np.abs(expected - answer.counts).sum() <= 2  # rounding of another order of summation
            case ChannelRange(name, axis):
                np.testing.assert_allclose(answer.low, rows(seen[name], axis).min(axis=0), rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(answer.high, rows(seen[name], axis).max(axis=0), rtol=1e-4, atol=1e-6)
            case Moments(name, axis, magnitudes):
                x = np.abs(rows(seen[name], axis)) if magnitudes else rows(seen[name], axis)
                np.testing.assert_allclose(answer.mean, x.mean(axis=0), rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(answer.variance, x.var(axis=0), rtol=1e-4)
                assert answer.count == len(x)
            case Gram(name, axis):
                x = rows(seen[name], axis)
                np.testing.assert_allclose(answer.second, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(answer.mean, x.mean(axis=0), rtol=1e-4, atol=1e-5)
            case PatchGram(_):
                columns = patches(seen["x"], Window.of(model.graph.node(0)))
                count = columns.shape[2]
                np.testing.assert_allclose(
                    answer.second, columns @ columns.swapaxes(1, 2) / count, rtol=1e-4, atol=1e-5
                )
                np.testing.assert_allclose(answer.mean, columns.mean(axis=2), rtol=1e-4, atol=1e-5)
                assert answer.count == count


def test_what_fills_up_a_fixed_batch_does_not_count() -> None:
    model = network("4")

    def batches() -> Iterator[Batch]:
        yield Batch({"x": X[:4]}, 4)
        yield Batch({"x": np.concatenate([X[4:6], 100 * X[:2]])}, 2)

    requests = [request for request in REQUESTS if getattr(request, "value", "") != "w1"]
    found, expected = collect(model, requests, batches), collect(network(), requests, cut({"x": X[:6]}, 6))
    for request in requests:
        for field in dataclasses.fields(expected[request]):
            wanted = getattr(expected[request], field.name)
            np.testing.assert_allclose(getattr(found[request], field.name), wanted, rtol=1e-4, atol=1e-6)


def test_bounded_rows_do_not_depend_on_batches_and_estimate_the_whole() -> None:
    model = network()
    x = np.random.default_rng(3).standard_normal((200, 4, 6, 6)).astype(np.float32)
    bounded = PatchGram("first", rows=1500)
    one = collect(model, [bounded, PatchGram("first")], cut({"x": x}, 200))
    two = collect(model, [bounded], cut({"x": x}, 3))
    assert one[bounded].count == two[bounded].count == 1500
    np.testing.assert_allclose(one[bounded].second, two[bounded].second, rtol=1e-4, atol=1e-6)
    assert np.abs(one[bounded].second - one[PatchGram("first")].second).max() < 0.15
    other = PatchGram("first", rows=1500, seed=1)
    assert np.abs(collect(model, [other], cut({"x": x}, 3))[other].second - one[bounded].second).max() > 0.01
    few = PatchGram("first", rows=50)
    assert collect(model, [few], cut({"x": x}, 7))[few].count == 50


def test_cross_moments_refit_a_layer() -> None:
    """W = E[y xᵀ] E[x xᵀ]⁻¹ finds the weight that made y; rows of both sides are the same ones."""
    model = network()
    request = CrossGram(Channels("a", 1), Patches("first"), rows=300)
    gram = PatchGram("first", rows=300)
    batches = cut({"x": X}, 4)
    cross = collect_cross(ModelStream(model, batches), ModelStream(network(), batches), [request])[request]
    second = collect(model, [gram], batches)[gram]
    assert cross.cross.shape == (2, 3, 18)
    assert cross.count == second.count
    np.testing.assert_allclose(cross.right_mean, second.mean, rtol=1e-5, atol=1e-6)
    # The bias is the part of y that has no patch.
    centred = cross.cross - cross.left_mean[:, :, None] * cross.right_mean[:, None, :]
    covariance = second.second - second.mean[:, :, None] * second.mean[:, None, :]
    weight = centred @ np.linalg.inv(covariance)
    tensor = model.graph.initializers["w1"].const_value
    assert tensor is not None
    np.testing.assert_allclose(weight.reshape(6, 2, 3, 3), tensor.numpy(), atol=1e-3)


def test_cross_moments_need_the_same_rows_on_both_sides() -> None:
    stream = ModelStream(network(), cut({"x": X}, 4))
    with pytest.raises(DataError, match="as many rows on both sides: 'a' has 4 x 18 and 'x' has 4 x 36"):
        collect_cross(stream, stream, [CrossGram(Channels("a", 1), Channels("x", 1))])
    other = ModelStream(network(), cut({"x": X}, 3))
    with pytest.raises(DataError, match="the same batches"):
        collect_cross(stream, other, [CrossGram(Channels("a", 1), Channels("a", 1))])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    x = X.copy()
    x[7, 0, 0, 0] = bad
    model, batches = network(), cut({"x": x}, 4)
    answer = collect(model, [Range("x")], batches)[Range("x")]
    assert not answer.finite
    assert (answer.low, answer.high) == (np.delete(x, 7 * 144).min(), np.delete(x, 7 * 144).max())
    for request in (Histogram("x"), Moments("x", 1), ChannelRange("x", 1), Gram("x", 1), PatchGram("first")):
        with pytest.raises(DataError, match="value 'x' holds NaN or infinity"):
            collect(model, [request], batches)


def test_values_in_bodies_and_names_that_are_nowhere() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]> g (float[N] x, bool c) => (float[M] y) {
        y = If (c) <then_branch = t () => (float[K] p) { p = Relu(x) },
                    else_branch = e () => (float[L] q) { q = Neg(x) }>
        }"""
    )
    x = np.arange(-3, 3, dtype=np.float32)

    def batches() -> Iterator[Batch]:
        yield Batch({"x": x, "c": np.array(True)}, 6)

    assert collect(model, [Range("y")], batches)[Range("y")].low == 0
    with pytest.raises(UnsupportedModelError, match=r"value 'p' lies in a body of If 'y'"):
        collect(model, [Range("p")], batches)
    with pytest.raises(DataError, match="no value 'nowhere'"):
        collect(model, [Range("nowhere")], batches)
    with pytest.raises(DataError, match="no node 'nowhere'"):
        collect(model, [PatchGram("nowhere")], batches)
    with pytest.raises(DataError, match="nothing for input 'c'"):
        collect(model, [Range("y")], cut({"x": x}, 6))
    with pytest.raises(DataError, match="no calibration samples"):
        collect(model, [Range("y")], list)
    with pytest.raises(DataError, match="no channels along axis 1"):
        collect(model, [Moments("x", 1)], batches)


@pytest.mark.parametrize("kind", ["float16", "double", "int32", "int64", "bool", "uint8", "bfloat16"])
def test_element_types(kind: str) -> None:
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21]> g (float[N, 3] x) => (float[N, 3] y) {{
        [cast] v = Cast <to = {int(ir.DataType[kind.upper()])}> (x)  y = Cast <to = 1> (v) }}"""
    )
    x = np.array([[0, 1, 2], [3, 4, 5]], np.float32)
    expected = x.astype(bool).astype(float) if kind == "bool" else x
    found = collect(model, [Range("v"), Moments("v", 1), Histogram("v", 8)], cut({"x": x}, 2))
    assert found[Range("v")].high == expected.max()
    np.testing.assert_allclose(found[Moments("v", 1)].mean, expected.mean(axis=0))
    assert found[Histogram("v", 8)].counts.sum() == 6


def test_strings_have_no_statistics() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N] x) => (string[N] y) { y = Cast <to = 8> (x) }'
    )
    with pytest.raises(UnsupportedModelError, match="'y' is no tensor of numbers"):
        collect(model, [Range("y")], cut({"x": np.zeros(3, np.float32)}, 3))


def test_the_model_is_not_changed_and_progress_is_told() -> None:
    model = network()
    before, told = str(model), []
    collect(model, REQUESTS, cut({"x": X}, 4), progress=lambda *step: told.append(step))
    assert str(model) == before
    assert told[-1] == ("calibration", 11, 11)


def test_a_model_of_ir_version_3_whose_initializers_were_inputs() -> None:
    model = network()
    expected = collect(model, [Range("y")], cut({"x": X}, 11))
    model.ir_version = 3
    assert collect(model, [Range("y")], cut({"x": X}, 11)) == expected


def test_a_local_function() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[N, 2] x) => (float[N, 2] y) {
        v = local.twice(x)  y = Relu(v) }
        <domain: "local", opset_import: ["": 17]> twice (a) => (b) { b = Add(a, a) }"""
    )
    found = collect(model, [Range("v")], cut({"x": np.array([[1, -4]], np.float32)}, 1))
    assert (found[Range("v")].low, found[Range("v")].high) == (-8, 2)


def test_resnet_of_the_corpus(corpus: object) -> None:
    from pathlib import Path

    folder = Path(str(corpus)) / "cifar10_resnet20"
    model = lift(folder / "resnet20_bn.onnx").model
    name = model.graph.inputs[0].name or ""
    with np.load(folder / "calib.npz") as file:
        x = (file[next(key for key in file.files if key != "labels")][:6] / 127.5 - 1).astype(np.float32)
    outputs = [node.outputs[0].name or "" for node in model.graph if node.op_type == "Conv"]
    extents = model.graph.inputs[0].shape
    assert extents is not None
    found = collect(model, [Range(output) for output in outputs], cut({name: x}, 6))
    reference = Session(model).run({name: x})
    last = model.graph.outputs[0].name or ""
    answer = collect(model, [Range(last)], cut({name: x}, 6))[Range(last)]
    assert (answer.low, answer.high) == pytest.approx((reference[last].min(), reference[last].max()), rel=1e-4)
    assert all(found[Range(output)].low < 0 < found[Range(output)].high for output in outputs)


@pytest.mark.parametrize(("batch", "cut_into"), [("n", [1, 3, 3, 2]), (-1, [1, 3, 3, 2]), (9, [9])])
def test_open_batches_are_cut_however_they_are_written(
    batch: int | str, cut_into: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PIECE_BYTES", 3 * X[0].nbytes)
    model = network()
    model.graph.inputs[0].shape = ir.Shape([batch, *X.shape[1:]])
    nine = np.concatenate([X, X, X, X, X, X, X, X, X])[:9]
    stream = streaming.ModelStream(model, cut({"x": nine}, 9))
    assert [observation.count for observation in stream.stream(["x"])] == cut_into
