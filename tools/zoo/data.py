"""Cluttered digits: the labelled images that every network of the zoo is trained and judged on.

scikit-learn ships 1797 handwritten digits of 8x8 pixels in 17 grey levels. As they stand a small network solves them
almost perfectly, and a compressor could hide large errors behind that. So each digit is *rendered*: rotated, sheared,
scaled and shifted onto a 16x16 canvas, dimmed, and covered in part by fragments of other digits:

    image = round16(max(contrast * warp(digit), window_1 * warp(other_1), window_2 * warp(other_2)))

where `round16` keeps the 17 grey levels k/16 of the source (which is also what lets the `.npz` files compress well).

The digits are split once, before any rendering, into three disjoint parts; fragments come from the same part, so that
no pixel of a held-out digit is ever seen in training or in calibration. Training renders anew for each epoch; the
calibration and held-out images are one fixed rendering of each digit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

CANVAS: Final = 16
"""Width and height of a rendered image in pixels."""

CLASSES: Final = 10
PART_SIZES: Final = {"train": 797, "calib": 300, "eval": 700}
_LEVELS: Final = 16
_SPLIT_SEED: Final = 20240
_RENDER_SEEDS: Final = {"calib": 1, "eval": 2}


@dataclass(frozen=True)
class Part:
    """One part of the split: `digits` (N, 8, 8) in [0, 1] and their `labels` (N,)."""

    digits: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Images:
    """Rendered images: `images` (N, 1, CANVAS, CANVAS) in [0, 1] and their `labels` (N,)."""

    images: Tensor
    labels: Tensor


def load_parts() -> dict[str, Part]:
    """Split scikit-learn's digits into `train`, `calib` and `eval`, the same way on each call."""
    from sklearn.datasets import load_digits

    source = load_digits()
    digits = torch.tensor(source.images, dtype=torch.float32) / _LEVELS
    labels = torch.tensor(source.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    chosen = torch.split(order, list(PART_SIZES.values()))
    return {name: Part(digits[rows], labels[rows]) for name, rows in zip(PART_SIZES, chosen, strict=True)}


def render_fixed(name: str, part: Part) -> Images:
    """Return the fixed rendering of the part called `name` ("calib" or "eval"): the content of its `.npz`."""
    return render(part, torch.Generator().manual_seed(_RENDER_SEEDS[name]))


def render(part: Part, generator: torch.Generator) -> Images:
    """Render each digit of `part` once, in the order of the part."""
    image = _warp(part.digits, generator)
    image *= _uniform(generator, len(part), 0.6, 1.0).view(-1, 1, 1, 1)
    for _ in range(2):
        others = torch.randperm(len(part), generator=generator)
        image = torch.maximum(image, _warp(part.digits[others], generator) * _window(generator, len(part)))
    return Images(torch.round(image * _LEVELS) / _LEVELS, part.labels)


def _uniform(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _warp(digits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw digits (N, 8, 8) with random affine maps on canvases (N, 1, CANVAS, CANVAS), bilinear."""
    count = len(digits)
    angle = _uniform(generator, count, -math.pi / 10, math.pi / 10)
    shear = _uniform(generator, count, -0.25, 0.25)
    zoom = CANVAS / _uniform(generator, count, 9.0, 14.0)
    across, down = _uniform(generator, count, -0.3, 0.3), _uniform(generator, count, -0.3, 0.3)
    # Each row maps a canvas position in [-1, 1]² to a position on the digit.
    cosine, sine = torch.cos(angle), torch.sin(angle)
    first = torch.stack([zoom * cosine, zoom * (shear * cosine - sine), across], dim=1)
    second = torch.stack([zoom * sine, zoom * (shear * sine + cosine), down], dim=1)
    grid = functional.affine_grid(torch.stack([first, second], dim=1), [count, 1, CANVAS, CANVAS], align_corners=False)
    return functional.grid_sample(digits.unsqueeze(1), grid, padding_mode="zeros", align_corners=False)


def _window(generator: torch.Generator, count: int, size: int = 5) -> Tensor:
    """Return masks (N, 1, CANVAS, CANVAS) that are 1 in one random square of `size` pixels and 0 elsewhere."""
    corner = torch.randint(0, CANVAS - size + 1, (count, 2), generator=generator)
    pixel = torch.arange(CANVAS)
    inside = (pixel >= corner.unsqueeze(2)) & (pixel < corner.unsqueeze(2) + size)
    return (inside[:, 0, :, None] & inside[:, 1, None, :]).unsqueeze(1).float()
