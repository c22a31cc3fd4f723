"""Quantization: the numbers of a model in fewer bits.

What is done depends on `mode`:

    static      8-bit integers with ranges fixed from calibration samples (`quantization.static`)
    dynamic     8-bit integers with ranges that every run measures, for products with weights (`quantization.dynamic`)
    weights     blocks of 4- or 8-bit weights, arithmetic in float (`quantization.weight_only`)
    float16, bfloat16
                half precision throughout (`quantization.half`)
    auto        dynamic where the target is faster with it, which is where products of sequences with weights do most of
                the work; static else

The result is standard ONNX: QuantizeLinear and DequantizeLinear around the operators, which runtimes fuse into integer
kernels.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import onnx_ir as ir

from graphopt.analysis.extents import Extents
from graphopt.errors import DataError
from graphopt.ir.walk import all_nodes, constant_tensor
from graphopt.ops.base import operator
from graphopt.pipeline.base import PassContext, PassResult, Remark, option
from graphopt.pipeline.evidence import Evidence
from graphopt.pipeline.remarks import Remarks
from graphopt.runtime.latency import Latency
from graphopt_passes.lossy import LossyPass
from graphopt_passes.quantization.rescaling import Rescaled
from graphopt_passes.quantization.share_outs import ALL_FLOAT
from graphopt_passes.quantization.targets import TARGETS, Spare, Target, wide_type

_Mode: TypeAlias = Literal["auto", "static", "dynamic", "weights", "float16", "bfloat16"]
_Target: TypeAlias = Literal["ort-x86", "ort-arm", "tensorrt", "openvino", "qnn", "generic"]
_Ranges: TypeAlias = Literal[
    "auto", "minmax", "percentile-99.9", "percentile-99.99", "percentile-99.999", "entropy", "mse"
]
_OPSETS = {"static": 13, "dynamic": 11, "weights": 21, "float16": 7, "bfloat16": 13}
_OPSET_16_BITS = 21


@dataclass(frozen=True)
class Quantize(LossyPass):
    """Compute with 8-bit integers, or store weights in fewer bits."""

    name: ClassVar[str] = "quantize"

    target: _Target = option("ort-x86", "the runtime that the model is for")
    mode: _Mode = option("auto", "what is quantized, and when")
    activations: Literal[8, 16] = option(8, "bits of activations, with mode=static")
    ranges: _Ranges = option("auto", "how ranges of activations are chosen; auto: by the error of the outputs")
    equalize: bool = option(True, "equalize channels between layers first")
    smooth: Literal["auto", "never", "always"] = option(
        "auto", "divide channels of normalizations by factors that the MatMul behind take up; auto: where outputs gain"
    )
    clip_weights: bool = option(True, "clip weights that hardly meet anything, where that lowers the error of outputs")
    feedback: bool = option(True, "round weights so that their errors make up for each other")
    correct_biases: bool = option(True, "let biases take up the mean error of each layer")
    reestimate: bool = option(False, "with correct_biases: let scales of weights give each channel its variance back")
    keep_heads: bool = option(True, "leave the last layers before outputs and selections in float")
    reduce_range: Literal["auto", "true", "false"] = option(
        "auto", "give weights less range where pairs of products would saturate; auto: if they do on this machine"
    )
    prefer: Literal["fastest", "integer"] = option(
        "fastest", "leave float what measuring finds slower on integers, on targets that run here; or integers anyway"
    )
    sensitivity: bool = option(True, "measure what each layer's quantization alone does to the outputs")
    spare_layers: int = option(0, "how many of the layers that do most harm are spared", minimum=0)
    spare_as: Literal["auto", "float", "int16"] = option(
        "auto",
        "what they are spared as, float or 16-bit activations; auto: 16 bits where the target computes with them",
    )
    sqnr: float = option(0.0, "spare as many of them as it takes to come to so many dB", minimum=0)
    keep: tuple[str, ...] = option((), "names or operators of nodes that stay float")
    bits: Literal[4, 8] = option(4, "bits of weights, with mode=weights")
    block: Literal[16, 32, 64, 128] = option(32, "weights that share a scale, with mode=weights")

    def __post_init__(self) -> None:
        if self.activations == 16 and self.spare_as == "int16":
            raise ValueError(
                "with activations=16 all layers have what spare_as=int16 would give some: take spare_as=float"
            )

    @property
    def needs_data(self) -> bool:
        """Static ranges are measured; with mode=auto the model decides."""
        return self._asked == "static"

    @property
    def reads_data(self) -> bool:
        """Where activations are quantized ahead, may be smoothed first, or are timed."""
        dynamic = self._asked == "dynamic" and (self.smooth != "never" or self.prefer == "fastest")
        return self._asked in ("auto", "static") or dynamic

    @property
    def min_opset(self) -> int:
        """QuantizeLinear per channel came with opset 13, its 16-bit and blocked forms with 21."""
        spares = self._spare == "int16" and bool(self.spare_layers or self.sqnr) and self._asked in ("auto", "static")
        wide = spares or (self.activations == 16 and self._asked == "static")
        return _OPSET_16_BITS if wide else _OPSETS.get(self._asked, 13)

    @property
    def _asked(self) -> _Mode:
        """The mode, also where other options imply it: nothing but `static` has 16-bit activations."""
        return "static" if self.mode == "auto" and self.activations == 16 else self.mode

    @property
    def _spare(self) -> Spare:
        """What layers are spared as; where all activations have 16 bits already, that leaves float."""
        if self.activations == 16:
            return "float"
        return TARGETS[self.target].spare if self.spare_as == "auto" else self.spare_as

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Quantize `model`.

        Raises:
            DataError: calibration samples are needed, and there are none.
        """
        context = replace(context, keep=frozenset(self.keep))
        mode = _auto(model, TARGETS[self.target]) if self._asked == "auto" else self._asked
        unknown = self._unknown(model)
        result = self._static(model, context) if mode == "static" else self._convert(mode, model, context)
        return replace(result, warnings=(*unknown, *result.warnings))

    def _unknown(self, model: ir.Model) -> list[str]:
        """A warning for each name in `keep` that is no node's and no operator's."""
        known = {name for node in all_nodes(model) for name in (node.name, node.op_type)}
        return [
            f"quantize: keep={name} names no node and no operator of the model"
            for name in self.keep
            if name not in known
        ]

    def sparing(self, places: int) -> Quantize | None:
        """With so many more layers in float, or on 16 bits."""
        return replace(self, spare_layers=self.spare_layers + places) if self._asked in ("auto", "static") else None

    def _static(self, model: ir.Model, context: PassContext) -> PassResult:
        from graphopt_passes.quantization import plans, static

        if context.evidence is None:
            raise DataError(
                "quantize: ranges of activations are measured on calibration samples; give them with -d FILE.npz "
                "(or -d random:N to try it on noise), or choose mode=dynamic, weights, float16 or bfloat16"
            )
        target = TARGETS[self.target]
        settings = plans.Settings(
            target,
            wide_type(target.activations) if self.activations == 16 else target.activations,
            ranges=self.ranges,
            equalize=self.equalize,
            clip_weights=self.clip_weights,
            feedback=self.feedback,
            correct_biases=self.correct_biases,
            reestimate=self.reestimate,
            keep_heads=self.keep_heads,
            smooth=self.smooth,
            fastest=self.activations == 8 and self._measures(context),
            known_slow=self.prefer == "fastest" and not self._measures(context),
            spare_layers=self.spare_layers,
            spare_as=self._spare,
            sqnr=self.sqnr,
            sensitivity=self.sensitivity,
            saturates=self.activations == 8 and self._saturates(context),
        )
        return static.quantize(model, context, settings)

    def _saturates(self, context: PassContext) -> bool:
        """Whether weights must leave room for pairs of products that are added in 16 bits."""
        from graphopt_passes.quantization.saturation import measured

        if not TARGETS[self.target].pairs or self.reduce_range == "false":
            return False
        return self.reduce_range == "true" or measured(context)

    def _convert(self, mode: _Mode, model: ir.Model, context: PassContext) -> PassResult:
        from graphopt_passes.quantization import half, weight_only

        if mode == "dynamic":
            return self._dynamic(model, context)
        if mode == "weights":
            touched, remarks = weight_only.apply(model, context, weight_only.Form(self.bits, self.block))
        else:
            touched, remarks = half.apply(model, context, "bfloat16" if mode == "bfloat16" else "float16")
        return PassResult(bool(touched), touched, remarks)

    def _dynamic(self, model: ir.Model, context: PassContext) -> PassResult:
        from graphopt_passes.quantization import dynamic, dynamic_speed
        from graphopt_passes.quantization.smooth import smooth_if_better

        saturates, smoothed, said = self._saturates(context), Rescaled(), Remarks()

        def apply(
            model: ir.Model, only: Callable[[ir.Node], bool] | None = None
        ) -> tuple[list[ir.Node], tuple[Remark, ...]]:
            return dynamic.apply(model, context, saturates=saturates, only=only)

        choice = before = None
        if context.evidence is not None and self._measures(context):
            choice, before = dynamic_speed.fastest(model, apply, context.evidence), model.clone()
        allowed = dynamic_speed.allowing(choice.floats if choice else ())
        if context.evidence is not None and self.smooth != "never":
            smoothed = smooth_if_better(
                model,
                context,
                context.evidence,
                lambda copy: apply(copy, allowed),
                always=self.smooth == "always",
                scalable=allowed,
            )
        nodes, remarks = apply(model, allowed)
        touched = dict.fromkeys((*(node for node in smoothed.touched if node.graph is not None), *nodes))
        for where, why in choice.regions if choice else ():
            said.missed(where, why)
        warnings: Sequence[str] = ()
        if choice is not None and before is not None and context.evidence is not None:
            warnings = _slower(dynamic_speed.race(context.evidence, before, model), bool(nodes))
        return PassResult(bool(touched), list(touched), (*smoothed.remarks, *remarks, *said.listed()), warnings)

    def _measures(self, context: PassContext) -> bool:
        """Whether time is measured to tell what is fast."""
        evidence = context.evidence
        return self.prefer == "fastest" and evidence is not None and runs_here(TARGETS[self.target], evidence)


