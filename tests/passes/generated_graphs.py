"""A hypothesis strategy for models over a broad mix of operators, to hold exact rewrites against.

A graph grows node by node, and the extents of every value are known while it grows, so that each model is legal and
runs. Numbers are small multiples of ¼, and most operators keep them so; a value of which that is known is *plain*,
and only plain values go into operators that are not continuous (Floor, Cast to integers, comparisons), where rounding
would show.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

BATCH = "N"
BATCH_SIZE = 2
LARGEST = 500
"""Elements of a value."""

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
END = 2**63 - 1
Dims = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of the graph in the making: its name, type and extents, and whether its numbers are plain."""

    name: str
    dims: Dims
    dtype: int = FLOAT
    plain: bool = True

    @property
    def size(self) -> int:
        """Number of elements in a run."""
        return math.prod(BATCH_SIZE if dim == BATCH else int(dim) for dim in self.dims)

    @property
    def fixed(self) -> list[int]:
        """The axes whose extents are numbers."""
        return [axis for axis, dim in enumerate(self.dims) if isinstance(dim, int)]


class Growth:
    """A graph in the making."""

    def __init__(self, draw: st.DrawFn, opset: int, values: Sequence[Value], prefix: str = "", depth: int = 1) -> None:
        self.draw = draw
        self.opset = opset
        self.values = list(values)
        self.prefix = prefix
        self.depth = depth
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.constants: list[Value] = []

    # Drawing

    def pick(self, choices: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(list(choices)))

    def value(self, fits: Callable[[Value], bool] = lambda value: True, dtype: int = FLOAT) -> Value | None:
        found = [value for value in self.values if value.dtype == dtype and fits(value)]
        return self.pick(found) if found else None

    def fresh(self) -> str:
        return f"{self.prefix}v{len(self.nodes) + len(self.initializers)}"

    def constant(self, array: np.ndarray) -> str:
        name = f"{self.fresh()}c"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def floats(self, dims: Sequence[int], numbers: Sequence[float] = (0, 1, -1, 0.5, 2, 0.25)) -> str:
        """A constant, sometimes all of one number, sometimes one that is there already."""
        size = math.prod(dims)
        shared = [value for value in self.constants if value.dims == tuple(dims)]
        if shared and numbers[0] == 0 and self.draw(st.booleans()):
            return str(self.pick(shared).name)
        if self.draw(st.booleans()):
            elements = [self.pick(numbers)] * size
        else:
            seed = self.draw(st.integers(0, 99))
            elements = list(np.random.default_rng(seed).choice(numbers, size))
        name = self.constant(np.array(elements, np.float32).reshape(dims))
        if numbers[0] == 0:
            self.constants.append(Value(name, tuple(dims)))
        return name

    # Growing

    def node(
        self,
        op_type: str,
        inputs: Sequence[str],
        dims: Dims,
        dtype: int = FLOAT,
        plain: bool = False,
        **attributes: Any,
    ) -> Value:
        value = Value(self.fresh(), dims, dtype, plain)
        self.nodes.append(helper.make_node(op_type, inputs, [value.name], **attributes))
        self.values.append(value)
        return value

    def grow(self, count: int) -> None:
        """Add `count` operators, some of which are several nodes."""
        kinds = [kind for kind in KINDS if kind is not if_ or self.depth]
        for _ in range(count):
            self.pick(kinds)(self)

    def reductions(self, axes: Sequence[int], as_input: bool) -> tuple[list[str], dict[str, Any]]:
        """Axes as the operator of this opset wants them."""
        return ([self.integers(*axes)], {}) if as_input else ([], {"axes": list(axes)})


def unary(g: Growth) -> None:
    x = g.value()
    if x is not None:
        kinds = ["Relu", "Relu", "Neg", "Neg", "Abs", "Identity", "Dropout", "Tanh", "Sigmoid", "LeakyRelu"]
        op_type = g.pick(kinds + ["Floor"] * x.plain)
        g.node(op_type, [x.name], x.dims, plain=x.plain and op_type not in ("Tanh", "Sigmoid", "LeakyRelu"))


