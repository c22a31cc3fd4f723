from __future__ import annotations

import contextlib
import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from graphopt.data import Samples, open_samples
from graphopt.errors import DataError

if TYPE_CHECKING:
    from tests.data.conftest import MakeModel

IMAGES = np.random.default_rng(0).standard_normal((10, 3, 4, 5)).astype(np.float32)
LABELS = np.arange(10) % 4


def together(samples: Samples, name: str = "x") -> np.ndarray:
    return np.concatenate([batch.feeds[name][: batch.count] for batch in samples.batches(4)])


def labels_of(samples: Samples) -> np.ndarray:
    labels = samples.labels()
    assert labels is not None
    return labels


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_stored_and_compressed_arrays(save: Any, tmp_path: Path, make_model: MakeModel) -> None:
    save(tmp_path / "d.npz", x=IMAGES, labels=LABELS)
    samples = open_samples(tmp_path / "d.npz", make_model("float[N, 3, 4, 5] x"))
    assert len(samples) == 10
    assert samples.labelled
    assert [batch.count for batch in samples.batches(4)] == [4, 4, 2]
    for _ in range(2):  # again and again
        assert (together(samples) == IMAGES).all()
    assert labels_of(samples).tolist() == LABELS.tolist()
    chosen = samples.subset([7, 2, 2])  # also backwards
    assert (together(chosen) == IMAGES[[7, 2, 2]]).all()
    assert labels_of(chosen).tolist() == LABELS[[7, 2, 2]].tolist()
    assert samples.warnings == ()


def test_the_same_content_has_the_same_digest(tmp_path: Path, make_model: MakeModel) -> None:
    model = make_model("float[N, 3, 4, 5] x")
    np.savez(tmp_path / "a.npz", x=IMAGES, labels=LABELS)
    np.savez_compressed(tmp_path / "b.npz", labels=LABELS, x=IMAGES)
    a, b, memory = (
        open_samples(source, model, limit=limit)
        for source, limit in ((tmp_path / "a.npz", None), (tmp_path / "b.npz", 3), ({"x": IMAGES, "labels": LABELS}, 5))
    )
    assert a.digest == b.digest == memory.digest == a.subset([1]).digest
    others = [{"x": IMAGES, "labels": 3 - LABELS}, {"x": IMAGES + 1, "labels": LABELS}, {"x": IMAGES}]
    digests = {open_samples(other, model).digest for other in others}
    assert len(digests | {a.digest}) == 4
    assert open_samples(tmp_path / "a.npz", model, normalize="tf").digest != a.digest


def test_a_single_array_serves_a_single_input_whatever_its_key(tmp_path: Path, make_model: MakeModel) -> None:
    model = make_model("float[N, 3, 4, 5] x")
    np.savez(tmp_path / "d.npz", images=IMAGES, labels=LABELS)
    np.save(tmp_path / "d.npy", IMAGES)
    for source in (tmp_path / "d.npz", str(tmp_path / "d.npy"), IMAGES):
        assert (together(open_samples(source, model)) == IMAGES).all()


def test_several_inputs(tmp_path: Path, make_model: MakeModel) -> None:
    ids = np.arange(30, dtype=np.int32).reshape(10, 3)
    np.savez_compressed(tmp_path / "d.npz", ids=ids, x=IMAGES, more=ids)
    samples = open_samples(tmp_path / "d.npz", make_model("float[N, 3, 4, 5] x, int64[N, S] ids"), limit=6, seed=1)
    chosen = list(samples.indices())
    assert len(set(chosen)) == 6
    assert chosen == sorted(chosen)
    assert (together(samples, "ids") == ids[chosen]).all()
    assert (together(samples) == IMAGES[chosen]).all()
    assert next(samples.batches()).feeds["ids"].dtype == np.int64
    assert samples.warnings == (f"--data: {tmp_path}/d.npz: no input of the model is called 'more'; not used",)


def test_rows_may_keep_their_batch_axis(make_model: MakeModel) -> None:
    """(n, 1, ...) is one sample per row, (n, b, ...) are n batches."""
    model = make_model("float[N, 3, 4, 5] x")
    assert (together(open_samples(IMAGES[:, None], model)) == IMAGES).all()
    batches = {"x": IMAGES.reshape(5, 2, 3, 4, 5), "labels": LABELS.reshape(5, 2)}
    samples = open_samples(batches, model)
    assert (together(samples) == IMAGES).all()
    assert labels_of(samples).tolist() == LABELS.tolist()


def test_arrays_in_fortran_order(tmp_path: Path, make_model: MakeModel) -> None:
    table = np.asfortranarray(IMAGES.reshape(10, 60))
    np.save(tmp_path / "f.npy", table)
    np.save(tmp_path / "c.npy", np.ascontiguousarray(table))
    f, c = (open_samples(tmp_path / name, make_model("float[N, 60] x")) for name in ("f.npy", "c.npy"))
    assert (together(f) == table).all()
    assert f.digest == c.digest


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_never_loaded_whole(save: Any, tmp_path: Path, make_model: MakeModel) -> None:
    save(tmp_path / "d.npz", x=np.ones((600, 1 << 15), dtype=np.float32))  # 75 MiB
    samples = open_samples(tmp_path / "d.npz", make_model("float[N, 32768] x"))
    tracemalloc.start()
    try:
        assert sum(batch.count for batch in samples.batches()) == 600
        assert samples.digest
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("it was unpickled",))


