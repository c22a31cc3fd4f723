"""Extents asked for in the shortest way.

Exporters ask for one extent at a time (Shape, Gather, Unsqueeze) and put them together again (Concat). A vector whose
elements are extents of one tensor is a single node behind that tensor's shape:

    Unsqueeze(Gather(Shape(x), 2), 0)              Gather(Shape(x), [2])
    Concat(x's extent 0, x's extent 2, 12)         Concat(Gather(Shape(x), [0, 2]), 12)

and from opset 15 on, where the extents are neighbours, no Gather is needed:

    Shape(x), Slice or Gather                      Shape<start, end>(x)

There the extents are also asked of the first graph input that has them, which makes equal questions the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analysis import facts
from graphopt_passes.lossless import parameters
from graphopt_passes.lossless.partial_values import PartialValues
from graphopt_passes.rewriting import Done, Outcome, Rule, Site

_BOUNDS_SINCE = 15


class Question(NamedTuple):
    """The extents of `value` along `axes`, as a vector; `shape` is the Shape that asks for all of them, if there is one."""

    value: ir.Value
    axes: tuple[int, ...]
    shape: ir.Node | None


class Questions:
    """Which vectors are extents of a tensor."""

    def __init__(self, values: PartialValues) -> None:
        self._values = values

    def asked(self, vector: ir.Value | None, site: Site) -> Question | None:
        """What `vector` asks for, where it is made of a Shape in the ways that exporters use."""
        node = site.producer(vector, "Shape", "Gather", "Slice", "Unsqueeze", "Reshape")
        if node is None:
            return None
        if node.op_type == "Shape":
            return self._all(node, site)
        if node.op_type in ("Unsqueeze", "Reshape"):
            dims = self._values.dims(node.outputs[0], site)
            return self.scalar(node.inputs[0], site) if dims == (1,) else None
        question = self.asked(node.inputs[0], site)
        if question is None:
            return None
        chosen = self._chosen(node, question.axes, site)
        return None if chosen is None else question._replace(axes=chosen)

    def scalar(self, value: ir.Value | None, site: Site) -> Question | None:
        """What a scalar asks for: one extent."""
        node = site.producer(value, "Gather", "Squeeze")
        question = None if node is None else self.asked(node.inputs[0], site)
        if node is None or question is None:
            return None
        if node.op_type == "Squeeze":
            return question if len(question.axes) == 1 else None
        index = site.array(node.inputs[1])
        if index is None or index.ndim or not -len(question.axes) <= index < len(question.axes):
            return None
        return question._replace(axes=(question.axes[int(index)],))

    def canonical(self, question: Question, site: Site) -> Question:
        """The same question, asked of the first graph input that can answer it."""
        dims = self._values.dims(question.value, site)
        if dims is None or site.opset < _BOUNDS_SINCE or not all(isinstance(dims[axis], str) for axis in question.axes):
            return question
        wanted = [dims[axis] for axis in question.axes]
        for graph_input in site.model.graph.inputs:
            known = self._values.dims(graph_input, site)
            if known is not None and set(wanted) <= set(known):
                return Question(graph_input, tuple(known.index(dim) for dim in wanted), None)
        return question

    def single(self, vector: ir.Value, parts: Sequence[Question | None], site: Site) -> Question | None:
        """The one question that gives all elements of `vector`, numbers among them, asked of what `parts` are asked of."""
        elements = self._values.elements(vector, site)
        if elements is None or None in elements or all(isinstance(element, int) for element in elements):
            return None
        wanted = tuple(elements)
        for part in parts:
            dims = None if part is None else self._values.dims(part.value, site)
            for first in range(len(dims or ()) - len(wanted) + 1):
                if part is not None and dims is not None and dims[first : first + len(wanted)] == wanted:
                    return Question(part.value, tuple(range(first, first + len(wanted))), None)
        return None

    def _all(self, shape: ir.Node, site: Site) -> Question | None:
        source = shape.inputs[0]
        dims = self._values.dims(source, site)
        if source is None or dims is None:
            return None
        bounds = slice(shape.attributes.get_int("start", 0), shape.attributes.get_int("end", len(dims)))
        axes = tuple(range(len(dims))[bounds])
        return Question(source, axes, shape if len(axes) == len(dims) else None)

    def _chosen(self, node: ir.Node, axes: Sequence[int], site: Site) -> tuple[int, ...] | None:
        """Those of `axes` that a Gather or Slice takes."""
        if node.op_type == "Gather":
            index = site.array(node.inputs[1])
            if index is None or index.ndim != 1 or not all(-len(axes) <= i < len(axes) for i in index):
                return None
            return tuple(axes[int(i)] for i in index)
        bounds = [parameters.integers(site, node, name) for name in ("starts", "ends")]
        steps = parameters.integers(site, node, "steps", (1,))
        if None in bounds or steps is None or steps[0] <= 0 or any(len(b or ()) != 1 for b in bounds):
            return None
        (start,), (end,) = (bound or () for bound in bounds)
        return tuple(axes[start : end : steps[0]])


class AskDirectly(Rule):
    """Shape, and nodes that choose among the extents -> one node that asks for these."""

    roots: ClassVar = frozenset({"Gather", "Slice", "Unsqueeze", "Reshape"})

    def __init__(self, values: PartialValues) -> None:
        self._questions = Questions(values)

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Ask for what `node` chooses."""
        output = node.outputs[0]
        if not output.uses():
            return None
        question = self._questions.asked(output, site)
        if question is None:
            return None
        question = self._questions.canonical(question, site)
        if not _bounded(question, site) and node.op_type not in ("Unsqueeze", "Reshape"):
            return None  # a choice among all extents already
        asked = _ask(question, node, site)
        return Done("asks for the extents directly", (*asked, *site.replace(node, asked[-1].outputs[0])))


