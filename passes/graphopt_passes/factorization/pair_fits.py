"""Candidates of pairs of layers that lose dimensions between them together, from second moments of what lies there.

Scores need E[q qᵀ] and E[k kᵀ] per head, values and hidden units the covariance of what the second layer reads. Without
samples the weights that make them stand for both, as if their inputs were uncorrelated and alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.requests import Gram, GramResult
from graphopt_passes.factorization.candidates import Candidate, Search
from graphopt_passes.factorization.pairs import Pair
from graphopt_passes.factorization.schemes import Shape, layer_shape
from graphopt_passes.factorization.sites import Site
from graphopt_passes.factorization.timing import seconds
from graphopt_passes.numerics.head_ranks import Bases, ScoreBases, ValueBases, by_head
from graphopt_passes.numerics.hidden_units import UnitBases
from graphopt_passes.numerics.quadratic import Array, Quadratic
from graphopt_passes.reconstruction.linear import Linear

_GROWTH = 1.1
_SPAN = 16
_RIDGE = 1e-3
"""Over the mean diagonal of the covariance of values."""


class PairFits:
    """Bases for all pairs of a model."""

    def __init__(self, model: ir.Model, pairs: Sequence[Pair], evidence: Evidence | None) -> None:
        """Look at all pairs in one run over the samples."""
        self._means: dict[str, Array] = {}
        self._fits: dict[str, ScoreBases | ValueBases | UnitBases] = {}
        seen = _seen(model, pairs, evidence)
        for pair in pairs:
            self._fits[pair.first.key] = self._scores(pair, seen) if pair.kind == "scores" else self._values(pair, seen)

    def bases(self, pair: Pair, rank: int, rounds: int = 4) -> Bases:
        """The best bases of `rank` dimensions that `rounds` of alternation find."""
        return self._fits[pair.first.key].fit(rank, rounds)

    def replacement(self, pair: Pair, bases: Bases) -> tuple[Array, Array | None]:
        """Weight (1, O, K) and bias (O,) of `pair.judged` that amount to `bases`; None where the bias stays."""
        layer = pair.judged
        weight, bias = layer.weight()[0], layer.bias()
        if pair.kind == "scores":
            per_head = np.swapaxes(bases.dense, 1, 2)
            turned = np.matmul(per_head, weight.reshape(pair.count, pair.size, -1)).reshape(1, *weight.shape)
            return turned, None if bias is None else np.matmul(per_head, bias.reshape(pair.count, -1, 1)).reshape(-1)
        mean = self._means.get(pair.first.key)
        if mean is None or not layer.takes_bias:
            return bases.dense[None], None
        return bases.dense[None], (0 if bias is None else bias) + (weight - bases.dense) @ mean

    def _scores(self, pair: Pair, seen: Mapping[str, GramResult]) -> ScoreBases:
        moments = []
        for layer in (pair.first, pair.second):
            found = seen.get(layer.key)
            if found is None:
                weight = layer.weight()[0]
                moments.append(by_head(weight @ weight.T, pair.count))
                continue
            centred = pair.shifts and layer is pair.second
            moments.append(by_head(_covariance(found) if centred else found.second, pair.count))
        return ScoreBases(*moments)

    def _values(self, pair: Pair, seen: Mapping[str, GramResult]) -> ValueBases | UnitBases:
        found = seen.get(pair.second.data.name or "")
        if found is None and pair.kind == "hidden":
            gram = np.diag(np.square(pair.first.weight()[0]).sum(axis=1))
        elif found is None:
            weight = pair.first.weight()[0]
            gram = np.zeros((len(weight), len(weight)))
            each = gram.reshape(pair.count, pair.size, pair.count, pair.size)
            each[np.arange(pair.count), :, np.arange(pair.count), :] = by_head(weight @ weight.T, pair.count)
        else:
            self._means[pair.first.key] = found.mean
            gram = _covariance(found) if pair.second.takes_bias else found.second
            gram = gram + _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
        quadratic = Quadratic.of(pair.second.weight()[0], gram)
        return UnitBases(quadratic) if pair.kind == "hidden" else ValueBases(quadratic, pair.count)


def _seen(model: ir.Model, pairs: Sequence[Pair], evidence: Evidence | None) -> dict[str, GramResult]:
    if evidence is None or not pairs:
        return {}
    values = [
        value
        for pair in pairs
        for value in ([pair.first.output, pair.second.output] if pair.kind == "scores" else [pair.second.data])
    ]
    requests = [Gram(value.name or "", -1) for value in dict.fromkeys(values)]
    results = evidence.collect(model, requests)
    return {one.value: results[one] for one in requests}


def _covariance(found: GramResult) -> Array:
    return np.asarray(found.second - np.outer(found.mean, found.mean))


def candidates(
    search: Search, pair: Pair, sites: Mapping[str, Site], fits: PairFits
) -> Iterator[tuple[Candidate, Bases]]:
    """Candidates for both layers together, by falling rank; nothing where options fix the rank of layers."""
    if pair.scheme not in search.together or search.fixed:
        return
    keep = [search.keep(sites[layer.key]) for layer in (pair.first, pair.second)]
    for rank in _ranks(pair.size, search.align // math.gcd(search.align, pair.count)):
        shapes = [_narrowed(layer_shape(sites[layer.key]), pair, layer, rank) for layer in (pair.first, pair.second)]
        time = seconds(shapes, search.device, convolution=False)
        if search.faster and time >= sum(one.seconds for one in keep):
            continue
        bases = fits.bases(pair, rank, rounds=1)
        macs, weights = sum(one.macs for one in shapes), sum(one.weights for one in shapes)
        yield Candidate(pair.scheme, (rank,), macs, weights, time, bases.error), bases


def _narrowed(shape: Shape, pair: Pair, layer: Linear, rank: int) -> Shape:
    if pair.kind != "scores" and layer is pair.second:
        return dataclasses.replace(shape, inputs=pair.count * rank)
    return dataclasses.replace(shape, outputs=pair.count * rank)


def _ranks(most: int, unit: int) -> list[int]:
    """Multiples of `unit` below `most`, each by about `_GROWTH` below the one before."""
    found = []
    rank = (most - 1) // unit * unit
    while rank >= max(unit, most / _SPAN):
        found.append(rank)
        rank = min(rank - unit, round(rank / _GROWTH / unit) * unit)
    return found
