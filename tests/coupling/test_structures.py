"""Coupling beyond plain convolutions: attention, normalization over groups, and constants that are computed."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from pruning import Shape, inputs, model, pruned, reasons, run, same, silenced, sizes

Tensors = dict[str, Shape | np.ndarray]

LAYER_NORM = """
    m{i} = ReduceMean<axes=[-1]>({x}) d{i} = Sub({x}, m{i}) s{i} = Mul(d{i}, d{i}) v{i} = ReduceMean<axes=[-1]>(s{i})
    e{i} = Add(v{i}, eps) r{i} = Sqrt(e{i}) n{i} = Div(d{i}, r{i}) {y} = Mul(n{i}, g{i})
"""


def attention(core: str, end: str = "", tokens: str = "N,5,16") -> onnx.ModelProto:
    """Queries, keys and values of 2 heads of 6 from a normalized stream of 16, then a hidden layer."""
    text = f"""(float[{tokens}] x) => (float[{tokens}] y) {{
        n = LayerNormalization(x, g1)
        {core}
        o = MatMul(c, wo) ob = Add(o, bo) z = Add(x, ob)
        {LAYER_NORM.format(i="_n", x="z", y="h")}
        f = MatMul(h, w1) fb = Add(f, b1) fa = Erf(fb) u = MatMul(fa, w2) y = Add(z, u) {end}
    }}"""
    used: Tensors = {
        "g1": (16,), "wq": (16, 12), "wk": (16, 12), "wv": (16, 12), "wqkv": (16, 36), "bq": (12,), "bk": (12,), "bv": (12,),
        "wo": (12, 16), "bo": (16,), "eps": np.full((), 1e-5, np.float32), "g_n": (16,), "w1": (16, 20), "b1": (20,),
        "w2": (20, 16), "scale": np.full((), 6**-0.5, np.float32), "split": np.array([0, 0, 2, 6]),
        "merge": np.array([0, 0, 12]), "three": np.array([0, 5, 3, 2, 6]), "i0": np.array(0), "i1": np.array(1),
        "i2": np.array(2), "last": np.array([-1]), "end": np.array([2**62]), "half": np.full((), 0.5, np.float32),
        "bqkv": (36,), "two": np.array([2]), "zero": np.array([0]),
        "bias": (2, 5, 5), "pieces": np.array([12, 12, 12]),
    }  # fmt: skip
    return model(text, {name: tensor for name, tensor in used.items() if re.search(rf"\b{name}\b", text)})


HEADS = """
    q0 = MatMul(n, wq) q1 = Add(q0, bq) q2 = Reshape(q1, split) q = Transpose<perm=[0,2,1,3]>(q2)
    k0 = MatMul(n, wk) k1 = Add(k0, bk) k2 = Reshape(k1, split) k = Transpose<perm=[0,2,3,1]>(k2)
    v0 = MatMul(n, wv) v1 = Add(v0, bv) v2 = Reshape(v1, split) v = Transpose<perm=[0,2,1,3]>(v2)
