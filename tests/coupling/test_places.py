"""Where graphs are not plain: bodies, functions, inputs that can be overridden, symbols, exclusions, clones."""

from __future__ import annotations

import networkx as nx
import numpy as np
import onnx
import onnx.parser
import pytest
from pruning import Shape, inputs, lifted, model, pruned, reasons, run, same, silenced, sizes, some_of

from graphopt.analysis.coupling import couple, remove
from graphopt.ir.emit import to_bytes, to_proto

END = "g = GlobalAveragePool(z) f = Flatten(g) y = Gemm(f, wy)"
CHAIN = f"(float[N,3,6,6] x) => (float[N,4] y) {{ a = Conv(x, w1) r = Relu(a) z = Conv(r, w2) {END} }}"
WEIGHTS: dict[str, Shape | np.ndarray] = {"w1": (6, 3, 1, 1), "w2": (5, 6, 1, 1), "wy": (5, 4)}


def test_a_clone_is_pruned_by_the_analysis_of_the_original() -> None:
    original = lifted(model(CHAIN, WEIGHTS))
    coupling = couple(original)
    clone = original.clone()
    units = some_of(coupling, 0.5)
    touched = remove(clone, coupling, units)
    assert all(node.graph is clone.graph for node in touched)
    assert to_bytes(original) == to_bytes(lifted(model(CHAIN, WEIGHTS)))
    again = lifted(model(CHAIN, WEIGHTS))
    remove(again, coupling, units)
    assert to_bytes(again) == to_bytes(clone)


def test_names_stay_and_dims_follow() -> None:
    proto = model(CHAIN, WEIGHTS)
    small, _ = pruned(proto, share=0.5)
    assert [node.output[0] for node in small.graph.node] == [node.output[0] for node in proto.graph.node]
    assert {tensor.name: tuple(tensor.dims) for tensor in small.graph.initializer} == {
        "w1": (3, 3, 1, 1), "w2": (3, 3, 1, 1), "wy": (3, 4),
    }  # fmt: skip


def test_the_last_channel_of_a_tensor_cannot_go() -> None:
    taken = lifted(model(CHAIN, WEIGHTS))
    coupling = couple(taken)
    with pytest.raises(ValueError, match="all channels of 'a' would go"):
        remove(taken, coupling, coupling.groups[0].units)
    assert to_bytes(taken) == to_bytes(lifted(model(CHAIN, WEIGHTS)))


def test_excluded_nodes_keep_what_enters_and_leaves_them() -> None:
    taken = lifted(model(CHAIN, WEIGHTS))
    coupling = couple(taken, excluded=lambda node: node.outputs[0].name == "r")
    assert [len(group.units) for group in coupling.groups] == [5]
    assert {pin.producer: pin.reason for pin in coupling.pinned}["a"] == "excluded"


def test_captured_values_stay() -> None:
    body = "then_branch = t () => (float[N,6,6,6] p) { p = Relu(a) }, else_branch = e () => (float[N,6,6,6] q) { q = Neg(a) }"
    proto = model(
        f"""(float[N,3,6,6] x, bool c) => (float[N,4] y) {{ a = Conv(x, w1) b = If<{body}>(c) z = Conv(b, w2) {END} }}""",
        WEIGHTS,
    )
    assert sizes(proto) == [(5, 1)]
    assert reasons(proto)["a"].startswith("used by the bodies of If")
    small, units = pruned(proto)
    feeds = inputs(proto)
    assert same(run(silenced(proto, units), feeds), run(small, feeds))


