"""Weight sharing: every channel, or every layer, makes do with a few numbers.

A codebook per channel (or per tensor) comes from k-means, the entries are chosen with error feedback from what the layer
sees, and the entries' values refitted by least squares (`numerics.codebook`), layer by layer with inputs from the compressed
network and targets from the original (`weights.walking`). Without samples the weights alone are clustered.

Stored in one of two forms: `gather`, numbers of a few bits that the model looks up in a table when it is loaded
(`weights.packing`), or `plain`, floats as before, for files that are compressed anyway and passes that come later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphopt.ir.walk import label
from graphopt.pipeline.base import PassContext, PassResult, option
from graphopt.pipeline.remarks import Remarks
from graphopt_passes.lossy import LossyPass
from graphopt_passes.numerics import codebook
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.problem import Problem
from graphopt_passes.weights import packing
from graphopt_passes.weights.shared import Shared, pack_all
from graphopt_passes.weights.sizes import Sizes
from graphopt_passes.weights.walking import candidates, rewrite


@dataclass(frozen=True)
class ClusterWeights(LossyPass):
    """Let the weights of a channel or a layer share a few numbers."""

    name: ClassVar[str] = "cluster-weights"

    values: int = option(16, "how many numbers share a codebook", minimum=2, maximum=packing.MOST_ENTRIES)
    per: Literal["channel", "tensor"] = option("channel", "what has a codebook of its own")
    form: Literal["gather", "plain"] = option(
        "gather", "packed numbers looked up in a table when the model is loaded, or plain floats, which compress well"
    )

    @property
    def reads_data(self) -> bool:
        """Codebooks fit what layers see, where there are samples."""
        return True

    @property
    def min_opset(self) -> int:
        """Tables per channel are read by GatherElements."""
        return packing.SINCE if self.form == "gather" else 1

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Share the numbers of all linear layers of the main graph that have more of them."""
        remarks = Remarks()
        layers = [layer for layer in candidates(model, context, remarks) if self._is_open(layer, remarks)]
        if not layers:
            if not remarks.listed():
                remarks.missed(model.graph.name or "model", "no layer has weights to share")
            return PassResult(False, (), remarks.listed())
        sizes = Sizes(layers)
        done = rewrite(model, context, {layer.key: self._fit for layer in layers}, remarks)
        if self.form == "gather":
            pack_all(model, layers, done, remarks)
        sizes.remark(model, remarks, f"{self.values} shared values per {self.per} in {len(done)} layers")
        return PassResult(bool(done), None, remarks.listed())

    def _is_open(self, layer: Linear, remarks: Remarks) -> bool:
        weight = layer.weight().reshape(layer.channels, layer.width)
        rows = weight if self.per == "channel" else weight.reshape(1, -1)
        if max(len(np.unique(row)) for row in rows) > self.values:
            return True
        remarks.missed(label(layer.node), f"left alone: no more than {self.values} numbers per {self.per} as it is")
        return False

    def _fit(self, problem: Problem) -> Shared:
        start = codebook.codebooks(problem.best, problem.second, self.values, shared=self.per == "tensor")
        return Shared(codebook.share(problem.best, problem.second, start))
