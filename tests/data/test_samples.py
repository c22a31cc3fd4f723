from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from graphopt.data import Samples, hold_out, open_samples
from graphopt.errors import DataError

if TYPE_CHECKING:
    from tests.data.conftest import MakeModel


ROWS = np.arange(20, dtype=np.float32).reshape(10, 2)


def test_a_fixed_batch_is_filled_up_with_repeats(make_model: MakeModel) -> None:
    samples = open_samples({"x": ROWS, "labels": np.arange(10)}, make_model("float[4, 2] x"))
    batches = list(samples.batches(7))  # the model decides
    assert [batch.count for batch in batches] == [4, 4, 2]
    assert all(batch.feeds["x"].shape == (4, 2) for batch in batches)
    assert (batches[2].feeds["x"] == ROWS[[8, 9, 9, 9]]).all()
    assert [batch.labels.tolist() for batch in batches if batch.labels is not None] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


def test_texts_of_different_lengths(make_model: MakeModel) -> None:
    """Only equal extents share a batch, and samples and labels keep their order."""
    lengths = [3, 3, 3, 5, 5, 3, 3, 3, 3]
    texts = [({"x": np.full(n, i), "mask": np.ones(n, dtype=int)}, i) for i, n in enumerate(lengths)]
    for batch_dim, capacity in (("N", 3), ("2", 2)):
        samples = open_samples(texts, make_model(f"int64[{batch_dim}, S] x, int64[{batch_dim}, S] mask"))
        batches = list(samples.batches(capacity))
        counts = [len(list(group)) for _, group in itertools.groupby(lengths)]
        expected = [min(capacity, count - start) for count in counts for start in range(0, count, capacity)]
        assert [batch.count for batch in batches] == expected
        assert np.concatenate([batch.feeds["x"][: batch.count, 0] for batch in batches]).tolist() == list(range(9))
        labels = samples.labels()
        assert labels is not None
        assert labels.tolist() == [
            label for batch in batches for label in (batch.labels if batch.labels is not None else ())
        ]


def test_batches_are_smaller_where_samples_are_large(make_model: MakeModel) -> None:
    small, large = (open_samples(np.zeros((40, n), np.float32), make_model("float[N, S] x")) for n in (2, 1 << 21))
    assert [batch.count for batch in small.batches()] == [32, 8]
    assert {batch.count for batch in large.batches()} == {4}  # 8 MiB each


def test_recurrent_states_and_shared_inputs(make_model: MakeModel) -> None:
    """States have samples along their second axis; only samples that agree on the rate are run together."""
    model = make_model("float[N, S] x, float[2, N, 3] state, int64 rate")
    state = np.random.default_rng(0).random((4, 2, 3), dtype=np.float32)
    x = np.zeros((4, 5), np.float32)
    constant = open_samples({"x": x, "state": state, "rate": np.int64(8)}, model)
    (batch,) = constant.batches()
    assert (batch.feeds["state"] == state.transpose(1, 0, 2)).all()
    assert batch.feeds["rate"].shape == ()
    varying = open_samples({"x": x, "state": state[:, :, None], "rate": np.array([8, 8, 16, 8])}, model)
    assert [(batch.count, int(batch.feeds["rate"])) for batch in varying.batches()] == [(2, 8), (1, 16), (1, 8)]


@pytest.mark.parametrize(
    ("inputs", "output", "array", "runs"),
    [
        ("float[3, 4, 4] x", "float[10]", np.zeros((5, 3, 4, 4)), [(3, 4, 4)] * 5),  # no batch at all
        ("float[3, 4, 4] x", "float[10]", np.zeros((3, 4, 4)), [(3, 4, 4)]),  # one sample
        ("float[3, 4] x", "float[3, 10]", np.zeros((5, 4)), [(3, 4), (3, 4)]),  # a batch of 3
        ("float[Length] x", "float[10]", np.zeros((2, 7)), [(7,), (7,)]),  # two signals
        ("float[N] x", "float[N]", np.zeros(2), [(2,)]),  # two numbers
        ("float x", "float", np.zeros(2), [(), ()]),
        ("float[1, 2] x", "float[1, 2]", np.zeros((2, 2)), [(1, 2), (1, 2)]),
        ("float[1, 2] x", "float[1, 2]", np.zeros((2, 1, 2)), [(1, 2), (1, 2)]),
    ],
)
def test_where_the_samples_are(
    inputs: str, output: str, array: np.ndarray, runs: list[tuple[int, ...]], make_model: MakeModel
) -> None:
    samples = open_samples(array, make_model(inputs, output))
    assert [batch.feeds["x"].shape for batch in samples.batches()] == runs


def test_an_input_of_unknown_rank(make_model: MakeModel) -> None:
    model = make_model("float[N] x")
    model.graph.inputs[0].shape = None
    (batch,) = open_samples(ROWS, model).batches()
    assert (batch.feeds["x"] == ROWS).all()