class AskOnce(Rule):
    """Concat of extents of the same tensor -> one vector for all neighbours among them."""

    roots: ClassVar = frozenset({"Concat"})

    def __init__(self, values: PartialValues) -> None:
        self._questions = Questions(values)

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Join the questions of neighbouring inputs."""
        questions = [self._questions.asked(read, site) for read in node.inputs]
        single = self._questions.single(node.outputs[0], questions, site)
        if single is not None and _bounded(single, site):
            made = _ask(single, node, site)
            return Done("asks for extents once", (*made, *site.replace(node, made[-1].outputs[0])))
        joined: list[tuple[Question | None, list[ir.Value | None]]] = []
        for question, read in zip(questions, node.inputs, strict=True):
            last = joined[-1][0] if joined else None
            if question is not None and last is not None and last.value is question.value:
                shape = last.shape or question.shape
                joined[-1] = (Question(last.value, last.axes + question.axes, shape), [*joined[-1][1], read])
            else:
                joined.append((question, [read]))
        return None if len(joined) == len(questions) else self._rewritten(node, joined, site)

    def _rewritten(
        self, node: ir.Node, joined: Sequence[tuple[Question | None, list[ir.Value | None]]], site: Site
    ) -> Outcome:
        made: list[ir.Node] = []
        inputs: list[ir.Value | None] = []
        for question, reads in joined:
            if question is None or len(reads) == 1:
                inputs += reads
                continue
            made += _ask(question, node, site)
            inputs.append(made[-1].outputs[0])
        if len(inputs) > 1:
            site.set_inputs(node, inputs)
            return Done("asks for extents once", (*made, node))
        return Done("asks for extents once", (*made, *site.replace(node, made[-1].outputs[0])))


def _bounded(question: Question, site: Site) -> bool:
    """Whether one Shape with bounds answers."""
    first = question.axes[0] if question.axes else 0
    neighbours = question.axes == tuple(range(first, first + len(question.axes)))
    return bool(question.axes) and neighbours and site.opset >= _BOUNDS_SINCE


def _ask(question: Question, before: ir.Node, site: Site) -> list[ir.Node]:
    """New nodes before `before`, of which the last answers `question`."""
    like = before.outputs[0]
    if _bounded(question, site):
        bounds = {"start": question.axes[0], "end": question.axes[-1] + 1}
        made = [site.new_node("Shape", [question.value], like, before, bounds)]
    else:
        made = [] if question.shape is not None else [site.new_node("Shape", [question.value], like, before)]
        for shape in made:
            shape.outputs[0].shape = None  # as many elements as the value has axes
        shape = question.shape or made[0]
        index = site.new_constant(np.array(question.axes, np.int64), f"{like.name}_axes", before)
        made.append(site.new_node("Gather", [shape.outputs[0], index], like, before))
    made[-1].outputs[0].shape = facts.shape_of((len(question.axes),))
    return made
