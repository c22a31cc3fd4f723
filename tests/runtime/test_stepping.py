from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import DataError
from graphopt.runtime import stepping, streaming
from graphopt.runtime.array_file import ArrayFile
from graphopt.runtime.pieces import Piece
from graphopt.runtime.requests import Channels, CrossGram, Gram, Moments, PatchGram, Range
from graphopt.runtime.session import Session, SessionOptions
from graphopt.runtime.statistics import collect, collect_cross
from graphopt.runtime.stepping import Stepper
from graphopt.runtime.streaming import ModelStream

X = np.random.default_rng(0).standard_normal((10, 4, 5, 5)).astype(np.float32)
NETWORK = """<ir_version: 10, opset_import: ["": 21]> g (float[{batch}, 4, 5, 5] x, float[4, 4, 3, 3] w1,
    float[4, 1, 3, 3] w2, float[4, 4, 1, 1] w3, float[3, 4] w4) => (float[{batch}, 3] y) {{
    [one] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = Relu(a)
    [two] c = Conv <pads = [1, 1, 1, 1], group = 4> (b, w2)
    d = Add(c, x)
    e = Relu(d)
    [three] f = Conv(e, w3)
    h = Add(f, b)
    i = GlobalAveragePool(h)
    j = Flatten(i)
    [four] y = Gemm <transB = 1> (j, w4)
    }}"""


@dataclasses.dataclass(frozen=True)
class Batch:
    feeds: Mapping[str, np.ndarray]
    count: int


class Batches:
    """The samples, four at a time; counts how often they are asked for. The last batch is filled up with samples."""

    def __init__(self, *, fixed: bool = False) -> None:
        self.asked = 0
        self.fixed = fixed

    def __call__(self) -> Iterator[Batch]:
        self.asked += 1
        for start in range(0, len(X), 4):
            part = X[start : start + 4]
            feeds = np.concatenate([part, 50 * X[: 4 - len(part)]]) if self.fixed else part
            yield Batch({"x": feeds}, len(part))


def network(batch: str = "N", seed: int = 1) -> ir.Model:
    model = ir.from_onnx_text(NETWORK.format(batch=batch))
    rng = np.random.default_rng(seed)
    while len(model.graph.inputs) > 1:
        value = model.graph.inputs.pop()
        assert value.shape is not None
        value.const_value = ir.Tensor(rng.standard_normal(value.shape.numpy()).astype(np.float32), name=value.name)
        model.graph.register_initializer(value)
    return model


def scale(model: ir.Model, name: str, factor: float) -> None:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    model.graph.initializers[name].const_value = ir.Tensor(tensor.numpy() * np.float32(factor), name=name)


def constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
    model.graph.register_initializer(value)
    return value


def quantize(model: ir.Model, value: ir.Value) -> None:
    """Put QuantizeLinear and DequantizeLinear between `value` and its readers."""
    step = constant(model, f"{value.name}_scale", np.array(0.05, np.float32))
    zero = constant(model, f"{value.name}_zero", np.array(0, np.int8))
    before = model.graph.node(0) if value.producer() is None else None
    q = ir.Node("", "QuantizeLinear", [value, step, zero])
    dq = ir.Node("", "DequantizeLinear", [q.outputs[0], step, zero])
    value.replace_all_uses_with(dq.outputs[0])
    q.replace_input_with(0, value)
    if before is not None:
        model.graph.insert_before(before, [q, dq])
    else:
        producer = value.producer()
        assert producer is not None
        model.graph.insert_after(producer, [q, dq])


def value(model: ir.Model, name: str) -> ir.Value:
    return next(output for node in model.graph for output in node.outputs if output.name == name)


def outputs(model: ir.Model) -> np.ndarray:
    return np.asarray(Session(model, SessionOptions(optimize=False)).run({"x": X})["y"], np.float64)


