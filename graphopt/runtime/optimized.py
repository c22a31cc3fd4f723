"""The graph that onnxruntime itself makes of a model when it loads it: which kernels really run.

Only for reading. onnxruntime writes the graph to a temporary folder that is gone when the function returns; tensors of
1 KiB and more lay in a file of their own there, so that models beyond 2 GiB need no special case. They keep their
shapes and types, their numbers can no longer be read.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from graphopt.runtime.session import ModelSource, Session, SessionOptions


def optimized(model: ModelSource, *, layouts: bool = True) -> ir.Model:
    """What onnxruntime's CPU provider runs in place of `model`, at its highest level of optimization.

    Args:
        model: a path, serialized bytes, a ModelProto or the IR.
        layouts: whether to include the last step, which moves convolutions to memory layouts of their own (domain
            `com.microsoft.nchwc`, `QLinearConv` of `com.microsoft`). It changes no arithmetic: without it the operators
            and their shapes are still those of the model's layout.

    Raises:
        RuntimeFailureError: onnxruntime cannot load the model.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "optimized.onnx"
        Session(model, SessionOptions(layouts=layouts, save_to=path))
        return ir.load(path)
