"""Putting the choice into the network: one walk in topological order that refits every layer on what it really gets.

Inputs come from the network as compressed so far, targets from the original, with what shortcuts have lost made up for;
replacements are refitted through the activation behind, and layers that are kept are refitted densely.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import FreshNames
from graphopt_passes.factorization.candidates import Candidate
from graphopt_passes.factorization.emission import emit
from graphopt_passes.factorization.regression import Regression
from graphopt_passes.factorization.schemes import Fits, Fitted
from graphopt_passes.factorization.sites import Site
from graphopt_passes.numerics.quadratic import Array
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.walk import Walk

PENALTIES = (0.1, 0.1, 1.0, 1.0)
"""λ_z of the rounds in which targets allow for the activation (see `regression`)."""


def refit(
    regression: Regression, site: Site | None, candidate: Candidate | None, penalties: tuple[float, ...] = PENALTIES
) -> tuple[Fitted | None, Array, Array | None]:
    """The replacement, its dense map (G, O, K) and the bias; without a candidate the best dense map.

    Args:
        regression: the layer on its rows.
        site: the layer where it is replaced.
        candidate: by what.
        penalties: of the rounds that look through the activation.
    """
    targets: Array | None = None
    fitted: Fitted | None = None
    dense, bias = regression.weight, None
    for penalty in (None, *penalties):
        if penalty is not None:
            targets = regression.cut_off_targets(dense, bias, penalty)
            if targets is None:
                break
        quadratics = regression.quadratics(targets)
        if site is None or candidate is None:
            dense = np.stack([one.target for one in quadratics])
        else:
            fitted = Fits(site, quadratics, rounds=2 if fitted is None else 1).fit(
                candidate.scheme, candidate.amount, fitted
            )
            dense = fitted.dense
        bias = regression.bias(dense, targets)
    return fitted, dense, bias


def apply(
    walk: Walk,
    layers: list[Linear],
    chosen: Mapping[str, tuple[Site, Candidate]],
    names: FreshNames,
    refit_kept: bool = True,
) -> list[ir.Node]:
    """Rewrite the compressed network of `walk`; returns the nodes that were made or changed."""
    touched: list[ir.Node] = []
    for layer in layers:
        key = layer.key  # a replaced layer loses its name to what replaces it
        entry = chosen.get(key)
        if entry is not None or refit_kept:
            regression = Regression(walk.observe(layer), layer.weight(), centred=layer.takes_bias)
            fitted, dense, bias = refit(regression, *(entry or (None, None)))
            layer.store(dense, bias, names)
            touched += [layer.node] if fitted is None or entry is None else emit(entry[0], fitted, names)
        walk.advance(key)
    return touched