@pytest.mark.parametrize(
    ("kind", "array", "expected"),
    [
        ("float", np.array([1e300 / 1e299]), np.float32(10)),
        ("float", np.array([7], dtype=">f4"), np.float32(7)),
        ("float", np.array([True]), np.float32(1)),
        ("float", np.array([1 << 20]), np.float32(1 << 20)),
        ("float16", np.array([1000.0]), np.float16(1000)),
        ("bfloat16", np.array([1.5], dtype=np.float32), ml_dtypes.bfloat16(1.5)),
        ("int64", np.array([5], dtype=np.uint8), np.int64(5)),
        ("int8", np.array([100]), np.int8(100)),
        ("bool", np.array([1]), np.True_),
        ("complex64", np.array([2.0]), np.complex64(2)),
        ("string", np.array(["word"]), "word"),
        ("string", np.array([b"word"]), "word"),
    ],
)
def test_conversions_that_lose_nothing(kind: str, array: np.ndarray, expected: Any, make_model: MakeModel) -> None:
    fed = next(open_samples(array, make_model(f"{kind}[N] x")).batches()).feeds["x"]
    assert fed.dtype == np.dtype(object if kind == "string" else expected.dtype)
    assert fed[0] == expected


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("float", np.array([0, np.nan]), "sample 1: input 'x': holds NaN or infinity"),
        ("float", np.array([0, -np.inf], dtype=np.float16), "sample 1: input 'x': holds NaN or infinity"),
        ("float", np.array([0, (1 << 24) + 1]), "sample 1: input 'x': values of type int64 that float32"),
        ("float16", np.array([0, 1e6]), "sample 1: input 'x': values of type float64 too large for float16"),
        ("float", np.array([0, 1e300]), "sample 1: input 'x': values of type float64 too large for float32"),
        ("int8", np.array([0, 128], dtype=np.uint8), "sample 1: input 'x': values of type uint8 that int8"),
        ("bool", np.array([0, 2]), "sample 1: input 'x': values of type int64 that bool"),
        ("int64", np.array([0.0, 1.0]), "sample 0: input 'x': samples of type float64, but the model reads int64"),
        ("float", np.array([1j]), "sample 0: input 'x': samples of type complex128, but the model reads float32"),
        ("float", np.array(["1"]), "sample 0: input 'x': samples of type <U1, but the model reads float32"),
        ("string", np.array([1]), "sample 0: input 'x': samples of type int64, but the model reads strings"),
    ],
)
def test_conversions_that_would_lose_something(
    kind: str, array: np.ndarray, message: str, make_model: MakeModel
) -> None:
    with pytest.raises(DataError, match=f"^--data: .*{message}"):
        for _ in open_samples(array, make_model(f"{kind}[N] x")).batches():
            pass


def test_another_layout_is_named(make_model: MakeModel) -> None:
    with pytest.raises(
        DataError, match=r"shape \(8, 6, 3\), but the model reads \(3, 8, 6\); they seem .* channels last"
    ):
        open_samples(np.zeros((2, 8, 6, 3), np.float32), make_model("float[N, 3, 8, 6] x"))


def test_fewer_samples_than_asked(make_model: MakeModel) -> None:
    model = make_model("float[N, 2] x")
    message = "--data: 11 samples were asked for, but there are only 10"
    assert open_samples(ROWS, model, limit=11).warnings == (message,)
    assert open_samples(list(ROWS), model, limit=11).warnings == (message,)
    assert open_samples(ROWS, model, default_limit=11).warnings == ()
    assert len(open_samples(ROWS, model, default_limit=4)) == 4


def test_the_seed_chooses(make_model: MakeModel) -> None:
    model = make_model("float[N, 2] x")
    first, again, other = (open_samples(ROWS, model, limit=5, seed=seed).indices() for seed in (0, 0, 1))
    assert first == again != other


def test_labels_that_are_no_numbers_to_judge_by(make_model: MakeModel) -> None:
    model = make_model("float[N, 2] x")
    samples = open_samples({"x": ROWS[:2], "labels": np.array([0.5, np.nan])}, model)
    with pytest.raises(DataError, match="labels hold NaN"):
        samples.labels()
    column = open_samples({"x": ROWS, "labels": np.arange(10)[:, None]}, model).labels()
    assert column is not None
    assert column.shape == (10,)


def test_subsets_of_subsets_and_positions_that_are_not_there(make_model: MakeModel) -> None:
    samples = open_samples(ROWS, make_model("float[N, 2] x")).subset([1, 3, 5]).subset([2, 0])
    assert samples.indices() == (5, 1)
    with pytest.raises(DataError, match="there is no sample 2; there are 2"):
        samples.subset([2])


def rows(count: int, make_model: MakeModel) -> Samples:
    return open_samples(np.zeros((count, 2), np.float32), make_model("float[N, 2] x"))


@pytest.mark.parametrize(("count", "held"), [(33, 32), (100, 32), (400, 100)])
def test_hold_out(count: int, held: int, make_model: MakeModel) -> None:
    samples = rows(count, make_model)
    calibration, out = hold_out(samples, seed=0)
    assert len(out) == held
    assert sorted([*calibration.indices(), *out.indices()]) == list(range(count))
    assert list(out.indices()) == sorted(out.indices())
    assert hold_out(samples, seed=0)[1].indices() == out.indices() != hold_out(samples, seed=1)[1].indices()


def test_too_few_to_hold_any_out(make_model: MakeModel) -> None:
    with pytest.raises(
        DataError, match="holds 32 samples out of the calibration data to judge by, but there are only 32"
    ):
        hold_out(rows(32, make_model), seed=0)


def test_a_model_without_inputs(make_model: MakeModel) -> None:
    model = make_model("float[1] x")
    model.graph.inputs.clear()
    with pytest.raises(DataError, match="the model has no inputs"):
        open_samples(ROWS, model)
