"""The schemes: what a layer may be replaced by, what that costs, and how it is fitted. One row of a table each.

    channel      k x k to r, then 1 x 1; `svd` for products of matrices
    input        1 x 1 to r, then k x k
    spatial      k1 x 1 to r, then 1 x k2          vertical: the first axis of the kernel first
    horizontal   1 x k2 to r, then k1 x 1          counts as `spatial` in options
    tucker       1 x 1 to s, k x k to r, 1 x 1
    depthwise    sum of T: depthwise k x k, then 1 x 1     `decoupling` in options, as is
    pointwise    sum of T: 1 x 1, then depthwise k x k

Amounts are per group of a grouped convolution: the replacement has the same groups.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from graphopt_passes.factorization.sites import Site
from graphopt_passes.numerics.pointwise_first import PointwiseFirst
from graphopt_passes.numerics.quadratic import Array, Quadratic
from graphopt_passes.numerics.two_stage import Stages, TwoStage

Amount = tuple[int, ...]
"""Ranks, (r,) or (s, r) for tucker; number of branches (T,) for decoupling."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One convolution or product of a replacement.

    Attributes:
        weight: (G, O/G, C/G, k1..kn) for convolutions, (1, O, C) for products.
        axes: spatial axes of the replaced kernel that this part has; the others are 1 wide, with stride 1 and no pads.
        depthwise: whether each of its channels is a group.
    """

    weight: Array
    axes: tuple[int, ...] = ()
    depthwise: bool = False


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Branches that are added up, each a chain of parts, and the one dense map (G, O, K) that they amount to."""

    branches: tuple[tuple[Part, ...], ...]
    dense: Array


class Fits:
    """All fits of one layer: a group's decompositions are made once and serve every amount."""

    def __init__(self, site: Site, quadratics: Sequence[Quadratic], *, rounds: int = 1) -> None:
        """Fit to `quadratics`, one per group; `rounds` of alternation each."""
        self.site = site
        self.quadratics = tuple(quadratics)
        self.rounds = rounds

    def fit(self, scheme: str, amount: Amount, warm: Fitted | None = None, rounds: int | None = None) -> Fitted:
        """The replacement by `scheme`, the best of `amount` that `rounds` of alternation find.

        `warm` is where they start instead of a decomposition.
        """
        return SCHEMES[scheme].fit(self, scheme, amount, warm, self.rounds if rounds is None else rounds)

    def error(self, dense: Array) -> float:
        """Squared error of the outputs over their energy, all groups together."""
        energy = sum(quadratic.energy for quadratic in self.quadratics)
        if energy <= 0:
            return 0.0
        errors = [
            quadratic.error(one) * quadratic.energy for quadratic, one in zip(self.quadratics, dense, strict=True)
        ]
        return sum(errors) / energy

    def ranks(self) -> dict[str, int]:
        """The rank that every low-rank scheme with one rank needs to be exact, where that is not the most it may need."""
        found = {}
        for scheme in ("channel", "input", "spatial", "horizontal"):
            if SCHEMES[scheme].applies(self.site):
                rank = max(problem.rank() for problem in self.stages(scheme))
                if 0 < rank < SCHEMES[scheme].most(self.site)[0]:
                    found[scheme] = rank
        return found

    @functools.cache  # noqa: B019 - lives as long as the layer is fitted
    def stages(self, scheme: str) -> tuple[TwoStage, ...]:
        """The two-stage problems of a scheme, one per group."""
        last = len(self.site.kernel)
        every = tuple(range(last + 1))
        mixed = {
            "channel": every,
            "input": (0,),
            "tucker": (0,),
            "spatial": (0, 1),
            "horizontal": (0, last),
            "depthwise": every[1:],
        }[scheme]
        shared = scheme != "depthwise"
        return tuple(TwoStage(one, self.site.axes, mixed, shared=shared) for one in self.quadratics)

    @functools.cached_property
    def pointwise_first(self) -> tuple[PointwiseFirst, ...]:
        """The pointwise-first problems, one per group."""
        return tuple(PointwiseFirst(one, self.site.channels) for one in self.quadratics)


