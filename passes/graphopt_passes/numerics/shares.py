"""How much of each layer goes, for a total: least summed harm along curves of harm by share.

With harms h_l(s) of removing the share s of n_l weights, Σ h_l(s_l) is least under Σ n_l s_l = total where all layers have the
same slope dh_l / (n_l ds) (Everett 1963). Curves are replaced by their lower convex hulls, whose pieces are taken from the
flattest on; the last one in part.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from graphopt_passes.numerics.quantizer import Array


def shares(curves: Sequence[Array], grid: Array, sizes: Sequence[int], total: float) -> Array:
    """(L,) shares to remove.

    Args:
        curves: (P,) harm of each of L layers at each share of the grid, not negative.
        grid: (P,) ascending shares, the first one 0.
        sizes: weights of each layer.
        total: share of all weights together, at most the last of the grid.
    """
    pieces = []
    for number, (curve, size) in enumerate(zip(curves, sizes, strict=True)):
        rising = np.maximum.accumulate(curve)
        corners = _hull(grid, rising)
        for first, last in pairwise(corners):
            width = grid[last] - grid[first]
            pieces.append(((rising[last] - rising[first]) / (width * size), number, width))
    found, left = np.zeros(len(sizes)), total * sum(sizes)
    for _, number, width in sorted(pieces):
        taken = min(width, left / sizes[number])
        found[number] += taken
        left -= taken * sizes[number]
        if left <= 0:
            break
    return found


def _hull(x: Array, y: Array) -> list[int]:
    """Numbers of the corners of the lower convex hull of a curve."""
    corners: list[int] = []
    for index in range(len(x)):
        while len(corners) >= 2:
            before, last = corners[-2:]
            if (y[last] - y[before]) * (x[index] - x[before]) < (y[index] - y[before]) * (x[last] - x[before]):
                break
            corners.pop()
        corners.append(index)
    return corners