def test_functions_are_opaque() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "local": 1]>
    main (float[N,3,6,6] x, float[6,3,1,1] w1) => (float[N,6,6,6] y) { a = Conv(x, v) y = local.act(a) }
    <domain: "local", opset_import: ["": 17]> act (p) => (q) { q = Relu(p) }"""
    proto = onnx.parser.parse_model(text.replace(", float[6,3,1,1] w1", ""))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((6, 3, 1, 1), np.float32), "v"))
    assert reasons(proto) == {"a": "function act"}


def test_recurrent_layers_keep_their_input() -> None:
    proto = model(
        """(float[4,N,3] x) => (float[4,N,5] y) { a = MatMul(x, w) r = Relu(a)
        h, l = GRU<hidden_size=5>(r, wi, wr) y = Squeeze(h, one) }""",
        {"w": (3, 8), "wi": (1, 15, 8), "wr": (1, 15, 5), "one": np.array([1])},
    )
    assert reasons(proto) == {"a": "opaque operator GRU"}


def test_weights_that_callers_may_override_stay() -> None:
    proto = model(CHAIN, WEIGHTS)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w2", onnx.TensorProto.FLOAT, (5, 6, 1, 1)))
    assert sizes(proto) == []
    assert "'w2'" in reasons(proto)["a"]


def test_several_inputs_and_outputs() -> None:
    proto = model(
        """(float[N,3,4,4] u, float[N,2,4,4] v) => (float[N,6,4,4] p, float[N,4,4,4] q) {
        a = Conv(u, w1) b = Conv(v, w2) s = Add(a, b) p = Conv(s, w3) r = Relu(s) q = Conv(r, w4) }""",
        {"w1": (7, 3, 1, 1), "w2": (7, 2, 1, 1), "w3": (6, 7, 1, 1), "w4": (4, 7, 1, 1)},
    )
    assert sizes(proto) == [(7, 1)]
    assert reasons(proto) == {"p": "feeds graph output 'p'", "q": "feeds graph output 'q'"}
    small, units = pruned(proto)
    feeds = inputs(proto)
    assert same(run(silenced(proto, units), feeds), run(small, feeds))


def test_symbolic_images_and_computed_shapes() -> None:
    """Height and width are symbols, and the target of a Reshape is put together from Shape."""
    proto = model(
        """(float[N,3,H,W] x) => (float[N,M,4] y) { a = Conv(x, w1) s = Shape(a) n = Gather(s, i0) c = Gather(s, i1)
        n1 = Unsqueeze(n, i0v) c1 = Unsqueeze(c, i0v) t = Concat<axis=0>(n1, c1, minus) r = Reshape(a, t)
        p = Transpose<perm=[0,2,1]>(r) y = MatMul(p, w2) }""",
        {
            "w1": (6, 3, 1, 1), "w2": (6, 4), "i0": np.array(0), "i1": np.array(1), "i0v": np.array([0]),
            "minus": np.array([-1]),
        },
    )  # fmt: skip
    assert sizes(proto) == [(6, 1)]
    small, units = pruned(proto)
    for symbol in (2, 5):
        feeds = inputs(proto, symbol=symbol)
        assert same(run(silenced(proto, units), feeds), run(small, feeds))


def test_a_computed_shape_with_numbers_among_symbols() -> None:
    """[N, 2, 6, H, W] for a shuffle: 2 and 6 are constants inside a Concat that also has symbols."""
    proto = model(
        """(float[N,3,H,W] x) => (float[N,4] y) { a = Conv(x, w1) s = Shape(x) n = Slice(s, i0, i1) hw = Slice(s, i2, i4)
        five = Concat<axis=0>(n, groups, hw) four = Concat<axis=0>(n, all, hw) r = Reshape(a, five)
        t = Transpose<perm=[0,2,1,3,4]>(r) z = Reshape(t, four) g = GlobalAveragePool(z) f = Flatten(g)
        y = Gemm(f, wy) }""",
        {
            "w1": (12, 3, 1, 1), "wy": (12, 4), "i0": np.array([0]), "i1": np.array([1]), "i2": np.array([2]),
            "i4": np.array([4]), "groups": np.array([2, 6]), "all": np.array([12]),
        },
    )  # fmt: skip
    assert sizes(proto) == [(6, 2)]
    small, units = pruned(proto)
    for symbol in (2, 5):
        feeds = inputs(proto, symbol=symbol)
        assert same(run(silenced(proto, units), feeds), run(small, feeds))


def test_what_follows_from_a_symbol_stays() -> None:
    """Elements of all channels in one row: of which channels some are taken depends on the size of the images."""
    proto = model(
        """(float[N,3,H,4] x) => (float[N,M] y) { a = Conv(x, w1) f = Flatten(a) s = Slice(f, i300, i600, i1) y = Relu(s) }""",
        {"w1": (6, 3, 1, 1), "i300": np.array([300]), "i600": np.array([600]), "i1": np.array([1])},
    )
    coupling = couple(lifted(proto))
    assert [unit.outputs["a"] for unit in coupling.groups[0].units] == [(3,), (4,), (5,)]
    assert {pin.reason: pin.channels for pin in coupling.pinned} == {
        "feeds graph output 'y'": 2,
        "depends on an extent that is not fixed": 1,
    }


def test_an_already_pruned_model_is_pruned_again() -> None:
    once, _ = pruned(model(CHAIN, WEIGHTS), share=0.4)
    twice, units = pruned(once, share=0.4)
    feeds = inputs(once)
    assert units
    assert same(run(silenced(once, units), feeds), run(twice, feeds))


def test_a_quantized_model() -> None:
    """Weights behind DequantizeLinear per channel, activations between QuantizeLinear and DequantizeLinear."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Shape | np.ndarray] = {
        "q1": rng.integers(-99, 99, (6, 3, 1, 1)).astype(np.int8), "s1": rng.uniform(0.01, 0.02, 6).astype(np.float32),
        "z1": np.zeros(6, np.int8), "qb": rng.integers(-99, 99, 6).astype(np.int32),
        "sb": rng.uniform(0.01, 0.02, 6).astype(np.float32), "s": np.full((), 0.05, np.float32), "z": np.full((), 9, np.uint8),
        "wy": (6, 4),
    }  # fmt: skip
    proto = model(
        f"""(float[N,3,6,6] x) => (float[N,4] y) {{ w = DequantizeLinear<axis=0>(q1, s1, z1)
        b = DequantizeLinear<axis=0>(qb, sb) a = Conv(x, w, b) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z)
        z0 = Relu(d) {END.replace("(z)", "(z0)")} }}""",
        tensors,
    )
    assert sizes(proto) == [(6, 1)]
    small, units = pruned(proto)
    assert {tensor.name: tuple(tensor.dims) for tensor in small.graph.initializer}["s1"] == (4,)
    wanted = onnx.ModelProto()
    wanted.CopyFrom(proto)
    (last,) = (tensor for tensor in wanted.graph.initializer if tensor.name == "wy")
    array = onnx.numpy_helper.to_array(last).copy()
    array[[channel for unit in units for channel in unit.inputs["y"]]] = 0
    last.CopyFrom(onnx.numpy_helper.from_array(array, "wy"))
    feeds = inputs(proto)
    assert same(run(wanted, feeds), run(small, feeds))


