"""Writing facts onto values: their types and shapes in the IR."""

from __future__ import annotations

import copy

import onnx_ir as ir

from graphopt.analysis import dims, facts
from graphopt.analysis.dims import Dims
from graphopt.analysis.facts import Fact


def without_invented(declared: Fact) -> Fact:
    """What was really declared: earlier inference may have filled in symbols of its own."""
    if declared.dims is None or not any(map(dims.is_invented, declared.dims)):
        return declared
    return Fact(declared.type, tuple(None if dims.is_invented(dim) else dim for dim in declared.dims))


def write(value: ir.Value, fact: Fact) -> bool:
    """Write `fact` onto `value` and tell whether that changed anything."""
    if value.const_value is not None and value.producer() is None:
        return False
    changed = False
    if fact.type is not None and value.type != fact.type:
        # Types can be changed in place, so no two values may share one.
        plain = isinstance(fact.type, ir.TensorType)
        value.type = ir.TensorType(fact.type.dtype) if plain else copy.deepcopy(fact.type)
        changed = True
    return set_shape(value, fact.dims) or changed


def set_shape(value: ir.Value, extents: Dims | None) -> bool:
    """Give `value` these extents, and tell whether that changed anything; the denotations of its axes are kept."""
    shape = value.shape
    if shape is not None and extents is not None and tuple(map(dims.from_ir, shape)) == extents:
        return False
    if shape is None and extents is None:
        return False
    if extents is None:
        value.shape = None
    elif shape is not None and len(shape) == len(extents):
        value.shape = facts.shape_of(extents, [shape.get_denotation(axis) for axis in range(len(extents))])
    else:
        value.shape = facts.shape_of(extents)
    return True