def _auto(model: ir.Model, target: Target) -> Literal["static", "dynamic"]:
    """Static or dynamic: by what does most of the multiply-accumulates."""
    if not target.dynamic_products:
        return "static"
    extents, products, total = Extents(model), 0, 0
    for node in model.graph:
        form = operator(node).integer_form(node)
        if form is None or form.weight is None or constant_tensor(node.inputs[form.weight]) is None:
            continue
        macs = operator(node).macs(node, extents) or 0
        total += macs
        products += macs if node.op_type == "MatMul" else 0
    return "dynamic" if 2 * products > total else "static"


def _slower(against_float: Latency, is_quantized: bool) -> Sequence[str]:
    """A warning where a quantized model takes longer than the float model beyond doubt, or nothing was quantized."""
    low, high = against_float.interval
    if not is_quantized:
        return (ALL_FLOAT,)
    if low <= 1:
        return ()
    return (
        f"quantize: the quantized model is slower than the float model on this machine, {against_float.ratio:.2f} times its "
        f"time ({low:.2f} to {high:.2f})",
    )


def runs_here(target: Target, evidence: Evidence) -> bool:
    """Whether time measured on this machine says what is fast on the target."""
    return platform.machine() in target.machines and evidence.provider in (None, "cpu", "CPUExecutionProvider")
