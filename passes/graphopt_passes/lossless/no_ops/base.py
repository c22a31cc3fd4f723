"""What a check for no-ops is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import onnx_ir as ir

from graphopt_passes.rewriting import Site

Check: TypeAlias = Callable[[ir.Node, Site], ir.Value | str | None]
"""The value that the one output of a node equals, in extents too; or why a near miss does not; or None."""
