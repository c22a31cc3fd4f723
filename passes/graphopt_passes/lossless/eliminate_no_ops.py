"""No-op elimination: where the one output of a node equals one of its inputs, element by element and in extents,
whoever reads the output can read the input.

    x + 0, x · 1, x¹ ...            neutral elements that do not broadcast          no_ops/arithmetic.py
    Reshape, Transpose, Slice ...   data movement that moves nothing                no_ops/movement.py
    pooling, reductions, Cast ...   over windows of one element, to the same type   no_ops/windows.py

Extents may be symbols: equal symbols are equal numbers. What the model declares on its outputs is no proof (see
`extents`). Where the output is a graph output, the input takes over its name; where it cannot (it is a graph input,
or an output itself), the node stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from graphopt_passes.lossless.no_ops import arithmetic, movement, windows
from graphopt_passes.rewriting import Outcome, Rule, RulePass, Site


@dataclasses.dataclass(frozen=True)
class EliminateNoOps(RulePass):
    """Remove operators that change nothing: Reshape to the same shape, Add of 0, Slice of everything ..."""

    name: ClassVar[str] = "eliminate-no-ops"

    def rules(self) -> Sequence[Rule]:
        """One rule, which looks up what makes an operator change nothing."""
        return [_NoOp()]


class _NoOp(Rule):
    """Forward the input that the output equals."""

    def __init__(self) -> None:
        self._checks = {**arithmetic.checks(), **movement.checks(), **windows.checks()}

    @property
    def roots(self) -> frozenset[str]:  # type: ignore[override]  # known once the families have been asked
        """All operators that have a check."""
        return frozenset(self._checks)

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Remove `node` if it is a no-op."""
        if not node.inputs or node.inputs[0] is None:
            return None
        found = self._checks[node.op_type](node, site)
        if not isinstance(found, ir.Value):
            return found
        return site.forward(node, found, "removed: it changes nothing")
