"""SmoothQuant: a normalization's channels divided by factors that the MatMul and Gemm behind it take up.

    LayerNormalization(x, scale / s, bias / s) -> MatMul(·, diag(s) W), ...

In transformers a few channels are tens of times as large as the rest, always the same ones; the scale of a normalization
is where they can be made smaller for nothing. Xiao et al. 2023; factors from `numerics.equalization`. All that reads the
normalization must be linear with constant weights: a residual branch behind it, as in BERT, rules it out.

Where dynamic quantization may spend a Mul on it (`input_scales`), the inputs of the other products are divided as well.

Predicted noise is no promise, so that it is done only where the outputs of the quantized model come closer (`smooth_if_better`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from graphopt.ir.walk import label
from graphopt.pipeline.base import PassContext, Remark
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.requests import ChannelRange, Results
from graphopt_passes.lossless.linear import Linear
from graphopt_passes.numerics import equalization
from graphopt_passes.numerics.equalization import Channels, Choice
from graphopt_passes.numerics.quantizer import S8_NARROW, U8, Grid
from graphopt_passes.quantization import input_scales, rescaling
from graphopt_passes.quantization.rescaling import Between, Rescaled, Rescaling
from graphopt_passes.rewriting import Site

_SAMPLES = 32
_WORTH_DB, _WORTH_A_MUL_DB = 0.2, 1.0
_WRITTEN_OUT = frozenset({"Add", "Mul"})


def requests(model: ir.Model, context: PassContext) -> list[ChannelRange]:
    """What `smooth` wants to know."""
    site = Rescaling(model, context).main
    return rescaling.requests(
        found for _, found in _all_between(site) if isinstance(found, Between) and not found.ceilings
    )


def smooth(
    model: ir.Model,
    results: Results,
    context: PassContext,
    *,
    alpha: float | None = None,
    activation: Grid = U8,
    weight: Grid = S8_NARROW,
    bounded: bool = False,
) -> Rescaled:
    """Divide the channels of normalizations, where that lowers the predicted noise.

    Args:
        model: rewritten in place.
        results: answers to `requests`.
        context: of the pass.
        alpha: 0 equalizes the weights, 1 the activation; None takes the α of least predicted noise.
        activation: the grid of activations.
        weight: the grid of weights, which have one scale per output channel.
        bounded: whether ranges are measured in every run, so that nothing is ever clipped.
    """
    run = Rescaling(model, context, "smoothed")
    for node, found in list(_all_between(run.main)):
        if isinstance(found, str):
            if node.op_type not in _WRITTEN_OUT:
                run.missed(label(node), found)
            continue
        channels = rescaling.channels(found, results)
        if found.ceilings or channels is None:
            run.missed(label(node), "what it makes is clipped, or its ranges are not known")
            continue
        run.choose(found, _choice(channels, alpha, activation, weight, bounded), run.main, label(node))
    return run.result()


def smooth_if_better(
    model: ir.Model,
    context: PassContext,
    evidence: Evidence,
    quantize: Callable[[ir.Model], object],
    *,
    always: bool = False,
    scalable: Callable[[ir.Node], bool] | None = None,
    activation: Grid = U8,
    weight: Grid = S8_NARROW,
) -> Rescaled:
    """Smooth `model` in place, if that brings the outputs of what `quantize` makes of it closer to its own.

    Args:
        model: float.
        context: of the pass.
        evidence: calibration samples; a few of them decide.
        quantize: quantizes a copy in place, roughly.
        always: whether it is done without a trial.
        scalable: says of a product whether a Mul may scale its input, where what makes that cannot; None is of none.
        activation: the grid of activations.
        weight: the grid of weights.
    """
    run = Rescaling(model, context)
    muls = [] if scalable is None else input_scales.insert(run, scalable)
    try:
        wanted = requests(model, context)
        if not wanted:
            return Rescaled()
        results = evidence.collect(model, wanted)

        def smoothed(which: ir.Model) -> Rescaled:
            return smooth(which, results, context, activation=activation, weight=weight, bounded=scalable is not None)

        if not always:
            trial, plain = model.clone(), model.clone()
            found = smoothed(trial)
            if not found.touched:
                return Rescaled(remarks=found.remarks)
            few = evidence.subset(_SAMPLES)
            quantize(plain)
            quantize(trial)
            before, after = few.sqnr(model, plain), few.sqnr(model, trial)
            costs = any(mul.outputs[0].name in found.factors for mul in muls)
            if after < before + (_WORTH_A_MUL_DB if costs else _WORTH_DB):
                what = f"left out: outputs come to {after:.1f} dB with it, to {before:.1f} without"
                return Rescaled(remarks=(Remark("SmoothQuant", what),))
        return smoothed(model)
    finally:
        input_scales.remove_ones(muls, run)


def _choice(channels: Channels, alpha: float | None, activation: Grid, weight: Grid, bounded: bool) -> Choice:
    if alpha is None:
        return equalization.best_factors(channels, activation, weight, bounded=bounded)
    return Choice(equalization.smooth(channels.largest, channels.read_by, alpha), 1.0, 0.0)


def _all_between(site: Site) -> Iterator[tuple[ir.Node, Between | str]]:
    for node in site.graph:
        if node.domain == "" and site.may_touch(node) and node.outputs:
            maker = rescaling.scale_maker(node.outputs[0], site)
            if isinstance(maker, Linear):
                yield node, rescaling.spread(maker, node.outputs[0], site)
