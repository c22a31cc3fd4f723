"""Low-rank factorization: a layer with many multiply-accumulates becomes two or three with few.

    channel   k x k to r channels, then 1 x 1         svd       the same for products of matrices
    input     1 x 1 to r channels, then k x k         tucker    1 x 1, k x k, 1 x 1
    spatial   k x 1, then 1 x k                       decoupling   as `separate-depthwise` does it
    heads     fewer dimensions in each head of attention, for the two layers before or around it
    hidden    fewer units between two products of matrices

Which layers, by which scheme and how far is decided for all of them together (`factorization.compress`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import onnx_ir as ir

from graphopt.pipeline.base import PassContext, PassResult, option
from graphopt_passes.lossy import LossyPass, check_amounts

_Scheme: TypeAlias = Literal["auto", "channel", "input", "spatial", "tucker", "svd", "heads", "hidden", "decoupling"]

_ENERGY = 0.99


@dataclass(frozen=True)
class Factorize(LossyPass):
    """Replace layers by chains of thinner ones of low rank."""

    name: ClassVar[str] = "factorize"

    schemes: tuple[_Scheme, ...] = option(("auto",), "what is tried; auto: all but decoupling, the best per layer")
    macs: float | None = option(None, "MACs of the whole model that may stay: a share up to 1, or a number", minimum=0)
    params: float | None = option(None, "parameters of the whole model that may stay, likewise", minimum=0)
    energy: float | None = option(
        None, "share of each layer's output energy to keep; 0.99 where nothing else is asked for", minimum=0, maximum=1
    )
    rank: float | None = option(None, "rank of every layer, below 1 as a fraction of the highest", minimum=0)
    align: int | None = option(None, "ranks are multiples of this; by default of the runtime's block", minimum=1)
    prefer: Literal["latency", "macs"] = option(
        "latency",
        "whether a layer is replaced only where it runs faster, predicted and measured, or wherever MACs fall",
    )
    through_activation: bool = option(
        False, "fit through the activation behind a layer: what it cuts off does not count"
    )

    def __post_init__(self) -> None:
        check_amounts(macs=self.macs, params=self.params)
        if self.rank is not None and self.rank <= 0:
            raise ValueError("rank must be above 0: a number of channels, or below 1 a fraction of the highest rank")
        if self.rank is not None and (self.energy is not None or self.macs is not None or self.params is not None):
            raise ValueError("rank fixes what energy, macs and params would choose: give one of them")

    @property
    def reads_data(self) -> bool:
        """Factors fit what layers see, where there are samples."""
        return True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Factorize `model`.

        Raises:
            TargetNotMetError: `macs` or `params` cannot be reached.
        """
        from graphopt_passes.factorization.compress import Settings, compress
        from graphopt_passes.factorization.decision import Budget
        from graphopt_passes.factorization.options import search

        names = [one for one in self.schemes if one != "auto"]
        if "auto" in self.schemes:
            names += ["channel", "input", "spatial", "tucker", "heads", "hidden"]
        budget = Budget(self.macs, self.params)
        energy = _ENERGY if self.energy is None and not budget and self.rank is None else self.energy
        tried = search(names, context, align=self.align, faster=self.prefer == "latency", rank=self.rank)
        error = float("inf") if energy is None else 1 - energy
        return compress(model, context, Settings(tried, budget, error, through=self.through_activation))
