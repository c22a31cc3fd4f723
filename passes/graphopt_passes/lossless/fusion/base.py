"""What the fusions share: putting one node in the place of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graphopt_passes.rewriting import Done, Site


def fuse(
    root: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    site: Site,
    attributes: Mapping[str, Any] | None = None,
) -> Done:
    """Let a new node compute what `root` computes; `root` and all that nothing reads any more go."""
    output = root.outputs[0]
    node = site.new_node(op_type, inputs, output, root, attributes)
    pending = list(root.predecessors())
    readers = site.replace(root, node.outputs[0])
    while pending:
        unread = pending.pop()
        if not site.editor.doomed(unread) and site.graph_of(unread) is not None and site.may_touch(unread):
            above = list(unread.predecessors())
            site.remove_unread(unread)
            pending += above if site.editor.doomed(unread) else []
    return Done(f"fused into {op_type}", (node, *readers))
