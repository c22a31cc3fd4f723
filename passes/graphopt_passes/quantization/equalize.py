"""Equalizing the channels of activations between linear layers, so that one scale serves all of them.

    Conv -> Relu -> Conv        the first Conv's output channels divided by s, the second's input channels multiplied

Factors come from the ranges of the activation's channels on calibration data and from the weights behind it
(`numerics.equalization`). Where weights have one scale per output channel, the layer in front takes any factor for free and
pairs of layers do not depend on each other; where they have one for the whole tensor, the ranges of the weights are
equalized along whole chains instead, as Nagel et al. 2019 do (`equalize_weights`).

A Relu6 that clips stops all this, unless `clip_margin` is given: then channels that stay below the ceiling are amplified,
so that their largest number on calibration data, times the margin, just reaches it. The result is the same on these
data; what exceeds the margin on others is clipped.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt.ir.walk import label
from graphopt.pipeline.base import PassContext
from graphopt.runtime.requests import ChannelRange, Results
from graphopt_passes.lossless.linear import Linear
from graphopt_passes.numerics import equalization
from graphopt_passes.numerics.affine import Array
from graphopt_passes.numerics.equalization import MOST_RATIO, Choice
from graphopt_passes.numerics.quantizer import S8_NARROW, U8, Grid
from graphopt_passes.quantization import rescaling
from graphopt_passes.quantization.rescaling import LINEAR, Between, Rescaled, Rescaling
from graphopt_passes.rewriting import Site


def requests(model: ir.Model, context: PassContext) -> list[ChannelRange]:
    """What `equalize` wants to know."""
    site = Rescaling(model, context).main
    return rescaling.requests(between for _, between in _all_between(site))


def equalize(
    model: ir.Model,
    results: Results,
    context: PassContext,
    *,
    activation: Grid = U8,
    weight: Grid = S8_NARROW,
    clip_margin: float | None = None,
) -> Rescaled:
    """Equalize activations between linear layers, where that lowers the predicted noise.

    Args:
        model: rewritten in place.
        results: answers to `requests`.
        context: of the pass.
        activation: the grid of activations.
        weight: the grid of weights, which have one scale per output channel.
        clip_margin: at least 1; None leaves everything that is clipped alone.
    """
    run = Rescaling(model, context)
    for node in list(run.main.graph):
        found = _between(node, run.main)
        if found is None:
            continue
        if isinstance(found, str):
            run.missed(label(node), found)
        elif found.ceilings and clip_margin is None:
            run.missed(label(node), "what it makes is clipped")
        else:
            choice = _choice(found, results, activation, weight, clip_margin)
            if choice is None:
                run.missed(label(node), "the ranges of its channels are not known")
            else:
                run.choose(found, choice, run.main, label(node))
    return run.result()


def equalize_weights(model: ir.Model, context: PassContext) -> Rescaled:
    """Equalize the ranges of weights along chains of linear layers, for one scale per weight; needs no data."""
    run = Rescaling(model, context)
    for site in run.sites:
        for chain in _chains(site):
            layers = [chain[0][1].maker, *(between.readers[0] for _, between in chain)]
            factors = equalization.chain([np.abs(rescaling.weights(layer)).max(axis=3) for layer in layers])
            for (node, _), s in zip(chain, factors, strict=True):
                between = _between(node, site)  # anew: the factors before have changed its weight
                why_not = run.apply(between, s, site) if isinstance(between, Between) else None
                if why_not is not None:
                    run.missed(label(node), why_not)
                else:
                    run.remarks.applied(label(node), "equalized the weights on both sides")
    return run.result()


def _choice(
    between: Between, results: Results, activation: Grid, weight: Grid, clip_margin: float | None
) -> Choice | None:
    """The factors of least predicted noise; None where ranges are not known."""
    channels = rescaling.channels(between, results)
    if channels is None:
        return None
    if clip_margin is None or not between.ceilings:
        return equalization.best_factors(channels, activation, weight)
    least = np.full(len(channels.low), 1 / MOST_RATIO)
    for place, ceiling in between.ceilings:
        result = results.get(ChannelRange(place.name, place.axis))
        if result is None:
            return None
        least = np.maximum(least, _reached(result.high, ceiling / clip_margin))
    return equalization.best_amplification(channels, np.minimum(least, 1), activation, weight)


def _reached(high: Array, ceiling: float) -> Array:
    """The part of the ceiling that each channel reaches; 1 for dead ones, which nobody knows."""
    return np.where(high > 0, high / ceiling, 1.0)


def _all_between(site: Site) -> Iterator[tuple[ir.Node, Between]]:
    for node in site.graph:
        found = _between(node, site)
        if isinstance(found, Between):
            yield node, found


def _between(node: ir.Node, site: Site) -> Between | str | None:
    """What lies between `node`, which ends a linear layer, and the layers behind; None where it ends none."""
    if node.domain != "" or node.op_type not in (*LINEAR, "Add") or not site.may_touch(node):
        return None
    value = node.outputs[0]
    maker = rescaling.linear_maker(value, site)
    return rescaling.spread(maker, value, site) if isinstance(maker, Linear) else None


def _chains(site: Site) -> Iterator[list[tuple[ir.Node, Between]]]:
    """Longest sequences in which each layer is the only one that reads what the one before makes, unclipped."""
    steps = {
        between.maker.node: (node, between)
        for node, between in _all_between(site)
        if len(between.readers) == 1 and not between.ceilings
    }
    behind = {between.readers[0].node for _, between in steps.values()}
    for first in steps:
        if first not in behind:
            chain, layer = [], first
            while layer in steps:
                chain.append(steps[layer])
                layer = steps[layer][1].readers[0].node
            yield chain
