"""If with a constant condition: the branch that is taken takes the place of the node, the other one goes.

    y = If(true) {then: a = f(x), b = g(a) -> b}        ->        a = f(x), y = g(a)

The nodes of the branch move before the If. Names that the branch shares with any other graph of the model are made
fresh, since they now live among those of the graph around it. Initializers of the branch move to that graph, too.
Outputs of the If are replaced by what the branch gives for them; an Identity remains where that value cannot take over
the name of a graph output: a constant, or one value of the branch for two outputs.

A condition is constant, too, where one of the branches cannot be the right one: its results have a rank that those who
read them do not take. Exporters write `x.squeeze(1)` as If(dim 1 is 1) {Squeeze(x)} {x}, even in front of a Conv:

    y = If(c) {then: rank 2} {else: rank 3}, z = Conv(y, w: rank 3)        ->        c = false

With the other value of c the model would fail, so every If that reads c in this graph may take c for constant.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import add_constant
from graphopt.ir.walk import all_graphs
from graphopt_passes.lossless.required_rank import required_rank
from graphopt_passes.rewriting import Done, Outcome, Rule, RulePass, Site


@dataclasses.dataclass(frozen=True)
class InlineConstantIf(RulePass):
    """Replace an If whose condition is constant by the branch that is taken."""

    name: ClassVar[str] = "inline-constant-if"

    def rules(self) -> Sequence[Rule]:
        """Finding conditions that must be constant, and inlining."""
        return [_Inline(), _Decide()]


class _Decide(Rule):
    """Make a condition constant, since one of the branches gives what cannot be read."""

    roots: ClassVar[frozenset[str]] = frozenset({"If"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Decide the condition of `node`, for it and for others that read the same one."""
        condition = node.inputs[0]
        if condition is None or site.constant(condition) is not None or site.scope.is_function:
            return None
        possible = [taken for taken, name in ((True, "then_branch"), (False, "else_branch")) if _fits(node, name, site)]
        if len(possible) != 1:
            return None
        readers = [use.node for use in condition.uses() if use.node.op_type == "If" and site.graph_of(use.node)]
        decided = [reader for reader in readers if site.may_touch(reader)]
        for reader in decided:
            constant = site.new_constant(np.array(possible[0]), f"{reader.outputs[0].name}_condition", reader)
            site.set_inputs(reader, [constant])
        return Done(f"its condition must be {possible[0]}, for the rank of its result", tuple(decided))


def _fits(node: ir.Node, branch: str, site: Site) -> bool:
    """Whether the results of a branch may have the ranks that readers of the If require."""
    for output, result in zip(node.outputs, node.attributes[branch].as_graph().outputs, strict=True):
        required = None if result.shape is None else required_rank(output, site)
        if required is not None and result.shape is not None and len(result.shape) != required:
            return False
    return True


class _Inline(Rule):
    """Move the nodes of the branch that is taken to the graph around it."""

    roots: ClassVar[frozenset[str]] = frozenset({"If"})

    def __init__(self) -> None:
        self._frequency: Counter[str] | None = None

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Inline `node` if its condition is constant."""
        condition = site.array(node.inputs[0])
        if condition is None or condition.size != 1:
            return None
        if self._frequency is None:
            self._frequency = _frequency_of_names(site.model)
        taken = bool(condition.reshape(())[()])
        branch = node.attributes["then_branch" if taken else "else_branch"].as_graph()
        moved, results = self._move(branch, node, site)
        for output, result in zip(node.outputs, results, strict=True):
            moved += _stand_in(output, result, node, site)
        site.remove(node)
        return Done(f"replaced by its {'then' if taken else 'else'} branch: its condition is constant", tuple(moved))

    def _move(self, branch: ir.Graph, node: ir.Node, site: Site) -> tuple[list[ir.Node], list[ir.Value]]:
        """Move initializers and nodes of `branch` before `node`, under names that are free.

        Returns:
            The nodes, and the results of the branch.
        """
        results = list(branch.outputs)
        branch.outputs.clear()
        for value in list(branch.initializers.values()):
            name, tensor = value.name or "", value.const_value
            assert tensor is not None  # the structure has been verified
            del branch.initializers[name]
            constant = add_constant(site.graph, self._free(name, site), tensor, node, site.scope)
            value.replace_all_uses_with(constant)
            results = [constant if result is value else result for result in results]
        nodes = list(branch)
        branch.remove(nodes)
        for moved in nodes:
            moved.name = self._free(moved.name or "", site)
            for output in moved.outputs:
                output.name = self._free(output.name or "", site)
        site.graph.insert_before(node, nodes)
        return nodes, results

    def _free(self, name: str, site: Site) -> str:
        """`name`, or one like it where another value or node of the model has it too."""
        assert self._frequency is not None  # counted before anything moved
        return site.fresh(name) if name and self._frequency[name] > 1 else name


def _frequency_of_names(model: ir.Model) -> Counter[str]:
    """How many values, or how many nodes if these are more, have a name."""
    values, nodes = Counter[str](), Counter[str]()
    for graph in all_graphs(model):
        values.update(value.name or "" for value in (*graph.inputs, *graph.initializers.values()))
        values.update(output.name or "" for node in graph for output in node.outputs)
        nodes.update(node.name or "" for node in graph)
    return values | nodes


def _stand_in(output: ir.Value, result: ir.Value, node: ir.Node, site: Site) -> list[ir.Node]:
    """Let `result` stand for `output` of `node`; returns the nodes that this touches."""
    identity: list[ir.Node] = []
    if site.editor.why_not_replace(output, result) is not None:
        identity = [site.new_node("Identity", [result], output, node)]
        result = identity[0].outputs[0]
    return [*identity, *site.editor.replace(output, result)]
