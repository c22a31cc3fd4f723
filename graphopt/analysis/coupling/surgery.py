"""Removing units: every tensor that holds some of their channels shrinks, and everything that states its extents.

Constants are cut along the axes that their labels name (`cutting`), attributes are derived again by the rules of the
operator table, and numbers from shape arithmetic are brought in line with the new extents (`numbers`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.analysis import annotate, dims
from graphopt.analysis.coupling.binding import Bound, bindings
from graphopt.analysis.coupling.cutting import Cutter
from graphopt.analysis.coupling.following import key
from graphopt.analysis.coupling.numbers import Numbers, set_integers
from graphopt.analysis.coupling.structure import Coupling, Unit
from graphopt.ir import walk
from graphopt.ops import base
from graphopt.ops.labels import FIXED, Ids, Labels, Opaque


def remove(model: ir.Model, coupling: Coupling, units: Collection[Unit]) -> set[ir.Node]:
    """Take `units` out of `model`, in place.

    Args:
        model: the one that was analysed, or a clone of it.
        coupling: of that model; it is worthless for the result.
        units: any of those in `coupling`.

    Returns:
        The nodes that were made or changed.

    Raises:
        ValueError: a tensor would lose its last channel. Nothing was changed.
    """
    if not units:
        return set()
    kept = Kept(coupling, units)
    kept.check()
    changed = [node for node in model.graph if kept.concerns(node)]
    numbers = Numbers(model, coupling.following.labels)
    bound = Bound(model, next(bindings(model)))
    for node in changed:
        try:
            base.operator(node).shrink(node, _Change(node, kept, numbers, bound))
        except Opaque as opaque:
            raise ValueError(f"{walk.label(node)}: {opaque}") from opaque
    cutter = Cutter(model)
    for node in changed:
        for index in range(len(node.inputs)):
            masks = kept.cuts(node, index)
            if masks:
                cutter.want(node, index, masks)
    cutter.make()
    for node in changed:
        for value in node.outputs:
            _write_shape(value, kept)
    return {*changed, *cutter.touched, *numbers.write()}


class Kept:
    """What stays of every tensor once units are gone."""

    def __init__(self, coupling: Coupling, units: Collection[Unit]) -> None:
        self._following = coupling.following
        gone = np.zeros(int(coupling.component.max()) + 1, bool)
        gone[[unit.component for unit in units]] = True
        gone[FIXED] = False
        self._gone = gone[coupling.component]
        self._affected: dict[int, bool] = {}

    def check(self) -> None:
        """Raise ValueError where nothing would stay of a tensor."""
        for name, labels in self._following.labels.items():
            if self._is_affected(labels.ids) and labels.ids.size and self._gone[labels.ids].all():
                raise ValueError(f"all channels of '{name}' would go")

    def _is_affected(self, ids: Ids) -> bool:
        known = self._affected.get(id(ids))
        if known is None:
            known = self._affected[id(ids)] = bool(self._gone[ids].any())
        return known

    def changes(self, value: ir.Value | None) -> bool:
        """Whether a tensor shrinks."""
        labels = None if value is None else self._following.labels.get(value.name or "")
        return labels is not None and self._is_affected(labels.ids)

    def concerns(self, node: ir.Node) -> bool:
        """Whether an input, an output or a constant of `node` shrinks."""
        if any(map(self.changes, node.inputs)) or any(map(self.changes, node.outputs)):
            return True
        return any(self.cuts(node, index) for index in range(len(node.inputs)))

    def cuts(self, node: ir.Node, index: int) -> dict[int, np.ndarray]:
        """Which positions of a constant stay, for each axis that loses some."""
        axes: Mapping[int, Ids] = self._following.cuts.get((key(node), index), {})
        masks = {axis: (~self._gone[ids]).reshape(-1, ids.shape[-1]).any(axis=0) for axis, ids in axes.items()}
        return {axis: mask for axis, mask in masks.items() if not mask.all()}

    def labels(self, value: ir.Value | None) -> Labels | None:
        """The labels of a tensor that is no constant."""
        return None if value is None else self._following.labels.get(value.name or "")

    def positions(self, value: ir.Value, axis: int) -> np.ndarray:
        """Which positions of a tensor stay along an axis, (extent,) truth values. Raises Opaque where extents are unknown."""
        labels = self.labels(value)
        if labels is None:
            raise Opaque(f"the extents of '{value.name}' are not known")
        others = tuple(other for other in range(labels.rank) if other != axis)
        stays = (~self._gone[labels.ids]).any(axis=others)
        return np.broadcast_to(stays, (labels.dims[axis],))


def _write_shape(value: ir.Value, kept: Kept) -> None:
    labels = kept.labels(value)
    if value.shape is None or labels is None or not kept.changes(value):
        return
    extents: list[dims.Dim] = []
    for axis, dim in enumerate(value.shape):
        stays = kept.positions(value, axis)
        new = int(stays.sum()) if isinstance(dim, int) else None  # inference finds out what became of a symbol
        extents.append(dims.from_ir(dim) if stays.all() else new)
    annotate.set_shape(value, tuple(extents))


class _Change:
    """The `Change` of one node."""

    def __init__(self, node: ir.Node, kept: Kept, numbers: Numbers, bound: Bound) -> None:
        self._node = node
        self._kept = kept
        self._numbers = numbers
        self._bound = bound

    def _input(self, index: int) -> ir.Value:
        value = base.input_at(self._node, index)
        if value is None:
            raise Opaque(f"there is no input {index}")
        return value

    def before(self, index: int) -> tuple[int, ...]:
        dims_ = self._bound.dims(self._input(index))
        if dims_ is None:
            raise Opaque(f"the extents of input {index} are not known")
        return dims_

    def kept(self, index: int, axis: int) -> np.ndarray:
        value = self._input(index)
        if self._kept.labels(value) is None:  # a constant
            masks = self._kept.cuts(self._node, index)
            return masks.get(axis, np.ones(self.before(index)[axis], bool))
        return self._kept.positions(value, axis)

    def output_kept(self, index: int, axis: int) -> np.ndarray:
        return self._kept.positions(self._node.outputs[index], axis)

    def output_rank(self, index: int = 0) -> int:
        labels = self._kept.labels(self._node.outputs[index])
        if labels is None:
            raise Opaque(f"the extents of output {index} are not known")
        return labels.rank

    def numbers(self, index: int) -> np.ndarray:
        value = self._input(index)
        found = self._bound.numbers(value)
        if found is None:
            tensor = walk.constant_tensor(value)
            if tensor is None:
                raise Opaque(f"input {index} is not known")
            found = tensor.numpy()
        return found

    def symbolic(self, index: int) -> np.ndarray:
        return self._numbers.symbolic(self._input(index))

    def set_numbers(self, index: int, numbers: Mapping[int, int] | np.ndarray) -> None:
        self._numbers.expect(self._node, index, numbers)
        if index >= len(self._node.inputs):
            self._node.attributes.pop("num_outputs", None)

    def set_attribute(self, name: str, value: int | Sequence[int]) -> None:
        set_integers(self._node, name, value)
