"""Network decoupling: a convolution becomes a sum of depthwise + pointwise branches (Guo et al. 2018).

    k x k  =  Σ over T branches of  depthwise k x k, then 1 x 1      or      1 x 1, then depthwise k x k

whichever is nearer at the cost. Branches are emitted one by one and added up, which runtimes fuse; a depthwise
convolution with a channel multiplier would leave their fast paths. How many branches each layer gets follows from one
of the options (`factorization.compress`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from graphopt.pipeline.base import PassContext, PassResult, option
from graphopt_passes.lossy import LossyPass, check_amounts

_ERROR = 0.05


@dataclass(frozen=True)
class SeparateDepthwise(LossyPass):
    """Replace convolutions by sums of depthwise and pointwise ones."""

    name: ClassVar[str] = "separate-depthwise"

    branches: int | None = option(None, "branches of every layer", minimum=1)
    error: float | None = option(
        None, "a layer's squared output error over its energy; 0.05 where nothing else is asked for", minimum=0
    )
    energy: float | None = option(None, "the same as error = 1 - energy", minimum=0, maximum=1)
    macs: float | None = option(None, "MACs of the whole model that may stay: a share up to 1, or a number", minimum=0)
    prefer: Literal["latency", "macs"] = option(
        "latency",
        "whether a layer is replaced only where it runs faster, predicted and measured, or wherever MACs fall",
    )
    through_activation: bool = option(
        False, "fit through the activation behind a layer: what it cuts off does not count"
    )

    def __post_init__(self) -> None:
        check_amounts(macs=self.macs)
        if self.error is not None and self.energy is not None:
            raise ValueError("error and energy say the same: give one of them")

    @property
    def reads_data(self) -> bool:
        """Kernels fit what layers see, where there are samples."""
        return True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Decouple `model`.

        Raises:
            TargetNotMetError: `macs` cannot be reached.
        """
        from graphopt_passes.factorization.compress import Settings, compress
        from graphopt_passes.factorization.decision import Budget
        from graphopt_passes.factorization.options import search

        error = 1 - self.energy if self.energy is not None else self.error
        if error is None:
            error = _ERROR if self.macs is None and self.branches is None else float("inf")
        tried = search(["decoupling"], context, faster=self.prefer == "latency", branches=self.branches)
        budget, through = Budget(self.macs), self.through_activation
        return compress(model, context, Settings(tried, budget, error, through=through, title=self.name))
