"""Samples from image files: a folder of them, or a folder of class folders, in any format that Pillow reads.

An image becomes what the model's input asks for: RGB (or grey, where the input has one channel), channels first or last,
and the fixed height and width. As is usual for classifiers, it is scaled until its shorter side fits and the centre is
cut out, so that nothing is distorted. Where the model leaves an extent open, the image keeps its proportions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.data.records import Records
from graphopt.data.signature import Input, Signature
from graphopt.data.source import Digest, Sample
from graphopt.errors import DataError, NotAvailableError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))

_KEPT_BYTES = 1 << 30  # decoded images are kept on disk up to here: decoding is slow, and passes read them many times
_PIECE = 1 << 20


@dataclasses.dataclass(frozen=True)
class ImageLayout:
    """How an input holds an image.

    Attributes:
        channels: 3 for RGB, 1 for grey.
        channels_last: (H, W, C), as opposed to (C, H, W).
        height: in pixels; None where the model leaves it open.
        width: likewise.
    """

    channels: int
    channels_last: bool
    height: int | None
    width: int | None

    def array(self, image: Image.Image) -> np.ndarray:
        """`image`, scaled and cut, as uint8 in this layout."""
        from PIL import Image, ImageOps

        image = ImageOps.exif_transpose(image).convert("RGB" if self.channels == 3 else "L")
        size = self._size(image.width, image.height)
        if size != image.size:
            image = ImageOps.fit(image, size, method=Image.Resampling.BILINEAR)
        pixels = np.asarray(image, dtype=np.uint8).reshape(size[1], size[0], self.channels)
        return np.ascontiguousarray(pixels if self.channels_last else pixels.transpose(2, 0, 1))

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height to reach, in the image's proportions where only one is fixed."""
        if self.width is None and self.height is None:
            return width, height
        if self.width is None:
            assert self.height is not None
            return max(1, round(width * self.height / height)), self.height
        return self.width, self.height or max(1, round(height * self.width / width))


def image_layout(value: Input, option: str) -> ImageLayout:
    """The layout that the input `value` asks for. Raises DataError where it takes no images."""
    dims = value.sample_dims
    if dims is None or len(dims) != 3:
        raise DataError(
            f"{option}: the model's input {value} takes no images (one is height, width and 1 or 3 channels)"
        )
    first, last = dims[0], dims[2]
    channels_last = first not in (1, 3) and (last in (1, 3) or (last is None and first is not None))
    channels = last if channels_last else first
    if channels not in (None, 1, 3):
        raise DataError(f"{option}: the model's input {value} has no axis of 1 or 3 channels; images have no others")
    height, width = dims[:2] if channels_last else dims[1:]
    return ImageLayout(channels or 3, channels_last, height, width)


class ImageSource:
    """Samples from image files."""

    indexable = True

    def __init__(self, folder: Path, signature: Signature, option: str) -> None:
        """Find the images below `folder`.

        Raises:
            DataError: there are none, or the model takes no images.
            NotAvailableError: Pillow is not installed.
        """
        if len(signature.inputs) != 1:
            raise DataError(f"{option}: {folder} holds images, but the model has several inputs: {signature}")
        self._layout = image_layout(signature.inputs[0], option)
        _require_pillow(option)
        self._input = signature.inputs[0].name
        self._folder = folder
        self._option = option
        self._files = _find(folder, option)
        self._records = Records(option)
        self._kept: dict[int, int] = {}

    @property
    def labelled(self) -> bool:
        """Whether the images are in class folders."""
        return self._files[0][1] is not None

    def __len__(self) -> int:
        return len(self._files)

    def read(self, positions: Sequence[int]) -> Iterator[Sample]:
        """The images at `positions`."""
        for position in positions:
            if position not in self._kept:
                sample = self._decode(position)
                if self._records.bytes < _KEPT_BYTES:
                    with contextlib.suppress(DataError):  # without room on disk it is decoded again next time
                        self._kept[position] = self._records.add(sample)
                yield sample
            else:
                yield self._records[self._kept[position]]

    def labels(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        """Class indices of the images at `positions`."""
        return (
            np.asarray(label) for label in (self._files[position][1] for position in positions) if label is not None
        )

    def where(self, position: int) -> str:
        """The path of the image."""
        return str(self._files[position][0])

    def update(self, digest: Digest) -> None:
        """Name, class and bytes of every file."""
        for path, label in self._files:
            digest.update(repr((path.relative_to(self._folder).as_posix(), label)).encode())
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)

    def _decode(self, position: int) -> Sample:
        from PIL import Image

        path, label = self._files[position]
        # Pillow's decoders report a damaged file in any of these ways.
        damage: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"more than 8 bits per channel (mode {image.mode}); save it with 8")
                array = self._layout.array(image)
        except damage as error:
            raise DataError(f"{self._option}: {path} is no readable image: {error}") from error
        return Sample({self._input: array}, None if label is None else np.asarray(label))


def holds_images(folder: Path) -> bool:
    """Whether there is an image in `folder` or in a folder in it."""
    return any(_images_in(folder)) or any(next(_images_below(inner), None) for inner in _folders(folder))


def _find(folder: Path, option: str) -> list[tuple[Path, int | None]]:
    """Images with their class index, in order of path."""
    here = _images_in(folder)
    classes = [sorted(_images_below(inner)) for inner in _folders(folder)]
    if here and any(classes):
        raise DataError(f"{option}: {folder} holds both images and folders of images; keep either")
    if here:
        return [(path, None) for path in here]
    return [(path, index) for index, paths in enumerate(classes) for path in paths]


def _folders(folder: Path) -> list[Path]:
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith((".", "__")))


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_image(path) and path.is_file())


def _images_below(folder: Path) -> Iterator[Path]:
    for base, _, names in os.walk(folder):
        yield from (path for path in (Path(base, name) for name in names) if _is_image(path))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _require_pillow(option: str) -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise NotAvailableError(f"{option}: images need Pillow; install graphopt[images]") from error
