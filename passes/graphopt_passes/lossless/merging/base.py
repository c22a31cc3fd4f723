"""What the rules that merge two nodes have in common."""

from __future__ import annotations

import onnx_ir as ir

from graphopt_passes.rewriting import Done, Outcome, Site


def alone(site: Site, inner: ir.Node, outer: ir.Node) -> bool:
    """Whether `outer` alone reads what `inner` computes, so that `inner` goes when the two become one."""
    return site.only_reader(inner.outputs[0]) is outer


def stand_in(site: Site, node: ir.Node, value: ir.Value, what: str) -> Done:
    """Let `value`, which `node` computes again, stand for its output; an Identity does where both keep their names."""
    inner = site.producer(node.inputs[0])
    outcome = site.forward(node, value, what)
    if not isinstance(outcome, Done):
        identity = site.new_node("Identity", [value], node.outputs[0], node)
        site.replace(node, identity.outputs[0])
        outcome = Done(what, (identity,))
    if inner is not None:
        site.remove_unread(inner)
    return outcome


def read_past(site: Site, outer: ir.Node, inner: ir.Node, what: str) -> Outcome:
    """Let `outer` read what `inner` reads, in the place of what it computes."""
    site.set_inputs(outer, [inner.inputs[0], *outer.inputs[1:]])
    site.remove_unread(inner)
    return Done(what, (outer,))
