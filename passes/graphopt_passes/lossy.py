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


def check_amounts(**amounts: float | None) -> None:
    """Refuse what is neither a share of the model nor a number of things. Raises ValueError."""
    for name, amount in amounts.items():
        if amount is not None and amount > 1 and amount != int(amount):
            raise ValueError(f"{name}={amount:g} is neither a share up to 1 nor a whole number")


def count_said(name: str, amount: float | None) -> str:
    """What to add to a message on a target above 1, which may have been meant as a share; empty for a share."""
    if amount is None or amount <= 1:
        return ""
    return f"; shares end at 1: {name}={amount:g} is a count of {'MACs' if name == 'macs' else 'parameters'}"


class LossyPass(Pass):
    """A pass whose result computes nearly what the model before it did; subclasses are frozen dataclasses."""

    exact: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = BEFORE_LOSSY