Fit: TypeAlias = Callable[[Fits, str, Amount, "Fitted | None", int], Fitted]
"""(fits, scheme, amount, what to start from, rounds) -> the replacement."""


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One scheme.

    Attributes:
        option: what it is called in options.
        applies: whether a layer has what it takes apart.
        most: the amount that reaches every map exactly.
        shapes: of all parts.
        fit: makes the replacement.
    """

    option: str
    applies: Callable[[Site], bool]
    most: Callable[[Site], Amount]
    shapes: Callable[[Site, Amount], Shapes]
    fit: Fit


def _kernel_of(site: Site, axes: Sequence[int]) -> int:
    return int(np.prod([site.kernel[axis] for axis in axes], dtype=int))


def _first_axis(site: Site) -> tuple[int, ...]:
    return (0,)


def _last_axis(site: Site) -> tuple[int, ...]:
    return (len(site.kernel) - 1,)


def _others(site: Site, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(axis for axis in range(len(site.kernel)) if axis not in axes)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of one part, which its costs follow from.

    Attributes:
        outputs: channels over all groups.
        inputs: channels over all groups.
        groups: of channels.
        pixels: elements of the kernel.
        before: input positions, for the batch.
        after: output positions, for the batch.
        transposed: whether it is a ConvTranspose.
    """

    outputs: int
    inputs: int
    groups: int
    pixels: int
    before: int
    after: int
    transposed: bool = False

    @property
    def weights(self) -> int:
        """Elements of the weight."""
        return self.outputs * self.inputs // self.groups * self.pixels

    @property
    def macs(self) -> int:
        """Multiply-accumulates for the batch."""
        return self.weights * (self.before if self.transposed else self.after)


Shapes = tuple[Shape, ...]


def layer_shape(site: Site) -> Shape:
    """The layer as it is."""
    groups = site.groups
    before = site.positions_between(())
    outputs, inputs = groups * site.outputs, groups * site.channels
    return Shape(outputs, inputs, groups, site.pixels, before, site.positions, site.transposed)


def _part(site: Site, outputs: int, inputs: int, groups: int, pixels: int, before: int, after: int) -> Shape:
    """The shape of a part, which is a ConvTranspose where the layer is one and the part is wider than a pixel."""
    return Shape(outputs, inputs, groups, pixels, before, after, site.transposed and (pixels > 1 or before != after))


def _pair(site: Site, rank: int, axes: Sequence[int]) -> Shapes:
    """A first part that has the kernel's `axes`, and a second that has the others."""
    groups, between = site.groups, site.positions_between(tuple(axes))
    inside, outside = _kernel_of(site, axes), _kernel_of(site, _others(site, axes))
    return (
        _part(site, groups * rank, groups * site.channels, groups, inside, site.positions_between(()), between),
        _part(site, groups * site.outputs, groups * rank, groups, outside, between, site.positions),
    )


def _tucker(site: Site, amount: Amount) -> Shapes:
    groups, before, after = site.groups, site.positions_between(()), site.positions
    inner, rank = (groups * one for one in amount)
    return (
        _part(site, inner, groups * site.channels, groups, 1, before, before),
        _part(site, rank, inner, groups, site.pixels, before, after),
        _part(site, groups * site.outputs, rank, groups, 1, after, after),
    )


def _decoupled(site: Site, branches: int, *, pointwise: bool) -> Shapes:
    groups, before, after = site.groups, site.positions_between(()), site.positions
    inputs, outputs = groups * site.channels, groups * site.outputs
    if pointwise:
        branch = (
            _part(site, outputs, inputs, groups, 1, before, before),
            _part(site, outputs, outputs, outputs, site.pixels, before, after),
        )
    else:
        branch = (
            _part(site, inputs, inputs, inputs, site.pixels, before, after),
            _part(site, outputs, inputs, groups, 1, after, after),
        )
    return branch * branches


def _fit_stages(fits: Fits, scheme: str, amount: Amount, warm: Fitted | None, rounds: int) -> Fitted:
    """Any scheme of two stages, or three."""
    site, problems = fits.site, fits.stages(scheme)
    inner = amount[1] if scheme == "tucker" else None
    found = [
        problem.fit(
            amount[0], rounds=rounds, inner=inner, start=None if warm is None else _first_of(warm, scheme, index)
        )
        for index, problem in enumerate(problems)
    ]
    dense = np.stack([problem.composed(stages) for problem, stages in zip(problems, found, strict=True)])
    branches = _depthwise_branches(site, found) if scheme == "depthwise" else (_chain(site, scheme, found),)
    return Fitted(branches, dense)


