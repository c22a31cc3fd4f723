"""graphopt: the compiler that makes ONNX models small and fast.

    import graphopt
    result = graphopt.optimize("model.onnx")
    result.save("model.opt.onnx")

Names are loaded when they are used, so that importing graphopt costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.api import Comparison, Result, compare, cost, load, optimize
    from graphopt.errors import GraphoptError
    from graphopt.pipeline.base import Pass, PassContext, PassResult, Remark, option

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "GraphoptError",
    "Pass",
    "PassContext",
    "PassResult",
    "Remark",
    "Result",
    "compare",
    "cost",
    "load",
    "optimize",
    "option",
]

_HOME = {
    "GraphoptError": "graphopt.errors",
    **dict.fromkeys(("Pass", "PassContext", "PassResult", "Remark", "option"), "graphopt.pipeline.base"),
    **dict.fromkeys(("Comparison", "Result", "compare", "cost", "load", "optimize"), "graphopt.api"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'graphopt' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
