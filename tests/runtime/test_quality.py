"""Quality of results beside the original, and how certain a difference is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.errors import DataError, RuntimeFailureError
from graphopt.runtime import bootstrap, quality

RNG = np.random.default_rng(1)
IMAGES = RNG.standard_normal((50, 6)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Samples for one run."""

    feeds: Mapping[str, np.ndarray]
    count: int
    labels: np.ndarray | None


@dataclasses.dataclass
class FakeSamples:
    """Arrays as `graphopt.data` hands them out, in batches filled up by repeats; counts how often they are read."""

    images: np.ndarray
    answers: np.ndarray | None = None
    size: int = 8
    key: str = "x"
    read: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int | None = None) -> Iterator[Batch]:
        self.read += 1
        size = size or self.size
        for start in range(0, len(self), size):
            images = self.images[start : start + size]
            labels = None if self.answers is None else self.answers[start : start + size]
            filled = np.concatenate([images, images[:1].repeat(size - len(images), axis=0)])
            yield Batch({self.key: filled}, len(images), labels)


def linear(weight: np.ndarray, batch: str = "N", tail: str = "") -> onnx.ModelProto:
    """y = x W"""
    text = f'<ir_version: 10, opset_import: ["": 21]> g (float[{batch}, 6] x) => (float[{batch}, 4] y)'
    last = "z" if tail else "y"
    model = onnx.parser.parse_model(f"{text} {{ {last} = MatMul(x, w) {tail} }}")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), "w"))
    return model


WEIGHT = RNG.standard_normal((6, 4))
WORSE = WEIGHT + 0.5 * RNG.standard_normal((6, 4))
LABELS = (IMAGES @ WEIGHT).argmax(axis=1)
LABELS[:10] = (LABELS[:10] + 1) % 4


def hits(weight: np.ndarray) -> np.ndarray:
    return np.asarray((IMAGES @ weight).argmax(axis=1) == LABELS, np.float64)


@pytest.mark.parametrize(("size", "batch"), [(50, "N"), (8, "N"), (8, "8"), (1, "1")])
def test_one_pass_judges_all_results(size: int, batch: str) -> None:
    samples = FakeSamples(IMAGES, LABELS, size=size)
    told: list[float] = []
    results = [linear(WEIGHT, batch), linear(WORSE, batch)]
    same, worse = quality.measure(linear(WEIGHT, batch), results, samples, progress=told.append)
    assert samples.read == 1
    assert (same.metric, same.against, same.samples) == ("top1", "labels", 50)
    assert same.before == same.after == worse.before == pytest.approx(0.8)
    assert worse.after == pytest.approx(hits(WORSE).mean())
    assert worse.drop == pytest.approx(0.8 - worse.after)
    assert (same.standard_error, same.interval) == (0, (same.before, same.before))
    assert told[-1] == 1
    assert told == sorted(told)


def test_spread_is_that_of_the_paired_difference() -> None:
    found = quality.measure(linear(WEIGHT), [linear(WORSE)], FakeSamples(IMAGES, LABELS))[0]
    difference = hits(WORSE) - hits(WEIGHT)
    assert found.standard_error == pytest.approx(difference.std() / np.sqrt(50), rel=0.1)
    low, high = found.interval
    assert low <= found.after <= high
    assert high - low == pytest.approx(2 * 1.645 * found.standard_error, rel=0.25)
    again = quality.measure(linear(WEIGHT), [linear(WORSE)], FakeSamples(IMAGES, LABELS, size=50))[0]
    assert again == found  # whatever the batches


def test_fidelity_does_not_need_labels() -> None:
    found = quality.measure(linear(WEIGHT), [linear(WORSE)], FakeSamples(IMAGES))[0]
    y, x = (IMAGES.astype(np.float64) @ weight for weight in (WEIGHT, WORSE))
    assert (found.metric, found.against, found.before) == ("agreement", "original", 1)
    assert found.after == found.fidelity.agreement == pytest.approx((x.argmax(1) == y.argmax(1)).mean())
    assert found.fidelity.sqnr_db == pytest.approx(10 * np.log10((y**2).sum() / ((x - y) ** 2).sum()), abs=1e-3)
    assert found.fidelity.outputs == {"y": found.fidelity.sqnr_db}
    assert found.fidelity.max_change == pytest.approx(np.abs(x - y).max(), rel=1e-5)
    assert found.fidelity.max_error == pytest.approx(np.abs(x - y).max() / np.abs(y).max(), rel=1e-5)
    assert found.fidelity.to_dict().keys() == {"sqnr_db", "outputs", "agreement", "max_change", "max_error"}


