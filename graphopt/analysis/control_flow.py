"""Inference through If, Loop, Scan and SequenceMap: what enters a body, and what leaves it.

A body sees the values around it, so it is visited where its node stands. A loop's state keeps its extents only as far
as one iteration leaves them alone; where it does not, the extent is open and the body is visited again, until what
enters the body and what leaves it agree. Symbols invented inside a body stand for something else in every iteration,
so they stay inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.analysis import facts, schemas
from graphopt.analysis.dims import Dim
from graphopt.analysis.facts import UNKNOWN, Fact

if TYPE_CHECKING:
    from graphopt.analysis.inference import Inference, Scope

ROUNDS = 4
"""How often a body is visited until its state's extents must have settled; then only the element types are kept."""

DEEPEST = 4
"""Loops inside loops beyond which a body is visited once only, since visits multiply with the depth."""


def _body(node: ir.Node, name: str) -> ir.Graph | None:
    attribute = node.attributes.get(name)
    return attribute.as_graph() if attribute is not None and attribute.type == ir.AttributeType.GRAPH else None


def _fact(inference: Inference, value: ir.Value | None, scope: Scope) -> Fact:
    return UNKNOWN if value is None else inference.fact(value, scope)


def _opaque(node: ir.Node) -> list[Fact]:
    return [UNKNOWN] * len(node.outputs)


def _if(inference: Inference, node: ir.Node, scope: Scope) -> list[Fact]:
    then, otherwise = _body(node, "then_branch"), _body(node, "else_branch")
    if then is None or otherwise is None or not node.inputs:
        return _opaque(node)
    first = inference.symbols
    branches = (otherwise, then)
    fails = [_fails(inference, branch, scope) for branch in branches]
    condition = _truth(scope.contents.of(node.inputs[0]))
    if condition is None and fails[False] != fails[True]:
        # Exporters guard a branch that only fits some extents; one that cannot run is not taken.
        condition = fails[False]
    inference.decided(branches, condition)
    if condition is not None:
        inference.fails |= fails[condition]
        results = [inference.fact(value, scope) for value in branches[condition].outputs]
    else:
        inference.fails |= all(fails)
        pairs = zip(then.outputs, otherwise.outputs, strict=False)
        results = [facts.common(inference.fact(a, scope), inference.fact(b, scope)) for a, b in pairs]
    return [inference.local_symbols_dropped(fact, first) for fact in results]


def _fails(inference: Inference, body: ir.Graph, scope: Scope) -> bool:
    """Visit `body`; tell whether it cannot run with what enters it."""
    earlier, inference.fails = inference.fails, False
    inference.run_graph(body, scope)
    fails, inference.fails = inference.fails, earlier
    return fails


def _truth(content: np.ndarray | None) -> bool | None:
    """The value of a condition, where it is known."""
    if content is None or content.size != 1:
        return None
    element = content.reshape(-1)[0]
    return None if element is None or isinstance(element, str) else bool(element)


class _Iteration:
    """A body that is run again and again, with state that goes from one iteration to the next.

    Attributes:
        after: what the state is after any number of iterations, none included.
        yielded: what one iteration yields besides its state.
    """

    def __init__(
        self,
        inference: Inference,
        scope: Scope,
        body: ir.Graph,
        leading: Sequence[Fact],
        state: Sequence[Fact],
        elements: Sequence[Fact],
        skipped: int,
    ) -> None:
        first = inference.symbols
        rounds = ROUNDS if scope.loops < DEEPEST else 1
        before = list(state)
        scope.loops += 1
        for visit in range(1, rounds + 1):
            if visit == rounds:
                before = [Fact(fact.type, None) for fact in before]
            for value, given in zip(body.inputs, (*leading, *before, *elements), strict=False):
                inference.enter(value, given, scope)
            inside = [inference.fact(value, scope) for value in body.inputs[len(leading) :]][: len(state)]
            _fails(inference, body, scope)  # which decides nothing: a loop may run no time at all
            leaving = [inference.fact(value, scope) for value in body.outputs][skipped:]
            merged = [facts.common(a, b) for a, b in zip(inside, leaving, strict=False)]
            settled = [inference.local_symbols_dropped(fact, first) for fact in merged]
            if settled == before:
                break
            before = settled
        scope.loops -= 1
        # A state that starts as an optional and goes on as what it holds has the latter's type.
        pairs = zip(settled, leaving, strict=False)
        self.after = [fact if fact.type is not None else Fact(last.type, None) for fact, last in pairs]
        self.yielded = [inference.local_symbols_dropped(fact, first) for fact in leaving[len(state) :]]


