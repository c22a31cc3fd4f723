"""The engine of shape inference: what follows for every value from the graph inputs and the constants.

Nodes are visited in order. For each, ONNX's own inference is asked first (`onnx_inference`), arithmetic on symbols
fills in what it leaves open (`symbolic`), operators of other domains are asked of a library (`contrib`), and control
flow and function calls descend into their bodies (`control_flow`). Equal questions are asked once: graphs repeat
themselves, and the answers are kept under everything they depend on. An extent that stays open gets a symbol of its
own, so that two values of the same unknown extent are known to be alike.

Results are kept beside the model (`Inference.fact`); nothing is written to it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.analysis import contrib, control_flow, dims, facts, onnx_inference, schemas, symbolic
from graphopt.analysis.call import Call
from graphopt.analysis.contents import Contents
from graphopt.analysis.dims import Arithmetic, Bindings, Dim, Dims
from graphopt.analysis.facts import UNKNOWN, Fact
from graphopt.ir import walk

DEEPEST = 40
"""Function calls inside function calls; ONNX forbids recursion, and nothing real comes near this."""


class Scope:
    """One activation: the main graph with all its bodies, or one call of a function.

    Attributes:
        facts: what has been found out about values so far.
        attributes: the arguments of a function call that are attributes.
        loops: how many loops the node that is being visited stands in.
    """

    def __init__(
        self,
        inference: Inference,
        imports: Mapping[str, int],
        attributes: Mapping[str, ir.Attr],
        contents: Mapping[ir.Value, np.ndarray | None],
        depth: int,
    ) -> None:
        self.facts: dict[ir.Value, Fact] = {}
        self.imports = imports
        self.attributes = attributes
        self.depth = depth
        self.is_function = depth > 0
        self.loops = 0
        version = schemas.opset_version(imports, "") or 1
        self.contents = Contents(
            lambda value: inference.fact(value, self), self.resolved, version, inference.arithmetic, contents
        )

    def resolved(self, node: ir.Node) -> Mapping[str, ir.Attr]:
        """The attributes of `node`, references to this function's parameters replaced by what they refer to."""
        if not self.is_function or not any(attribute.is_ref() for attribute in node.attributes.values()):
            return node.attributes
        found: dict[str, ir.Attr] = {}
        for name, attribute in node.attributes.items():
            if not attribute.is_ref():
                found[name] = attribute
            elif (given := self.attributes.get(attribute.ref_attr_name or "")) is not None:
                found[name] = ir.Attr(name, given.type, given.value)
        return found


