from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from graphopt.data import open_samples
from graphopt.errors import DataError

if TYPE_CHECKING:
    from tests.data.conftest import MakeModel


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(onnx.numpy_helper.from_array(array, "a name that does not matter").SerializeToString())


def test_sets_in_order_of_number_inputs_in_order_of_the_graph(tmp_path: Path, make_model: MakeModel) -> None:
    rows = 0
    for number, count in ((0, 1), (2, 3), (10, 2)):
        values = np.arange(rows, rows + count)
        rows += count
        save(tmp_path / f"test_data_set_{number}/input_0.pb", np.stack([values] * 2, axis=1).astype(np.float32))
        save(tmp_path / f"test_data_set_{number}/input_1.pb", values)
        save(tmp_path / f"test_data_set_{number}/output_0.pb", values)
    model = make_model("float[N, 2] x, int64[N] a")
    samples = open_samples(tmp_path, model)
    assert len(samples) == 6
    assert not samples.labelled
    for name, column in (("x", slice(0, None, 2)), ("a", slice(None))):
        values = np.concatenate([batch.feeds[name].ravel()[column] for batch in samples.batches(4)])
        assert values.tolist() == list(range(6))
    assert next(samples.subset([5, 0]).batches()).feeds["a"].tolist() == [5, 0]
    one = open_samples(tmp_path / "test_data_set_2", model)  # one set alone
    assert next(one.batches()).feeds["a"].tolist() == [1, 2, 3]
    before = samples.digest
    save(tmp_path / "test_data_set_2/input_1.pb", np.arange(3))
    assert open_samples(tmp_path, model).digest != before


def test_strings(tmp_path: Path, make_model: MakeModel) -> None:
    save(tmp_path / "test_data_set_0/input_0.pb", np.array(["one", "zwölf"], dtype=object))
    (batch,) = open_samples(tmp_path, make_model("string[N] x")).batches()
    assert batch.feeds["x"].tolist() == ["one", "zwölf"]


def test_sets_that_do_not_fit(tmp_path: Path, make_model: MakeModel) -> None:
    path = tmp_path / "test_data_set_0/input_0.pb"
    save(path, np.zeros((1, 2), np.float32))
    with pytest.raises(DataError, match=r"test_data_set_0 holds 1 input_\*\.pb; the model has the inputs 'x' .* 'i'"):
        open_samples(tmp_path, make_model("float[N, 2] x, int64[N] i"))
    with pytest.raises(
        DataError, match=r"test_data_set_0.*an array of shape \(1, 2\) for the input 'x' float32\[\?, 2, 2, 2\]"
    ):
        open_samples(tmp_path, make_model("float[N, 2, 2, 2] x"))


def test_damaged_tensors(tmp_path: Path, make_model: MakeModel) -> None:
    path, model = tmp_path / "test_data_set_0/input_0.pb", make_model("float[N, 2] x")
    save(path, np.zeros((1, 2), np.float32))
    outside = onnx.TensorProto(data_type=1, dims=[1, 2], data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="/etc/passwd")
    good = path.read_bytes()
    for damaged in (
        good[:-3],
        b"\xff" * 30,
        b"",
        outside.SerializeToString(),
        onnx.TensorProto(data_type=99).SerializeToString(),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"input_0\.pb is no readable tensor"):
            open_samples(tmp_path, model)
