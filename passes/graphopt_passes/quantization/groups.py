"""Values that hold the same numbers, or shall share one scale for another reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir


class Groups:
    """Values that share one scale: disjoint sets."""

    def __init__(self) -> None:
        self._parent: dict[ir.Value, ir.Value] = {}

    def add(self, value: ir.Value) -> None:
        """Quantize `value`, for itself so far."""
        self._parent.setdefault(value, value)

    def tie(self, first: ir.Value, second: ir.Value) -> None:
        """Quantize both with one scale."""
        self._parent[self.root(second)] = self.root(first)

    def root(self, value: ir.Value) -> ir.Value:
        """The value that stands for the group."""
        self.add(value)
        while self._parent[value] is not value:
            self._parent[value] = self._parent[self._parent[value]]
            value = self._parent[value]
        return value

    def __contains__(self, value: object) -> bool:
        return value in self._parent

    def __iter__(self) -> Iterator[ir.Value]:
        return iter(self._parent)

    def members(self) -> Mapping[ir.Value, list[ir.Value]]:
        """The groups, each under the value that stands for it."""
        found: dict[ir.Value, list[ir.Value]] = {}
        for value in self._parent:
            found.setdefault(self.root(value), []).append(value)
        return found
