"""Coupling of channels: structures of convolutional networks, each with the units that a person finds in it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from pruning import Shape, inputs, lifted, model, pruned, run, same, silenced, sizes

from graphopt.analysis.coupling import couple, remove
from graphopt.ir.emit import to_bytes

IMAGE = "(float[N,3,8,8] x)"
END = "g = GlobalAveragePool(z) f = Flatten(g) y = Gemm<transB=1>(f, wy, by)"
Case = tuple[str, dict[str, Shape | np.ndarray], list[tuple[int, int]]]

# Text of the nodes between x and z; tensors; groups as (units, lanes). Every case is exact: what is silenced stays zero.
CASES: dict[str, Case] = {
    "chain": (
        "a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) z = Conv(r, w2)",
        {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (5, 6, 1, 1), "wy": (4, 5)},
        [(6, 1), (5, 1)],
    ),
    "two residual sums tie three layers": (
        """a = Conv(x, w1) r = Relu(a) b = Conv(r, w2) s = Add(a, b) t = Relu(s) c = Conv(t, w3) u = Add(c, s)
           z = Relu(u)""",
        {"w1": (6, 3, 1, 1), "w2": (6, 6, 1, 1), "w3": (6, 6, 1, 1), "wy": (4, 6)},
        [(6, 1)],
    ),
    "concatenated branches stay apart": (
        "a = Conv(x, w1) b = Conv(x, w2) c = Concat<axis=1>(a, b) r = Relu(c) z = Conv(r, w3)",
        {"w1": (4, 3, 1, 1), "w2": (6, 3, 1, 1), "w3": (5, 10, 1, 1), "wy": (4, 5)},
        [(4, 1), (6, 1), (5, 1)],
    ),
    "depthwise": (
        "a = Conv(x, w1) b = Conv<group=6, pads=[1,1,1,1]>(a, w2) r = Relu(b) z = Conv(r, w3)",
        {"w1": (6, 3, 1, 1), "w2": (6, 1, 3, 3), "w3": (5, 6, 1, 1), "wy": (4, 5)},
        [(6, 1), (5, 1)],
    ),
    "depthwise with a multiplier": (
        "a = Conv(x, w1) b = Conv<group=6, pads=[1,1,1,1]>(a, w2) r = Relu(b) z = Conv(r, w3)",
        {"w1": (6, 3, 1, 1), "w2": (12, 1, 3, 3), "w3": (5, 12, 1, 1), "wy": (4, 5)},
        [(6, 1), (5, 1)],
    ),
    "a grouped convolution keeps as many channels in each group": (
        "a = Conv(x, w1) b = Conv<group=2>(a, w2) r = Relu(b) z = Conv(r, w3)",
        {"w1": (8, 3, 1, 1), "w2": (12, 4, 1, 1), "w3": (5, 12, 1, 1), "wy": (4, 5)},
        [(4, 2), (6, 2), (5, 1)],
    ),
    "a grouped convolution of many narrow groups loses whole ones": (
        "a = Conv(x, w1) b = Conv<group=8>(a, w2) r = Relu(b) z = Conv(r, w3)",
        {"w1": (16, 3, 1, 1), "w2": (16, 2, 1, 1), "w3": (5, 16, 1, 1), "wy": (4, 5)},
        [(8, 2), (5, 1)],
    ),
    "transposed convolutions": (
        "a = ConvTranspose<strides=[2,2]>(x, w1) r = Relu(a) b = ConvTranspose<group=2>(r, w2) z = Relu(b)",
        {"w1": (3, 6, 2, 2), "w2": (6, 5, 1, 1), "wy": (4, 10)},
        [(3, 2), (5, 2)],
    ),
    "depthwise transposed convolution": (
        "a = Conv(x, w1) b = ConvTranspose<group=6, strides=[2,2]>(a, w2) z = Relu(b)",
        {"w1": (6, 3, 1, 1), "w2": (6, 1, 2, 2), "wy": (4, 6)},
        [(6, 1)],
    ),
    "squeeze and excitation": (
        """a = Conv(x, w1) p = GlobalAveragePool(a) q = Conv(p, w2) r = Relu(q) s = Conv(r, w3) t = Sigmoid(s)
           z = Mul(a, t)""",
        {"w1": (6, 3, 1, 1), "w2": (3, 6, 1, 1), "w3": (6, 3, 1, 1), "wy": (4, 6)},
        [(6, 1), (3, 1)],
    ),
    "spatial attention keeps its only channel": (
        "a = Conv(x, w1) m = Conv(x, w2) s = Sigmoid(m) z = Mul(a, s)",
        {"w1": (6, 3, 1, 1), "w2": (1, 3, 1, 1), "wy": (4, 6)},
        [(6, 1)],
    ),
    "PRelu and constants per channel": (
        "a = Conv(x, w1) r = PRelu(a, p) s = Mul(r, k) t = Mul(i, s) z = Max(t, o)",
        {"w1": (6, 3, 1, 1), "p": (6, 1, 1), "k": (1, 6, 8, 1), "i": (1, 1, 8, 8), "o": np.zeros((), np.float32), "wy": (4, 6)},
        [(6, 1)],
    ),
    "pools, padding and resizing": (
        """a = Conv(x, w1) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) q = AveragePool<kernel_shape=[2,2]>(p)
           s = Pad<mode="reflect">(q, pads) z = Resize<mode="nearest">(s, , scales)""",
        {
            "w1": (6, 3, 1, 1), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            "scales": np.array([1, 1, 2, 2], np.float32), "wy": (4, 6),
        },
        [(6, 1)],
    ),
    "a resize to given sizes": (
        "a = Conv(t, w1) z = Resize<mode=\"nearest\">(a, , , sizes)  ".replace("(t,", "(x,"),
        {"w1": (6, 3, 1, 1), "sizes": np.array([2, 6, 16, 16]), "wy": (4, 6)},
        [(6, 1)],
    ),
    "a shortcut that pads channels with zeros": (
        """a = Conv(x, w1) h = Slice(a, starts, ends, axes, steps) s = Pad(h, pads) b = Conv<strides=[2,2]>(a, w2)
           t = Add(s, b) z = Relu(t)""",
        {
            "w1": (4, 3, 1, 1), "w2": (8, 4, 1, 1), "starts": np.array([0, 0]), "ends": np.array([2**60, 2**60]),
            "axes": np.array([2, 3]), "steps": np.array([2, 2]), "pads": np.array([0, 2, 0, 0, 0, 2, 0, 0]),
            "wy": (4, 8),
        },
        [(4, 1), (4, 1)],
    ),
    "split": (
        "a = Conv(x, w1) b, c = Split<axis=1>(a, sizes) d = Conv(b, w2) e = Add(c, d) z = Relu(e)",
        {"w1": (10, 3, 1, 1), "sizes": np.array([4, 6]), "w2": (6, 4, 1, 1), "wy": (4, 6)},
        [(4, 1), (6, 1)],
    ),
    "split into equal parts": (
        "a = Conv(x, w1) b, c = Split<axis=1>(a) d = Conv(b, w2) z = Concat<axis=1>(c, d)",
        {"w1": (12, 3, 1, 1), "w2": (4, 6, 1, 1), "wy": (4, 10)},
        [(6, 1), (6, 1), (4, 1)],
    ),
    "slices of channels": (
        "a = Conv(x, w1) b = Slice(a, s1, e1, one) c = Slice(a, s2, e2, one) d = Conv(b, w2) e = Add(c, d) z = Relu(e)",
        {
            "w1": (9, 3, 1, 1), "s1": np.array([0]), "e1": np.array([3]), "s2": np.array([-6]), "e2": np.array([2**62]),
            "one": np.array([1]), "w2": (6, 3, 1, 1), "wy": (4, 6),
        },
        [(3, 1), (6, 1)],
    ),
    "gathered channels": (
        "a = Conv(x, w1) b = Gather<axis=1>(a, order) z = Relu(b)",
        {"w1": (6, 3, 1, 1), "order": np.array([5, 0, -2, 3, 2, 1]), "wy": (4, 6)},
        [(6, 1)],
    ),
    "one gathered channel": (
        "a = Conv(x, w1) b = Gather<axis=1>(a, third) c = Unsqueeze(b, one) z = Mul(a, c)",
        {"w1": (6, 3, 1, 1), "third": np.array(3), "one": np.array([1]), "wy": (4, 6)},
        [(5, 1)],
    ),
    "channel shuffle": (
        """a = Conv(x, w1) s = Reshape(a, five) t = Transpose<perm=[0,2,1,3,4]>(s) u = Reshape(t, four)
           z = Relu(u)""",
        {"w1": (12, 3, 1, 1), "five": np.array([0, 2, 6, 8, 8]), "four": np.array([-1, 12, 8, 8]), "wy": (4, 12)},
        [(6, 2)],
    ),
    "pixel shuffle": (
        'a = Conv(x, w1) s = DepthToSpace<blocksize=2, mode="CRD">(a) z = Conv(s, w2)',
        {"w1": (24, 3, 1, 1), "w2": (5, 6, 1, 1), "wy": (4, 5)},
        [(6, 4), (5, 1)],
    ),
    "space to depth": (
        "a = Conv(x, w1) s = SpaceToDepth<blocksize=2>(a) z = Conv(s, w2)",
        {"w1": (6, 3, 1, 1), "w2": (5, 24, 1, 1), "wy": (4, 5)},
        [(6, 1), (5, 1)],
    ),
    "NHWC": (
        """a = Conv(x, w1) t = Transpose<perm=[0,2,3,1]>(a) s = Mul(t, k) u = MatMul(s, m) v = Add(u, c)
           z = Transpose<perm=[0,3,1,2]>(v)""",
        {"w1": (6, 3, 1, 1), "k": (6,), "m": (6, 5), "c": np.zeros(5, np.float32), "wy": (4, 5)},
        [(6, 1), (5, 1)],
    ),
    "one weight used twice": (
        "a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) d = Relu(c) z = Conv(d, w2)",
        {"w1": (6, 3, 1, 1), "w2": (6, 6, 1, 1), "wy": (4, 6)},
        [(6, 1)],
    ),
}  # fmt: skip


def case(name: str) -> onnx.ModelProto:
    body, tensors, _ = CASES[name]
    return model(f"{IMAGE} => (float[N,4] y) {{ {body} {END} }}", {**tensors, "by": (4,)})


@pytest.mark.parametrize("name", CASES)
def test_units(name: str) -> None:
    assert sizes(case(name)) == CASES[name][2]


@pytest.mark.parametrize("name", CASES)
def test_removed_channels_are_zero_channels(name: str) -> None:
    proto = case(name)
    small, units = pruned(proto)
    feeds = inputs(proto)
    assert same(run(silenced(proto, units), feeds), run(small, feeds))
    assert len(small.SerializeToString()) < len(proto.SerializeToString())


def test_removing_nothing_changes_nothing() -> None:
    proto = case("channel shuffle")
    taken = lifted(proto)
    assert remove(taken, couple(taken), []) == set()
    assert to_bytes(taken) == to_bytes(lifted(proto))
