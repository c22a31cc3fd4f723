"""SmoothQuant: a normalization's channels divided by factors that the MatMul and Gemm behind it take up.

    LayerNormalization(x, scale / s, bias / s) -> MatMul(·, diag(s) W), ...

In transformers a few channels are tens of times as large as the rest, always the same ones; the scale of a normalization
is where they can be made smaller for nothing. Xiao et al. 2023; factors from `numerics.equalization`. All that reads the
normalization must be linear with constant weights: a residual branch behind it, as in BERT, rules it out.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graphopt.ir.walk import label
from graphopt.pipeline.base import PassContext
from graphopt.runtime.requests import ChannelRange, Results
from graphopt_passes.lossless.linear import Linear
from graphopt_passes.numerics import equalization
from graphopt_passes.numerics.equalization import Channels, Choice
from graphopt_passes.numerics.quantizer import S8_NARROW, U8, Grid
from graphopt_passes.quantization import rescaling
from graphopt_passes.quantization.rescaling import Between, Rescaled, Rescaling
from graphopt_passes.rewriting import Site

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
) -> Rescaled:
    """Divide the channels of normalizations, where that lowers the predicted noise.

    Args:
        model: rewritten in place.
        results: answers to `requests`.
        context: of the pass.
        alpha: 0 equalizes the weights, 1 the activation; None takes the α of least predicted noise.
        activation: the grid of activations.
        weight: the grid of weights, which have one scale per output channel.
    """
    run = Rescaling(model, context)
    for node, found in list(_all_between(run.main)):
        if isinstance(found, str):
            if node.op_type not in _WRITTEN_OUT:
                run.remarks.missed(label(node), f"kept: {found}")
            continue
        channels = rescaling.channels(found, results)
        if found.ceilings or channels is None:
            run.remarks.missed(label(node), "kept: what it makes is clipped, or its ranges are not known")
            continue
        run.choose(found, _choice(channels, alpha, activation, weight), run.main, label(node))
    return run.result()


def _choice(channels: Channels, alpha: float | None, activation: Grid, weight: Grid) -> Choice:
    if alpha is None:
        return equalization.best_factors(channels, activation, weight)
    return Choice(equalization.smooth(channels.largest, channels.read_by, alpha), 1.0, 0.0)


def _all_between(site: Site) -> Iterator[tuple[ir.Node, Between | str]]:
    for node in site.graph:
        if node.domain == "" and site.may_touch(node) and node.outputs:
            maker = rescaling.scale_maker(node.outputs[0], site)
            if isinstance(maker, Linear):
                yield node, rescaling.spread(maker, node.outputs[0], site)
