"""What all lossy passes have in common: they need not be exact, and come after everything that is.

What such a pass measures and decides holds for one form of the model: constants folded, BatchNormalization in the layers
beside it, inputs with a default value frozen. So it requires the passes that bring the model into that form.
"""

from __future__ import annotations

from typing import ClassVar

from graphopt.pipeline.base import Pass
from graphopt.pipeline.presets import PRESETS

BEFORE_LOSSY: tuple[str, ...] = (*dict.fromkeys(PRESETS["lossless"].split(",")), "freeze-defaults")
"""What lossy passes require; the manager repeats the exact ones until none of them finds more."""


class LossyPass(Pass):
    """A pass whose result computes nearly what the model before it did; subclasses are frozen dataclasses."""

    exact: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = BEFORE_LOSSY