def test_the_graph_of_groups_and_layers() -> None:
    coupling = couple(lifted(model(CHAIN, WEIGHTS)))
    graph = coupling.to_networkx()
    assert nx.is_connected(graph)
    assert graph.nodes["y"]["pinned"] == {"feeds graph output 'y'": 4}
    assert sum(data["channels"] for _, _, data in graph.edges(data=True) if data["role"] == "output") == 2
    assert coupling.widths == {"a": 6, "z": 5, "y": 4}


def test_float16_and_float64() -> None:
    for dtype, name in ((np.float16, "float16"), (np.float64, "double")):
        rng = np.random.default_rng(0)
        proto = model(
            "(T[N,3] x) => (T[N,4] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }".replace("T", name),
            {"w": rng.normal(size=(3, 6)).astype(dtype), "v": rng.normal(size=(6, 4)).astype(dtype)},
        )
        taken = lifted(proto)
        coupling = couple(taken)
        remove(taken, coupling, coupling.groups[0].units[:2])
        small = to_proto(taken)
        onnx.checker.check_model(small, full_check=True)
        assert run(small, inputs(proto))[0].dtype == dtype


def test_extents_that_are_outputs_stay() -> None:
    proto = model(
        """(float[N,3] x) => (float[N,4] y, int64[1] width) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)
        s = Shape(r) width = Slice(s, one, two) }""",
        {"w": (3, 6), "v": (6, 4), "one": np.array([1]), "two": np.array([2])},
    )
    assert reasons(proto)["a"] == "its extents are in graph output 'width'"
