"""How a node works when what it reads comes with its axes in another order.

With v' = Transpose_p(v), axis p[i] of v is axis i of v', and an operator f can do its work in the other order where
some f' gives f'(v') = f(v)': it has its axes renamed, its constants transposed. Elementwise operators do,
broadcasting included: an operand with fewer axes gets axes of one element in front first. So do operators along an
axis (Concat, Split, Softmax, ArgMax, CumSum, Gather of rows), and those with a number per axis (Slice, Pad, Tile). A
reduction that drops its axes, and a Squeeze, give the same f(v), and not f(v)', where the axes that are left keep
their order.

Softmax is not moved away from the last axis, where runtimes are made for it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.ops.elementwise import Activation, Binary, Unary, Variadic
from graphopt_passes.lossless.extents import dims, rank
from graphopt_passes.lossless.parameters import INPUTS, axes, axis, given, integers
from graphopt_passes.rewriting import Site

LARGEST_CONSTANT = 2**20
"""Elements of a constant that is transposed."""

Constant: TypeAlias = Callable[[], np.ndarray[Any, Any]]


@dataclasses.dataclass
class Form:
    """A node in the other order.

    Attributes:
        carried: the inputs that come in the other order.
        results: whether the outputs do.
        attributes: those that change.
        constants: inputs that become other constants.
    """

    carried: tuple[int, ...]
    results: bool = True
    attributes: dict[str, ir.Attr] = dataclasses.field(default_factory=dict)
    constants: dict[int, Constant] = dataclasses.field(default_factory=dict)


class Order:
    """An axis order, as the `perm` of a Transpose has it."""

    def __init__(self, order: tuple[int, ...]) -> None:
        """Take `order`, a permutation of its indices."""
        self.order = order
        self.rank = len(order)
        self.inverse = tuple(order.index(i) for i in range(len(order)))

    def axis(self, number: int) -> int:
        """Which axis of v' axis `number` of v is."""
        return self.inverse[axis(number, self.rank)]

    def permuted(self, per_axis: Sequence[Any]) -> list[Any]:
        """What there is per axis of v, per axis of v'."""
        return [per_axis[i] for i in self.order]

    def constant(self, tensor: ir.TensorProtocol) -> Constant:
        """A constant operand, transposed; with axes of one element in front where it has fewer."""

        def transposed() -> np.ndarray[Any, Any]:
            array = tensor.numpy()
            return array.reshape((1,) * (self.rank - array.ndim) + array.shape).transpose(self.order)

        return transposed


def form_of(node: ir.Node, order: Order, site: Site) -> Form | None:
    """`node` in the other order, or None where there is none."""
    find = _FORMS.get(node.op_type)
    if node.domain != "" or find is None or not node.inputs or node.inputs[0] is None:
        return None
    if find is not _elementwise and rank(node.inputs[0]) != order.rank:
        return None  # only elementwise operators take operands of other ranks
    form = find(node, order, site)
    if form is None or any(rank(node.inputs[index]) != order.rank for index in form.carried):
        return None
    for index in form.carried:
        tensor = site.constant(node.inputs[index])
        if tensor is not None and tensor.size > LARGEST_CONSTANT:
            return None
        if tensor is not None:
            form.constants[index] = order.constant(tensor)
    form.carried = tuple(index for index in form.carried if index not in form.constants)
    results_fit = not form.results or all(rank(output) == order.rank for output in node.outputs)
    return form if results_fit and form.carried else None


def _elementwise(node: ir.Node, order: Order, site: Site) -> Form | None:
    """Every operand in the other order, or the same in any."""
    carried, constants = [], dict[int, Constant]()
    for index, value in enumerate(node.inputs):
        extents = dims(value)
        if value is None or (extents is not None and all(dim == 1 for dim in extents) and len(extents) < order.rank):
            continue
        tensor = site.constant(value)
        if tensor is not None and tensor.size <= LARGEST_CONSTANT:
            constants[index] = order.constant(tensor)
        elif tensor is None and extents is not None and len(extents) == order.rank:
            carried.append(index)
        else:
            return None
    return Form(tuple(carried), constants=constants)


def _first_input(node: ir.Node, order: Order, site: Site) -> Form | None:
    """Only the first input is data."""
    return Form((0,))


def _along(name: str, default: int) -> Callable[[ir.Node, Order, Site], Form | None]:
    """An operator along one axis, an attribute."""

    def form(node: ir.Node, order: Order, site: Site) -> Form | None:
        moved = order.axis(node.attributes.get_int(name, default))
        return Form((0,), attributes={name: ir.AttrInt64(name, moved)})

    return form


def _softmax(node: ir.Node, order: Order, site: Site) -> Form | None:
    if site.opset < 13:  # it is along all axes from this one on
        return None
    number = axis(node.attributes.get_int("axis", -1), order.rank)
    leaves_the_last = number == order.rank - 1 != order.axis(number)
    return None if leaves_the_last else _along("axis", -1)(node, order, site)


