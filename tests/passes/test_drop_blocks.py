"""drop-blocks: blocks are found by structure, and only those go that the outputs hardly need."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conftest import Rewriter
from weight_models import error, images, named, outputs, run

from graphopt.errors import DataError
from graphopt_passes.residual_blocks import remove, residual_blocks

SAMPLES, OTHERS = images(90), images(seed=2)

NETWORK = """
    g (float[n,3,8,8] x) => (float[n,5] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, wa, ba)
        s = Relu(a)
        b1 = Conv<pads = [1, 1, 1, 1]>(s, wb)
        b2 = Relu(b1)
        b3 = Conv<pads = [1, 1, 1, 1]>(b2, wc)
        t = Add(b3, s)
        u = Relu(t)
        d1 = Conv<pads = [1, 1, 1, 1]>(u, wd)
        d2 = Relu(d1)
        d3 = Conv<pads = [1, 1, 1, 1]>(d2, we)
        p = Conv(u, wp)
        v = Add(p, d3)
        r = Relu(v)
        q = GlobalAveragePool(r)
        f = Flatten(q)
        y = Gemm(f, wf)
    }"""
EXTENTS = {"wa": (8, 3, 3, 3), "ba": (8,), "wb": (8, 8, 3, 3), "wc": (8, 8, 3, 3), "wd": (8, 8, 3, 3)}
EXTENTS |= {"we": (8, 8, 3, 3), "wp": (8, 8, 1, 1), "wf": (8, 5)}


def network(rewriter: Rewriter, small: dict[str, float], kind: type[np.floating] = np.float32) -> ir.Model:
    rng = np.random.default_rng(4)
    tensors = {
        name: (small.get(name, 1.0) * rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(kind)
        for name, shape in EXTENTS.items()
    }
    tensors["wf"] *= 3
    return rewriter.typed(NETWORK if kind == np.float32 else NETWORK.replace("float[", "float16["), tensors)


def blocks(model: ir.Model) -> dict[str, set[str]]:
    return {block.key: {str(node.outputs[0].name) for node in block.nodes} for block in residual_blocks(model.graph)}


def test_blocks_are_what_a_sum_alone_needs(rewriter: Rewriter) -> None:
    assert blocks(network(rewriter, {})) == {"t": {"b1", "b2", "b3"}, "v": {"d1", "d2", "d3"}}  # not the projection


NONE = {
    "a broadcast sum": "g (float[n,4] x, float[1,4] z) => (float[n,4] y) {h = MatMul(x, w) y = Add(h, z)}",
    "a bias": "g (float[n,4] x) => (float[n,4] y) {h = MatMul(x, w) y = Add(h, b)}",
    "a branch that is read elsewhere": "g (float[n,4] x) => (float[n,4] y, float[n,4] z) "
    "{h = MatMul(x, w) z = Relu(h) y = Add(h, x)}",
    "a branch that is an output": "g (float[n,4] x) => (float[n,4] y, float[n,4] h) {h = MatMul(x, w) y = Add(h, x)}",
    "no linear layer": "g (float[n,4] x) => (float[n,4] y) {h = Relu(x) y = Add(h, x)}",
    "twice the same": "g (float[n,4] x) => (float[n,4] y) {h = MatMul(x, w) y = Add(h, h)}",
}


@pytest.mark.parametrize("why", NONE)
def test_what_is_no_block(rewriter: Rewriter, why: str) -> None:
    model = rewriter.typed(NONE[why], {"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)})
    assert not residual_blocks(model.graph)


def test_cutting_leaves_the_rest(rewriter: Rewriter) -> None:
    model, expected = network(rewriter, {}), network(rewriter, {"wc": 0.0})
    remove(model, ["t"])
    np.testing.assert_allclose(outputs(model, OTHERS), outputs(expected, OTHERS), rtol=1e-5, atol=1e-6)
    assert "wb" not in model.graph.initializers


def test_a_block_within_a_block_goes_with_it(rewriter: Rewriter) -> None:
    text = "g (float[n,4] x) => (float[n,4] y) {a = MatMul(x, w) b = MatMul(a, w) c = Add(a, b) d = MatMul(c, w) y = Add(d, x)}"
    model = rewriter.typed(text, {"w": np.eye(4, dtype=np.float32)})
    assert set(blocks(model)) == {"c", "y"}
    remove(model, ["y", "c"])
    assert [node.op_type for node in model.graph] == ["Identity"]


def test_only_the_block_that_is_not_needed_goes(rewriter: Rewriter) -> None:
    original, model = network(rewriter, {"wc": 0.05}), network(rewriter, {"wc": 0.05})
    result, remarks = run(model, "drop-blocks{harm=0.001}", SAMPLES)
    assert result.modified
    assert "Add 't': branch removed" in remarks
    assert set(blocks(model)) == {"v"}
    assert "1 of 2 blocks removed" in remarks
    assert "stays: harm alone" in remarks
    assert error(original, model, OTHERS) < 0.05
    again, _ = run(model, "drop-blocks{harm=0.001}", SAMPLES)
    assert not again.modified


def test_the_refit_makes_up_for_the_block(rewriter: Rewriter) -> None:
    original, cut, model = (network(rewriter, {"wc": 0.2}) for _ in range(3))
    remove(cut, ["t"])
    result, _ = run(model, "drop-blocks{harm=1000,blocks=1}", SAMPLES)
    assert result.modified
    assert set(blocks(model)) == {"v"}
    assert error(original, model, OTHERS) < 0.5 * error(original, cut, OTHERS)


def test_bounds(rewriter: Rewriter) -> None:
    model = network(rewriter, {})
    result, remarks = run(model, "drop-blocks{harm=0}", SAMPLES)
    assert not result.modified
    assert "stays: harm alone" in remarks
    assert not run(model, "drop-blocks{harm=1000,blocks=0}", SAMPLES)[0].modified
    assert not run(named(model), "drop-blocks{harm=1000}", SAMPLES, exclude="b1|d2")[0].modified
    run(model, "drop-blocks{harm=1000}", SAMPLES)
    assert not blocks(model)


def test_float16_zero_branches_and_too_few_samples(rewriter: Rewriter) -> None:
    model = network(rewriter, {"wc": 0.0}, np.float16)
    run(model, "drop-blocks", images(6, np.float16))
    assert set(blocks(model)) == {"v"}
    assert np.isfinite(outputs(model, images(5, np.float16))).all()
    with pytest.raises(DataError, match="one sample is too few"):
        run(network(rewriter, {}), "drop-blocks", SAMPLES[:1])
    result, remarks = run(
        rewriter.typed("g (float[n,4] x) => (float[n,4] y) {y = Relu(x)}"), "drop-blocks", np.ones((3, 4), np.float32)
    )
    assert not result.modified
    assert "no residual block" in remarks
