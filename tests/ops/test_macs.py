"""MACs of every family against multiplications that were really carried out and counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.ops.base import Extents, operator
from graphopt.ops.einsum import einsum_work
from graphopt.ops.matmul import matmul_macs

Array = np.ndarray[Any, Any]
Numbers = Callable[..., Array]
MakeNode = Callable[..., ir.Node]
MS = "com.microsoft"


def output_shape(op_type: str, shapes: Sequence[Sequence[int]], opset: int = 22, **attributes: Any) -> tuple[int, ...]:
    """The extents of output 0 by onnx's own inference."""
    names = [f"i{index}" for index in range(len(shapes))]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op_type, names, ["y"], **attributes)],
        "g",
        [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in zip(names, shapes, strict=True)],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return tuple(dim.dim_value for dim in inferred.graph.output[0].type.tensor_type.shape.dim)


# --- convolutions ---------------------------------------------------------------------------------------------------


def convolve(data: Array, weight: Array, out: Sequence[int], group: int, stride: int = 1, dilation: int = 1) -> None:
    """Every product of a convolution over data that is padded enough."""
    filters, channels = weight.shape[0] // group, weight.shape[1]
    for batch, filter_, *position in itertools.product(*map(range, out)):
        for channel, *tap in itertools.product(*map(range, weight.shape[1:])):
            place = [p * stride + t * dilation for p, t in zip(position, tap, strict=True)]
            _ = data[(batch, filter_ // filters * channels + channel, *place)] * weight[(filter_, channel, *tap)]


CONVOLUTIONS = {
    "plain": ((2, 3, 7, 6), (4, 3, 3, 2), {}),
    "grouped": ((1, 6, 5, 5), (4, 3, 3, 3), {"group": 2}),
    "depthwise": ((1, 4, 6, 6), (8, 1, 3, 3), {"group": 4}),
    "strided, dilated, padded": ((1, 2, 9, 9), (3, 2, 3, 3), {"strides": [2, 2], "dilations": [2, 2], "pads": [1] * 4}),
    "auto_pad": ((1, 2, 8, 8), (3, 2, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "1d": ((2, 4, 16), (6, 4, 5), {}),
    "3d": ((1, 2, 4, 5, 6), (3, 2, 2, 2, 2), {}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution(
    case: tuple[Any, Any, Any], make_node: MakeNode, extents: Extents, numbers: Numbers, tally: Any
) -> None:
    data, weight, attributes = case
    out = output_shape("Conv", [data, weight], **attributes)
    stride, dilation = attributes.get("strides", [1])[0], attributes.get("dilations", [1])[0]
    convolve(
        numbers(*data[:2], *(40,) * len(data[2:])), numbers(*weight), out, attributes.get("group", 1), stride, dilation
    )
    scale, zero = (), ()
    for op_type, inputs, domain in (
        ("Conv", [data, weight], ""),
        ("ConvInteger", [data, weight], ""),
        ("QLinearConv", [data, scale, zero, weight, scale, zero, scale, zero], ""),
        ("FusedConv", [data, weight, None, out], MS),
        ("DeformConv", [data, weight, (1,)], ""),
    ):
        node = make_node(op_type, inputs, out, domain=domain, **attributes)
        assert operator(node).macs(node, extents) == tally.products, op_type


@pytest.mark.parametrize(("group", "stride"), [(1, 1), (1, 2), (2, 2)])
def test_transposed_convolution(
    group: int, stride: int, make_node: MakeNode, extents: Extents, numbers: Numbers, tally: Any
) -> None:
    data, weight = (2, 4, 5, 3), (4, 3, 2, 2)
    x, w = numbers(*data), numbers(*weight)
    for batch, channel, row, column in itertools.product(*map(range, data)):
        for filter_, i, j in itertools.product(*map(range, weight[1:])):
            _ = x[batch, channel, row, column] * w[channel, filter_, i, j]
    out = output_shape("ConvTranspose", [data, weight], group=group, strides=[stride] * 2)
    node = make_node("ConvTranspose", [data, weight], out, group=group, strides=[stride] * 2)
    assert operator(node).macs(node, extents) == tally.products


def test_flops_of_a_convolution_are_two_per_mac_and_its_epilogue(make_node: MakeNode, extents: Extents) -> None:
    data, weight, out = (1, 3, 8, 8), (4, 3, 3, 3), (1, 4, 6, 6)
    macs, size = 4 * 36 * 27, 4 * 36
    for inputs, extra, attributes in (
        ([data, weight], 0, {}),
        ([data, weight, (4,)], 1, {}),
        ([data, weight, (4,), out], 3, {"activation": "Relu"}),
    ):
        node = make_node("FusedConv", inputs, out, domain=MS, **attributes)
        assert operator(node).flops(node, extents) == 2 * macs + extra * size


# --- matrix products ------------------------------------------------------------------------------------------------

MATMULS = [
    ((3, 4), (4, 5)),
    ((4,), (4, 5)),
    ((3, 4), (4,)),
    ((4,), (4,)),
    ((2, 1, 3, 4), (5, 4, 2)),
    ((2, 3, 4), (4, 2)),
]


@pytest.mark.parametrize(("left", "right"), MATMULS)
def test_matmul(left: Any, right: Any, make_node: MakeNode, extents: Extents, numbers: Numbers, tally: Any) -> None:
    product = np.matmul(numbers(*left), numbers(*right))
    shape = np.shape(product)
    for op_type, inputs, domain in (
        ("MatMul", [left, right], ""),
        ("MatMulInteger", [left, right], ""),
        ("QLinearMatMul", [left, (), (), right, (), (), (), ()], ""),
        ("FusedMatMul", [left, right], MS),
        ("DynamicQuantizeMatMul", [left, right, (), ()], MS),
        ("MatMulIntegerToFloat", [left, right, (), ()], MS),
    ):
        node = make_node(op_type, inputs, shape, domain=domain)
        assert operator(node).macs(node, extents) == tally.products, op_type


@given(st.data())
def test_matmul_broadcasts_as_numpy_does(data: st.DataObject) -> None:
    batch = data.draw(st.lists(st.integers(1, 3), max_size=3))
    m, k, n = (data.draw(st.integers(1, 4)) for _ in range(3))
    left = [extent if data.draw(st.booleans()) else 1 for extent in batch]
    shape = np.matmul(np.ones((*left, m, k)), np.ones((*batch, k, n))).shape
    assert matmul_macs((*left, m, k), (*batch, k, n)) == np.prod(shape) * k


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(trans_a: int, trans_b: int, make_node: MakeNode, extents: Extents) -> None:
    a, b = (7, 3)[:: -1 if trans_a else 1], (3, 5)[:: -1 if trans_b else 1]
    for op_type, inputs, domain in (
        ("Gemm", [a, b, (5,)], ""),
        ("FusedGemm", [a, b, (5,)], MS),
        ("QGemm", [a, (), (), b, (), (), (5,)], MS),
    ):
        node = make_node(op_type, inputs, (7, 5), domain=domain, transA=trans_a, transB=trans_b)
        assert operator(node).macs(node, extents) == 7 * 3 * 5
        assert (operator(node).flops(node, extents) or 0) >= 2 * 7 * 3 * 5 + 7 * 5


def test_matmul_of_packed_weights_takes_their_extents_from_attributes(make_node: MakeNode, extents: Extents) -> None:
    node = make_node("MatMulNBits", [(2, 6, 64), (32, 2, 16), (64,)], (2, 6, 32), domain=MS, K=64, N=32, bits=4)
    assert operator(node).macs(node, extents) == 2 * 6 * 64 * 32


def test_fused_matmul_moves_the_batch_axis(make_node: MakeNode, extents: Extents) -> None:
    node = make_node("FusedMatMul", [(4, 2, 3), (2, 3, 5)], (2, 4, 5), domain=MS, transBatchA=1)
    assert operator(node).macs(node, extents) == 2 * 4 * 3 * 5


@pytest.mark.parametrize("shapes", [((2, 3, 4), (3, 4, 5)), ((), (3,)), (None, (3, 4))])
def test_a_product_of_shapes_that_do_not_fit_is_unknown(shapes: Any) -> None:
    assert matmul_macs(*shapes) is None


# --- Einsum ---------------------------------------------------------------------------------------------------------

EINSUMS = {
    "ij,jk->ik": [(2, 3), (3, 4)],
    "ij,jk": [(2, 3), (3, 4)],
    "bhqd,bhkd->bhqk": [(2, 3, 4, 5), (2, 3, 6, 5)],
    "...ij,...jk->...ik": [(2, 3, 4), (2, 4, 5)],
    "ij,ji->": [(3, 4), (4, 3)],
    "ijk,k->ij": [(2, 3, 4), (4,)],
    " b i , b i -> b ": [(2, 3), (2, 3)],
}


@pytest.mark.parametrize(("equation", "shapes"), EINSUMS.items(), ids=EINSUMS)
def test_einsum_of_two_operands(equation: str, shapes: Any, numbers: Numbers, tally: Any) -> None:
    np.einsum(equation, *(numbers(*shape) for shape in shapes), optimize=False)
    work = einsum_work(equation, shapes)
    assert work is not None
    assert (work.macs, work.others) == (tally.products, 0)


@pytest.mark.parametrize(
    ("equation", "shapes", "macs", "others"),
    [
        ("ij->ji", [(3, 4)], 0, 0),
        ("ij->i", [(3, 4)], 0, 12),
        ("ii->i", [(4, 4)], 0, 0),
        ("i,j->ij", [(3,), (4,)], 0, 12),
        ("bchw,bc->bchw", [(2, 3, 4, 5), (2, 3)], 0, 120),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], 2 * 3 * 4 + 2 * 4 * 5, 0),
        ("ijm,jk->ik", [(2, 3, 7), (3, 4)], 2 * 3 * 4, 2 * 3 * 7),
        ("...i,...i->...", [(5, 4), (4,)], 20, 0),
        ("ij,jk->ik", [(2, 1), (3, 4)], 2 * 3 * 4, 0),
    ],
)
def test_einsum_counts_sums_of_products_only(equation: str, shapes: Any, macs: int, others: int) -> None:
    work = einsum_work(equation, shapes)
    assert work is not None
    assert (work.macs, work.others) == (macs, others)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [("ij,jk->ik", [(2, 3), (4, 5)]), ("ij,jk->ik", [(2, 3)]), ("ij->i", [(2, 3, 4)]), ("", [(2,)])],
)
def test_einsum_that_does_not_fit_is_unknown(equation: str, shapes: Any) -> None:
    assert einsum_work(equation, shapes) is None


# --- recurrent layers -----------------------------------------------------------------------------------------------


def recurrences(directions: int, lengths: Sequence[int]) -> Iterator[int]:
    for _ in range(directions):
        for length in lengths:
            yield from range(length)


@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("lengths", [None, [2, 5, 1]])
def test_recurrent(
    op_type: str,
    gates: int,
    directions: int,
    lengths: list[int] | None,
    make_node: MakeNode,
    extents: Extents,
    numbers: Numbers,
    tally: Any,
) -> None:
    steps, batch, width, hidden = 5, 3, 4, 6
    for _ in recurrences(directions, lengths or [steps] * batch):
        _ = numbers(width) @ numbers(width, gates * hidden)
        _ = numbers(hidden) @ numbers(hidden, gates * hidden)
    weights = [(directions, gates * hidden, width), (directions, gates * hidden, hidden)]
    sequence_lens = None if lengths is None else np.array(lengths, np.int32)
    node = make_node(op_type, [(steps, batch, width), *weights, None, sequence_lens], hidden_size=hidden)
    assert operator(node).macs(node, extents) == tally.products
    transposed = make_node(op_type, [(batch, steps, width), *weights], hidden_size=hidden, layout=1)
    if lengths is None:
        assert operator(transposed).macs(transposed, extents) == tally.products


# --- attention ------------------------------------------------------------------------------------------------------


def attend(batch: int, heads: int, queries: int, keys: int, width: int, value_width: int, numbers: Numbers) -> None:
    for _ in range(batch * heads):
        _ = numbers(queries, width) @ numbers(width, keys)
        _ = numbers(queries, keys) @ numbers(keys, value_width)


def test_attention(make_node: MakeNode, extents: Extents, numbers: Numbers, tally: Any) -> None:
    attend(2, 4, 3, 5, 6, 7, numbers)
    expected = tally.products
    split = make_node("Attention", [(2, 4, 3, 6), (2, 4, 5, 6), (2, 4, 5, 7)])
    packed = make_node("Attention", [(2, 3, 24), (2, 5, 24), (2, 5, 28)], q_num_heads=4, kv_num_heads=4)
    grouped = make_node("Attention", [(2, 3, 24), (2, 5, 12), (2, 5, 14)], q_num_heads=4, kv_num_heads=2)
    cached = make_node("Attention", [(2, 4, 3, 6), (2, 4, 2, 6), (2, 4, 2, 7), None, (2, 4, 3, 6), (2, 4, 3, 7)])
    multi = make_node("MultiHeadAttention", [(2, 3, 24), (2, 5, 24), (2, 5, 28)], domain=MS, num_heads=4)
    for node in (split, packed, grouped, cached, multi):
        assert operator(node).macs(node, extents) == expected


def test_attention_with_projections(make_node: MakeNode, extents: Extents, numbers: Numbers, tally: Any) -> None:
    _ = numbers(2 * 5, 8) @ numbers(8, 36)
    attend(2, 3, 5, 5, 4, 4, numbers)
    for op_type in ("Attention", "QAttention"):
        node = make_node(op_type, [(2, 5, 8), (8, 36), (36,)], (2, 5, 12), domain=MS, num_heads=3)
        assert operator(node).macs(node, extents) == tally.products


def test_packed_queries_keys_and_values(make_node: MakeNode, extents: Extents) -> None:
    node = make_node("MultiHeadAttention", [(2, 5, 3, 3, 4)], domain=MS, num_heads=3)
    assert operator(node).macs(node, extents) == 2 * 3 * 5 * 5 * (4 + 4)


def test_linear_attention_updates_and_reads_a_state(make_node: MakeNode, extents: Extents) -> None:
    shapes = [(2, 5, 4 * 3), (2, 5, 2 * 3), (2, 5, 2 * 7)]
    for rule, passes in (("linear", 2 + 4), ("delta", 2 * 2 + 4)):
        node = make_node("LinearAttention", shapes, q_num_heads=4, kv_num_heads=2, update_rule=rule)
        assert operator(node).macs(node, extents) == 2 * 5 * 3 * 7 * passes


# --- what multiplies and accumulates nothing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op_type", "inputs", "output", "attributes", "flops"),
    [
        ("Relu", [(2, 3)], (2, 3), {}, 6),
        ("Add", [(2, 3), (3,)], (2, 3), {}, 6),
        ("Sum", [(2, 3)] * 3, (2, 3), {}, 12),
        ("Mean", [(2, 3)] * 2, (2, 3), {}, 12),
        ("MaxPool", [(1, 2, 8, 8)], (1, 2, 4, 4), {"kernel_shape": [2, 2]}, 128),
        ("GlobalAveragePool", [(1, 2, 8, 8)], (1, 2, 1, 1), {}, 128),
        ("ReduceSum", [(4, 5)], (4,), {}, 20),
        ("Softmax", [(4, 5)], (4, 5), {}, 100),
        ("LayerNormalization", [(4, 5), (5,), (5,)], (4, 5), {}, 120),
        ("BatchNormalization", [(1, 2, 3, 3)], (1, 2, 3, 3), {}, 36),
        ("Resize", [(1, 1, 2, 2), None, (4,)], (1, 1, 4, 4), {"mode": "linear"}, 16 * 7),
        ("Resize", [(1, 1, 2, 2), None, (4,)], (1, 1, 4, 4), {"mode": "nearest"}, 0),
        ("Transpose", [(2, 3)], (3, 2), {}, 0),
        ("QuantizeLinear", [(2, 3), ()], (2, 3), {}, 18),
        ("LRN", [(1, 8, 2, 2)], (1, 8, 2, 2), {"size": 5}, 32 * 10),
    ],
)
def test_other_work(
    op_type: str, inputs: Any, output: Any, attributes: Any, flops: int, make_node: MakeNode, extents: Extents
) -> None:
    node = make_node(op_type, inputs, output, **attributes)
    assert (operator(node).macs(node, extents), operator(node).flops(node, extents)) == (0, flops)