def binary_constant(g: Growth) -> None:
    """An operand that is constant, and broadcast in every way."""
    x = g.value(lambda x: x.size < 200)
    if x is None:
        return
    rank = g.draw(st.integers(0, len(x.dims)))
    dims = [dim if isinstance(dim, int) and g.draw(st.booleans()) else 1 for dim in x.dims[len(x.dims) - rank :]]
    op_type = g.pick(["Add", "Add", "Sub", "Mul", "Mul", "Div", "Max", "Pow"])
    choices = {"Div": (1, 2, 4, -1, 0.5), "Pow": (1, 2)}.get(op_type, (0, 1, -1, 0.5, 2, 0.25))
    operands = [x.name, g.floats(dims, choices)]
    if op_type in ("Add", "Sub", "Mul", "Max") and g.draw(st.booleans()):
        operands.reverse()
    g.node(op_type, operands, x.dims, plain=x.plain and op_type != "Pow")


def binary(g: Growth) -> None:
    """Two operands of the same extents, or one with an axis of one element."""
    x = g.value()
    fits = [y for y in g.values if x is not None and y.dtype == FLOAT and broadcast(x.dims, y.dims) == x.dims]
    if x is not None and fits:
        y = g.pick(fits)
        op_type = g.pick(["Add", "Sub", "Mul", "Max", "Min"])
        operands = [x.name, y.name] if g.draw(st.booleans()) else [y.name, x.name]
        g.node(op_type, operands, x.dims, plain=x.plain and y.plain and op_type != "Mul")


def broadcast(a: Dims, b: Dims) -> Dims | None:
    """The extents of a and b broadcast."""
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    found = [y if x == 1 else x if y in (1, x) else None for x, y in pairs]
    return None if None in found else tuple(dim for dim in found if dim is not None)


def clip(g: Growth) -> None:
    x = g.value()
    if x is not None:
        low, high = g.floats((), (-1, 0, 0.5)), g.floats((), (1, 2, 6))
        inputs = g.pick([[low, high], [low], ["", high]])
        g.node("Clip", [x.name, *inputs], x.dims, plain=x.plain)


def cast(g: Growth) -> None:
    x = g.value()
    if x is not None:
        between = g.pick([TensorProto.DOUBLE, TensorProto.FLOAT] + [INT, TensorProto.INT32, BOOL] * x.plain)
        first = g.node("Cast", [x.name], x.dims, between, x.plain, to=between)
        g.node("Cast", [first.name], x.dims, plain=x.plain, to=FLOAT)


def where(g: Growth) -> None:
    x, y = g.value(lambda v: v.plain), g.value()
    if x is not None and y is not None and broadcast(x.dims, y.dims) == x.dims:
        condition = g.node("Greater", [x.name, g.floats((), (0, 0.5))], x.dims, BOOL)
        taken = g.pick([condition.name, g.constant(np.array(g.draw(st.booleans())))])
        operands = [x.name, y.name] if taken == condition.name or g.draw(st.booleans()) else [x.name, x.name]
        g.node("Where", [taken, *operands], x.dims, plain=x.plain and y.plain)


def transpose(g: Growth) -> None:
    x = g.value(lambda x: len(x.dims) > 1)
    if x is not None:
        order = g.draw(st.permutations(range(len(x.dims))))
        moved = g.node("Transpose", [x.name], tuple(x.dims[i] for i in order), plain=x.plain, perm=order)
        if g.draw(st.booleans()):
            relu = g.node("Relu", [moved.name], moved.dims, plain=x.plain)
            g.node("Transpose", [relu.name], x.dims, plain=x.plain, perm=[order.index(i) for i in range(len(order))])


