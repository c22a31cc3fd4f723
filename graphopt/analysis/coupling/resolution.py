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

BRANCHING = 2
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
    current = joined.current()
    for items in _clusters(_items(found, tensors, current), current):
        for reason, way in _Search(current, items, produced).run():
            joined.tie(way.ties)
            for ids in way.pins:
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
    """One way to satisfy an item: labels that go together, labels that stay."""

    ties: tuple[tuple[Ids, Ids], ...]
    pins: tuple[Ids, ...] = ()

    def named(self, names: np.ndarray) -> _Way:
        """The same about `names` of labels."""
        return _Way(tuple((names[a], names[b]) for a, b in self.ties), tuple(names[ids] for ids in self.pins))

    def holds(self) -> bool:
        """Whether it is so already."""
        return all(np.array_equal(a, b) for a, b in self.ties) and not any(ids.any() for ids in self.pins)


@dataclasses.dataclass(frozen=True)
class _Item:
    """A tensor that must be rectangular (`ids`), or a choice that a rule stated (`stated`).

    Attributes:
        reason: why labels stay, where a way says that they do.
    """

    reason: str
    ids: Ids | None
    stated: tuple[_Way, ...] = ()

    def atoms(self) -> Ids:
        """All that it is about."""
        if self.ids is not None:
            return self.ids.ravel()
        arrays = [array for way in self.stated for array in (*(end for tie in way.ties for end in tie), *way.pins)]
        return np.concatenate([array.ravel() for array in arrays])

    def named(self, names: np.ndarray) -> _Item:
        """The same about `names` of labels."""
        ids = None if self.ids is None else names[self.ids]
        return _Item(self.reason, ids, tuple(way.named(names) for way in self.stated))

    def choices(self, names: np.ndarray) -> Sequence[int]:
        """The ways that there are where labels have `names`; none where the item is satisfied."""
        if self.ids is None:
            satisfied = any(way.named(names).holds() for way in self.stated)
            return () if satisfied else range(len(self.stated))
        axes = varying(names[self.ids])
        return axes if len(axes) > 1 else ()

    def way(self, choice: int) -> _Way:
        """One of the ways: of a tensor, to unite everything that stands at the same place along an axis."""
        if self.ids is None:
            return self.stated[choice]
        first = self.ids
        for other in range(first.ndim):
            if other != choice:
                first = first.take([0], other)
        return _Way((_flat(self.ids, first),))


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
class _State:
    """What was chosen so far, by item, and the name that each component of the cluster has under it."""

    chosen: tuple[tuple[int, int], ...]
    names: np.ndarray


class _Search:
    """The best way through the items of one cluster.

    Components of the cluster are numbered from 1 on; names of components that are united are equal, and 0 where these
    stay.
    """

    def __init__(self, current: np.ndarray, items: Sequence[_Item], produced: Ids) -> None:
        atoms = np.unique(np.concatenate([item.atoms() for item in items]))
        components = np.unique(np.concatenate([[FIXED], current[atoms]]))
        local = np.zeros(len(current), np.int32)
        local[atoms] = np.searchsorted(components, current[atoms])
        self._items = items
        self._local = [item.named(local) for item in items]
        self._wanted = np.isin(components, current[produced])
        self._count = len(components)

    def run(self) -> list[tuple[str, _Way]]:
        """Satisfy all items: the ways that were chosen, each with its reason."""
        state = self._from(_State((), np.arange(self._count)), 0, 0)
        return [(self._items[item].reason, self._items[item].way(choice)) for item, choice in state.chosen]

    def _from(self, state: _State, position: int, depth: int) -> _State:
        while True:
            choices: Sequence[int] = ()
            while position < len(self._items) and not choices:
                choices = self._local[position].choices(state.names)
                position += not choices
            if not choices:
                return state
            following = [self._with(state, position, choice) for choice in choices]
            if depth < BRANCHING:
                following = [self._from(step, position, depth + 1) for step in following]
                return max(following, key=self._units)
            state = max(following, key=self._units)

    def _with(self, state: _State, item: int, choice: int) -> _State:
        way = self._local[item].way(choice).named(state.names)
        ends = [*way.ties, *((ids, np.zeros_like(ids)) for ids in way.pins)]
        merged = _connect(self._count, *(np.concatenate([pair[side] for pair in ends]) for side in (0, 1)))
        names = np.where(merged == merged[FIXED], FIXED, merged + 1)[state.names]
        # Names stay numbers of components, so that they can be united again.
        first = np.full(int(names.max()) + 1, self._count)
        np.minimum.at(first, names, np.arange(self._count))
        return _State((*state.chosen, (item, choice)), np.where(names == FIXED, FIXED, first[names]))

    def _units(self, state: _State) -> int:
        """Units with output channels."""
        names = state.names[self._wanted]
        return len(np.unique(names[names != FIXED]))
