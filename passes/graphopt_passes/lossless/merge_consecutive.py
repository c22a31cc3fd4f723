"""Merging: where the result of one node goes into another of the same kind, one node does the work of both.

    Transpose, Cast, Concat; Neg, Abs ... twice       merging/pairs.py
    Reshape, Flatten, Squeeze, Unsqueeze              merging/reshapes.py
    Slice, Pad                                        merging/slices.py
    Clip, Relu                                        merging/clips.py
    Add, Sub and Mul, Div with constants              merging/constants.py

The second node takes over the work, and the first goes. Where the result of the first is read elsewhere too, or is a
graph output, it must stay, and nothing is merged unless the second then does nothing at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from graphopt_passes.lossless.merging.clips import Clips
from graphopt_passes.lossless.merging.constants import Constants
from graphopt_passes.lossless.merging.pairs import Casts, Concats, Repetitions, Transposes
from graphopt_passes.lossless.merging.reshapes import Reshapes
from graphopt_passes.lossless.merging.slices import Pads, Slices
from graphopt_passes.rewriting import Rule, RulePass


@dataclasses.dataclass(frozen=True)
class MergeConsecutive(RulePass):
    """Merge two Transposes, Reshapes, Slices, Clips ... in a row into one, or none."""

    name: ClassVar[str] = "merge-consecutive"

    def rules(self) -> Sequence[Rule]:
        """The rules of all families."""
        return [
            Transposes(), Reshapes(), Casts(), Concats(), Slices(), Pads(), Clips(), Repetitions(), Constants(),
        ]  # fmt: skip
