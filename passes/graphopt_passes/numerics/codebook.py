"""Weights that share a few numbers: codebooks by weighted k-means, the choice of entries, and their least-squares refit.

Row m of a layer has a codebook c_m of V numbers, and weight j is entry a_mj of it. With S the damped second moments of the
inputs and W the weights of least error without that bound, the harm of a choice is, up to a constant,

    Σ_m (w_m - ŵ_m) S (w_m - ŵ_m)ᵀ,      ŵ_mj = c_m[a_mj]                                                             (1)

Three steps lower it: k-means on the numbers of a row, weighted by the diagonal of S (Choi et al. 2017, "Towards the Limit of
Network Quantization", weights by the Hessian's diagonal); a choice of entries with error feedback (`feedback_rounding`); and,
the choice fixed, the entries by least squares, for (1) is quadratic in c. The last two are repeated while they help.

The same holds for entries that are sums of signed scales, ŵ = Σ_b α_b s_b with s_b in {-1, 1} or {-1, 0, 1}
(Rastegari et al. 2016, "XNOR-Net"; Li & Liu 2016, "Ternary Weight Networks"): there the refit is for the α. Both are a
`Pattern`: entry = pattern · parameters, the identity for free codebooks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt_passes.numerics.feedback_rounding import feedback_choose
from graphopt_passes.numerics.quantizer import Array

ROUNDS = 2
"""Choices and refits at most; later ones gain nothing that shows in outputs."""

_BINS = 256
"""Distinct numbers from which on a row is summed up in bins of equal count before the exact search."""
_LLOYD = 20
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Coded:
    """Weights that share numbers.

    Attributes:
        parameters: (N, P) per codebook; N is the number of rows, or 1 where all share one.
        pattern: (V, P): the codebooks are parameters @ patternᵀ.
        choice: (M, K) entry of each weight.
    """

    parameters: Array
    pattern: Array
    choice: Array

    @property
    def codebooks(self) -> Array:
        """(N, V)."""
        return np.asarray(self.parameters @ self.pattern.T)

    @property
    def weight(self) -> Array:
        """(M, K)."""
        return entries(self.codebooks, self.choice)


def entries(codebooks: Array, choice: Array) -> Array:
    """(M, K) numbers that `choice`, (M, K), takes from (M, V) or (1, V) codebooks."""
    if len(codebooks) == 1:
        return np.asarray(codebooks[0][choice])
    return np.take_along_axis(codebooks, choice, axis=1)


def harm(weight: Array, coded: Array, second: Array | None) -> Array:
    """(M,) of (1), for `second` (G, K, K) and rows that belong to the groups in turn; None is the identity."""
    if second is None:
        return np.asarray(np.square(weight - coded).sum(axis=1))
    groups, width = second.shape[:2]
    lost = (weight - coded).reshape(groups, -1, width)
    return np.asarray(np.einsum("gmk,gmk->gm", lost @ second, lost).reshape(-1))


def k_means(numbers: Array, weight: Array, values: int) -> Array:
    """(values,) ascending numbers with the least Σ weight · (number - next of them)².

    The optimum for up to 256 distinct numbers, by dynamic programming (Wang & Song 2011, "Ckmeans.1d.dp"); beyond, that
    of bins of about equal count, improved by Lloyd's steps. Where there are fewer distinct numbers than `values`, the last
    one is repeated.

    Args:
        numbers: (N,), at least one.
        weight: (N,) not negative.
        values: how many.
    """
    total = float(weight.sum())
    weight = weight + 1e-6 * total / len(weight) if total > 0 else np.ones(len(weight))
    distinct, place = np.unique(numbers.astype(np.float64), return_inverse=True)
    mass = np.bincount(place, weight)
    if len(distinct) <= values:
        return np.pad(distinct, (0, values - len(distinct)), mode="edge")
    moment = mass * distinct
    if len(distinct) > _BINS:
        starts = np.unique(np.arange(_BINS) * len(distinct) // _BINS)
        bins = np.add.reduceat(mass, starts), np.add.reduceat(moment, starts)
    else:
        bins = mass, moment
    centres = _best_cut(*bins, values)
    for _ in range(_LLOYD if len(distinct) > _BINS else 0):
        edges = np.searchsorted(distinct, (centres[1:] + centres[:-1]) / 2)
        starts = np.concatenate([[0], edges])
        starts = starts[np.diff(np.append(starts, len(distinct))) > 0]
        new = np.add.reduceat(moment, starts) / np.add.reduceat(mass, starts)
        if len(new) == len(centres) and np.array_equal(new, centres):
            break
        centres = new
    return np.pad(centres, (0, values - len(centres)), mode="edge")


def _best_cut(mass: Array, moment: Array, values: int) -> Array:
    """Centres of the best `values` stretches of sorted points, from their masses and first moments: (B,) each.

    A stretch costs its sum of squares less (Σ moment)² / Σ mass; the first term is the same for all cuts.
    """
    count = len(mass)
    masses, moments = (np.concatenate([[0.0], np.cumsum(array)]) for array in (mass, moment))
    middle = moments[-1] / masses[-1]
    moments = moments - middle * masses  # about the mean, for the sake of rounding
    width = masses[None, :] - masses[:, None]
    gain = np.divide((moments[None, :] - moments[:, None]) ** 2, width, out=np.zeros_like(width), where=width > 0)
    gain[np.tril_indices(count + 1)] = -np.inf  # stretches i..j-1 hold at least one point
    best = gain[0].copy()
    cuts = []
    for _ in range(values - 1):
        options = best[:, None] + gain
        cuts.append(np.argmax(options, axis=0))
        best = options[cuts[-1], np.arange(count + 1)]
    edges = [count]
    for cut in reversed(cuts):
        edges.append(int(cut[edges[-1]]))
    edges.append(0)
    bounds = np.array(edges[::-1])
    return np.asarray(np.diff(moments[bounds]) / np.diff(masses[bounds]) + middle)


def codebooks(weight: Array, second: Array | None, values: int, *, shared: bool) -> Array:
    """(M, values) codebooks of the rows of `weight` (M, K), or one (1, values) that all share, by `k_means`.

    Args:
        weight: (M, K).
        second: (G, K, K); None is the identity.
        values: V.
        shared: whether there is one for all.
    """
    if second is None:
        importance: Array = np.ones(weight.shape)
    else:
        importance = np.repeat(np.einsum("gkk->gk", second), len(weight) // len(second), axis=0)
    if shared:
        return k_means(weight.reshape(-1), np.reshape(importance, -1), values)[None]
    return np.stack([k_means(row, own, values) for row, own in zip(weight, importance, strict=True)])


def share(
    weight: Array, second: Array | None, start: Array, pattern: Array | None = None, rounds: int = ROUNDS
) -> Coded:
    """Weights of small harm (1) whose numbers come from codebooks.

    Args:
        weight: (M, K).
        second: (G, K, K) symmetric and positive definite; rows belong to the groups in turn. None is the identity.
        start: (N, P) parameters to start from; N is M, or 1 for one codebook that all rows share.
        pattern: (V, P); None is the identity, free codebooks.
        rounds: choices and refits at most.
    """
    pattern = np.eye(start.shape[1]) if pattern is None else np.asarray(pattern, np.float64)
    best = _chosen(weight, second, start, pattern)
    least = harm(weight, best.weight, second)
    for number in range(rounds):
        fitted = refit(best, weight, second)
        if number + 1 < rounds:
            fitted = _chosen(weight, second, fitted.parameters, pattern, fitted)
        now = harm(weight, fitted.weight, second)
        if not now.sum() < least.sum() * (1 - 1e-6):
            break
        best, least = fitted, now
    return best


def refit(coded: Coded, weight: Array, second: Array | None) -> Coded:
    """The parameters of least harm (1) for the same choice of entries.

    Parameters that nothing depends on stay what they are.
    """
    width, count = weight.shape[1], coded.parameters.shape[1]
    rows = len(weight) // (1 if second is None else len(second))
    normal, right = np.zeros((len(weight), count, count)), np.zeros((len(weight), count))
    step = max(1, _CHUNK // (count * width))
    for first in range(0, len(weight), rows):
        for start in range(first, first + rows, step):
            part = slice(start, min(start + step, first + rows))
            parts = coded.pattern[coded.choice[part]].swapaxes(1, 2)  # (m, P, K): ŵ = parameters · parts
            moved = parts if second is None else parts @ second[first // rows]
            normal[part] = moved @ parts.swapaxes(1, 2)
            right[part] = np.einsum("mpk,mk->mp", moved, weight[part])
    if len(coded.parameters) == 1:
        normal, right = normal.sum(axis=0, keepdims=True), right.sum(axis=0, keepdims=True)
    diagonal = np.einsum("npp->np", normal)
    mean = diagonal.mean(axis=1, keepdims=True)
    ridge = 1e-9 * np.where(mean > 0, mean, 1.0)
    normal[:, np.arange(count), np.arange(count)] += ridge
    parameters = np.linalg.solve(normal, (right + ridge * coded.parameters)[..., None])[..., 0]
    return Coded(parameters, coded.pattern, coded.choice)


def _chosen(
    weight: Array, second: Array | None, parameters: Array, pattern: Array, before: Coded | None = None
) -> Coded:
    """Entries chosen with error feedback; in rows where `before`, of the same parameters, is better, its own."""
    books = parameters @ pattern.T
    order = np.argsort(books, axis=1, kind="stable")
    ordered = np.take_along_axis(books, order, axis=1)
    per_row = np.broadcast_to(ordered, (len(weight), ordered.shape[1]))
    edges = (per_row[:, 1:] + per_row[:, :-1]) / 2

    def place(x: Array) -> Array:
        """Places of the entries next to (M,) numbers, one per row."""
        return np.asarray(np.count_nonzero(x[:, None] > edges, axis=-1))

    def nearest(x: Array) -> Array:
        flat = x.reshape(-1)
        return np.take_along_axis(per_row, place(flat)[:, None], axis=-1).reshape(x.shape)

    taken = weight if second is None else feedback_choose(weight, second, nearest)
    # places are found again from the numbers: rounded to float32 or not, an entry is nearest to itself
    places = np.stack([place(taken[:, j]) for j in range(weight.shape[1])], axis=-1)
    choice = np.take_along_axis(np.broadcast_to(order, (len(weight), order.shape[1])), places, axis=1)
    found = Coded(parameters, pattern, choice)
    if before is None:
        return found
    worse = harm(weight, found.weight, second) > harm(weight, before.weight, second)
    return Coded(parameters, pattern, np.where(worse[:, None], before.choice, choice))
