from __future__ import annotations

import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from graphopt.data import open_samples
from graphopt.errors import DataError

if TYPE_CHECKING:
    from tests.data.conftest import MakeModel


ROWS = np.arange(20, dtype=np.float32).reshape(10, 2)


class Reader:
    """As users write for onnxruntime's quantizer: batches of one."""

    def __init__(self) -> None:
        self._rows = iter(ROWS)
        self.read = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._rows, None)
        self.read += row is not None
        return None if row is None else {"x": row[None]}


class Tensor:
    """What other libraries' tensors have in common."""

    def __init__(self, array: Any) -> None:
        self._array = np.asarray(array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._array


class Dataset:
    """As torch's map-style data sets."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return Tensor(ROWS[index]), index

    def __len__(self) -> int:
        return len(ROWS)


def loader() -> Iterator[list[Tensor]]:
    """As torch's DataLoader: lists of a batch of inputs and one of labels."""
    for start in range(0, 10, 4):
        yield [Tensor(ROWS[start : start + 4]), Tensor(np.arange(10)[start : start + 4])]


SOURCES: dict[str, Any] = {
    "rows": lambda: iter(ROWS),
    "dicts with a batch axis": lambda: ({"x": ROWS[i : i + 3]} for i in range(0, 10, 3)),
    "pairs": lambda: (({"x": row}, i) for i, row in enumerate(ROWS)),
    "dicts with labels": lambda: ({"x": row, "labels": i} for i, row in enumerate(ROWS)),
    "a function": lambda: lambda: iter(ROWS),
    "a function that gives arrays": lambda: lambda: {"x": ROWS},
    "a reader": Reader,
    "a class of readers": lambda: Reader,
    "a data loader": loader,
    "a data set": Dataset,
    "lists of numbers": lambda: ROWS.tolist(),
    "a tensor": lambda: Tensor(ROWS),
}
LABELLED = {"pairs", "dicts with labels", "a data loader", "a data set"}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_way_to_yield_samples(kind: str, make_model: MakeModel) -> None:
    samples = open_samples(SOURCES[kind](), make_model("float[N, 2] x"))
    assert len(samples) == 10
    assert samples.labelled == (kind in LABELLED)
    for _ in range(2):  # also what can be gone through only once
        batches = list(samples.batches(4))
        assert (np.concatenate([batch.feeds["x"] for batch in batches]) == ROWS).all()
    labels = samples.labels()
    assert (labels is None) == (kind not in LABELLED)
    assert labels is None or labels.tolist() == list(range(10))
    assert [batch.labels is None for batch in batches] == [labels is None] * 3
    assert (next(samples.subset([9, 0]).batches()).feeds["x"] == ROWS[[9, 0]]).all()


def test_digests_depend_on_the_content(make_model: MakeModel) -> None:
    model = make_model("float[N, 2] x")
    first, again, other = (open_samples(iter(rows), model).digest for rows in (ROWS, ROWS, ROWS + 1))
    assert first == again != other


def test_only_what_is_used_is_read(make_model: MakeModel) -> None:
    reader = Reader()
    samples = open_samples(reader, make_model("float[N, 2] x"), limit=3)
    assert samples.indices() == (0, 1, 2)
    assert reader.read == 3


def test_samples_go_to_disk_and_leave_nothing_there(
    tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    big = (np.full(1 << 18, i, dtype=np.float32) for i in range(100))  # 1 MiB each
    tracemalloc.start()
    try:
        samples = open_samples(big, make_model("float[N, 262144] x"))
        firsts = [batch.feeds["x"][:, 0].copy() for _ in range(2) for batch in samples.batches(4)]
        assert np.concatenate(firsts).tolist() == [*range(100)] * 2
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
    assert os.listdir(tmp_path) == []


CODE = """
import numpy as np
def calibration():
    for i in range(3):
        yield {"x": np.full(2, i, np.float32)}, i
def broken():
    yield {"x": np.zeros(2)}
    raise KeyError("the camera")
def nothing():
    return 3
def text():
    return "calib.npz"
number = 1
"""


def test_functions_by_name(tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("float[N, 2] x")
    (tmp_path / "own_samples.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for text in (f"{tmp_path}/own_samples.py:calibration", "own_samples:calibration"):
        labels = open_samples(text, model).labels()
        assert labels is not None
        assert labels.tolist() == [0, 1, 2]
    for name, message in {
        "broken": "broken failed after 1 elements: KeyError: 'the camera'",
        "nothing": "own_samples:nothing gives no samples",
        "text": "own_samples:text gives no samples",
        "number": "has no function 'number'",
    }.items():
        with pytest.raises(DataError, match=message):
            open_samples(f"own_samples:{name}", model)
    with pytest.raises(DataError, match="'no_such_module' cannot be imported"):
        open_samples("no_such_module:calibration", model)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ([ROWS[0], (ROWS[1], 1)], "sample 1 has a label, unlike those before it"),
        ([(ROWS[0], 1), ROWS[1]], "sample 1 has no label, unlike those before it"),
        ([{"x": ROWS[0]}, {"y": ROWS[0], "z": ROWS[0]}], "element 1: no array for the input 'x' (arrays: 'y', 'z'"),
        ([ROWS[0], ROWS[None, :]], "element 1: an array of shape (1, 10, 2) for the input 'x' float32[?, 2]"),
        ([(ROWS[:3], [1, 2])], "element 0: 3 samples, but labels of shape (2,)"),
        ([(ROWS[0], "cat")], "element 0: labels of type <U3"),
        ([(ROWS[0], 1, 2)], "element 0: 3 things; yield inputs or (inputs, label)"),
        ([ROWS[0], {"x": [[1], [1, 2]]}], "element 1: array 'x' is no array"),
        ([{"x": [object()]}], "element 0: array 'x' holds objects"),
        ([ROWS[0], [1.0, 2.0, 3.0]], "sample 1: input 'x': samples of shape (3,), but the model reads (2)"),
        ([], "there are no samples in data of type list"),
    ],
)
def test_elements_that_do_not_fit(elements: list[Any], message: str, make_model: MakeModel) -> None:
    with pytest.raises(DataError) as raised:
        list(open_samples(elements, make_model("float[N, 2] x")).batches())
    assert str(raised.value).startswith("--data: ")
    assert message in str(raised.value)


@pytest.mark.parametrize("given", [3, None, 2.5])
def test_no_samples_at_all(given: Any, make_model: MakeModel) -> None:
    with pytest.raises(DataError, match=r"--data: data of type \w+ gives no samples; give FILE.npz"):
        open_samples(given, make_model("float[N, 2] x"))