def _concat(node: ir.Node, order: Order, site: Site) -> Form | None:
    form = _elementwise(node, order, site)
    fewer = any(rank(value) != order.rank for value in node.inputs)
    if form is None or fewer:
        return None
    form.attributes["axis"] = ir.AttrInt64("axis", order.axis(node.attributes.get_int("axis", 1)))
    return form


def _arg(node: ir.Node, order: Order, site: Site) -> Form | None:
    keepdims = node.attributes.get_int("keepdims", 1)
    number = axis(node.attributes.get_int("axis", 0), order.rank)
    form = _along("axis", 0)(node, order, site)
    if form is None or (not keepdims and not _keeps_order([number], order)):
        return None
    form.results = bool(keepdims)
    return form


def _cumulative(node: ir.Node, order: Order, site: Site) -> Form | None:
    number = site.array(node.inputs[1])
    if number is None or number.size != 1:
        return None
    moved = np.array(order.axis(int(number.reshape(()))), number.dtype).reshape(number.shape)
    return Form((0,), constants={1: lambda: moved})


def _gather(node: ir.Node, order: Order, site: Site) -> Form | None:
    return _along("axis", 0)(node, order, site) if rank(node.inputs[1]) == 1 else None


def _quantization(node: ir.Node, order: Order, site: Site) -> Form | None:
    """A scale for all, or one per position along an axis."""
    if node.attributes.get_int("block_size", 0):
        return None
    per_axis = rank(node.inputs[1])
    if per_axis == 0:
        return Form((0,))
    return _along("axis", 1)(node, order, site) if per_axis == 1 else None


def _reduction(node: ir.Node, order: Order, site: Site) -> Form | None:
    reduced = integers(site, node, "axes", ())
    if reduced is None:
        return None
    keepdims = bool(node.attributes.get_int("keepdims", 1))
    if not reduced:
        return Form((0,), results=keepdims or bool(node.attributes.get_int("noop_with_empty_axes", 0)))
    return _over(node, reduced, order, site, drops=not keepdims)


def _squeeze(node: ir.Node, order: Order, site: Site) -> Form | None:
    squeezed = integers(site, node, "axes")
    return _over(node, squeezed, order, site, drops=True) if squeezed else None


def _over(node: ir.Node, numbers: Sequence[int], order: Order, site: Site, *, drops: bool) -> Form | None:
    """An operator over several axes, which it may drop."""
    known = axes(numbers, order.rank) or ()
    if drops and not _keeps_order(known, order):
        return None
    form = Form((0,), results=not drops)
    _set(form, node, "axes", sorted(map(order.axis, known)), site)
    return form


def _keeps_order(dropped: Sequence[int], order: Order) -> bool:
    """Whether the axes that are left without `dropped` are in the same order either way."""
    left = [number for number in order.order if number not in dropped]
    return left == sorted(left)


def _slice(node: ir.Node, order: Order, site: Site) -> Form | None:
    starts = integers(site, node, "starts")
    cut = None if starts is None else integers(site, node, "axes", range(len(starts)))
    known = None if cut is None else axes(cut, order.rank)
    if known is None:
        return None
    form = Form((0,))
    _set(form, node, "axes", list(map(order.axis, known)), site)
    return form


def _pad(node: ir.Node, order: Order, site: Site) -> Form | None:
    form = Form((0,))
    if site.opset >= 18 and given(site, node, "axes"):
        padded = integers(site, node, "axes")
        known = None if padded is None else axes(padded, order.rank)
        if known is None:
            return None
        _set(form, node, "axes", list(map(order.axis, known)), site)
        return form
    pads = integers(site, node, "pads") if site.opset >= 2 else None
    if pads is None or len(pads) != 2 * order.rank:
        return None
    halves = (pads[: order.rank], pads[order.rank :])
    _set(form, node, "pads", [number for half in halves for number in order.permuted(half)], site)
    return form


def _tile(node: ir.Node, order: Order, site: Site) -> Form | None:
    repeats = integers(site, node, "repeats") if site.opset >= 6 else None
    if repeats is None:
        return None
    form = Form((0,))
    _set(form, node, "repeats", order.permuted(repeats), site)
    return form


def _set(form: Form, node: ir.Node, name: str, numbers: Sequence[int], site: Site) -> None:
    """Give a parameter, attribute or input by the opset, other numbers."""
    index, since = INPUTS[node.op_type][name]
    if site.opset >= since:
        form.constants[index] = functools.partial(np.array, numbers, np.int64)
    else:
        form.attributes[name] = ir.AttrInt64s(name, numbers)


_REDUCTIONS = [name for name in INPUTS if name.startswith("Reduce")]
_OPERANDS = {name for family in (Unary, Activation, Binary, Variadic) for name in family.op_types[""]} - {"SwiGLU"}

_FORMS: Mapping[str, Callable[[ir.Node, Order, Site], Form | None]] = {
    **dict.fromkeys(_OPERANDS, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("Hardmax", "LogSoftmax", "Softmax"), _softmax),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), _quantization),
    **dict.fromkeys(("CastLike", "Identity"), _first_input),
    "Concat": _concat,
    "CumSum": _cumulative,
    "Gather": _gather,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _along("axis", 0),
    "Squeeze": _squeeze,
    "Tile": _tile,
}
