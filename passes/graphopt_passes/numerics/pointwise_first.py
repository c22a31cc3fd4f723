"""Decoupling with the pointwise layer first: every output's filters as a sum of T products (Guo et al. 2018, section 3).

    M'[o, (c, p)] = Σ_t  P[o, t, c] D[o, t, p]          1 x 1 convolution to T O channels, then depthwise k x k, summed

For one output o this is a rank-T approximation of the C x P matrix of its filters in the metric of the patches'
covariance S. The start is the singular value decomposition whitened by a Kronecker product near S; then, in turn, P given D by
conjugate gradients (T C unknowns per output) and D given P exactly (T P unknowns).
"""

from __future__ import annotations

import functools

import numpy as np

from graphopt_passes.numerics.quadratic import Array, Quadratic, root, solve_positive

_STEPS = 12


class PointwiseFirst:
    """All fits of one layer."""

    def __init__(self, quadratic: Quadratic, channels: int) -> None:
        """Of a layer with inputs ordered (`channels`, P)."""
        self.quadratic = quadratic
        self.channels = channels
        self.pixels = quadratic.target.shape[1] // channels
        self.outputs = quadratic.target.shape[0]

    @property
    def most(self) -> int:
        """The T from which on every map is reached exactly."""
        return int(min(self.pixels, self.channels))

    def fit(self, count: int, *, rounds: int = 1) -> tuple[Array, Array]:
        """P: (O, T, C) and D: (O, T, pixels) for T = `count`."""
        left, values, right = self._decomposed
        pointwise = left[:, :count] * values[:, :count, None]
        depthwise = right[:, :count]
        for _ in range(0 if count >= self.most or self.quadratic.gram is None else rounds):
            pointwise = self._pointwise(depthwise, pointwise)
            depthwise = self._depthwise(pointwise)
        return pointwise, depthwise

    def composed(self, pointwise: Array, depthwise: Array) -> Array:
        """M': (O, K)."""
        return np.asarray(np.matmul(pointwise.transpose(0, 2, 1), depthwise).reshape(self.outputs, -1))

    @functools.cached_property
    def _decomposed(self) -> tuple[Array, Array, Array]:
        """(O, n, C), (O, n), (O, n, P) with n = most: whitened decompositions, in the original coordinates."""
        if self.quadratic.gram is None:
            plain = self.quadratic.target.reshape(self.outputs, self.channels, self.pixels)
            left, values, right = np.linalg.svd(plain, full_matrices=False)
            return left.transpose(0, 2, 1), values, right
        across, within = root(self._across), root(self._within)
        filters = self.quadratic.target.reshape(self.outputs, self.channels, self.pixels)
        left, values, right = np.linalg.svd(across.T @ filters @ within, full_matrices=False)
        return (
            np.linalg.solve(across.T, left).transpose(0, 2, 1),
            values,
            np.linalg.solve(within.T, right.transpose(0, 2, 1)).transpose(0, 2, 1),
        )

    @functools.cached_property
    def _across(self) -> Array:
        """(C, C): the covariance of channels, the mean over the pixels."""
        return np.asarray(np.einsum("cpdp->cd", self._gram) / self.pixels)

    @functools.cached_property
    def _within(self) -> Array:
        """(P, P): the covariance of pixels, the mean over the channels."""
        return np.asarray(np.einsum("cpcq->pq", self._gram) / self.channels)

    @functools.cached_property
    def _across_inverse(self) -> Array:
        return _inverse(self._across)

    @property
    def _gram(self) -> Array:
        assert self.quadratic.gram is not None
        return self.quadratic.gram.reshape(self.channels, self.pixels, self.channels, self.pixels)

    @property
    def _cross(self) -> Array:
        return self.quadratic.cross.reshape(self.outputs, self.channels, self.pixels)

    def _pointwise(self, depthwise: Array, start: Array) -> Array:
        """A better P for D: preconditioned conjugate gradients, every output with steps of its own."""

        def apply(pointwise: Array) -> Array:
            spread = self.quadratic.weighted(self.composed(pointwise, depthwise)).reshape(
                -1, self.channels, self.pixels
            )
            return np.asarray(np.matmul(depthwise, spread.transpose(0, 2, 1)))

        def per_output(one: Array, other: Array) -> Array:
            return np.asarray(np.einsum("otc,otc->o", one, other)[:, None, None])

        left = _inverse(np.matmul(depthwise @ self._within, depthwise.transpose(0, 2, 1)))
        result = start
        residual = np.matmul(depthwise, self._cross.transpose(0, 2, 1)) - apply(result)
        scaled = left @ residual @ self._across_inverse
        direction, energy = scaled, per_output(residual, scaled)
        for _ in range(_STEPS):
            along = apply(direction)
            curvature = per_output(direction, along)
            step = np.divide(energy, curvature, out=np.zeros_like(energy), where=curvature > 0)
            result = result + step * direction
            residual = residual - step * along
            scaled = left @ residual @ self._across_inverse
            following = per_output(residual, scaled)
            direction = scaled + np.divide(following, energy, out=np.zeros_like(energy), where=energy > 0) * direction
            energy = following
        return result

    def _depthwise(self, pointwise: Array) -> Array:
        """The best D for P."""
        outputs, count, _ = pointwise.shape
        gram = self._gram.transpose(0, 2, 1, 3).reshape(self.channels, -1)  # (c, d p q)
        result = np.empty((outputs, count, self.pixels))
        right = np.einsum("otc,ocp->otp", pointwise, self._cross, optimize=True).reshape(outputs, -1, 1)
        for index in range(outputs):
            through = (pointwise[index] @ gram).reshape(count, self.channels, -1)
            system = np.matmul(pointwise[index], through)  # (t, u, p q)
            size = count * self.pixels
            system = system.reshape(count, count, self.pixels, self.pixels).transpose(0, 2, 1, 3).reshape(size, size)
            result[index] = solve_positive(system, right[index]).reshape(count, self.pixels)
        return result


def _inverse(matrices: Array) -> Array:
    return solve_positive(matrices, np.broadcast_to(np.eye(matrices.shape[-1]), matrices.shape))
