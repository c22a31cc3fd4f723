"""Preprocessing of integer arrays and images: y = (x · scale - mean) / std, per channel.

The presets are what the frameworks' published networks were trained with: `imagenet` is torchvision's, `tf` and `caffe`
are the modes of `keras.applications.imagenet_utils.preprocess_input`. `caffe` networks read BGR; samples are RGB, so
that their channels are reversed first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from graphopt.errors import DataError, OptionError

_SYNTAX = "write scale=1/255,mean=a:b:c,std=a:b:c, or imagenet, tf, caffe"


@dataclasses.dataclass(frozen=True)
class Normalization:
    """What turns stored integers into what the model reads; each field is one number, or one per channel.

    Attributes:
        scale: factor of the integers.
        mean: subtracted afterwards.
        std: divisor afterwards.
        bgr: whether the channels are reversed before everything else.
    """

    scale: tuple[float, ...] = (1.0,)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False

    def __post_init__(self) -> None:
        """Raise OptionError where the numbers cannot be applied."""
        for key in _KEYS:
            if not all(math.isfinite(number) for number in getattr(self, key)):
                raise OptionError(f"--normalize: {key} holds a number that is not finite")
        if 0.0 in self.std:
            raise OptionError("--normalize: std holds a zero")
        counts = {len(getattr(self, key)) for key in _KEYS} - {1}
        if len(counts) > 1 or 0 in counts:
            lengths = ", ".join(f"{len(getattr(self, key))} in {key}" for key in _KEYS)
            raise OptionError(f"--normalize: one number per channel, or one for all; there are {lengths}")

    @property
    def channels(self) -> int:
        """How many channels it is for; 1 where it is the same for all."""
        return 3 if self.bgr else max(len(self.scale), len(self.mean), len(self.std))

    def apply(self, sample: np.ndarray) -> np.ndarray:
        """Normalize one sample, integers in any layout, to float32 of the same shape.

        Raises:
            DataError: no axis has one entry per channel.
        """
        axis = self._channel_axis(sample.shape)
        values = np.flip(sample, axis) if self.bgr else sample
        scale, mean, std = (self._along(numbers, axis, sample.ndim) for numbers in (self.scale, self.mean, self.std))
        normalized: np.ndarray = (values.astype(np.float32) * scale - mean) / std
        return normalized

    def _channel_axis(self, shape: Sequence[int]) -> int:
        """First axis, last, or third from the end: (C, H, W), (H, W, C), (T, C, H, W)."""
        if self.channels == 1:
            return 0
        places = [axis for axis in (0, len(shape) - 1, len(shape) - 3) if 0 <= axis < len(shape)]
        found = next((axis for axis in places if shape[axis] == self.channels), None)
        if found is None:
            raise DataError(
                f"--normalize is for {self.channels} channels, but samples of shape {tuple(shape)} have no such axis"
            )
        return found

    @staticmethod
    def _along(numbers: tuple[float, ...], axis: int, rank: int) -> np.ndarray:
        array = np.asarray(numbers, dtype=np.float32)
        return array.reshape(()) if array.size == 1 else array.reshape([-1 if i == axis else 1 for i in range(rank)])


_KEYS = ("scale", "mean", "std")

PRESETS: Mapping[str, Normalization] = MappingProxyType(
    {
        "imagenet": Normalization((1 / 255,), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "tf": Normalization((1 / 127.5,), (1.0,)),
        "caffe": Normalization(mean=(104.0, 117.0, 123.0), bgr=True),
    }
)


def parse_normalize(given: str | Mapping[str, Any] | Normalization) -> Normalization:
    """Read `--normalize`: the name of a preset, `scale=1/255,mean=a:b:c,std=a:b:c`, or a mapping with these keys.

    Values of the mapping are numbers, sequences of numbers, or text as on the command line.

    Raises:
        OptionError: it cannot be read, or cannot be applied.
    """
    if isinstance(given, Normalization):
        return given
    if isinstance(given, str):
        if given.strip() in PRESETS:
            return PRESETS[given.strip()]
        given = _split(given)
    unknown = sorted(str(key) for key in given if key not in _KEYS)
    if unknown:
        raise OptionError(f"--normalize: '{unknown[0]}' is none of {', '.join(_KEYS)}; {_SYNTAX}")
    read = {key: _numbers(value) for key, value in given.items()}
    return Normalization(read.get("scale", (1.0,)), read.get("mean", (0.0,)), read.get("std", (1.0,)))


def _split(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        key, _, numbers = (word.strip() for word in part.partition("="))
        if key not in _KEYS or key in found:
            raise OptionError(f"--normalize: '{part}': {_SYNTAX}")
        found[key] = numbers
    return found


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        items: Sequence[Any] = value.split(":")
    else:
        items = np.atleast_1d(value).tolist() if not isinstance(value, Sequence) else value
    try:
        return tuple(_number(item) for item in items)
    except (TypeError, ValueError, ZeroDivisionError):
        raise OptionError(f"--normalize: '{value}' is no list of numbers a:b:c (1/255 is one)") from None


def _number(item: Any) -> float:
    if not isinstance(item, str):
        return float(item)
    numerator, slash, denominator = item.partition("/")
    return float(numerator) / float(denominator) if slash else float(item)