def _loop(inference: Inference, node: ir.Node, scope: Scope) -> list[Fact]:
    body = _body(node, "body")
    if body is None or not node.inputs:
        return _opaque(node)
    state = [_fact(inference, value, scope) for value in node.inputs[2:]]
    leading = [facts.tensor(ir.DataType.INT64, ()), facts.tensor(ir.DataType.BOOL, ())]
    iteration = _Iteration(inference, scope, body, leading, state, (), skipped=1)
    trips = _trip_count(node, body, scope)
    return [*iteration.after, *(_stacked(fact, trips, 0) for fact in iteration.yielded)]


def _trip_count(node: ir.Node, body: ir.Graph, scope: Scope) -> Dim:
    """The number of iterations, where neither condition can end the loop before its maximum trip count."""
    limit = scope.contents.of(node.inputs[0])
    if limit is None or limit.size != 1 or not body.outputs or len(body.inputs) < 2:
        return None
    goes_on = body.outputs[0] is body.inputs[1] or _truth(scope.contents.of(body.outputs[0])) is True
    enters = len(node.inputs) < 2 or node.inputs[1] is None or _truth(scope.contents.of(node.inputs[1])) is True
    if not goes_on or not enters:
        return None
    count = limit.reshape(-1)[0]
    return count if count is None or isinstance(count, str) else max(int(count), 0)


def _stacked(fact: Fact, count: Dim, axis: int) -> Fact:
    """What `count` tensors like `fact` are together, along a new axis."""
    if fact.dims is None:
        return fact
    axis = axis + len(fact.dims) + 1 if axis < 0 else axis
    return Fact(fact.type, (*fact.dims[:axis], count, *fact.dims[axis:]))


def _without(fact: Fact, axis: int) -> Fact:
    """`fact` with an axis taken away."""
    if not fact.dims:
        return Fact(fact.type, None)
    axis %= len(fact.dims)
    return Fact(fact.type, fact.dims[:axis] + fact.dims[axis + 1 :])


def _scan(inference: Inference, node: ir.Node, scope: Scope) -> list[Fact]:
    body, count = _body(node, "body"), node.attributes.get("num_scan_inputs")
    if body is None or count is None or count.type != ir.AttributeType.INT:
        return _opaque(node)
    # Opset 8 has a batch axis in front of everything, and the lengths of the sequences as first input.
    batched = (schemas.opset_version(scope.imports, "") or 9) < 9
    given = [_fact(inference, value, scope) for value in (node.inputs[1:] if batched else node.inputs)]
    split = max(len(given) - count.as_int(), 0)
    axes = _ints(node, "scan_input_axes", len(given) - split)
    batch = given[0].dims[0] if batched and given and given[0].dims else None
    if batched:
        given = [_without(fact, 0) for fact in given]
    elements = [_without(fact, axis) for fact, axis in zip(given[split:], axes, strict=False)]
    iteration = _Iteration(inference, scope, body, (), given[:split], elements, skipped=0)
    length = next((fact.dims[axis] for fact, axis in zip(given[split:], axes, strict=False) if fact.dims), None)
    out = _ints(node, "scan_output_axes", len(iteration.yielded))
    stacked = [_stacked(fact, length, axis) for fact, axis in zip(iteration.yielded, out, strict=False)]
    results = [*iteration.after, *stacked]
    return [_stacked(fact, batch, 0) for fact in results] if batched else results


def _ints(node: ir.Node, name: str, count: int) -> Sequence[int]:
    attribute = node.attributes.get(name)
    given = attribute is not None and attribute.type == ir.AttributeType.INTS and not attribute.is_ref()
    return list(attribute.as_ints()) if given and attribute is not None else [0] * count


def _sequence_map(inference: Inference, node: ir.Node, scope: Scope) -> list[Fact]:
    body = _body(node, "body")
    if body is None:
        return _opaque(node)
    elements = [_element(_fact(inference, value, scope)) for value in node.inputs]
    iteration = _Iteration(inference, scope, body, (), (), elements, skipped=0)
    return [fact if fact.type is None else Fact(ir.SequenceType(fact.type), fact.dims) for fact in iteration.yielded]


def _element(fact: Fact) -> Fact:
    """An element of a sequence; a tensor stands for itself."""
    return Fact(fact.type.elem_type, fact.dims) if isinstance(fact.type, ir.SequenceType) else fact


RULES: dict[str, Callable[[Inference, ir.Node, Scope], list[Fact]]] = {
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
    "SequenceMap": _sequence_map,
}
"""The operators of ONNX's own domain that run bodies."""
