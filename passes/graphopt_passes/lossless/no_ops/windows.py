"""Windows, reductions and resampling over one element, and casts to the type that is there.

* AveragePool and MaxPool with windows of one element, step 1 and no padding; global pooling of one element.
* Reductions over no axis (`noop_with_empty_axes`) or over axes of one element that are kept: sum, product, mean,
  maximum and minimum of one number are that number.
* Resize and Upsample by 1, nearest or linear: with every coordinate transformation below, output position i comes
  from input position i exactly. Others depend on a region of interest, or round i + ½ (`tf_half_pixel_for_nn`).
* Cast and CastLike to the type of the input.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt_passes.lossless.extents import all_same, dims
from graphopt_passes.lossless.no_ops.base import Check
from graphopt_passes.lossless.parameters import axes, given, integers
from graphopt_passes.rewriting import Site

_EXACT_COORDINATES = frozenset(
    {"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"}
)


def pool(node: ir.Node, site: Site) -> ir.Value | None:
    """Pooling with windows of one element."""
    attributes = node.attributes
    ones = [*attributes.get_ints("kernel_shape", ()), *attributes.get_ints("strides", ())]
    if not ones or any(number != 1 for number in ones) or any(attributes.get_ints("pads", ())):
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    return node.inputs[0]


def global_pool(node: ir.Node, site: Site) -> ir.Value | None:
    """Global pooling of one element."""
    before = dims(node.inputs[0])
    return node.inputs[0] if before is not None and all(dim == 1 for dim in before[2:]) else None


def reduction(node: ir.Node, site: Site) -> ir.Value | None:
    """Reduction over nothing, or over single elements."""
    before = dims(node.inputs[0])
    reduced = integers(site, node, "axes", ())
    if reduced is None:
        return None
    if not reduced:
        if node.attributes.get_int("noop_with_empty_axes", 0):
            return node.inputs[0]
        if given(site, node, "axes"):
            return None
        reduced = None if before is None else tuple(range(len(before)))
    if reduced is None or before is None or not node.attributes.get_int("keepdims", 1):
        return None
    found = axes(reduced, len(before)) or ()
    return node.inputs[0] if all(before[axis] == 1 for axis in found) else None


def resize(node: ir.Node, site: Site) -> ir.Value | None:
    """Resampling to the extents that are there."""
    attributes = node.attributes
    if attributes.get_string("mode", "nearest") not in ("nearest", "linear"):
        return None
    if attributes.get_string("coordinate_transformation_mode", "half_pixel") not in _EXACT_COORDINATES:
        return None
    x = node.inputs[0]
    scales = _scales(node, site)
    if scales is not None:
        return x if all(scale == 1 for scale in scales) else None
    has_sizes = len(node.inputs) > 3 and node.inputs[3] is not None
    return x if has_sizes and all_same(dims(x), dims(node.outputs[0])) else None


def _scales(node: ir.Node, site: Site) -> list[float] | None:
    """The constant scales of a Resize or Upsample; None where there are none."""
    if node.op_type == "Upsample" and site.opset < 9:
        return list(node.attributes.get_floats("scales", ())) or None
    index = 1 if node.op_type == "Upsample" or site.opset < 11 else 2
    array = site.array(node.inputs[index]) if len(node.inputs) > index else None
    return None if array is None or not array.size else [float(scale) for scale in array]


def cast(node: ir.Node, site: Site) -> ir.Value | None:
    """Cast to the type of the input."""
    x = node.inputs[0]
    if x is None or x.dtype is None:
        return None
    return x if node.attributes.get_int("to") == x.dtype else None


def cast_like(node: ir.Node, site: Site) -> ir.Value | None:
    """Cast to the type of another tensor, which is that of the input."""
    x, like = node.inputs
    if x is None or like is None or x.dtype is None:
        return None
    return x if x.dtype == like.dtype else None


def checks() -> dict[str, Check]:
    """The checks of this family by operator."""
    return {
        **dict.fromkeys(("AveragePool", "MaxPool"), pool),
        **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), global_pool),
        **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"), reduction),
        **dict.fromkeys(("Resize", "Upsample"), resize),
        "Cast": cast,
        "CastLike": cast_like,
    }
