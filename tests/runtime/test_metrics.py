"""Metrics: their mathematics against independent answers, and which output they choose."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.errors import DataError, GraphoptError, OptionError
from graphopt.runtime.metrics import Metric, Observed, choose, fidelities
from graphopt.runtime.metrics.classification import f1, roc_auc
from graphopt.runtime.metrics.deviation import CEILING_DB, decibels

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((12, 7)).astype(np.float32)
NOISY = LOGITS + RNG.standard_normal((12, 7)).astype(np.float32)
LABELS = RNG.integers(0, 7, 12)


def observed(
    outputs: dict[str, Any], original: dict[str, Any] | None = None, labels: Any = None, count: int | None = None
) -> Observed:
    size = len(next(iter(outputs.values())))
    right = outputs if original is None else original
    return Observed(
        outputs, right, size, size if count is None else count, None if labels is None else np.array(labels)
    )


def chosen(wanted: Any, batch: Observed, inputs: dict[str, np.ndarray] | None = None) -> Metric:
    first = Observed(batch.original, batch.original, batch.size, batch.count, batch.labels)
    return choose(wanted, first, inputs or {})


def value(wanted: Any, batch: Observed) -> float:
    metric = chosen(wanted, batch)
    return metric.value(metric.gather(batch))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("name", "k"), [("top1", 1), ("top5", 5)])
def test_top_k_is_where_sorting_puts_the_label(name: str, k: int) -> None:
    best = np.argsort(-NOISY, axis=1, kind="stable")[:, :k]
    expected = np.mean([label in row for label, row in zip(LABELS, best, strict=True)])
    assert value(name, observed({"y": NOISY}, labels=LABELS)) == expected
    one_hot = np.eye(7)[LABELS]
    assert value(name, observed({"y": NOISY[:, :, None, None]}, labels=one_hot)) == expected


def test_equal_scores_count_for_the_first_class_as_argmax_does() -> None:
    scores = np.array([[1, 1, 0], [0, 2, 2]], np.float32)
    assert value("top1", observed({"y": scores}, labels=[0, 1])) == 1
    assert value("top1", observed({"y": scores}, labels=[1, 2])) == 0


@pytest.mark.parametrize("name", ["top1", "top5", "agreement", "f1"])
def test_nan_is_wrong(name: str) -> None:
    good = np.eye(6, dtype=np.float32)
    bad = good.copy()
    bad[0, 3] = np.nan
    assert value(name, observed({"y": bad}, {"y": good}, labels=range(6))) < 1
    assert value(name, observed({"y": good}, {"y": good}, labels=range(6))) == 1


def test_auc_is_the_share_of_ordered_pairs() -> None:
    scores = RNG.integers(0, 5, 40).astype(np.float64)  # with ties
    positive = RNG.random(40) < 0.4
    pairs = [(x > y) + 0.5 * (x == y) for x, y in product(scores[positive], scores[~positive])]
    assert roc_auc(scores, positive) == pytest.approx(np.mean(pairs))
    two = np.stack([np.zeros(40), scores], axis=1)
    for outputs in (scores, two, softmax(two)):
        assert value("auc", observed({"y": outputs}, labels=positive)) == pytest.approx(np.mean(pairs))
    assert np.isnan(roc_auc(scores, np.ones(40, bool)))
    assert np.isnan(roc_auc(np.full(40, np.nan), positive))


def test_auc_of_many_classes_is_the_mean_of_one_against_the_rest() -> None:
    probabilities = softmax(NOISY)
    each = [roc_auc(probabilities[:, c], c == LABELS) for c in np.unique(LABELS)]
    for outputs in (NOISY, probabilities):
        assert value("auc", observed({"y": outputs}, labels=LABELS)) == pytest.approx(np.mean(each))


def test_f1() -> None:
    found, labels = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 1])
    precision = recall = 2 / 3
    assert f1(found, labels, binary=True) == pytest.approx(2 * precision * recall / (precision + recall))
    assert f1(found, labels, binary=False) == pytest.approx((2 / 3 + 0.5) / 2)
    assert value("f1", observed({"y": found.astype(np.float32)}, labels=labels)) == pytest.approx(2 / 3)
    assert value("f1", observed({"y": 4.0 * found - 2}, labels=labels)) == pytest.approx(2 / 3)  # logits: above 0
    assert value("f1", observed({"y": np.eye(3)[found]}, labels=labels)) == pytest.approx((2 / 3 + 0.5) / 2)


def test_deviations_are_the_textbook_ones() -> None:
    batch = observed({"y": NOISY}, {"y": LOGITS})
    x, y = NOISY.astype(np.float64), LOGITS.astype(np.float64)
    p, q = softmax(LOGITS), softmax(NOISY)
    expected = {
        "mse": ((x - y) ** 2).mean(),
        "mae": np.abs(x - y).mean(),
        "sqnr": 10 * np.log10((y**2).sum() / ((x - y) ** 2).sum()),
        "cosine": ((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean(),
        "kl": (p * np.log(p / q)).sum(axis=1).mean(),
        "agreement": (x.argmax(1) == y.argmax(1)).mean(),
    }
    for name, answer in expected.items():
        assert value(name, batch) == pytest.approx(answer), name
    assert value("kl", observed({"y": q}, {"y": p})) == pytest.approx(expected["kl"])


@pytest.mark.parametrize(
    ("name", "best"), [("mse", 0), ("mae", 0), ("kl", 0), ("cosine", 1), ("agreement", 1), ("sqnr", CEILING_DB)]
)
def test_the_original_against_itself_is_finite(name: str, best: float) -> None:
    assert value(name, observed({"y": LOGITS})) == pytest.approx(best)
    batch = observed({"y": NOISY}, {"y": LOGITS})
    metric = chosen(name, batch)
    assert metric.drop(best, metric.value(metric.gather(batch))) > 0  # whatever the direction


def test_several_outputs_count_together() -> None:
    right: dict[str, np.ndarray] = {"a": LOGITS, "b": 3 * LOGITS[:, :2, None], "n": np.arange(12)}
    found: dict[str, np.ndarray] = {"a": NOISY, "b": right["b"] + 0.1, "n": np.zeros(12, int)}
    signal = sum(float((right[name].astype(float) ** 2).sum()) for name in "ab")
    noise = sum(float(((found[name].astype(float) - right[name]) ** 2).sum()) for name in "ab")
    batch = observed(found, right)
    assert value("sqnr", batch) == pytest.approx(10 * np.log10(signal / noise))
    found_in = fidelities(batch)
    each = {name: metric.value(metric.gather(batch)) for name, metric in found_in.outputs.items()}
    assert each.keys() == {"a", "b"}
    assert found_in.agreement is not None
    assert each["b"] == pytest.approx(10 * np.log10((right["b"].astype(float) ** 2).mean() / 0.01), rel=1e-3)


def test_samples_that_fill_up_a_batch_do_not_count() -> None:
    for name in ("top1", "mse", "sqnr", "cosine", "kl", "agreement"):
        labels = LABELS[:5] if name == "top1" else None
        short = observed({"y": NOISY[:5]}, {"y": LOGITS[:5]}, labels=labels)
        filled = observed({"y": NOISY}, {"y": LOGITS}, labels=labels, count=5)
        assert value(name, filled) == pytest.approx(value(name, short)), name


def test_outputs_of_other_lengths_and_states_without_a_batch_axis() -> None:
    right, found = np.ones((1, 5, 4), np.float32), np.ones((1, 3, 4), np.float32)
    assert value("sqnr", observed({"boxes": found}, {"boxes": right})) == pytest.approx(10 * np.log10(20 / 8))
    assert value("mse", observed({"boxes": right}, {"boxes": found})) == pytest.approx(8 / 20)
    state = RNG.standard_normal((2, 12, 3))
    batch = Observed({"y": NOISY, "s": state + 0.1}, {"y": NOISY, "s": state}, 12, 12)
    assert value("mse", batch) == pytest.approx(0.01 * state.size / (state.size + NOISY.size))


def test_masks_of_infinity_are_equal_where_both_have_them() -> None:
    right = np.array([[1, -np.inf], [2, np.nan]])
    assert value("mse", observed({"y": right + np.array([[1, 0], [0, 0]])}, {"y": right})) == pytest.approx(0.25)
    assert np.isnan(value("sqnr", observed({"y": np.array([[np.nan, 1], [1, 1]])}, {"y": np.ones((2, 2))})))


def test_errors_against_targets_of_regression() -> None:
    targets = RNG.standard_normal(12)
    batch = observed({"y": targets[:, None].astype(np.float32) + 0.5}, labels=targets)
    assert value("mse", batch) == pytest.approx(0.25)
    assert value("mae", batch) == pytest.approx(0.5)
    assert chosen("mse", batch).against == "labels"
    assert chosen("mse", observed({"y": LOGITS}, labels=LABELS)).against == "original"  # classes are no targets


@pytest.mark.parametrize(
    ("outputs", "labels", "name"),
    [
        ({"y": LOGITS}, LABELS, "top1"),
        ({"y": LOGITS[:, :, None, None]}, LABELS[:, None], "top1"),
        ({"y": LOGITS}, None, "agreement"),
        ({"y": LABELS}, None, "agreement"),
        ({"y": LABELS}, LABELS, "top1"),
        ({"y": LOGITS, "features": NOISY[:, None, None, :, None].repeat(2, 1)}, LABELS, "top1"),
        ({"y": LOGITS, "features": NOISY[:, :3, None].repeat(2, 2)}, None, "sqnr"),
        ({"y": LOGITS, "z": NOISY}, LABELS, "sqnr"),
        ({"y": LOGITS[:, :1]}, None, "sqnr"),
        ({"y": LOGITS}, LOGITS, "sqnr"),
        ({"y": LOGITS[:, None, None].repeat(2, 2)}, None, "sqnr"),
    ],
)
def test_default(outputs: dict[str, np.ndarray], labels: Any, name: str) -> None:
    assert chosen(None, observed(outputs, labels=labels)).name == name


def test_a_reconstruction_is_no_classification() -> None:
    assert chosen(None, observed({"y": LOGITS}), {"x": LOGITS}).name == "sqnr"


@pytest.mark.parametrize(
    ("wanted", "batch", "error", "message"),
    [
        ("top1", observed({"y": LOGITS}), DataError, "top1 needs labels, and the samples have none"),
        (
            "top1",
            observed({"y": LOGITS}, labels=LABELS + 7),
            DataError,
            r"hold 1\d, which is no class .* has 7 classes",
        ),
        ("top1", observed({"y": LOGITS}, labels=LABELS - 9), DataError, "hold -9, which is no class"),
        (
            "top5",
            observed({"y": LOGITS}, labels=LABELS + 0.5),
            DataError,
            "float64 and shape .12. are no class indices",
        ),
        (
            "top1",
            observed({"y": LOGITS[:, :, None].repeat(3, 2)}, labels=LABELS),
            DataError,
            r"'y' float32\[12, 7, 3\]",
        ),
        ("agreement", observed({"a": LOGITS, "b": NOISY}), DataError, "'a', 'b' hold a score per class each"),
        ("kl", observed({"n": LABELS}), DataError, "none of the outputs"),
        ("sqnr", observed({"n": LABELS}), DataError, "no output holds floating-point"),
        ("mse", observed({"y": LOGITS[:, :, None].repeat(2, 2)}, labels=LOGITS), DataError, "fit none of the outputs"),
        ("best", observed({"y": LOGITS}), OptionError, "'best' is no metric; there are top1"),
        ("nowhere.py:f", observed({"y": LOGITS}), DataError, "there is no file nowhere.py"),
        ("no_such_module:f", observed({"y": LOGITS}), DataError, "cannot be imported: ModuleNotFoundError"),
        ("statistics:meen", observed({"y": LOGITS}), DataError, r"no function 'meen' \(it has: .*mean"),
    ],
)
def test_what_does_not_fit_says_why(wanted: str, batch: Observed, error: type[GraphoptError], message: str) -> None:
    with pytest.raises(error, match=message):
        value(wanted, batch)


def test_function_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def second(outputs, labels):\n    return float((outputs['y'].argmax(1) == labels).mean())\n")
    batch = observed({"y": NOISY}, labels=LABELS)
    assert value(f"{path}:second", batch) == value("top1", batch)
    assert chosen(f"{path}:second", batch).name == f"{path}:second"
    with pytest.raises(DataError, match="metric broken failed: KeyError: 'z'"):
        value(broken, batch)
    path.write_text("import nothing_of_that_name\n")
    with pytest.raises(DataError, match="cannot be imported: ModuleNotFoundError"):
        value(f"{path}:second", batch)


def broken(outputs: dict[str, Any], labels: np.ndarray | None) -> float:
    return float(outputs["z"])


def test_function_gets_lists_where_samples_have_other_shapes() -> None:
    seen: list[Any] = []

    def count(outputs: dict[str, Any], labels: np.ndarray | None) -> float:
        seen.append((outputs, labels))
        return float(len(outputs["maps"]))

    maps = [{"cat": 0.5}, {"cat": 0.25}, {"cat": 1.0}]
    assert value(count, observed({"y": np.zeros((3, 2)), "maps": maps}, count=2)) == 2
    assert seen[0][0]["maps"] == maps[:2]
    assert seen[0][1] is None
    with pytest.raises(DataError, match="first axis of output 's' is not the samples"):
        value(count, Observed({"s": np.zeros((2, 3))}, {"s": np.zeros((2, 3))}, 3, 3))


def test_decibels_grow_with_the_signal() -> None:
    assert all(x <= y for x, y in pairwise(decibels(10.0**i, 1.0) for i in range(-30, 30)))
    assert (decibels(0, 1), decibels(1, 0), decibels(0, 0)) == (-CEILING_DB, CEILING_DB, CEILING_DB)
    assert decibels(1000, 1) == pytest.approx(30)