def test_pickles_are_never_loaded(tmp_path: Path, make_model: MakeModel) -> None:
    model = make_model("float[N, 3] x")
    objects = np.empty(2, dtype=object)
    objects[:] = Harmful()
    np.savez(tmp_path / "d.npz", x=objects)
    np.savez(tmp_path / "l.npz", x=np.ones((2, 3)), labels=objects)
    np.save(tmp_path / "d.npy", objects)
    for name, key in (("d.npz", "x"), ("l.npz", "labels"), ("d.npy", "")):
        with pytest.raises(DataError, match=rf"{name}.*'?{key}'? holds Python objects \(a pickle\)"):
            open_samples(tmp_path / name, model)
    with pytest.raises(DataError, match=r"array 'x' holds objects"):
        open_samples({"x": objects}, model)
    with np.load(tmp_path / "d.npz") as loaded, pytest.raises(DataError, match="'x' holds Python objects"):
        open_samples(loaded, model)
    with (
        np.load(io.BytesIO((tmp_path / "d.npz").read_bytes())) as loaded,
        pytest.raises(DataError, match="allow_pickle"),
    ):
        open_samples(loaded, model)


def damaged(kind: str, compressed: bool) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, x=np.arange(3000, dtype=np.float32).reshape(1000, 3))
    data = bytearray(buffer.getvalue())
    if kind == "cut off":
        return bytes(data[: len(data) // 2])
    if kind == "not a zip":
        return b"\x80\x04nothing"
    if kind == "bytes changed":
        data[1000:1400] = bytes(400)
        return bytes(data)
    with zipfile.ZipFile(buffer, "w") as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }\n"
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(12)
        archive.writestr("x.npy", b"no array" if kind == "not an array" else content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "compressed", "message"),
    [
        ("cut off", False, "is no readable .npz file"),
        ("not a zip", False, "is no readable .npz file"),
        ("bytes changed", True, "array 'x' cannot be read"),
        ("not an array", False, "array 'x' is no array in numpy's format"),
        ("absurd shape", False, "array 'x' is damaged: 12000000000000 bytes of elements announced, 12 there"),
    ],
)
def test_damaged_files(kind: str, compressed: bool, message: str, tmp_path: Path, make_model: MakeModel) -> None:
    (tmp_path / "d.npz").write_bytes(damaged(kind, compressed))
    with pytest.raises(DataError, match=message):
        for _ in open_samples(tmp_path / "d.npz", make_model("float[N, 3] x")).batches():
            pass


def test_damaged_headers_are_data_errors(tmp_path: Path, make_model: MakeModel) -> None:
    model, rng = make_model("float[N, 3] x"), np.random.default_rng(0)
    np.save(tmp_path / "d.npy", np.ones((2, 3), dtype=np.float32))
    good = (tmp_path / "d.npy").read_bytes()
    for _ in range(100):
        data = bytearray(good)
        data[rng.integers(0, 75)] = rng.integers(0, 256)
        (tmp_path / "d.npy").write_bytes(data)
        with contextlib.suppress(DataError):  # and nothing else
            assert len(open_samples(tmp_path / "d.npy", model)) >= 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"a": 0, "b": 0},
            "no array for the input 'x' (arrays: 'a', 'b'; inputs of the model: 'x' float32[?, 2], 'i' int64[?])",
        ),
        ({"x": np.ones((4, 2)), "i": np.ones(5, dtype=int)}, "inputs hold 4 samples ('x'), 5 samples ('i')"),
        (
            {"x": np.ones((4, 2)), "i": np.ones(4, dtype=int), "labels": np.ones(3)},
            "4 samples, but labels of shape (3,)",
        ),
        ({"x": np.ones((4, 2, 2, 2)), "i": np.ones(4, dtype=int)}, "an array of shape (4, 2, 2, 2) for the input 'x'"),
        (
            {"x": np.ones((4, 3)), "i": np.ones(4, dtype=int)},
            "input 'x': samples of shape (3,), but the model reads (2)",
        ),
        ({"x": np.ones((4, 2)), "i": np.ones(4)}, "input 'i': samples of type float64, but the model reads int64"),
        ({"x": np.ones((4, 2)), "i": np.ones(4, dtype=int), "labels": list("abcd")}, "labels of type <U1"),
        ({"x": np.ones((0, 2)), "i": np.ones(0, dtype=int)}, "there are no samples in data of type dict"),
    ],
)
def test_arrays_that_do_not_fit(arrays: dict[str, Any], message: str, make_model: MakeModel) -> None:
    with pytest.raises(DataError) as raised:
        open_samples(arrays, make_model("float[N, 2] x, int64[N] i"), option="--eval-data")
    assert str(raised.value).startswith("--eval-data: ")
    assert message in str(raised.value)
