"""Putting the choice into the network: one walk in topological order that refits every layer on what it really gets.

Inputs come from the network as compressed so far, targets from the original, with what shortcuts have lost made up for;
replacements are refitted through the activation behind, and layers that are kept are refitted densely.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

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
ROUNDS = 4
"""Alternations of the first fit of a layer; the later ones start from it."""
ROWS_PER_INPUT = 20
"""Layers that are kept are refitted where there are as many rows per input: a classifier on a few hundred samples is not."""


def refit(
    regression: Regression, site: Site | None, candidate: Candidate | None, *, through: bool = False
) -> tuple[Fitted | None, Array, Array | None]:
    """The replacement, its dense map (G, O, K) and the bias; without a candidate the best dense map.

    Args:
        regression: the layer on its rows.
        site: the layer where it is replaced.
        candidate: by what.
        through: whether errors that the activation behind cuts off do not count.
    """
    fitted, dense, bias = _fitted(regression, site, candidate, None, None)
    for penalty in PENALTIES if through else ():
        targets = regression.cut_off_targets(dense, bias, penalty)
        if targets is None:
            break
        fitted, dense, bias = _fitted(regression, site, candidate, targets, fitted)
    return fitted, dense, bias


def _fitted(
    regression: Regression,
    site: Site | None,
    candidate: Candidate | None,
    targets: Array | None,
    warm: Fitted | None,
) -> tuple[Fitted | None, Array, Array | None]:
    quadratics = regression.quadratics(targets)
    if site is None or candidate is None:
        dense = np.stack([one.target for one in quadratics])
        return None, dense, regression.bias(dense, targets)
    fits = Fits(site, quadratics, rounds=ROUNDS if warm is None else 1)
    fitted = fits.fit(candidate.scheme, candidate.amount, warm)
    return fitted, fitted.dense, regression.bias(fitted.dense, targets)


def apply(
    walk: Walk,
    layers: list[Linear],
    chosen: Mapping[str, tuple[Site, Candidate]],
    names: FreshNames,
    turned: Mapping[str, Array] = MappingProxyType({}),
    *,
    through: bool = False,
) -> list[ir.Node]:
    """Rewrite the compressed network of `walk`; returns the nodes that were made or changed.

    Args:
        walk: has not run any of `layers` yet.
        layers: of the compressed network, in topological order.
        chosen: by their keys, where a layer is replaced by what.
        names: free names of the compressed network.
        turned: matrices (C', C) by key, where a layer gives C' channels that are these of the original's C.
        through: see `refit`.
    """
    touched: list[ir.Node] = []
    for layer in layers:
        key = layer.key  # a replaced layer loses its name to what replaces it
        site, candidate = chosen.get(key, (None, None))
        seen = walk.observe(layer)
        if key in turned:
            targets = turned[key].astype(np.float32) @ seen.targets
            seen = dataclasses.replace(seen, targets=targets, offset=None, activation=None)
        if site is not None or seen.rows >= ROWS_PER_INPUT * layer.width:
            regression = Regression(seen, layer.weight(), centred=layer.takes_bias)
            fitted, dense, bias = refit(regression, site, candidate, through=through)
            layer.store(dense, bias, names)
            touched += [layer.node] if site is None or fitted is None else emit(site, fitted, names)
        walk.advance(key)
    return touched