@pytest.mark.parametrize("fixed", [False, True])
def test_layer_by_layer_with_changes_is_the_whole_changed_model(fixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "INPUT_BYTES", 3 * X[0].nbytes)  # batches of 4 are cut into 3 + 1
    model, batches = network("4" if fixed else "N"), Batches(fixed=fixed)
    with Stepper(model, batches) as stepper:
        quantize(model, model.graph.inputs[0])
        for name, weight, after in (("one", "w1", "a"), ("two", "w2", "c"), ("three", "w3", "f")):
            gram = PatchGram(name)
            # A copy of the model as it is now, run from the start, says what this layer reads.
            expected = collect(model, [gram, Moments(after, 1)], batches)
            found = stepper.collect([gram, Moments(after, 1)])
            np.testing.assert_allclose(found[gram].second, expected[gram].second, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(
                found[Moments(after, 1)].mean, expected[Moments(after, 1)].mean, rtol=1e-3, atol=1e-5
            )
            assert found[gram].count == expected[gram].count
            scale(model, weight, 0.5)
            stepper.advance([after])
            quantize(model, value(model, after))
        whole = collect(model, [Gram("y", 1)], batches)[Gram("y", 1)]
        last = stepper.collect([Gram("y", 1)])[Gram("y", 1)]
        np.testing.assert_allclose(last.second, whole.second, rtol=1e-3, atol=1e-5)
        assert last.count == 10
    if not fixed:
        y = outputs(model)
        np.testing.assert_allclose(whole.second, y.T @ y / len(y), rtol=1e-3, atol=1e-5)


def test_nothing_behind_the_border_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches, ran = network(), Batches(), list[str]()

    class Recorded(Piece):
        def run(self, arrays: Mapping[ir.Value, np.ndarray]) -> dict[ir.Value, np.ndarray]:
            ran.extend(node.outputs[0].name or "" for node in self.nodes)
            return super().run(arrays)

    monkeypatch.setattr(stepping, "Piece", Recorded)
    with Stepper(model, batches) as stepper:
        for name in ("a", "c", "f", "y"):
            stepper.advance([name])
            assert stepper.collect([Range(name)])[Range(name)].count > 0
    assert sorted(ran) == sorted(["a", "b", "c", "d", "e", "f", "h", "i", "j", "y"] * 3)  # three batches, each once
    assert batches.asked == 1


def test_only_what_is_read_later_stays_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    files = list[ArrayFile]()

    class Recorded(ArrayFile):
        def __init__(self, folder: str | None = None) -> None:
            super().__init__(folder)
            files.append(self)

    monkeypatch.setattr(stepping, "ArrayFile", Recorded)
    with Stepper(network(), Batches()) as stepper:
        for name, kept in (("a", 2), ("b", 2), ("c", 3), ("e", 2), ("f", 2), ("y", 1)):
            stepper.advance([name])  # x and a; x and b; x, b and c; b and e; b and f; y
            assert sum(file.close.alive for file in files) == kept, name
    assert not any(file.close.alive for file in files)


def test_what_was_dropped_is_computed_anew() -> None:
    model, batches = network(), Batches()
    expected = collect(model, [Range("a"), Range("x")], batches)
    with Stepper(model, batches) as stepper:
        stepper.advance(["y"])
        assert stepper.collect([Range("a"), Range("x")]) == expected


def test_a_body_that_reads_a_value_keeps_it() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]> g (float[N, 2] x) => (float[M, 2] y) {
        v = Relu(x)  w = Neg(v)  s = ReduceMax <keepdims = 0> (w)  z = Sub(s, s)  c = Equal(s, z)
        y = If (c) <then_branch = t () => (float[K, 2] p) { p = Abs(v) },
                    else_branch = e () => (float[L, 2] q) { q = Neg(v) }>
        }"""
    )
    x = np.array([[1, -2], [3, 4]], np.float32)
    with Stepper(model, lambda: [Batch({"x": x}, 2)]) as stepper:
        stepper.advance(["c"])
        model.graph.node(0).attributes["after"] = ir.AttrInt64("after", 1)  # v comes from what is kept, not from here
        found = stepper.collect([Range("y"), Range("v")])
    assert (found[Range("y")].low, found[Range("y")].high) == (0, 4)


def test_two_models_side_by_side() -> None:
    """Cross moments of the original's layer and of what a changed model gives it, as a refit needs them."""
    original, changed, batches = network(), network(), Batches()
    request = CrossGram(Channels("c", 1), Channels("b", 1))
    with Stepper(changed, batches) as stepper:
        scale(changed, "w1", 2)
        stepper.advance(["a"])
        scale(changed, "w1", 100)  # has no effect any more
        found = collect_cross(ModelStream(original, batches), stepper, [request])[request]
    plain = collect_cross(ModelStream(original, batches), ModelStream(original, batches), [request])[request]
    np.testing.assert_allclose(found.cross, 2 * plain.cross, rtol=1e-4, atol=1e-5)


def test_no_samples_and_unknown_names() -> None:
    with Stepper(network(), list) as stepper, pytest.raises(DataError, match="no calibration samples"):
        stepper.advance(["a"])
    with Stepper(network(), Batches()) as stepper, pytest.raises(DataError, match="no value 'nowhere'"):
        stepper.advance(["nowhere"])


def test_array_files_keep_any_type_and_leave_nothing_behind(tmp_path: Path) -> None:
    file = ArrayFile(tmp_path)
    bfloat16 = ir.DataType.BFLOAT16.numpy()
    arrays: list[np.ndarray] = [
        np.arange(6).reshape(2, 3), np.array(3, np.float32), np.zeros((0, 4)), np.array([True]),
        np.arange(4).astype(bfloat16), np.arange(6).reshape(2, 3).T,
    ]  # fmt: skip
    for array in arrays:
        file.append(array)
    for index, array in reversed(list(enumerate(arrays))):
        assert file.read(index).dtype == array.dtype
        np.testing.assert_array_equal(file.read(index), array)
    assert list(tmp_path.iterdir()) == []
    file.close()
