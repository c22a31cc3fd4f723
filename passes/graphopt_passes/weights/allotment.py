"""How sparse each layer becomes, so that the network as a whole loses least.

Two things are known of a layer in the original network: what its outputs lose at each share of zeros, others refitted (a
curve), and what the network's outputs lose when this layer alone is made sparse (one measurement). The curve, scaled to
go through the measurement, is the layer's harm; `numerics.shares` chooses. Without samples a layer's curve is that of
its weights' relative error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.pipeline.base import PassContext
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.numerics.shares import shares
from graphopt_passes.numerics.sparse_support import Sparsity, fit_support, magnitude
from graphopt_passes.reconstruction.harm import Harm
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.problem import MOST_INPUTS, Problem
from graphopt_passes.reconstruction.walk import Walk
from graphopt_passes.weights.walking import RIDGE

GRID = np.array([0.0, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96])
_ROWS = 8_000
_SAMPLES = 128
_STEPS = 25
"""Of conjugate gradients: a curve need not be exact."""


def allot(model: ir.Model, context: PassContext, layers: Sequence[Linear], total: float) -> dict[str, float]:
    """Share of zeros per layer, by key, for `total` over all of them.

    Raises:
        DataError: activations are not finite.
    """
    sizes = [layer.channels * layer.width for layer in layers]
    if total > GRID[-1]:
        return dict.fromkeys((layer.key for layer in layers), total)
    if context.evidence is None:
        curves = []
        for layer in layers:
            curve, _ = _curve(Problem.alone(layer), GRID)
            curves.append(curve / max(float(np.square(layer.weight()).sum()), 1e-30))
    else:
        evidence = context.evidence.subset(_SAMPLES)
        curves = []
        probe = int(np.argmin(np.abs(GRID - total)).clip(1))
        with Walk(model, model, evidence, rows=_ROWS, seed=context.seed) as walk, Harm(model, evidence) as judge:
            for layer in layers:
                if layer.width > MOST_INPUTS:
                    curve, weights = _curve(Problem.alone(layer), GRID)
                    bias = None
                else:
                    problem = Problem.of(layer, walk.observe(layer), RIDGE)
                    curve, weights = _curve(problem, GRID)
                    bias = problem.bias_for(weights[probe])
                walk.advance(layer.key)
                dense = weights[probe].reshape(layer.groups, -1, layer.width)
                (measured,) = judge.measure(layer, [(dense, bias)])
                curves.append(curve * (measured / curve[probe] if curve[probe] > 0 else 0.0))
    found = shares([np.nan_to_num(curve, posinf=1e30) for curve in curves], GRID, sizes, total)
    return {layer.key: float(share) for layer, share in zip(layers, found, strict=True)}


def _curve(problem: Problem, grid: Array) -> tuple[Array, list[Array]]:
    """(P,) error of the layer's outputs at each share of zeros, and the (C, K) weights there."""
    weights = []
    for share in grid:
        parts = []
        for second, wanted in problem.by_group():
            kept = magnitude(wanted, second, Sparsity(float(share)))
            parts.append(fit_support(wanted, second, kept, steps=_STEPS))
        weights.append(np.concatenate(parts))
    return np.array([problem.harm(weight) for weight in weights]), weights