def reshape(g: Growth) -> None:
    """To extents that leave the batch where it is, or to those of another value, computed."""
    x = g.value(lambda x: BATCH not in x.dims[1:])
    if x is None:
        return
    open_ = x.dims[:1] == (BATCH,)
    rest = [int(dim) for dim in x.dims[open_:]]
    size = math.prod(rest)
    first = g.pick([d for d in range(1, size + 1) if size % d == 0])
    dims: Dims = g.pick([(size,), (first, size // first), tuple(rest), (*rest, 1)])
    target = [*([g.pick([0, -1]) if open_ else 1] if open_ else []), *map(int, dims)]
    if -1 not in target and len(target) > open_ and g.draw(st.booleans()):
        target[-1] = -1
    if g.draw(st.booleans()):
        twin = g.node("Neg", [x.name], x.dims, plain=x.plain)
        shape = g.node("Shape", [twin.name], (len(x.dims),), INT)
        g.node("Reshape", [x.name, shape.name], x.dims, plain=x.plain)
    g.node("Reshape", [x.name, g.integers(*target)], ((BATCH,) if open_ else ()) + dims, plain=x.plain)


def flatten(g: Growth) -> None:
    x = g.value(lambda x: len(x.dims) > 1 and BATCH not in x.dims[1:])
    if x is not None:
        rest = math.prod(int(dim) for dim in x.dims[1:])
        g.node("Flatten", [x.name], (x.dims[0], rest), plain=x.plain)


def squeeze(g: Growth) -> None:
    """An axis of one element more, and perhaps gone again."""
    x = g.value(lambda x: len(x.dims) < 5)
    if x is not None:
        at, gone = (g.draw(st.integers(0, len(x.dims))) for _ in range(2))
        dims = (*x.dims[:at], 1, *x.dims[at:])
        wide = g.node("Unsqueeze", [x.name, g.integers(at)], dims, plain=x.plain)
        if dims[gone] == 1:
            axis = gone - g.pick([0, len(dims)])
            g.node("Squeeze", [wide.name, g.integers(axis)], (*dims[:gone], *dims[gone + 1 :]), plain=x.plain)


def concat(g: Growth) -> None:
    x = g.value(lambda x: bool(x.fixed) and x.size < LARGEST // 3)
    if x is not None:
        axis = g.pick(x.fixed)
        others = [y for y in g.values if y.dtype == FLOAT and y.dims == x.dims]
        parts = [x, *g.draw(st.lists(st.sampled_from(others), max_size=2))]
        total = len(parts) * int(x.dims[axis])
        dims = (*x.dims[:axis], total, *x.dims[axis + 1 :])
        names = [part.name for part in parts]
        plain = all(part.plain for part in parts)
        g.node("Concat", names, dims, plain=plain, axis=axis - g.pick([0, len(dims)]))


def split(g: Growth) -> None:
    x = g.value(lambda x: any(int(x.dims[axis]) % 2 == 0 for axis in x.fixed))
    if x is not None:
        axis = g.pick([axis for axis in x.fixed if int(x.dims[axis]) % 2 == 0])
        dims = (*x.dims[:axis], int(x.dims[axis]) // 2, *x.dims[axis + 1 :])
        parts = [Value(f"{g.fresh()}{side}", dims, plain=x.plain) for side in "ab"]
        halves: dict[str, Any] = {"num_outputs": 2} if g.opset >= 18 else {}
        g.nodes.append(helper.make_node("Split", [x.name], [part.name for part in parts], axis=axis, **halves))
        g.values += parts
        if g.draw(st.booleans()):
            g.node("Concat", [part.name for part in parts], x.dims, plain=x.plain, axis=axis)


def slice_(g: Growth) -> None:
    x = g.value(lambda x: bool(x.dims))
    if x is None:
        return
    axis = g.pick(range(len(x.dims)))
    extent = x.dims[axis]
    bounds = [(0, END, 1), (0, 2**31 - 1, 1)]
    if isinstance(extent, int):
        bounds += [
            (1, END, 1),
            (0, -1, 1),
            (0, extent, 1),
            (-2, END, 1),
            (0, END, 2),
            (-1, -END, -1),
            (-extent, extent, 1),
        ]
        bounds = [cut for cut in bounds if len(range(*slice(*cut).indices(extent)))]
    start, end, step = g.pick(bounds)
    length = len(range(*slice(start, end, step).indices(extent))) if isinstance(extent, int) else extent
    numbers = (start, end, axis - g.pick([0, len(x.dims)]), step)
    inputs = [g.integers(number) for number in numbers]
    g.node("Slice", [x.name, *inputs], (*x.dims[:axis], length, *x.dims[axis + 1 :]), plain=x.plain)


def pad(g: Growth) -> None:
    x = g.value(lambda x: bool(x.fixed) and x.size < 100)
    if x is not None:
        pads = [0] * 2 * len(x.dims)
        pads[g.pick(x.fixed)] = g.draw(st.integers(0, 1))
        pads[len(x.dims) + g.pick(x.fixed)] = g.draw(st.integers(0, 2))
        added = [pads[axis] + pads[len(x.dims) + axis] for axis in range(len(x.dims))]
        dims = tuple(dim + more if isinstance(dim, int) else dim for dim, more in zip(x.dims, added, strict=True))
        number = g.pick([[], [g.floats((), (0, 1))]])
        g.node("Pad", [x.name, g.integers(*pads), *number], dims, plain=x.plain)


def gather(g: Growth) -> None:
    x = g.value(lambda x: bool(x.fixed))
    if x is not None:
        axis = g.pick(x.fixed)
        extent = int(x.dims[axis])
        rows = g.pick([list(range(extent)), [extent - 1], [0, -1]])
        indices = g.pick([np.array(rows, np.int64), np.array(rows[0], np.int64)])
        dims = (*x.dims[:axis], *indices.shape, *x.dims[axis + 1 :])
        g.node("Gather", [x.name, g.constant(indices)], dims, plain=x.plain, axis=axis)


def reduce(g: Growth) -> None:
    x = g.value(lambda x: bool(x.fixed))
    if x is not None:
        axes, keep = sorted(g.draw(st.sets(st.sampled_from(x.fixed), min_size=1))), g.draw(st.integers(0, 1))
        op_type = g.pick(["ReduceMean", "ReduceSum", "ReduceMax"])
        inputs, attributes = g.reductions(axes, g.opset >= 18 or op_type == "ReduceSum")
        kept = tuple(1 if axis in axes else dim for axis, dim in enumerate(x.dims) if keep or axis not in axes)
        g.node(op_type, [x.name, *inputs], kept, plain=x.plain and op_type == "ReduceMax", keepdims=keep, **attributes)


def softmax(g: Growth) -> None:
    x = g.value(lambda x: bool(x.dims))
    if x is not None:
        g.node("Softmax", [x.name], x.dims, axis=g.pick(range(-len(x.dims), len(x.dims))))


def linear(g: Growth) -> None:
    x = g.value(lambda x: len(x.dims) > 1 and isinstance(x.dims[-1], int))
    if x is not None:
        width, dims = int(x.dims[-1]), (*x.dims[:-1], 4)
        if len(x.dims) == 2 and g.draw(st.booleans()):
            g.node("Gemm", [x.name, g.floats((4, width)), g.floats((4,))], dims, transB=1)
        else:
            product = g.node("MatMul", [x.name, g.floats((width, 4))], dims)
            g.node("Add", [product.name, g.floats((4,))], dims)


def conv(g: Growth) -> None:
    """A convolution, perhaps padded before and normalized behind."""
    x = g.value(lambda x: len(x.dims) == 4 and all(isinstance(dim, int) for dim in x.dims[1:]) and x.size <= 100)
    if x is None:
        return
    channels, kernel = int(x.dims[1]), g.pick([1, 3])
    groups = g.pick([1, channels])
    weight = g.floats((channels, channels // groups, kernel, kernel))
    y = g.node("Conv", [x.name, weight], x.dims, pads=[kernel // 2] * 4, group=groups)
    if g.draw(st.booleans()):
        parameters = [g.floats((channels,)) for _ in range(3)] + [g.floats((channels,), (1, 4, 0.25))]
        y = g.node("BatchNormalization", [y.name, *parameters], x.dims)
    if g.draw(st.booleans()):
        g.node("Relu", [y.name], x.dims)


def pool(g: Growth) -> None:
    x = g.value(lambda x: len(x.dims) == 4 and all(isinstance(dim, int) for dim in x.dims[1:]))
    if x is not None:
        op_type = g.pick(["AveragePool", "MaxPool", "GlobalAveragePool"])
        if op_type == "GlobalAveragePool":
            g.node(op_type, [x.name], (*x.dims[:2], 1, 1))
        else:
            side = g.pick([1, min(2, *(int(dim) for dim in x.dims[2:]))])
            dims = (*x.dims[:2], *(int(dim) - side + 1 for dim in x.dims[2:]))
            g.node(op_type, [x.name], dims, plain=x.plain and op_type == "MaxPool", kernel_shape=[side, side])


def again(g: Growth) -> None:
    """A node once more."""
    nodes = [node for node in g.nodes if node.op_type not in ("If", "Split", "Dropout")]
    by_name = {value.name: value for value in g.values}
    if nodes:
        node = g.pick(nodes)
        like = by_name[node.output[0]]
        copy = dataclasses.replace(like, name=g.fresh())
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        g.nodes.append(helper.make_node(node.op_type, list(node.input), [copy.name], **attributes))
        g.values.append(copy)


def if_(g: Growth) -> None:
    """Branches that read from outside and use the same names inside."""
    x = g.pick([value for value in g.values if value.name in ("image", "row", "scalar")])
    # onnxruntime 1.32 loses what two Casts in a row make where only a body reads it. A rewrite may remove what stands
    # between the Casts, or between them and the body, so bodies read nothing that a Cast leads to.
    of_casts: set[str] = set()
    for node in g.nodes:
        if node.op_type == "Cast" or not of_casts.isdisjoint(node.input):
            of_casts.update(node.output)
    visible = [value for value in g.values if value.name not in of_casts]
    branches = {}
    for name in ("then_branch", "else_branch"):
        body = Growth(g.draw, g.opset, visible, f"{g.fresh()}_{g.pick(['b', name[0]])}_", g.depth - 1)
        body.grow(g.draw(st.integers(0, 3)))
        results = [value for value in body.values if value.dims == x.dims and value.dtype == FLOAT]
        result = body.node(g.pick(["Neg", "Relu", "Identity"]), [g.pick(results).name], x.dims)
        branches[name] = helper.make_graph(body.nodes, name, [], [described(result)], body.initializers)
    condition = g.pick(["condition", g.constant(np.array(g.draw(st.booleans())))])
    g.node("If", [condition], x.dims, **branches)


KINDS: Sequence[Callable[[Growth], None]] = (
    *(
        unary,
        unary,
        binary_constant,
        binary_constant,
        binary,
        clip,
        cast,
        where,
        transpose,
        transpose,
        reshape,
        flatten,
    ),
    *(squeeze, concat, split, slice_, pad, gather, reduce, softmax, linear, conv, pool, again, again, if_),
)


def described(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, value.dtype, value.dims)


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """Models with a dynamic batch or none, a few outputs that are inner values, and some that equal an input."""
    batch: Any = draw(st.sampled_from([BATCH, BATCH_SIZE]))
    inputs = [Value("image", (batch, 4, 3, 3)), Value("row", (batch, 6)), Value("scalar", ())]
    growth = Growth(draw, draw(st.sampled_from([13, 17, 20])), inputs)
    growth.grow(draw(st.integers(2, 12)))
    made = [value for value in growth.values if value not in inputs]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True)) if made else []
    if not outputs or draw(st.booleans()):
        x = draw(st.sampled_from(inputs))
        outputs.append(growth.node("Identity", [x.name], x.dims))
    condition = helper.make_tensor_value_info("condition", BOOL, ())
    graph = helper.make_graph(
        growth.nodes, "g", [*map(described, inputs), condition], [*map(described, outputs)], growth.initializers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", growth.opset)], ir_version=9)


def feeds(seed: int) -> dict[str, np.ndarray]:
    """Inputs for any of the models."""
    rng = np.random.default_rng(seed)
    shapes = {"image": (BATCH_SIZE, 4, 3, 3), "row": (BATCH_SIZE, 6), "scalar": ()}
    drawn = {name: (rng.integers(-8, 9, shape) / 4).astype(np.float32) for name, shape in shapes.items()}
    return {**{name: np.asarray(array) for name, array in drawn.items()}, "condition": np.array(seed % 2 == 0)}
