"""From ties and choices to units: which labels are one, and which stay.

Labels that are tied are one *component*. Removing a component must leave every tensor rectangular, which is certain
where labels differ along one axis only. Where they differ along two (heads and their width, groups and theirs), all
positions along one of them must be united; which one is tried for the whole set of components that are connected by
such tensors, each time with everything that follows, and the way that leaves most to remove is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from graphopt.analysis.coupling.following import Following
from graphopt.ops.labels import FIXED, Ids

BRANCHING = 3
"""Choices within one set of which all combinations are tried; further ones are taken one after the other."""

WHOLE = "goes only as a whole"
RAGGED = "a tensor would not stay rectangular"


@dataclasses.dataclass(frozen=True)
class Resolution:
    """What became of the labels.

    Attributes:
        component: the component of each atom (atoms,); 0 for those that stay.
        reason: why they stay, by atom; only atoms that do are in it.
    """

    component: np.ndarray
    reason: dict[int, str]


def resolve(found: Following) -> Resolution:
    """Decide all choices of `found`."""
    joined = _Components(found.atoms)
    joined.tie(found.ties)
    for ids, reason in found.pins:
        joined.pin(ids, reason)
    produced = np.unique(np.concatenate([np.zeros(0, np.int64), *(ids.ravel() for ids in found.produced.values())]))
    tensors = _distinct(found)
    for items in _clusters(_items(found, tensors, joined.current()), joined.current()):
        decided = _Search(joined.current(), items, produced).run()
        joined.tie(decided.ties)
        for ids, reason in decided.pins:
            joined.pin(ids, reason)
    _settle(joined, tensors)
    return Resolution(joined.current(), joined.reasons())


class _Components:
    """Components of atoms, kept up to date as ties and pins come in."""

    def __init__(self, atoms: int) -> None:
        self._labels = np.arange(atoms)
        self._why: dict[int, str] = {}  # by atom
        self._pinned = np.zeros(atoms, bool)
        self._pinned[FIXED] = True
        self._current: np.ndarray | None = None

    def tie(self, pairs: Iterable[tuple[Ids, Ids]]) -> None:
        """Labels at the same place go together."""
        pairs = list(pairs)
        if not pairs:
            return
        a = self._labels[np.concatenate([a for a, _ in pairs])]
        b = self._labels[np.concatenate([b for _, b in pairs])]
        self._labels = _connect(len(self._labels), a, b)[self._labels]
        self._current = None

    def pin(self, ids: Ids, reason: str) -> None:
        """Labels that stay; the first reason counts."""
        for atom in np.unique(ids).tolist():
            self._why.setdefault(atom, reason)
        self._pinned[ids.ravel()] = True
        self._current = None

    def current(self) -> np.ndarray:
        """The component of each atom (atoms,); 0 for those that stay."""
        if self._current is None:
            stays = np.zeros(self._labels.max() + 1, bool)
            stays[self._labels[self._pinned]] = True
            self._current = np.where(stays[self._labels], FIXED, self._labels + 1)
        return self._current

    def reasons(self) -> dict[int, str]:
        """Why atoms stay: for their own reason, or that of one that they are tied to."""
        first: dict[int, str] = {}
        for atom, reason in self._why.items():
            first.setdefault(int(self._labels[atom]), reason)
        stays = np.flatnonzero(self.current() == FIXED).tolist()
        return {atom: self._why.get(atom) or first.get(int(self._labels[atom]), WHOLE) for atom in stays if atom}


def _connect(count: int, a: Ids, b: Ids) -> np.ndarray:
    """Components of a graph of `count` nodes with edges from `a` to `b`."""
    edges = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    labels: np.ndarray = connected_components(edges, directed=False)[1]
    return labels


def _distinct(found: Following) -> list[Ids]:
    """The label arrays of all tensors, each once."""
    return list({id(labels.ids): labels.ids for labels in found.labels.values()}.values())


def _settle(joined: _Components, tensors: Sequence[Ids]) -> None:
    """Pin what would leave a tensor ragged or empty, until nothing of that kind is left."""
    while True:
        current, before = joined.current(), joined.current()
        for ids in tensors:
            labels = current[ids]
            first = labels.flat[0] if labels.size else FIXED
            if first != FIXED and (labels == first).all():
                joined.pin(ids, WHOLE)
            elif ids.ndim - ids.shape.count(1) > 1 and len(varying(labels)) > 1:
                joined.pin(ids, RAGGED)
        if np.array_equal(joined.current(), before):
            return


def varying(labels: np.ndarray) -> list[int]:
    """The axes along which `labels` differ."""
    return [
        axis
        for axis, extent in enumerate(labels.shape)
        if extent > 1 and not np.array_equal(np.broadcast_to(labels.take([0], axis), labels.shape), labels)
    ]


# --- Choices --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Way:
    """One way to satisfy an item."""

    ties: tuple[tuple[Ids, Ids], ...]
    pins: tuple[Ids, ...] = ()

    def holds(self, labels: np.ndarray) -> bool:
        """Whether it is so already."""
        return all(np.array_equal(labels[a], labels[b]) for a, b in self.ties) and not any(
            labels[ids].any() for ids in self.pins
        )


class _Item:
    """A tensor that must be rectangular, or a choice that a rule stated."""

    def __init__(self, reason: str, ids: Ids | None, ways: tuple[_Way, ...] = ()) -> None:
        self.reason = reason
        self._ids = ids
        self._ways = ways

    def atoms(self) -> Ids:
        """All that it is about."""
        if self._ids is not None:
            return self._ids.ravel()
        arrays = [array for way in self._ways for array in (*(end for tie in way.ties for end in tie), *way.pins)]
        return np.concatenate([array.ravel() for array in arrays])

    def ways(self, labels: np.ndarray) -> Sequence[_Way]:
        """The ways to satisfy it; none where it is satisfied."""
        if self._ids is None:
            return () if any(way.holds(labels) for way in self._ways) else self._ways
        axes = varying(labels[self._ids])
        if len(axes) < 2:
            return ()
        return [_unite_all_but(self._ids, axis) for axis in axes]


def _unite_all_but(ids: Ids, axis: int) -> _Way:
    first = ids
    for other in range(ids.ndim):
        if other != axis:
            first = first.take([0], other)
    return _Way((_flat(ids, first),))


def _flat(a: Ids, b: Ids) -> tuple[Ids, Ids]:
    a, b = np.broadcast_arrays(a, b)
    return a.ravel(), b.ravel()


def _items(found: Following, tensors: Sequence[Ids], current: np.ndarray) -> list[_Item]:
    items = [
        _Item(RAGGED, ids) for ids in tensors if ids.ndim - ids.shape.count(1) > 1 and len(varying(current[ids])) > 1
    ]
    for reason, options in found.choices:
        ways = tuple(
            _Way(tuple(_flat(a, b) for a, b in option.ties), tuple(ids.ravel() for ids in option.pins))
            for option in options
        )
        items.append(_Item(reason, None, ways))
    return items


def _clusters(items: Sequence[_Item], current: np.ndarray) -> list[list[_Item]]:
    """Items that have components in common, directly or by others."""
    if not items:
        return []
    owners, components = [], []
    for number, item in enumerate(items):
        touched = np.unique(current[item.atoms()])
        touched = touched[touched != FIXED]
        owners.append(np.full(len(touched), number))
        components.append(touched + len(items))
    labels = _connect(len(items) + int(current.max()) + 1, np.concatenate(owners), np.concatenate(components))
    clusters: dict[int, list[_Item]] = {}
    for number, item in enumerate(items):
        clusters.setdefault(int(labels[number]), []).append(item)
    return list(clusters.values())


@dataclasses.dataclass(frozen=True)
class _Decided:
    """What was chosen so far, and how many units with output channels that leaves."""

    units: int
    ties: tuple[tuple[Ids, Ids], ...] = ()
    pins: tuple[tuple[Ids, str], ...] = ()


class _Search:
    """The best way through the items of one cluster."""

    def __init__(self, current: np.ndarray, items: Sequence[_Item], produced: Ids) -> None:
        atoms = np.unique(np.concatenate([np.zeros(1, np.int64), *(item.atoms() for item in items)]))
        components, local = np.unique(current[atoms], return_inverse=True)
        self._items = items
        self._current = current
        self._components = components if components[0] == FIXED else np.concatenate([[FIXED], components])
        self._local = local if components[0] == FIXED else local + 1
        self._atoms = atoms
        self._wanted = np.isin(self._components, current[produced])

    def run(self) -> _Decided:
        """Satisfy all items."""
        return self._from(_Decided(0), 0, 0)

    def _from(self, decided: _Decided, position: int, depth: int) -> _Decided:
        while True:
            labels = self._labels(decided)
            ways: Sequence[_Way] = ()
            while position < len(self._items) and not ways:
                ways = self._items[position].ways(labels)
                position += not ways
            if not ways:
                return dataclasses.replace(decided, units=self._units(labels))
            following = [self._with(decided, way, self._items[position].reason) for way in ways]
            if depth < BRANCHING:
                ends = [self._from(step, position, depth + 1) for step in following]
                return max(ends, key=lambda end: end.units)
            decided = max(following, key=lambda step: self._units(self._labels(step)))

    def _with(self, decided: _Decided, way: _Way, reason: str) -> _Decided:
        pins = tuple((ids, reason) for ids in way.pins)
        return dataclasses.replace(decided, ties=decided.ties + way.ties, pins=decided.pins + pins)

    def _compact(self, atoms: Ids) -> np.ndarray:
        return self._local[np.searchsorted(self._atoms, atoms)]

    def _labels(self, decided: _Decided) -> np.ndarray:
        """The label of each atom, as far as this cluster knows it, under what was chosen."""
        count = len(self._components)
        a = [self._compact(a) for a, _ in decided.ties] + [self._compact(ids) for ids, _ in decided.pins]
        b = [self._compact(b) for _, b in decided.ties] + [np.zeros(len(ids), np.int64) for ids, _ in decided.pins]
        empty = np.zeros(0, np.int64)
        merged = _connect(count, np.concatenate([empty, *a]), np.concatenate([empty, *b]))
        merged = np.where(merged == merged[FIXED], FIXED, merged + 1)
        labels = np.zeros(len(self._current), np.int64)
        labels[self._atoms] = merged[self._local]
        return labels

    def _units(self, labels: np.ndarray) -> int:
        """Units with output channels."""
        compact = np.zeros(len(self._components), np.int64)
        compact[self._local] = labels[self._atoms]
        return len(np.unique(compact[self._wanted & (compact != FIXED)]))
