"""Operators that a model spells out become the standard operators of its opset.

What is recognized, and the mathematics, stand with the families: `fusion/gelu.py`, `fusion/normalization.py`,
`fusion/activations.py` and `fusion/softmax.py`. An operator is used only where the model's opset has it, and the model
keeps its opset. Each has an option; on by default are those with which onnxruntime is not slower.

Time of the operator relative to what it replaces, in onnxruntime 1.32 with all its own optimizations on (which fuse
some of the decompositions too), 1 thread, medians of 120 interleaved pairs, on a CPU with AVX512:

    Gelu (opset 20)                erf 1.00, tanh .23-.39        (8, 128, 3072) and (1, 128, 3072)
    LayerNormalization (17)        .58 without scale; with scale and bias 1.00: fused by the runtime either way
    RMSNormalization (23)          .35 as x / sqrt; as x · 1/sqrt 1.00: fused by the runtime either way
    HardSwish (14)                 .62 from Clip, 1.00 from HardSigmoid and Mul (which serve before opset 14)
    HardSigmoid (6)                .45
    Mish (18)                      1.00
    Sigmoid, Softsign              .55, .57
    Softmax, LogSoftmax (13)       .50-.70
    Clip from Min and Max (12)     .48
    Swish (24)                     2.1: onnxruntime computes it as Cast, Mul, Sigmoid, Mul. Off by default
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from graphopt.pipeline.base import option
from graphopt_passes.lossless.fusion import activations
from graphopt_passes.lossless.fusion.gelu import Gelu
from graphopt_passes.lossless.fusion.normalization import Normalization
from graphopt_passes.lossless.fusion.softmax import Softmax
from graphopt_passes.rewriting import Rule, RulePass


@dataclasses.dataclass(frozen=True)
class FuseOperators(RulePass):
    """Use the standard operator where the model spells one out: Gelu, LayerNormalization, HardSwish ..."""

    name: ClassVar[str] = "fuse-operators"
    gelu: bool = option(True, "Gelu, from Erf or Tanh (opset 20)")
    layer_norm: bool = option(True, "LayerNormalization (opset 17)")
    rms_norm: bool = option(True, "RMSNormalization (opset 23)")
    hard_swish: bool = option(True, "HardSwish (opset 14)")
    hard_sigmoid: bool = option(True, "HardSigmoid, from Clip (opset 6)")
    mish: bool = option(True, "Mish (opset 18)")
    sigmoid: bool = option(True, "Sigmoid, from Exp (opset 6)")
    softsign: bool = option(True, "Softsign")
    softmax: bool = option(True, "Softmax and LogSoftmax, from Exp (opset 13)")
    clip: bool = option(True, "Clip, from Min and Max (opset 12)")
    swish: bool = option(False, "Swish (opset 24); onnxruntime runs it at half the speed of Sigmoid and Mul")

    def rules(self) -> Sequence[Rule]:
        """The rules that are on."""
        switched: list[tuple[bool, Rule]] = [
            (self.gelu, Gelu()),
            (self.layer_norm or self.rms_norm, Normalization(layer=self.layer_norm, rms=self.rms_norm)),
            (
                self.hard_sigmoid or self.hard_swish,
                activations.HardSigmoid(sigmoid=self.hard_sigmoid, swish=self.hard_swish),
            ),
            (self.hard_swish, activations.HardSwish()),
            (self.mish, activations.Mish()),
            (self.sigmoid, activations.Sigmoid()),
            (self.softsign, activations.Softsign()),
            (self.softmax, Softmax()),
            (self.clip, activations.ClipFromMinMax()),
            (self.swish, activations.Swish()),
        ]
        return [rule for enabled, rule in switched if enabled]
