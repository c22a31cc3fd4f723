"""Dividing the channels of a value by positive factors, and multiplying the weights that read them.

    maker -> value / s -> ... -> readers with weights · s

The maker is a linear operator, or the scale and bias that end a normalization; the readers are linear operators with
constant weights. In between, each channel may go through operators that commute with a positive factor (Relu, LeakyRelu, PRelu,
pooling) and through rearrangements that leave it a channel, along several branches if all end in such readers. Nothing
may be seen on the way: no graph output, no reader of another kind, none in a body.

A Clip to [0, c] commutes only as long as nothing reaches s · c. `spread` finds it, and callers decide.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from graphopt.ir.spool import Spool
from graphopt.ir.surgery import FreshNames, scopes
from graphopt.pipeline.base import PassContext, Remark
from graphopt.pipeline.remarks import Remarks
from graphopt.runtime.requests import ChannelRange, Results
from graphopt_passes.lossless import extents
from graphopt_passes.lossless.linear import Bias, Linear, Side
from graphopt_passes.lossless.linear_operators import BROADCAST_SINCE, FLOATS, making, reading
from graphopt_passes.numerics.affine import Affine, Array
from graphopt_passes.numerics.equalization import Channels, Choice
from graphopt_passes.rewriting import Site, still_there

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_HOMOGENEOUS = frozenset({"Identity", "LeakyRelu", "PRelu", "Relu"})
_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
_REARRANGEMENTS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@dataclasses.dataclass(frozen=True)
class Place:
    """A value and its channel axis, counted from the end."""

    value: ir.Value
    axis: int

    @property
    def name(self) -> str:
        """The name of the value."""
        return self.value.name or ""

    @property
    def from_start(self) -> int | None:
        """The axis counted from the start; None where the rank is not known."""
        rank = extents.rank(self.value)
        return None if rank is None else self.axis + rank


@dataclasses.dataclass
class Between:
    """What lies between a maker and the readers.

    Attributes:
        maker: whose weight and bias are divided.
        readers: whose weights are multiplied.
        places: all values between them.
        read: those of the places that readers read.
        ceilings: outputs of a Clip to [0, c], and c.
    """

    maker: Linear
    readers: list[Linear] = dataclasses.field(default_factory=list)
    places: list[Place] = dataclasses.field(default_factory=list)
    read: dict[ir.Value, Place] = dataclasses.field(default_factory=dict)
    ceilings: list[tuple[Place, float]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Rescaled:
    """What a rewrite did.

    Attributes:
        touched: nodes that changed.
        remarks: what was done where, and why not.
        factors: value name -> (C,) what its channels have been divided by; ranges of the value are so, too.
    """

    touched: tuple[ir.Node, ...] = ()
    remarks: tuple[Remark, ...] = ()
    factors: Mapping[str, Array] = dataclasses.field(default_factory=dict)


class Rescaling:
    """One run over a model: gathers what was done.

    Args:
        model: rewritten in place.
        context: of the pass.
        aim: what remarks say that a place is not, where its channels stay as they are.
    """

    def __init__(self, model: ir.Model, context: PassContext, aim: str = "equalized") -> None:
        self.remarks = Remarks()
        self._aim = aim
        self._spool = Spool()
        self._model = model
        self._touched: dict[ir.Node, None] = {}
        self._factors: dict[str, Array] = {}
        names = FreshNames(model)
        self.sites = [Site(model, graph, scope, names, context) for scope in scopes(model) for graph in scope.graphs()]

    @property
    def main(self) -> Site:
        """The main graph, the only one whose values can be measured."""
        return self.sites[0]

    def missed(self, where: str, why: str) -> None:
        """Remark that the channels of `where` stay as they are; whether it is quantized is another matter."""
        self.remarks.missed(where, f"not {self._aim}: {why}")

    def choose(self, between: Between, choice: Choice, site: Site, where: str) -> None:
        """Divide by the chosen factors where they are worth it, and remark on it."""
        if choice.after >= choice.before:
            self.missed(where, "no factors would lower its quantization noise much")
            return
        why_not = self.apply(between, choice.factors, site)
        if why_not is not None:
            self.missed(where, why_not)
        else:
            self.remarks.applied(where, "divided its channels by factors that the weights behind take up")

    def apply(self, between: Between, factors: Array, site: Site) -> str | None:
        """Divide by (C,) `factors`, or say why that cannot be."""
        made = between.maker.after(Affine(1 / factors, np.zeros(())), self._spool)
        read = [reader.before(Affine(factors, np.zeros(())), self._spool) for reader in between.readers]
        why_not = next((parameters for parameters in (made, *read) if isinstance(parameters, str)), None)
        if why_not is not None:
            return why_not
        for linear, changes in zip((between.maker, *between.readers), (made, *read), strict=True):
            if not isinstance(changes, str):
                self._touched.update(dict.fromkeys(linear.give(changes, site)))
        for place in between.places:
            self._factors[place.name] = self._factors.get(place.name, 1.0) * factors
        return None

    def result(self) -> Rescaled:
        """What was done."""
        touched = still_there(self._touched, self._model)
        return Rescaled(tuple(touched), self.remarks.listed(), MappingProxyType(self._factors))


def linear_maker(value: ir.Value, site: Site) -> Linear | str | None:
    """The Conv, ConvTranspose, Gemm, or MatMul with its bias, that makes `value`."""
    found = making(value, site)
    return None if isinstance(found, Linear) and found.node.op_type not in LINEAR else found


def scale_maker(value: ir.Value, site: Site) -> Linear | str | None:
    """The normalization that makes `value`, or the Mul and Add by constants that end one which is written out."""
    found = making(value, site)
    if isinstance(found, Linear) and found.node.op_type in LINEAR:
        return None
    return _written_out(value, site) if found is None else found


def spread(maker: Linear, value: ir.Value, site: Site) -> Between | str:
    """What reads the channels of `value`, the output of `maker`, or why they cannot be scaled."""
    between = Between(maker)
    pending = [Place(value, maker.output.axis)]
    while pending:
        place = pending.pop()
        between.places.append(place)
        if place.value.is_graph_output():
            return "it is a graph output"
        for node, index in place.value.uses():
            if site.graph_of(node) is None:
                return "it is read in a body"
            if not site.may_touch(node):
                return "what reads it is excluded"
            found = _read(between, place, node, index, site)
            if isinstance(found, str):
                return found
            if found is not None:
                pending.append(found)
    return between if between.readers else "nothing reads it"


def weights(linear: Linear) -> Array:
    """The weight of a linear operator as (G, O, I, T)."""
    weight = linear.weight.numpy().reshape(linear.view)
    return weight.swapaxes(1, 2) if linear.inputs_first else weight


def requests(betweens: Iterable[Between]) -> list[ChannelRange]:
    """The ranges that a choice of factors needs."""
    places = (place for b in betweens for place in (*b.read.values(), *(clipped for clipped, _ in b.ceilings)))
    return list(dict.fromkeys(ChannelRange(place.name, place.axis) for place in places))


def channels(between: Between, results: Results) -> Channels | None:
    """The channels as the readers read them; None where their ranges are not known, or a weight is not finite."""
    wanted = [ChannelRange(place.name, place.axis) for place in between.read.values()]
    read_by = [weights(reader) for reader in between.readers]
    if any(request not in results for request in wanted) or not all(np.isfinite(weight).all() for weight in read_by):
        return None
    found = [results[request] for request in wanted]
    low, high = np.min([r.low for r in found], axis=0), np.max([r.high for r in found], axis=0)
    return Channels(low, high, read_by)


def _read(between: Between, place: Place, node: ir.Node, index: int, site: Site) -> Place | str | None:
    """Where the channels of `place` are behind `node`; None where it is a reader; or why it can be neither."""
    other = f"{node.op_type} reads it"
    if node.domain != "" or index != 0:
        return other
    if node.op_type in LINEAR:
        linear = reading(node, index, site)
        if not isinstance(linear, Linear):
            return other if linear is None else linear
        channels = between.maker.output.channels
        if linear.input is None or linear.input.axis != place.axis or linear.input.channels != channels:
            return f"{node.op_type} reads it along another axis"
        between.readers.append(linear)
        between.read[place.value] = place
        return None
    output = node.outputs[0]
    if node.op_type in _HOMOGENEOUS or (node.op_type in _POOLS and place.from_start == 1):
        return Place(output, place.axis)
    if node.op_type == "Clip":
        ceiling = _ceiling(node, site)
        if ceiling is None:
            return other
        between.ceilings.append((Place(output, place.axis), ceiling))
        return Place(output, place.axis)
    if node.op_type == "Transpose":
        axis = _transposed(node, place)
    elif node.op_type in _REARRANGEMENTS:
        axis = _reshaped(place, output, between.maker.output.channels)
    else:
        return other
    return f"{node.op_type} moves its channels" if axis is None else Place(output, axis)


def _ceiling(node: ir.Node, site: Site) -> float | None:
    """c of a Clip to [0, c]; None of another Clip."""
    if site.opset >= 11:
        bounds = [site.array(node.inputs[i]) if i < len(node.inputs) else None for i in (1, 2)]
        if any(bound is None or bound.size != 1 for bound in bounds):
            return None
        low, high = (float(bound.reshape(())) for bound in bounds if bound is not None)
    else:
        low, high = node.attributes.get_float("min", -math.inf), node.attributes.get_float("max", math.inf)
    return high if low == 0 and 0 < high < math.inf else None


def _transposed(node: ir.Node, place: Place) -> int | None:
    rank, axis = extents.rank(place.value), place.from_start
    if rank is None or axis is None:
        return None
    order = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
    return list(order).index(axis) - rank


def _reshaped(place: Place, output: ir.Value, channels: int) -> int | None:
    """The axis from the end along which elements are numbered as they were along the channel axis: by as many."""
    before, after = extents.dims(place.value), extents.dims(output)
    if before is None or after is None:
        return None
    inner = before[len(before) + place.axis + 1 :]
    if not all(isinstance(dim, int) for dim in inner):
        return None
    behind = math.prod(dim for dim in inner if isinstance(dim, int))
    product = 1
    for axis in range(-1, -len(after) - 1, -1):
        dim = after[axis]
        if not isinstance(dim, int):
            return None
        if product == behind and dim == channels:
            return axis
        product *= dim
    return None


def _written_out(value: ir.Value, site: Site) -> Linear | None:
    """x · scale or x · scale + bias, constants of one number per element of the last axis, as a linear operator."""
    if site.opset < BROADCAST_SINCE:
        return None
    node = site.producer(value, "Add", "Mul")
    bias: Bias | None = None
    add = None
    if node is not None and node.op_type == "Add":
        add = node
        node = next((mul for read in add.inputs if (mul := site.producer(read, "Mul")) is not None), None)
        if node is None or site.only_reader(node.outputs[0]) is not add:
            return None
    if node is None:
        return None
    index = next((i for i in (0, 1) if site.constant(node.inputs[i]) is not None), None)
    dims = extents.dims(value)
    tensor = None if index is None else site.constant(node.inputs[index])
    if index is None or tensor is None or not dims or tensor.dtype not in FLOATS:
        return None
    channels = dims[-1]
    if not isinstance(channels, int) or channels < 2 or tensor.size != channels or tensor.shape.numpy()[-1] != channels:
        return None
    if extents.dims(node.inputs[1 - index]) is None or (extents.rank(node.inputs[1 - index]) or 0) < len(tensor.shape):
        return None
    side = Side(channels, -1, len(dims))
    if add is not None:
        place = 1 if add.inputs[0] is node.outputs[0] else 0
        constant = site.constant(add.inputs[place])
        shift = None if constant is None or constant.size > channels else side.per_channel(constant.numpy())
        if shift is None:
            return None
        bias = Bias(add, place, shift)
    return Linear(node, index, tensor, (channels, 1, 1, 1), inputs_first=False, bias=bias, output=side)
