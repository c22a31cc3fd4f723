"""Freezing: an initializer that is also a graph input has a default value that callers may override; it becomes a constant.

What a lossy pass measures and decides holds for the default values only, so lossy passes require this one. The outputs
stay what they are for callers who give the other inputs alone; exporters of IR version 3 listed every weight as an input,
and hardly anybody ever meant it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.pipeline.base import Pass, PassContext, PassResult, Remark

_NAMED = 3


@dataclass(frozen=True)
class FreezeDefaults(Pass):
    """Make inputs that have a default value constants of this value."""

    name: ClassVar[str] = "freeze-defaults"

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Take initializers out of the inputs of the main graph."""
        defaults = [value for value in model.graph.inputs if value.is_initializer()]
        if not defaults:
            return PassResult(False)
        readers = dict.fromkeys(use.node for value in defaults for use in value.uses())
        for value in defaults:
            model.graph.inputs.remove(value)
        names = ", ".join(f"'{value.name}'" for value in defaults[:_NAMED])
        more = f" and {len(defaults) - _NAMED} more" if len(defaults) > _NAMED else ""
        what = "no input any more: what follows holds for its default value"
        return PassResult(True, tuple(readers), (Remark(names + more, what, applied=True),))