"""
TAIL = "w = Softmax(a) c0 = MatMul(w, v) c1 = Transpose<perm=[0,2,1,3]>(c0) c = Reshape(c1, merge)"

ATTENTIONS = {
    "written out": f"{HEADS} a0 = MatMul(q, k) a1 = Mul(a0, scale) a = Add(a1, bias) {TAIL}",
    # The exporter computes 1/sqrt(d) from the shape of the queries; the network was trained with d = 6.
    "scale from the shape": f"""{HEADS} s0 = Shape(q) s1 = Slice(s0, last, end) s2 = Cast<to=1>(s1) s3 = Sqrt(s2)
        s4 = Div(half, s3) a0 = MatMul(q, k) a = Mul(a0, s4) {TAIL}""",
    # Target shapes from the stream's own extents, which do not change, and from those of the queries, which do.
    "heads by division": f"""
        q0 = MatMul(n, wq) t0 = Shape(q0) t1 = Slice(t0, zero, two) t2 = Slice(t0, two, end) t3 = Div(t2, two)
        t = Concat<axis=0>(t1, two, t3) k0 = MatMul(n, wk) v0 = MatMul(n, wv) q2 = Reshape(q0, t) k2 = Reshape(k0, t)
        q = Transpose<perm=[0,2,1,3]>(q2) k = Transpose<perm=[0,2,3,1]>(k2) v2 = Reshape(v0, split)
        v = Transpose<perm=[0,2,1,3]>(v2) a0 = MatMul(q, k) a = Mul(a0, scale) {TAIL}""",
    "packed and split": f"""
        p0 = MatMul(n, wqkv) p1 = Add(p0, bqkv) q1, k1, v1 = Split<axis=2>(p1, pieces)
        q2 = Reshape(q1, split) q = Transpose<perm=[0,2,1,3]>(q2) k2 = Reshape(k1, split) k = Transpose<perm=[0,2,3,1]>(k2)
        v2 = Reshape(v1, split) v = Transpose<perm=[0,2,1,3]>(v2) a0 = MatMul(q, k) a = Mul(a0, scale) {TAIL}""",
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_loses_width_of_all_heads_and_hidden_units(name: str) -> None:
    proto = attention(ATTENTIONS[name])
    queries_and_keys = 4 if name == "packed and split" else 2  # of one layer, or of two
    assert sorted(sizes(proto)) == [(6, 2), (6, queries_and_keys), (20, 1)]
    small, units = pruned(proto)
    assert units
    feeds = inputs(proto)
    assert same(run(silenced(proto, units), feeds), run(small, feeds))


def test_packed_attention_loses_the_same_width_everywhere() -> None:
    proto = attention(
        f"""p0 = MatMul(n, wqkv) p1 = Reshape(p0, three) p = Transpose<perm=[2,0,3,1,4]>(p1)
        q = Gather<axis=0>(p, i0) k1 = Gather<axis=0>(p, i1) v = Gather<axis=0>(p, i2) k = Transpose<perm=[0,1,3,2]>(k1)
        a0 = MatMul(q, k) a = Mul(a0, scale) {TAIL}"""
    )
    assert sizes(proto) == [(6, 6), (20, 1)]
    small, units = pruned(proto)
    feeds = inputs(proto)
    assert same(run(silenced(proto, units), feeds), run(small, feeds))


def test_many_heads_go_as_a_whole() -> None:
    """8 heads of 3: heads are the finer choice."""
    text = """(float[N,4,10] x) => (float[N,4,10] y) {
        q0 = MatMul(x, wq) q1 = Reshape(q0, split) q = Transpose<perm=[0,2,1,3]>(q1)
        k0 = MatMul(x, wk) k1 = Reshape(k0, split) k = Transpose<perm=[0,2,3,1]>(k1)
        v0 = MatMul(x, wv) v1 = Reshape(v0, split) v = Transpose<perm=[0,2,1,3]>(v1)
        s = MatMul(q, k) a = Softmax(s) b = Add(a, bias) c0 = MatMul(b, v) c1 = Transpose<perm=[0,2,1,3]>(c0)
        c = Reshape(c1, merge) y = MatMul(c, wo) }"""
    proto = model(
        text,
        {
            "wq": (10, 24), "wk": (10, 24), "wv": (10, 24), "wo": (24, 10), "split": np.array([0, 0, 8, 3]),
            "merge": np.array([0, 0, -1]), "bias": (8, 1, 4),
        },
    )  # fmt: skip
    assert sizes(proto) == [(8, 3)]
    small, units = pruned(proto)
    feeds = inputs(proto)
    assert same(run(silenced(proto, units), feeds), run(small, feeds))
    assert {tensor.name: tuple(tensor.dims) for tensor in small.graph.initializer}["bias"] == (5, 1, 4)


IMAGE = "(float[N,3,6,6] x) => (float[N,4] y)"
END = "g = GlobalAveragePool(z) f = Flatten(g) y = Gemm(f, wy)"


@pytest.mark.parametrize(
    ("body", "tensors", "expected"),
    [
        # As exporters write GroupNormalization: groups stand where channels stood, and go as a whole.
        (
            """a = Conv(x, w) r = Reshape(a, groups) i = InstanceNormalization(r, one, nil) s = Reshape(i, back)
               t = Mul(s, k) z = Add(t, b)""",
            {
                "w": (12, 3, 1, 1), "groups": np.array([0, 4, -1]), "one": np.ones(4, np.float32), "nil": (4,),
                "back": np.array([-1, 12, 6, 6]), "k": (12, 1, 1), "b": (12, 1, 1), "wy": (12, 4),
            },
            [(4, 3)],
        ),
        (
            "a = Conv(x, w) i = InstanceNormalization(a, s, b) z = Relu(i)",
            {"w": (6, 3, 1, 1), "s": (6,), "b": (6,), "wy": (6, 4)},
            [(6, 1)],
        ),
        (
            "a = Conv(x, w) i = BatchNormalization(a, s, b, m, v) z = Relu(i)",
            {"w": (6, 3, 1, 1), "s": (6,), "b": (6,), "m": (6,), "v": np.ones(6, np.float32), "wy": (6, 4)},
            [(6, 1)],
        ),
        # Per-pixel normalization over channels keeps all of them.
        (
            "a = Conv(x, w) z = LpNormalization<axis=1>(a)",
            {"w": (6, 3, 1, 1), "wy": (6, 4)},
            [],
        ),
    ],
)  # fmt: skip
def test_normalization(body: str, tensors: Tensors, expected: list[tuple[int, int]]) -> None:
    proto = model(f"{IMAGE} {{ {body} {END} }}", tensors)
    assert sizes(proto) == expected
    small, units = pruned(proto)
    feeds = inputs(proto)
    assert same(run(silenced(proto, units), feeds), run(small, feeds))


def test_group_normalization_keeps_the_number_of_channels_of_a_group() -> None:
    text = "a = Conv(x, w) n = GroupNormalization<num_groups=3>(a, s, b) z = Relu(n)"
    proto = model(f"{IMAGE} {{ {text} {END} }}", {"w": (12, 3, 1, 1), "s": (12,), "b": (12,), "wy": (12, 4)}, opset=21)
    assert sizes(proto) == [(3, 4)]
    small, units = pruned(proto)
    (node,) = (node for node in small.graph.node if node.op_type == "GroupNormalization")
    assert next(attribute.i for attribute in node.attribute if attribute.name == "num_groups") == 2
    feeds = inputs(proto)
    assert same(run(silenced(proto, units), feeds), run(small, feeds))


@pytest.mark.parametrize("flatten", ["f = Flatten(a)", "f = Reshape(a, shape)"])
def test_flatten_gives_each_channel_a_run_of_inputs(flatten: str) -> None:
    proto = model(
        f"(float[N,3,4,4] x) => (float[N,5] y) {{ a = Conv(x, w) {flatten} h = Gemm(f, w1) r = Relu(h) y = Gemm(r, w2) }}",
        {"w": (6, 3, 1, 1), "w1": (96, 7), "w2": (7, 5)}
        | ({"shape": np.array([-1, 96])} if "shape" in flatten else {}),
    )
    assert sizes(proto) == [(6, 1), (7, 1)]
    small, units = pruned(proto)
    assert [len(inputs_) for unit in units for inputs_ in unit.inputs.values()] == [16, 16, 1, 1, 1]
    feeds = inputs(proto)
    assert same(run(silenced(proto, units), feeds), run(small, feeds))


def test_a_class_token_and_positions_follow_the_stream() -> None:
    text = """(float[N,4,6] x) => (float[N,5] y) {
        e = MatMul(x, w) s = Shape(x) b = Slice(s, zero, one) h = Concat<axis=0>(b, one, one)
        c = Expand(token, h) u = Concat<axis=1>(c, e) p = Add(u, positions) m = MatMul(p, w1) r = Relu(m)
        f = Gather<axis=1>(r, first) y = MatMul(f, w2) }"""
    proto = model(
        text,
        {
            "w": (6, 8), "token": (1, 1, 8), "positions": (1, 5, 8), "w1": (8, 7), "w2": (7, 5), "zero": np.array([0]),
            "one": np.array([1]), "first": np.array(0),
        },
    )  # fmt: skip
    assert sizes(proto) == [(8, 1), (7, 1)]
    small, units = pruned(proto)
    feeds = inputs(proto)
    assert same(run(silenced(proto, units), feeds), run(small, feeds))


def test_tied_embeddings() -> None:
    """A table of rows that is also the last layer: both lose the same width, and no row of the vocabulary."""
    proto = model(
        """(int64[N,4] x) => (float[N,4,11] y) { e = Gather(table, x) h = Relu(e) t = Transpose<perm=[1,0]>(table)
        y = MatMul(h, t) }""",
        {"table": (11, 8)},
    )
    assert sizes(proto) == [(8, 1)]
    small, _ = pruned(proto)
    assert [tuple(tensor.dims) for tensor in small.graph.initializer] == [(11, 5)]
    assert run(small, inputs(proto))[0].shape == (2, 4, 11)


@pytest.mark.parametrize(
    ("weight", "tensors"),
    [
        ("w = Identity(v)", {"v": (6, 3, 1, 1)}),
        ("w = Transpose<perm=[3,2,1,0]>(v)", {"v": (1, 1, 3, 6)}),
        ("w = Cast<to=1>(v)", {"v": np.random.default_rng(0).normal(size=(6, 3, 1, 1)).astype(np.float16)}),
        ("w = Mul(v, k)", {"v": (6, 3, 1, 1), "k": (6, 1, 1, 1)}),
        ("w = Reshape(v, s)", {"v": (6, 3), "s": np.array([6, 3, 1, 1])}),
        ("w = Unsqueeze(v, s)", {"v": (6, 3), "s": np.array([2, 3])}),
        (
            "w = DequantizeLinear<axis=0>(v, k, q)",
            {
                "v": np.random.default_rng(0).integers(-9, 9, (6, 3, 1, 1)).astype(np.int8),
                "k": np.linspace(0.1, 0.6, 6).astype(np.float32), "q": np.arange(6).astype(np.int8),
            },
        ),
    ],
)  # fmt: skip
def test_weights_behind_other_nodes(weight: str, tensors: Tensors) -> None:
    proto = model(f"{IMAGE} {{ {weight} z = Conv(x, w) {END} }}", {**tensors, "wy": (6, 4)})
    assert sizes(proto) == [(6, 1)]
    small, units = pruned(proto)
    wanted = onnx.ModelProto()
    wanted.CopyFrom(proto)
    (last,) = (tensor for tensor in wanted.graph.initializer if tensor.name == "wy")
    array = onnx.numpy_helper.to_array(last).copy()
    for unit in units:
        array[list(unit.inputs["y"])] = 0
    last.CopyFrom(onnx.numpy_helper.from_array(array, "wy"))
    feeds = inputs(proto)
    assert same(run(wanted, feeds), run(small, feeds))


def test_small_constants_that_became_one_are_copied_where_cuts_differ() -> None:
    proto = model(
        f"{IMAGE} {{ a = Conv(x, w1, b) r = Relu(a) z = Conv(r, w2, b) {END} }}",
        {"w1": (6, 3, 1, 1), "w2": (6, 6, 1, 1), "b": (6,), "wy": (6, 4)},
    )
    assert sizes(proto) == [(6, 1), (6, 1)]
    small, units = pruned(proto)
    feeds = inputs(proto)
    separate = onnx.ModelProto()
    separate.CopyFrom(proto)
    separate.graph.node[2].input[2] = "b2"
    separate.graph.initializer.append(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(proto.graph.initializer[2]), "b2")
    )
    assert same(run(silenced(separate, units), feeds), run(small, feeds))


PINNED: dict[str, tuple[str, str, Tensors]] = {
    "softmax": ("a = Conv(x, w) z = Softmax<axis=1>(a)", "Softmax over channels", {}),
    "opaque": ("a = Conv(x, w) z = Trilu(a)", "opaque operator Trilu", {}),
    "unknown operator": ("a = Conv(x, w) z = com.microsoft.BiasSplitGelu(a, k)", "BiasSplitGelu", {"k": (6,)}),
    "strided channels": (
        "a = Conv(x, w) z = Slice(a, i0, i6, i1, i2)",
        "only every so many",
        {"i0": np.array([0]), "i6": np.array([6]), "i1": np.array([1]), "i2": np.array([2]), "wy": (3, 4)},
    ),
    "meets an input": ("a = Conv(x, w) b = Concat<axis=1>(x, x) z = Add(a, b)", "keeps its channels", {}),
}


@pytest.mark.parametrize("name", PINNED)
def test_what_stays_says_why(name: str) -> None:
    body, reason, tensors = PINNED[name]
    proto = model(f"{IMAGE} {{ {body} {END} }}", {"w": (6, 3, 1, 1), "wy": (6, 4), **tensors})
    found = reasons(proto)
    assert reason in found["a"]
    assert found["y"] == "feeds graph output 'y'"
    assert sizes(proto) == []


def test_heads_in_the_batch_axis() -> None:
    """torch's own attention puts heads beside the batch: the extent N * 8 of the target is computed from the shape."""
    text = """(float[4,N,10] x) => (float[4,N,10] y) {
        s = Shape(x) n = Slice(s, one, two) nh = Mul(n, eight) t = Concat<axis=0>(four, nh, three)
        m = Concat<axis=0>(four, n, all)
        q0 = MatMul(x, wq) q1 = Reshape(q0, t) q = Transpose<perm=[1,0,2]>(q1)
        k0 = MatMul(x, wk) k1 = Reshape(k0, t) k = Transpose<perm=[1,2,0]>(k1)
        v0 = MatMul(x, wv) v1 = Reshape(v0, t) v = Transpose<perm=[1,0,2]>(v1)
        w0 = MatMul(q, k) w = Softmax(w0) c0 = MatMul(w, v) c1 = Transpose<perm=[1,0,2]>(c0)
        c = Reshape(c1, m) y = MatMul(c, wo) }"""
    proto = model(
        text,
        {
            "wq": (10, 24), "wk": (10, 24), "wv": (10, 24), "wo": (24, 10), "one": np.array([1]), "two": np.array([2]),
            "eight": np.array([8]), "four": np.array([4]), "three": np.array([3]), "all": np.array([24]),
        },
    )  # fmt: skip
    assert sizes(proto) == [(8, 3)]
    small, units = pruned(proto)
    for symbol in (1, 2, 5):
        feeds = inputs(proto, symbol=symbol)
        assert same(run(silenced(proto, units), feeds), run(small, feeds))