class Inference:
    """Facts about the values of one model.

    Args:
        model: it is read and never changed.
        bindings: symbols that stand for numbers from the start; unbound where not given.
        first_symbol: the number of the first symbol to invent; see `symbols`.

    Attributes:
        warnings: what did not fit together in the main graph; a body may be one that never runs.
        symbols: the number of the next symbol to invent.
        fails: whether a node was met that cannot run with what enters it.
        inside: of values inside functions, what holds in every call that was met.
    """

    def __init__(self, model: ir.Model, *, bindings: Bindings | None = None, first_symbol: int = 0) -> None:
        self.model = model
        self.bindings = bindings
        self.symbols = first_symbol
        self.warnings: list[str] = []
        self.fails = False
        self.inside: dict[ir.Value, Fact] = {}
        self._runs: set[ir.Graph] = set()
        self._idle: set[ir.Graph] = set()
        self.arithmetic = Arithmetic()
        self.main = Scope(self, model.opset_imports, {}, {}, 0)
        self._answers: dict[tuple[object, ...], list[Fact] | None] = {}
        self._input_index = {value: index for index, value in enumerate(model.graph.inputs)}

    @property
    def not_taken(self) -> set[ir.Graph]:
        """Branches of If that were met and never run: by a condition that is known, or because they cannot."""
        return self._idle - self._runs

    def decided(self, branches: Sequence[ir.Graph], taken: bool | None) -> None:
        """Note which of `branches`, otherwise and then, an If takes; None is not known."""
        for number, branch in enumerate(branches):
            (self._idle if taken is not None and number != taken else self._runs).add(branch)

    # --- Facts about values

    def fact(self, value: ir.Value, scope: Scope | None = None) -> Fact:
        """What is known of `value`: found by inference, or else written on it."""
        known = (scope or self.main).facts
        fact = known.get(value)
        if fact is None:
            fact = self.named(self.declared(value), self._input_index.get(value))
            known[value] = fact
        return fact

    def declared(self, value: ir.Value) -> Fact:
        """What is written on `value`, with bound symbols replaced."""
        fact = facts.declared(value)
        if self.bindings is None or fact.dims is None:
            return fact
        return Fact(fact.type, tuple(map(self.bindings.substitute, fact.dims)))

    def named(self, fact: Fact, graph_input: int | None = None) -> Fact:
        """`fact` with a symbol of its own for every extent that is open."""
        if fact.dims is None or None not in fact.dims:
            return fact
        named: list[Dim] = []
        for axis, dim in enumerate(fact.dims):
            if dim is None and graph_input is not None:
                dim = dims.input_symbol(graph_input, axis)
                dim = dim if self.bindings is None else self.bindings.substitute(dim)
            elif dim is None:
                dim = f"{dims.INVENTED}{self.symbols}"
                self.symbols += 1
            named.append(dim)
        return Fact(fact.type, tuple(named))

    def local_symbols_dropped(self, fact: Fact, first: int) -> Fact:
        """`fact` without the symbols that were invented from number `first` on: they mean nothing outside a body."""
        if fact.dims is None:
            return fact
        return Fact(fact.type, tuple(None if dims.invented_since(dim, first) else dim for dim in fact.dims))

    def assign(self, value: ir.Value, inferred: Fact, scope: Scope) -> None:
        """Take `inferred` for the output of a node; what is written on it fills in what is not known."""
        if not scope.is_function:
            written = self.declared(value)
            if facts.contradict(inferred, written):
                self._warn(
                    value.producer(), f"'{value.name}' is declared as {_text(written)}, but is {_text(inferred)}"
                )
            else:
                inferred = facts.refine(inferred, written)
        self.settle(value, inferred, scope)

    def enter(self, value: ir.Value, given: Fact, scope: Scope) -> None:
        """Take `given` for an input of a body; what is written on it fills in what is not known."""
        if not scope.is_function:
            given = facts.refine(given, self.declared(value))
        self.settle(value, given, scope)

    def settle(self, value: ir.Value, fact: Fact, scope: Scope) -> None:
        """Note `fact`, and forget what was calculated from what was known before."""
        scope.facts[value] = self.named(fact)
        scope.contents.forget(value)

    # --- Running nodes

    def run(self) -> None:
        """Visit the whole model."""
        self.run_graph(self.model.graph, self.main)

    def run_graph(self, graph: ir.Graph | ir.Function, scope: Scope) -> None:
        """Visit the nodes of a graph whose inputs are known."""
        for node in graph:
            self.run_node(node, scope)

    def run_node(self, node: ir.Node, scope: Scope) -> None:
        """Find out what `node` yields."""
        for output, fact in zip(node.outputs, self.infer_node(node, scope), strict=False):
            if output.name != "":
                self.assign(output, fact, scope)

    def infer_node(self, node: ir.Node, scope: Scope) -> list[Fact]:
        """What the operator alone says about its outputs."""
        if node.op_type == "Constant" and node.domain in schemas.DEFAULT_DOMAINS:
            constant = walk.constant_tensor(node.outputs[0])
            if constant is not None:
                return [facts.of_tensor(constant)]
        rule = control_flow.RULES.get(node.op_type) if node.domain in schemas.DEFAULT_DOMAINS else None
        if rule is not None:
            return rule(self, node, scope)
        function = self.model.functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            return self._infer_function(node, function, scope)
        for body in walk.subgraphs(node):
            self.run_graph(body, scope)
        return self.answer(self.call(node, scope), node)

    def call(self, node: ir.Node, scope: Scope, content_of: Sequence[int] | None = None) -> Call:
        """The question that `node` asks; `content_of` are the inputs whose elements matter."""
        wanted = symbolic.CONTENTS.get(node.op_type, ()) if content_of is None else content_of
        inputs = node.inputs
        contents: tuple[np.ndarray | None, ...] = ()
        if wanted:
            contents = tuple(
                scope.contents.of(value) if index in wanted else None for index, value in enumerate(inputs)
            )
        domain = schemas.normalized(node.domain)
        return Call(
            domain,
            node.op_type,
            schemas.opset_version(scope.imports, domain) or 1,
            scope.resolved(node),
            tuple(None if value is None else self.fact(value, scope) for value in inputs),
            contents,
            tuple(output.name != "" for output in node.outputs),
        )

    def answer(self, call: Call, node: ir.Node) -> list[Fact]:
        """What is known about the outputs of `call`, asked once for equal calls."""
        key = call.key()
        if key is None:
            found = self._ask(call, node)
        else:
            if key not in self._answers:
                self._answers[key] = self._ask(call, node)
            found = self._answers[key]
        if found is None:
            self.fails = True
            return [UNKNOWN] * len(call.outputs)
        return found

    def _ask(self, call: Call, node: ir.Node) -> list[Fact] | None:
        """What is known about the outputs of `call`; None where it cannot run."""
        if call.domain not in schemas.defined_domains():
            return contrib.infer(call, self.arithmetic)
        try:
            found = onnx_inference.infer(call)
        except onnx_inference.InferenceError as error:
            self._warn(node, f"{walk.label(node)}: no shape inferred ({error})")
            static = all(fact is None or (fact.type and facts.is_static(fact)) for fact in call.inputs)
            return None if static else [UNKNOWN] * len(call.outputs)
        if all(fact.complete for fact in found):
            return found
        filled = symbolic.infer(call, self.arithmetic)
        return [
            facts.refine(fact, Fact(None, extents)) for fact, extents in zip(found, _padded(filled, found), strict=True)
        ]

    def _warn(self, node: ir.Node | None, warning: str) -> None:
        if node is not None and node.graph is self.model.graph:
            self.warnings.append(warning)

    # --- Functions

    def _infer_function(self, node: ir.Node, function: ir.Function, scope: Scope) -> list[Fact]:
        call = self.call(node, scope, range(len(node.inputs)))
        key = call.key()
        known = None if key is None else self._answers.get((id(function), *key))
        if known is not None:
            return known
        if scope.depth >= DEEPEST:
            return [UNKNOWN] * len(node.outputs)
        first = self.symbols
        inner = Scope(
            self,
            {**scope.imports, **function.opset_imports},
            {**{name: a for name, a in function.attributes.items() if a.value is not None}, **call.attributes},
            dict(zip(function.inputs, call.contents, strict=False)),
            scope.depth + 1,
        )
        for formal, fact in zip(function.inputs, call.inputs, strict=False):
            inner.facts[formal] = UNKNOWN if fact is None else fact
        self.run_graph(function, inner)
        for value, fact in inner.facts.items():
            self.inside[value] = facts.common(self.inside.get(value, fact), fact)
        results = [self.local_symbols_dropped(self.fact(value, inner), first) for value in function.outputs]
        if key is not None:
            self._answers[id(function), *key] = results
        return results


def _padded(filled: list[Dims | None], found: list[Fact]) -> list[Dims | None]:
    return [*filled, *[None] * len(found)][: len(found)]


def _text(fact: Fact) -> str:
    kind = "of unknown type" if fact.type is None else str(fact.type)
    if fact.dims is None:
        return kind
    return f"{kind}[{', '.join('?' if dim is None or dims.is_invented(dim) else str(dim) for dim in fact.dims)}]"