def _first_of(warm: Fitted, scheme: str, group: int) -> Array:
    """V of a fitted replacement, to start from."""
    if scheme != "depthwise":
        weight = warm.branches[0][0].weight[group]
        return np.asarray(weight.reshape(1, weight.shape[0], -1))
    kernels = np.stack([branch[0].weight for branch in warm.branches])  # (T, G C, 1, 1, k..)
    groups = warm.dense.shape[0]
    kernels = kernels.reshape(kernels.shape[0], groups, kernels.shape[1] // groups, -1)
    return np.asarray(kernels[:, group].transpose(1, 0, 2))


def _chain(site: Site, scheme: str, found: Sequence[Stages]) -> tuple[Part, ...]:
    first = np.stack([stages.first[0] for stages in found])  # (G, Q, A)
    second = np.stack([stages.second for stages in found])  # (G, O, Q, S)
    groups, rank = first.shape[:2]
    everything = tuple(range(len(site.kernel)))
    axes = {"channel": everything, "spatial": _first_axis(site), "horizontal": _last_axis(site)}.get(scheme, ())
    rest = _others(site, axes)
    parts = [
        Part(first.reshape(groups, rank, site.channels, *_extents(site, axes)), axes),
        Part(second.reshape(groups, second.shape[1], rank, *_extents(site, rest)), rest),
    ]
    if found[0].third is not None:
        third = np.stack([stages.third for stages in found if stages.third is not None])
        parts.append(Part(third.reshape(*third.shape, *_extents(site, ()))))
    return tuple(parts)


def _extents(site: Site, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(extent if axis in axes else 1 for axis, extent in enumerate(site.kernel))


def _depthwise_branches(site: Site, found: Sequence[Stages]) -> tuple[tuple[Part, ...], ...]:
    everything = tuple(range(len(site.kernel)))
    kernels = np.stack([stages.first for stages in found])  # (G, C, T, P)
    dense = np.stack([stages.second for stages in found])  # (G, O, T, C)
    branches = []
    for index in range(kernels.shape[2]):
        thin = kernels[:, :, index].reshape(-1, 1, 1, *site.kernel)
        point = dense[:, :, index].reshape(*dense.shape[:2], site.channels, *_extents(site, ()))
        branches.append((Part(thin, everything, depthwise=True), Part(point)))
    return tuple(branches)


def _fit_pointwise_first(fits: Fits, scheme: str, amount: Amount, warm: Fitted | None, rounds: int) -> Fitted:
    site, everything = fits.site, tuple(range(len(fits.site.kernel)))
    found = [problem.fit(amount[0], rounds=rounds) for problem in fits.pointwise_first]
    dense = np.stack([problem.composed(*one) for problem, one in zip(fits.pointwise_first, found, strict=True)])
    branches = []
    for index in range(amount[0]):
        point = np.stack([pointwise[:, index] for pointwise, _ in found])  # (G, O, C)
        thin = np.stack([depthwise[:, index] for _, depthwise in found])  # (G, O, P)
        branches.append(
            (
                Part(point.reshape(*point.shape, *_extents(site, ()))),
                Part(thin.reshape(-1, 1, 1, *site.kernel), everything, depthwise=True),
            )
        )
    return Fitted(tuple(branches), dense)


def _has_window(site: Site) -> bool:
    return site.pixels > 1 and min(site.channels, site.outputs) > 1


def _has_two_axes(site: Site) -> bool:
    return sum(extent > 1 for extent in site.kernel) > 1 and len(site.kernel) > 1


def _table() -> Iterator[tuple[str, Scheme]]:
    def every(site: Site) -> tuple[int, ...]:
        return tuple(range(len(site.kernel)))

    def separable(axes: Callable[[Site], tuple[int, ...]]) -> Scheme:
        def most(site: Site) -> Amount:
            inside, outside = _kernel_of(site, axes(site)), _kernel_of(site, _others(site, axes(site)))
            return (min(site.channels * inside, site.outputs * outside),)

        return Scheme(
            "spatial", _has_two_axes, most, lambda site, amount: _pair(site, amount[0], axes(site)), _fit_stages
        )

    def decoupled(fit: Fit, *, pointwise: bool) -> Scheme:
        def most(site: Site) -> Amount:
            return (min(site.pixels, site.channels if pointwise else site.outputs),)

        return Scheme(
            "decoupling", _has_window, most, lambda site, amount: _decoupled(site, amount[0], pointwise=pointwise), fit
        )

    yield (
        "channel",
        Scheme(
            "channel",
            lambda site: site.outputs > 1,
            lambda site: (min(site.outputs, site.layer.width),),
            lambda site, amount: _pair(site, amount[0], every(site)),
            _fit_stages,
        ),
    )
    yield (
        "input",
        Scheme(
            "input",
            _has_window,
            lambda site: (min(site.channels, site.outputs * site.pixels),),
            lambda site, amount: _pair(site, amount[0], ()),
            _fit_stages,
        ),
    )
    yield "spatial", separable(_first_axis)
    yield "horizontal", separable(_last_axis)
    yield (
        "tucker",
        Scheme(
            "tucker",
            _has_window,
            lambda site: (min(site.channels, site.outputs * site.pixels), min(site.outputs, site.layer.width)),
            _tucker,
            _fit_stages,
        ),
    )
    yield "depthwise", decoupled(_fit_stages, pointwise=False)
    yield "pointwise", decoupled(_fit_pointwise_first, pointwise=True)


SCHEMES: Mapping[str, Scheme] = MappingProxyType(dict(_table()))
