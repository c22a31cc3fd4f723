"""Cutting constants: weights, biases and parameters lose positions along some of their axes.

What a node reads is cut in place, under its own name, where all that read it want the same cut; otherwise those that
want another get a copy. Where a weight is computed from a stored constant (Transpose, DequantizeLinear ...), the
constant is cut, and the nodes in between stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.analysis import annotate
from graphopt.analysis.coupling import constants
from graphopt.analysis.coupling.numbers import replace_numbers, set_integers
from graphopt.ir import surgery, walk
from graphopt.ir.spool import Spool
from graphopt.ops import base

Masks = Mapping[int, np.ndarray]
"""By axis, which positions stay (extent,)."""

Use = tuple[ir.Node, int]


class Cutter:
    """The cuts of one graph: gathered first, then made.

    Attributes:
        touched: nodes that read something else than before.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._names = surgery.FreshNames(model)
        self._spool = Spool()
        self._wanted: dict[ir.Value, dict[Use, dict[int, np.ndarray]]] = {}
        self.touched: set[ir.Node] = set()

    def want(self, node: ir.Node, index: int, masks: Masks) -> None:
        """Input `index` of `node`, a constant, is to be cut."""
        value = node.inputs[index]
        if value is not None:
            self._wanted.setdefault(value, {}).setdefault((node, index), {}).update(masks)

    def make(self) -> None:
        """Cut everything, readers before what they read."""
        while self._wanted:
            value = self._last()
            uses = self._wanted.pop(value)
            alike: dict[tuple[tuple[int, bytes], ...], list[Use]] = {}
            for use, masks in uses.items():
                alike.setdefault(_key(masks), []).append(use)
            everywhere = set(uses) == {(use.node, use.idx) for use in value.uses()} and not value.is_graph_output()
            for same in alike.values():
                self._cut(value, same, uses[same[0]], in_place=everywhere and len(alike) == 1)
                self.touched.update(node for node, _ in same)

    def _last(self) -> ir.Value:
        """A value that no other wanted one is computed from."""
        for value in self._wanted:
            if not any(output in self._wanted for output in _computed_from(value)):
                return value
        raise ValueError("constants that are computed from each other")  # a graph has no cycles

    def _cut(self, value: ir.Value, uses: Sequence[Use], masks: Masks, *, in_place: bool) -> None:
        producer = value.producer()
        if constants.is_stored(value):
            self._cut_stored(value, uses, masks, in_place=in_place)
            return
        if producer is None:
            raise ValueError(f"'{value.name}' is no constant")
        if not in_place:
            producer, value = self._copy(producer, value, uses)
        sources = {axis: constants.cuts(value, axis) or {} for axis in masks}
        _shrink_shape(value, masks)
        self.touched.add(producer)
        wanted: dict[int, dict[int, np.ndarray]] = {}
        for axis, mask in masks.items():
            for index, inner in sources[axis].items():
                wanted.setdefault(index, {})[inner] = mask
        base.operator(producer).shrink(producer, _Change(self._model, producer, wanted, masks, self._names))
        for index, inner_masks in wanted.items():
            self.want(producer, index, inner_masks)

    def _cut_stored(self, value: ir.Value, uses: Sequence[Use], masks: Masks, *, in_place: bool) -> None:
        tensor = walk.constant_tensor(value)
        if tensor is None:
            raise ValueError(f"'{value.name}' is no constant")
        cut = self._spool.keep(cut_tensor(tensor, masks))
        if in_place and value.is_initializer():
            cut.name = value.name
            value.const_value = cut
            value.shape = ir.Shape(cut.shape.numpy())
            return
        name = self._names.fresh(f"{value.name}_cut")
        cut.name = name
        new = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(cut.shape.numpy()), const_value=cut)
        self._model.graph.register_initializer(new)
        for node, index in uses:
            node.replace_input_with(index, new)
        surgery.drop_unread([value])

    def _copy(self, producer: ir.Node, value: ir.Value, uses: Iterable[Use]) -> tuple[ir.Node, ir.Value]:
        """A node of its own for some of the readers of `value`."""
        output = ir.Value(name=self._names.fresh(f"{value.name}_cut"), type=value.type, shape=value.shape)
        if output.shape is not None:
            output.shape = output.shape.copy()
        node = ir.Node(
            producer.domain,
            producer.op_type,
            producer.inputs,
            list(producer.attributes.values()),
            outputs=[output],
            name=self._names.fresh(producer.name) if producer.name else "",
            version=producer.version,
        )
        self._model.graph.insert_after(producer, node)
        for reader, index in uses:
            reader.replace_input_with(index, output)
        return node, output


class _Change:
    """The `Change` of a node between a stored constant and its reader."""

    def __init__(
        self, model: ir.Model, node: ir.Node, inputs: Mapping[int, Masks], output: Masks, names: surgery.FreshNames
    ) -> None:
        self._model = model
        self._node = node
        self._inputs = inputs
        self._output = output
        self._names = names

    def before(self, index: int) -> tuple[int, ...]:
        value = self._node.inputs[index]
        return () if value is None or value.shape is None else tuple(value.shape.numpy())

    def kept(self, index: int, axis: int) -> np.ndarray:
        known = self._inputs.get(index, {}).get(axis)
        return np.ones(self.before(index)[axis], bool) if known is None else known

    def output_kept(self, index: int, axis: int) -> np.ndarray:
        return self._output.get(axis, np.ones(1, bool))

    def output_rank(self, index: int = 0) -> int:
        shape = self._node.outputs[index].shape
        return 0 if shape is None else shape.rank()

    def numbers(self, index: int) -> np.ndarray:
        tensor = walk.constant_tensor(self._node.inputs[index])
        if tensor is None:
            raise ValueError(f"{walk.label(self._node)}: input {index} is computed")
        return tensor.numpy()

    def symbolic(self, index: int) -> np.ndarray:
        return np.zeros(self.before(index), bool)

    def set_numbers(self, index: int, numbers: Mapping[int, int] | np.ndarray) -> None:
        new = self.numbers(index).copy() if isinstance(numbers, Mapping) else numbers
        if isinstance(numbers, Mapping):
            for position, number in numbers.items():
                new[position] = number
        replace_numbers(self._model, self._node, index, new, self._names)

    def set_attribute(self, name: str, value: int | Sequence[int]) -> None:
        set_integers(self._node, name, value)


def _computed_from(value: ir.Value) -> Iterable[ir.Value]:
    """What is computed from `value`, directly or not, as long as it may be a constant."""
    pending, seen = [value], {value}
    while pending:
        for node in pending.pop().consumers():
            for output in node.outputs:
                if output not in seen:
                    seen.add(output)
                    pending.append(output)
                    yield output


def _key(masks: Masks) -> tuple[tuple[int, bytes], ...]:
    return tuple((axis, mask.tobytes()) for axis, mask in sorted(masks.items()) if not mask.all())


def _shrink_shape(value: ir.Value, masks: Masks) -> None:
    shape = value.shape
    if shape is not None:
        annotate.set_shape(
            value, tuple(int(masks[a].sum()) if a in masks else dim for a, dim in enumerate(shape.numpy()))
        )


def cut_tensor(tensor: ir.TensorProtocol, masks: Masks) -> ir.TensorProtocol:
    """What stays of a tensor."""
    array = tensor.numpy()
    for axis, mask in masks.items():
        if not mask.all():
            array = np.compress(mask, array, axis=axis)
    return ir.Tensor(np.ascontiguousarray(array), dtype=tensor.dtype)
