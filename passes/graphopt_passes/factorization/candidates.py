"""The candidates of every layer: which amounts of which schemes are tried, and the harm of each.

Fits are made on the original network, cheapest form first: decompositions serve all ranks of a scheme. What another
candidate beats in both cost and error is dropped. The harm of a few of the others, spread over the range of errors, is
measured in the network (`harm`); that of the rest follows by their error, along a line in logarithms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from graphopt.pricing import DeviceProfile
from graphopt_passes.factorization.choice import undominated
from graphopt_passes.factorization.schemes import SCHEMES, Amount, Fits, Fitted, Shapes, layer_shape
from graphopt_passes.factorization.sites import Site
from graphopt_passes.factorization.timing import seconds
from graphopt_passes.numerics.quadratic import Array

_GROWTH = 1.2
"""From one rank that is tried to the next."""
_GRID_GROWTH = 1.4
"""The same for each of the two ranks of tucker."""
_SPAN = 16
"""The highest rank over the lowest that is tried."""
_HOPE = 0.4
"""Share of its error that alternation can be hoped to take from a start."""
_ACCURATE = 1e-9
"""Error of a start that needs no alternation."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to replace a layer, or to keep it (`scheme` "keep").

    Attributes:
        scheme: a key of `SCHEMES`.
        amount: how much of it.
        macs: multiply-accumulates per batch.
        weights: elements of its weights.
        seconds: predicted time for the batch.
        error: squared error of the layer's outputs over their energy.
        harm: of the network's outputs.
    """

    scheme: str
    amount: Amount
    macs: int
    weights: int
    seconds: float = 0.0
    error: float = 0.0
    harm: float = 0.0

    def __str__(self) -> str:
        return f"{self.scheme} {'x'.join(map(str, self.amount))}" if self.amount else self.scheme


@dataclasses.dataclass(frozen=True)
class Search:
    """What is tried.

    Attributes:
        schemes: keys of `SCHEMES`.
        align: ranks are multiples of this, over all groups.
        device: what predicts time.
        faster: whether a candidate must also be predicted to take less time than the layer.
        rank: the only rank tried where it is given, below 1 as a fraction of the highest.
        branches: the only number of branches tried where it is given.
        together: schemes of pairs of layers, as in options.
    """

    schemes: tuple[str, ...]
    align: int
    device: DeviceProfile
    faster: bool = True
    rank: float | None = None
    branches: int | None = None
    together: tuple[str, ...] = ()

    @property
    def fixed(self) -> bool:
        """Whether the options say how much of each scheme."""
        return self.rank is not None or self.branches is not None

    def keep(self, site: Site) -> Candidate:
        """The layer as it is."""
        return self._priced(site, "keep", (), (layer_shape(site),))

    def candidates(self, site: Site, ranks: Mapping[str, int] = MappingProxyType({})) -> list[Candidate]:
        """All candidates that cost less than the layer, not fitted yet.

        Args:
            site: the layer.
            ranks: of the weights by scheme, tried even where they are no multiple of `align`.
        """
        now = self.keep(site)
        found = []
        for scheme in self.schemes:
            rule = SCHEMES[scheme]
            for amount in self._amounts(site, scheme, ranks.get(scheme)):
                one = self._priced(site, scheme, amount, rule.shapes(site, amount))
                cheaper = (
                    one.macs <= now.macs
                    and one.weights <= now.weights
                    and (one.macs, one.weights) != (now.macs, now.weights)
                )
                if cheaper and (one.seconds < now.seconds or not self.faster):
                    found.append(one)
        return found

    def _amounts(self, site: Site, scheme: str, rank: int | None) -> list[Amount]:
        """Amounts of a scheme, whatever they cost."""
        rule = SCHEMES[scheme]
        if not rule.applies(site):
            return []
        most = rule.most(site)
        if rule.option == "decoupling":
            counts = range(1, most[0] + 1) if self.branches is None else [min(self.branches, most[0])]
            return [(count,) for count in counts]
        if self.rank is not None:
            return [tuple(self._exactly(self.rank, one) for one in most)]
        if scheme == "tucker":
            inner = _ranks(most[0], site, self.align, _GRID_GROWTH)
            return [(one, other) for one in inner for other in _ranks(most[1], site, self.align, _GRID_GROWTH)]
        ranks = _ranks(most[0], site, self.align, _GROWTH)
        return [(one,) for one in (ranks if rank is None or rank in ranks else [*ranks, rank])]

    def _exactly(self, rank: float, most: int) -> int:
        """The rank that was asked for, in multiples of `align` where it is a fraction."""
        if rank >= 1:
            return min(round(rank), most)
        return min(most, max(1, round(rank * most / self.align)) * self.align)

    def _priced(self, site: Site, scheme: str, amount: Amount, shapes: Shapes) -> Candidate:
        branches = amount[0] if scheme != "keep" and SCHEMES[scheme].option == "decoupling" else 1
        time = seconds(shapes, self.device, convolution=bool(site.kernel), branches=branches)
        return Candidate(scheme, amount, sum(one.macs for one in shapes), sum(one.weights for one in shapes), time)


def _ranks(most: int, site: Site, align: int, growth: float) -> list[int]:
    """Multiples of `align` over all groups, up to the highest rank, each by about `growth` above the one before."""
    unit = -(-align // site.groups)
    found: list[int] = []
    rank = max(unit, most / _SPAN)
    while rank <= most:
        aligned = round(rank / unit) * unit
        if not found or aligned > found[-1]:
            found.append(aligned)
        rank = max(rank, aligned) * growth if aligned else rank * growth
    return [one for one in found if 0 < one <= most]


def fit_all(fits: Fits, candidates: Sequence[Candidate], bound: float = np.inf) -> list[tuple[Candidate, Fitted]]:
    """Candidates with their fits and errors; those that another beats in error and every cost are left out.

    The least error comes first. Errors above `bound` are left out. The start of every fit costs little; alternation is
    left to those that could still come out best if it took away `_HOPE` of their error.
    """
    starts = [fits.fit(one.scheme, one.amount, rounds=0) for one in candidates]
    errors = np.array([fits.error(start.dense) for start in starts])
    costs = np.array([(one.macs, one.weights, one.seconds) for one in candidates], float).reshape(-1, 3)
    found: list[tuple[Candidate, Fitted]] = []
    for index, (one, start) in enumerate(zip(candidates, starts, strict=True)):
        beaten = (costs <= costs[index]).all(axis=1) & (errors < errors[index] * (1 - _HOPE))
        if beaten.any():
            continue
        fit = start if errors[index] <= _ACCURATE else fits.fit(one.scheme, one.amount)
        error = fits.error(fit.dense)
        if np.isfinite(error) and error <= bound:
            found.append((dataclasses.replace(one, error=error), fit))
    kept_costs = np.array([(one.macs, one.weights, one.seconds) for one, _ in found], float).reshape(-1, 3)
    best = undominated(np.array([one.error for one, _ in found]), kept_costs)
    return sorted((found[index] for index in best), key=lambda pair: pair[0].error)


def probed(candidates: Sequence[Candidate], count: int) -> list[int]:
    """Numbers of at most `count` candidates, sorted by error, whose harm is worth measuring: even steps of log error."""
    logs = np.log(np.maximum([one.error for one in candidates], 1e-9))
    if not len(logs):
        return []
    wanted = np.linspace(logs[0], min(logs[-1], np.log(0.6)), count)
    return sorted({int(np.abs(logs - one).argmin()) for one in wanted})


def interpolated(candidates: Sequence[Candidate], probes: Sequence[int], harms: Sequence[float]) -> list[Candidate]:
    """Candidates with their harm: measured at `probes`, else by log-linear interpolation over the error."""
    if not probes:
        return list(candidates)
    tiny = 1e-12
    known_errors = np.log(np.maximum([candidates[index].error for index in probes], tiny))
    known_harms = np.log(np.maximum(harms, tiny))
    order = np.argsort(known_errors)
    logs = np.log(np.maximum([one.error for one in candidates], tiny))
    harm = _line(logs, known_errors[order], np.maximum.accumulate(known_harms[order]))
    return [dataclasses.replace(one, harm=float(np.exp(value))) for one, value in zip(candidates, harm, strict=True)]


def _line(x: Array, xs: Array, ys: Array) -> Array:
    """Piecewise linear through (xs, ys), beyond both ends with slope 1: harm proportional to error."""
    inside: Array = np.interp(x, xs, ys)
    return np.asarray(inside + np.minimum(x - xs[0], 0) + np.maximum(x - xs[-1], 0))
