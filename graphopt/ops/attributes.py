"""Reading a node's attributes: the value, or the default where it is absent or a reference into a function's call.

A wrong type is an invalid model and is reported as one; nothing else of onnx-ir's own errors gets out.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.errors import InvalidModelError
from graphopt.ir.walk import label

NEWEST = 1 << 30


def _typed(node: ir.Node, name: str, kind: ir.AttributeType) -> ir.Attr | None:
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref():
        return None
    if attribute.type != kind:
        raise InvalidModelError(
            f"{label(node)}: attribute '{name}' is of type {attribute.type.name}, but must be {kind.name}."
        )
    return attribute


def integer(node: ir.Node, name: str, default: int) -> int:
    """The integer attribute `name`. Raises InvalidModelError where it has another type."""
    attribute = _typed(node, name, ir.AttributeType.INT)
    return default if attribute is None else attribute.as_int()


def number(node: ir.Node, name: str, default: float) -> float:
    """The float attribute `name`. Raises InvalidModelError where it has another type."""
    attribute = _typed(node, name, ir.AttributeType.FLOAT)
    return default if attribute is None else attribute.as_float()


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """The attribute `name`, a list of integers, or None. Raises InvalidModelError where it has another type."""
    attribute = _typed(node, name, ir.AttributeType.INTS)
    return None if attribute is None else tuple(attribute.as_ints())


def text(node: ir.Node, name: str, default: str) -> str:
    """The string attribute `name`. Raises InvalidModelError where it has another type."""
    attribute = _typed(node, name, ir.AttributeType.STRING)
    return default if attribute is None else attribute.as_string()


def version(node: ir.Node) -> int:
    """The opset version that `node` is of; the newest where it stands in no graph that imports one."""
    if node.version is not None:
        return node.version
    imported = None if node.graph is None else node.graph.opset_imports.get(node.domain)
    return NEWEST if imported is None else imported
