"""Carrying out a move: some nodes of a region begin to work in another axis order.

Let p be the order, q its inverse, and *moved* the nodes that begin to work in p. What a moved node makes in p is from
now on v' = T_p(v), under the same name. Then

1. whatever needs v as it was reads T_q(v') in its place, and so does the graph if v is one of its outputs;
2. a moved node reads v' where another moved node makes it, where T_q gave v (it reads what T_q reads), and else from
   a new T_p(v);
3. T_p that wanted v gives way to v' where there is one, and a T_q whose result nobody reads any more goes.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graphopt.analysis.dims import to_ir
from graphopt_passes.lossless.extents import dims
from graphopt_passes.lossless.layout.forms import Form
from graphopt_passes.lossless.layout.region import Region
from graphopt_passes.lossless.merging.base import stand_in
from graphopt_passes.rewriting import Site


class Reordering:
    """One move in a region."""

    def __init__(self, region: Region, moved: Iterable[ir.Node], site: Site) -> None:
        """Prepare to move the nodes `moved` of `region`."""
        self.region = region
        self.order = region.forms.order
        self.moved = dict.fromkeys(moved)
        self.site = site
        self.touched: dict[ir.Node, None] = dict(self.moved)
        self._made = {value: None for node in self.moved if self._form(node).results for value in node.outputs}
        self._reordered: dict[ir.Value, ir.Value] = {}

    def carry_out(self) -> None:
        """Move the nodes."""
        for value in self._made:
            self._restore(value)
        for node in self.moved:
            self._move(node)
        for transpose in self.region.wants:
            read = transpose.inputs[0]
            available = None if read is None else self._available(read)
            if available is not None:
                self.touched.update(dict.fromkeys(stand_in(self.site, transpose, available, "").touched))
        for transpose in self.region.gives:
            self.site.remove_unread(transpose)

    def _form(self, node: ir.Node) -> Form:
        form = self.region.forms.of(node)
        assert form is not None  # a region consists of nodes that have one
        return form

    def _available(self, value: ir.Value) -> ir.Value | None:
        """`value` in the order, where there is such a value."""
        if value in self._made:
            return value
        producer = value.producer()
        if producer is not None and producer in self.region.gives:
            return producer.inputs[0]
        return self._reordered.get(value)

    def _restore(self, value: ir.Value) -> None:
        """Let everything but moved nodes, and Transposes to the order, read `value` as it was."""
        inside: list[tuple[ir.Node, int]] = []
        outside: list[tuple[ir.Node, int]] = []
        for node, index in value.uses():
            carries = node in self.moved and index in self._form(node).carried
            (inside if carries or node in self.region.wants else outside).append((node, index))
        before = dims(value) or ()
        self.region.forms.costs.of(value)  # as long as it has the extents that are declared
        if outside or value.is_graph_output():
            transpose = self._transpose(value, self.order.inverse)
            restored = transpose.outputs[0]
            restored.shape = ir.Shape(map(to_ir, before))
            if value.is_graph_output():
                name = value.name
                self.site.editor.replace(value, restored)
                value.name = self.site.fresh(f"{name}_transposed")
                for node, index in inside:
                    node.replace_input_with(index, value)
                transpose.replace_input_with(0, value)
            else:
                for node, index in outside:
                    node.replace_input_with(index, restored)
            self.touched.update((node, None) for node, _ in outside)
        value.type = None if value.dtype is None else ir.TensorType(value.dtype)
        value.shape = ir.Shape(map(to_ir, self.order.permuted(before)))

    def _move(self, node: ir.Node) -> None:
        """Let `node` work in the order."""
        form, inputs = self._form(node), list(node.inputs)
        for index in form.carried:
            value = inputs[index]
            assert value is not None  # it has a rank
            inputs[index] = self._available(value) or self._reorder(value)
        for index, constant in form.constants.items():
            inputs += [None] * (index + 1 - len(inputs))
            old = inputs[index]
            base = node.outputs[0].name if old is None else old.name
            inputs[index] = self.site.new_constant(constant(), f"{base}_transposed", node)
        self.site.set_inputs(node, inputs)
        node.attributes.update(form.attributes)

    def _reorder(self, value: ir.Value) -> ir.Value:
        """A new Transpose of `value` to the order."""
        reordered = self._transpose(value, self.order.order).outputs[0]
        reordered.shape = ir.Shape(map(to_ir, self.order.permuted(dims(value) or ())))
        self._reordered[value] = reordered
        return reordered

    def _transpose(self, value: ir.Value, order: tuple[int, ...]) -> ir.Node:
        """A new Transpose, which stands right behind what makes `value`."""
        graph, producer = self.site.graph, value.producer()
        after = producer if producer is not None and self.site.graph_of(producer) is not None else None
        node = self.site.new_node("Transpose", [value], value, after or next(iter(graph)), {"perm": order})
        if after is not None:
            graph.remove(node)
            graph.insert_after(after, node)
        self.touched[node] = None
        return node