@pytest.mark.parametrize("metric", ["sqnr", "mse", "mae", "cosine", "kl", "auc", "f1", "top5"])
def test_every_metric_streams(metric: str) -> None:
    samples = FakeSamples(IMAGES, LABELS)
    small = quality.measure(linear(WEIGHT), [linear(WORSE)], samples, metric)[0]
    whole = quality.measure(linear(WEIGHT), [linear(WORSE)], FakeSamples(IMAGES, LABELS, size=50), metric)[0]
    assert small == whole
    assert small.drop >= 0
    assert np.isfinite([small.before, small.after, *small.interval]).all()


def test_function_of_the_user_sees_all_samples_at_once() -> None:
    calls: list[tuple[int, ...]] = []

    def accuracy(outputs: dict[str, Any], labels: np.ndarray) -> float:
        calls.append(outputs["y"].shape)
        if labels[0] == 3:
            raise ValueError("a draw that this function cannot judge")
        return float((outputs["y"].argmax(axis=1) == labels).mean())

    labels = LABELS.copy()
    labels[0] = 0
    found = quality.measure(linear(WEIGHT), [linear(WORSE)], FakeSamples(IMAGES, labels), accuracy)[0]
    expected = quality.measure(linear(WEIGHT), [linear(WORSE)], FakeSamples(IMAGES, labels), "top1")[0]
    assert set(calls) == {(50, 4)}
    assert found.metric == "accuracy"
    assert (found.before, found.after) == (expected.before, expected.after)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=0.3)


def test_outputs_of_varying_shape_reach_the_function_one_by_one() -> None:
    model = linear(WEIGHT, "1", "c = Cast<to = 7>(x) y = Identity(z) n = NonZero(c)")
    model.graph.output.append(onnx.helper.make_tensor_value_info("n", onnx.TensorProto.INT64, [2, "K"]))

    def found(outputs: dict[str, Any], labels: None) -> float:
        assert isinstance(outputs["n"], list)
        return float(sum(item.shape[-1] for item in outputs["n"]))

    measured = quality.measure(model, [model], FakeSamples(IMAGES, size=1), found)[0]
    assert measured.before == np.count_nonzero(IMAGES.astype(np.int64))


def test_a_result_with_nan_is_worse_than_any() -> None:
    broken = linear(WEIGHT * np.nan)
    found = quality.measure(linear(WEIGHT), [broken], FakeSamples(IMAGES, LABELS))[0]
    assert (found.after, found.fidelity.agreement) == (0, 0)
    assert found.fidelity.sqnr_db is not None
    assert np.isnan(found.fidelity.sqnr_db)
    unknown = quality.measure(linear(WEIGHT), [broken], FakeSamples(IMAGES), "mse")[0]
    assert np.isnan([unknown.after, unknown.drop, *unknown.interval]).all()


@pytest.mark.parametrize(
    ("samples", "metric", "error", "message"),
    [
        (FakeSamples(IMAGES[:0]), None, DataError, "no samples"),
        (FakeSamples(IMAGES), "top1", DataError, "top1 needs labels"),
        (FakeSamples(IMAGES, key="image"), None, DataError, r"reads an input 'x' .* \(they have: 'image'\)"),
        (FakeSamples(IMAGES[:, :5]), None, RuntimeFailureError, "cannot run the original"),
        (FakeSamples(IMAGES, LABELS + 1), "top1", DataError, "hold 4, which is no class"),
    ],
)
def test_samples_that_do_not_fit(samples: FakeSamples, metric: str, error: type[Exception], message: str) -> None:
    for call in (lambda: quality.measure(linear(WEIGHT), [], samples, metric), lambda: check(samples, metric)):
        with pytest.raises(error, match=message):
            call()


def check(samples: FakeSamples, metric: str) -> None:
    quality.check(linear(WEIGHT), samples, metric)


def test_check_reads_one_batch_only() -> None:
    samples = FakeSamples(IMAGES, np.concatenate([LABELS[:8], [99] * 42]))
    assert quality.check(linear(WEIGHT), samples, "top1").name == "top1"


@pytest.mark.parametrize("size", [40, 400])
def test_interval_covers_the_true_difference(size: int) -> None:
    """Of 200 data sets drawn from one population about 90 % give an interval that holds the population's difference."""
    rng = np.random.default_rng(size)
    covered = 0
    for draw in range(200):
        before = (rng.random(size) < 0.8).astype(np.float64)
        after = np.where(rng.random(size) < 0.15, 1 - before, before)  # truly 0.8 * 0.85 + 0.2 * 0.15
        found = bootstrap.paired({"hit": before}, {"hit": after}, mean, seed=draw, resamples=200)
        covered += found.low <= 0.71 - 0.8 <= found.high
    assert 165 <= covered <= 196


def mean(columns: Any) -> float:
    return float(columns["hit"].mean())


def test_bootstrap_of_too_little_says_so() -> None:
    one = {"hit": np.ones(1)}
    assert np.isnan(bootstrap.paired(one, one, mean).standard_error)
    many = {"hit": np.ones(9)}
    assert np.isnan(bootstrap.paired(many, many, lambda columns: float("nan")).low)
