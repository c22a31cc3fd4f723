from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from graphopt.data import open_samples
from graphopt.errors import DataError, NotAvailableError

if TYPE_CHECKING:
    from tests.data.conftest import MakeModel

Image = pytest.importorskip("PIL.Image")

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)  # (H, W, C)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def shades(width: int, height: int) -> np.ndarray:
    """Black, with the middle third of the longer side white."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    if width > height:
        pixels[:, width // 3 : 2 * width // 3] = 255
    else:
        pixels[height // 3 : 2 * height // 3] = 255
    return pixels


@pytest.mark.parametrize(
    ("inputs", "transposed"),
    [
        ("uint8[N, 3, 4, 6] x", True),
        ("uint8[N, 4, 6, 3] x", False),
        ("uint8[1, 3, 4, 6] x", True),
        ("uint8[N, 3, H, W] x", True),
        ("uint8[N, H, W, 3] x", False),
        ("uint8[N, C, H, W] x", True),
        ("uint8[N, 4, 6, C] x", False),
    ],
)
def test_pixels_in_the_layout_of_the_input(
    inputs: str, transposed: bool, tmp_path: Path, make_model: MakeModel
) -> None:
    save(tmp_path / "a.png", PIXELS)
    samples = open_samples(tmp_path, make_model(inputs))
    (batch,) = samples.batches()
    assert (batch.feeds["x"][0] == (PIXELS.transpose(2, 0, 1) if transposed else PIXELS)).all()
    assert not samples.labelled
    assert samples.labels() is None


def test_normalization_and_grey(tmp_path: Path, make_model: MakeModel) -> None:
    save(tmp_path / "a.png", PIXELS)
    (batch,) = open_samples(tmp_path, make_model("float[N, 3, 4, 6] x"), normalize="caffe").batches()
    expected = PIXELS[:, :, ::-1].transpose(2, 0, 1) - np.array([104, 117, 123], np.float32)[:, None, None]
    np.testing.assert_allclose(batch.feeds["x"][0], expected)
    (batch,) = open_samples(tmp_path, make_model("uint8[N, 4, 6, 1] x")).batches()
    luma = PIXELS @ np.array([0.299, 0.587, 0.114])
    assert np.abs(batch.feeds["x"][0, :, :, 0] - luma).max() < 1
    plain = open_samples(tmp_path, make_model("float[N, 3, 4, 6] x"))
    assert "integers (uint8) are fed to 'x' (float32) as they are" in plain.warnings[0]


@pytest.mark.parametrize("size", [(30, 10), (10, 30), (60, 20)])
def test_the_shorter_side_is_scaled_and_the_centre_cut_out(
    size: tuple[int, int], tmp_path: Path, make_model: MakeModel
) -> None:
    """Of an image of 3 : 1 a square is the middle third, whatever its size."""
    save(tmp_path / "a.png", shades(*size))
    (batch,) = open_samples(tmp_path, make_model("uint8[N, 3, 10, 10] x")).batches()
    assert batch.feeds["x"].shape == (1, 3, 10, 10)
    assert batch.feeds["x"][:, :, 1:-1, 1:-1].min() == 255


def test_open_extents_keep_proportions(tmp_path: Path, make_model: MakeModel) -> None:
    save(tmp_path / "a.png", shades(30, 10))
    save(tmp_path / "b.png", shades(10, 30))
    samples = open_samples(tmp_path, make_model("uint8[N, 3, 20, W] x"))
    assert [batch.feeds["x"].shape for batch in samples.batches()] == [(1, 3, 20, 60), (1, 3, 20, 7)]
    samples = open_samples(tmp_path, make_model("uint8[N, 3, H, W] x"))
    assert [batch.feeds["x"].shape for batch in samples.batches()] == [(1, 3, 10, 30), (1, 3, 30, 10)]


def test_class_folders(tmp_path: Path, make_model: MakeModel) -> None:
    """The class is the index of the folder in sorted order, empty folders included; other files do not matter."""
    for name, value in (("dog/2.PNG", 3), ("dog/1.jpeg", 2), ("cat/deep/x.bmp", 1), ("ape/a.png", 0)):
        save(tmp_path / name, np.full((4, 6, 3), value * 50, dtype=np.uint8))
    (tmp_path / "bear").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    samples = open_samples(tmp_path, make_model("uint8[N, 3, 4, 6] x"))
    labels = samples.labels()
    assert labels is not None
    assert labels.tolist() == [0, 2, 3, 3]
    for _ in range(2):  # decoded, then as kept
        (batch,) = samples.batches()
        assert batch.labels is not None
        assert batch.labels.tolist() == [0, 2, 3, 3]
        assert np.abs(batch.feeds["x"].mean(axis=(1, 2, 3)) - [0, 50, 100, 150]).max() < 2


def test_the_digest_follows_names_and_bytes(tmp_path: Path, make_model: MakeModel) -> None:
    model, digests = make_model("uint8[N, 3, 4, 6] x"), []
    save(tmp_path / "a/1.png", PIXELS)
    save(tmp_path / "b/1.png", PIXELS)
    digests += [open_samples(tmp_path, model).digest, open_samples(tmp_path, model).digest]
    save(tmp_path / "b/1.png", 255 - PIXELS)
    digests.append(open_samples(tmp_path, model).digest)
    (tmp_path / "b/1.png").rename(tmp_path / "a/2.png")
    digests.append(open_samples(tmp_path, model).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("float[N, 3, 4, 6] x, float[N] i", "holds images, but the model has several inputs"),
        ("float[N, 24] x", "takes no images"),
        ("float[N, 5, 4, 6] x", "has no axis of 1 or 3 channels"),
    ],
)
def test_models_that_take_no_images(inputs: str, message: str, tmp_path: Path, make_model: MakeModel) -> None:
    save(tmp_path / "a.png", PIXELS)
    with pytest.raises(DataError, match=message):
        open_samples(tmp_path, make_model(inputs))


def test_files_that_are_no_images(tmp_path: Path, make_model: MakeModel) -> None:
    model = make_model("uint8[N, 3, 4, 6] x")
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="holds neither images nor test_data_set"):
        open_samples(tmp_path, model)
    save(tmp_path / "a/1.png", PIXELS)
    good = (tmp_path / "a/1.png").read_bytes()
    for damaged in (b"", b"no image", good[:-40], good[:20]):
        (tmp_path / "a/1.png").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a/1\.png is no readable image"):
            open_samples(tmp_path, model)
    save(tmp_path / "a/1.png", np.full((4, 6), 40000, dtype=np.uint16))
    with pytest.raises(DataError, match="more than 8 bits per channel"):
        open_samples(tmp_path, model)
    save(tmp_path / "b.png", PIXELS)
    with pytest.raises(DataError, match="holds both images and folders of images"):
        open_samples(tmp_path, model)


def test_without_pillow(tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", PIXELS)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(NotAvailableError, match=r"--data: images need Pillow; install graphopt\[images\]"):
        open_samples(tmp_path, make_model("uint8[N, 3, 4, 6] x"))
