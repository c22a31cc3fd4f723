"""Linear layers as two thin ones: structured features, then a dense map. One algorithm for most factorizations.

The K inputs of a layer are laid out as (A, S): the first stage mixes along A and carries S along,

    F[(q, s), (a, s)] = V[q, a]          one V for all s      (`shared`)
    F[(q, s), (a, s)] = V[s, q, a]       a V for every s      (not `shared`)

and the second maps the Q S features to the outputs: M' = W F. On patches (c, i, j) of a convolution:

    channel     A = (c, i, j)   S = ()       Q filters k_h x k_w, then 1 x 1
    input       A = c           S = (i, j)   1 x 1, then k_h x k_w
    spatial     A = (c, i)      S = j        k_h x 1, then 1 x k_w       (or A = (c, j), S = i the other way round)
    decoupling  A = (i, j)      S = c        Q depthwise kernels per channel, then 1 x 1   (not shared)

Minimized is the `Quadratic` E(M'). A singular value decomposition whitened by the A-blocks of the covariance starts V,
for all Q at once; W given V is a regression, solved exactly; V given W is a linear system, solved by conjugate gradients
preconditioned by Kronecker factors; both alternate. With a bound on the rank of W (`inner`) a third stage 1 x 1 comes
out, which makes Tucker-2 of `input` (Kim et al. 2016): reduced-rank regression, exact given V.

Sources: Jaderberg et al. 2014 (spatial), Zhang et al. 2015 (channel, whitening), Kim et al. 2016 (Tucker-2), Guo et al.
2018 (decoupling).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from graphopt_passes.numerics.quadratic import Array, Quadratic, root, solve_positive

_MOST_WORK = 2e9
"""Multiply-adds of one step of alternation above which the start is the fit."""


@dataclasses.dataclass(frozen=True)
class Stages:
    """A fitted pair of stages.

    Attributes:
        first: V, (1, Q, A) where it is shared and (S, Q, A) where it is not.
        second: W, (O, Q, S).
        third: (O, inner) where W is third times an (inner, Q, S) `second`; else None.
    """

    first: Array
    second: Array
    third: Array | None = None

    @property
    def whole(self) -> Array:
        """W: (O, Q, S), all behind the first stage."""
        return self.second if self.third is None else np.einsum("or,rqs->oqs", self.third, self.second)


class TwoStage:
    """All fits of one layer in one layout."""

    def __init__(
        self, quadratic: Quadratic, kernel: Sequence[int], mixed: Sequence[int], *, shared: bool = True
    ) -> None:
        """The layout.

        Args:
            quadratic: of the layer, in the order of its own inputs.
            kernel: extents of the axes of these inputs, (C, k1, ..., kn); their product is K.
            mixed: which of these axes make up A; the others make up S, both in ascending order.
            shared: whether one V serves all s.
        """
        extents = tuple(kernel)
        inside = sorted(mixed)
        outside = [axis for axis in range(len(extents)) if axis not in inside]
        order = np.arange(quadratic.target.shape[1]).reshape(extents).transpose([*outside, *inside]).reshape(-1)
        self.mix = int(np.prod([extents[axis] for axis in inside], dtype=int))
        self.carried = order.size // self.mix
        self.shared = shared
        self._back = np.argsort(order)  # inputs are (S, A) in here, so that blocks of equal s lie on the diagonal
        self.quadratic = quadratic.reordered(order)

    @property
    def most(self) -> int:
        """The Q from which on every map is reached exactly."""
        outputs = self.quadratic.target.shape[0]
        return min(self.mix, int(outputs) * (self.carried if self.shared else 1))

    def start(self, count: int) -> Array:
        """V for Q = `count` by whitened singular value decomposition, best where inputs of different s are uncorrelated."""
        return self._decomposed[1][:, :count]

    def rank(self, tolerance: float = 1e-6) -> int:
        """The Q that reaches the target exactly: singular values above `tolerance` of the largest, most of all s."""
        values = self._decomposed[0]
        return int((values > tolerance * max(float(values.max(initial=0)), 1e-300)).sum(axis=-1).max(initial=0))

    def fit(
        self, count: int, *, rounds: int = 1, steps: int = 12, inner: int | None = None, start: Array | None = None
    ) -> Stages:
        """The stages for Q = `count`.

        Args:
            count: Q.
            rounds: alternations after the start; 0 is the start with the best W for it.
            steps: of conjugate gradients on V in each.
            inner: bound on the rank of W.
            start: V to start from instead of `start(count)`.
        """
        first = self.start(count) if start is None else start
        outputs = self.quadratic.target.shape[0]
        if first.shape[1] >= self.most and start is None and (inner is None or inner >= outputs):
            return self._exact(first, None if inner is None else np.eye(outputs))
        whole, third = self._second(first, inner)
        if start is None and (self.carried == 1 or self.quadratic.gram is None):
            rounds = 0  # the decomposition is the optimum already
        if first.shape[1] * float(self.quadratic.target.shape[1]) ** 2 > _MOST_WORK:
            rounds = 0
        for _ in range(rounds):
            first = self._better_first(first, whole, steps)
            whole, third = self._second(first, inner)
        features = first.shape[1]
        if third is None:
            return Stages(first, whole.reshape(outputs, self.carried, features).transpose(0, 2, 1))
        core = (third.T @ whole).reshape(third.shape[1], self.carried, features)
        return Stages(first, core.transpose(0, 2, 1), third)

    def composed(self, stages: Stages) -> Array:
        """M': (O, K), in the order of the layer's own inputs."""
        whole = stages.whole.transpose(2, 0, 1)  # (S, O, Q)
        found: Array = (whole @ stages.first).transpose(1, 0, 2).reshape(whole.shape[1], -1)
        return found[:, self._back]

    @functools.cached_property
    def _blocks(self) -> Array:
        """(S, A, A): the covariance of the inputs of each s; (1, A, A), their mean, where V is shared."""
        if self.quadratic.gram is None:
            return np.broadcast_to(np.eye(self.mix), (1 if self.shared else self.carried, self.mix, self.mix))
        gram = self.quadratic.gram.reshape(self.carried, self.mix, self.carried, self.mix)
        each = gram[np.arange(self.carried), :, np.arange(self.carried), :]
        return each.mean(0, keepdims=True) if self.shared else each

    @functools.cached_property
    def _decomposed(self) -> tuple[Array, Array]:
        """Singular values of the whitened map, (1 or S, most), and right vectors as V: (1 or S, most, A), best first."""
        target = self.quadratic.target.reshape(-1, self.carried, self.mix)
        stacked = target.reshape(1, -1, self.mix) if self.shared else target.transpose(1, 0, 2)
        if self.quadratic.gram is None:
            _, values, right = np.linalg.svd(stacked, full_matrices=False)
            return values, right
        roots = root(self._blocks)
        # not by eigenvectors of a Gram matrix, which would lose half of the digits
        _, values, right = np.linalg.svd(stacked @ roots, full_matrices=False)
        # rows of V are covectors: V = right L^-1
        basis = np.linalg.solve(np.swapaxes(roots, -1, -2), np.swapaxes(right, -1, -2))
        return values, np.ascontiguousarray(np.swapaxes(basis, -1, -2))

    def _exact(self, first: Array, third: Array | None) -> Stages:
        """The stages for a V that every map can be written with, free of the metric and its condition."""
        target = self.quadratic.target.reshape(-1, self.carried, self.mix).transpose(1, 0, 2)
        return Stages(first, (target @ np.linalg.pinv(first)).transpose(1, 2, 0), third)

    def _features(self, first: Array) -> Array:
        """F S: (S, Q, K)."""
        assert self.quadratic.gram is not None
        gram = self.quadratic.gram.reshape(self.carried, self.mix, -1)
        if self.shared:
            return np.asarray(np.matmul(first[0], gram))
        return np.asarray(np.matmul(first, gram))

    def _second(self, first: Array, inner: int | None) -> tuple[Array, Array | None]:
        """The best W as (O, S Q), and the basis (O, inner) of its columns where their rank is bounded."""
        if self.quadratic.gram is None:
            return self._bounded(*self._orthonormal(first), inner)
        count = first.shape[1]
        spread = self._features(first)  # (S, Q, K)
        through = spread.reshape(self.carried, count, self.carried, self.mix)
        covariance = np.einsum(
            "sqta,tpa->sqtp", through, np.broadcast_to(first, (self.carried, *first.shape[1:])), optimize=True
        )
        covariance = covariance.reshape(self.carried * count, -1)
        cross = spread.reshape(-1, spread.shape[-1]) @ self.quadratic.target.T  # (S Q, O)
        whole: Array = solve_positive((covariance + covariance.T) / 2, cross).T
        return self._bounded(whole, cross, inner)

    def _orthonormal(self, first: Array) -> tuple[Array, Array]:
        """W and the cross term (S Q, O) without a metric, where the rows of V are orthonormal, as decompositions leave them."""
        target = self.quadratic.target.reshape(-1, self.carried, self.mix).transpose(1, 0, 2)
        whole = np.matmul(target, first.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(target.shape[1], -1)
        return whole, whole.T

    def _bounded(self, whole: Array, cross: Array, inner: int | None) -> tuple[Array, Array | None]:
        if inner is None:
            return whole, None
        explained = whole @ cross  # (O, O) = W Cov Wᵀ
        _, vectors = np.linalg.eigh((explained + explained.T) / 2)
        third = vectors[:, ::-1][:, :inner]
        return third @ (third.T @ whole), third

    def _better_first(self, first: Array, whole: Array, steps: int) -> Array:
        """V after `steps` of preconditioned conjugate gradients on the normal equations, W = `whole` fixed."""
        count, carried = first.shape[1], self.carried
        normal = whole.T @ whole  # (S Q, S Q)
        pull = self._restricted((whole.T @ self.quadratic.cross).reshape(carried, count, carried, self.mix))
        blocks = normal.reshape(carried, count, carried, count)[np.arange(carried), :, np.arange(carried), :]
        left = blocks.sum(0, keepdims=True) if self.shared else blocks
        preconditioner = (_inverse(left), _inverse(self._blocks))

        def apply(vector: Array) -> Array:
            spread = self._features(vector).reshape(carried * count, carried, self.mix)
            by_block = spread.transpose(1, 0, 2)  # (S', S Q, A)
            rows = normal.reshape(carried, count, carried * count)
            each: Array = np.matmul(rows, by_block)  # (S', Q, A): only equal s is asked for
            return each.sum(0, keepdims=True) if self.shared else each

        return _conjugate_gradients(apply, pull, first, preconditioner, steps)

    def _restricted(self, gradient: Array) -> Array:
        """The part of a gradient (S, Q, S, A) with respect to F that V can follow."""
        each = gradient[np.arange(self.carried), :, np.arange(self.carried), :]
        return each.sum(0, keepdims=True) if self.shared else each


def _inverse(matrices: Array) -> Array:
    return solve_positive(matrices, np.broadcast_to(np.eye(matrices.shape[-1]), matrices.shape))


def _conjugate_gradients(
    apply: Callable[[Array], Array], right: Array, start: Array, preconditioner: tuple[Array, Array], steps: int
) -> Array:
    """x nearer to apply(x) = right; `preconditioner` (left, right) is multiplied from both sides."""
    left, behind = preconditioner
    x = start
    residual = right - apply(x)
    z = left @ residual @ behind
    direction, energy = z, float(np.sum(residual * z))
    first = energy
    for _ in range(steps):
        if not energy > 1e-24 * max(first, 1e-300):
            break
        along = apply(direction)
        curvature = float(np.sum(direction * along))
        if not curvature > 0:
            break
        step = energy / curvature
        x = x + step * direction
        residual = residual - step * along
        z = left @ residual @ behind
        following = float(np.sum(residual * z))
        direction, energy = z + (following / energy) * direction, following
    return x
