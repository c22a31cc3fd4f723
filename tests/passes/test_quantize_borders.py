"""quantization.borders: the minimum cut against all share-outs, and what kernels' times are taken for."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from graphopt_passes.quantization.borders import Border, Problem, numbered
from graphopt_passes.quantization.placement import Placement, place
from graphopt_passes.quantization.targets import TARGETS

if TYPE_CHECKING:
    from conftest import Rewriter

W = np.ones((4, 4, 1, 1), np.float32)
BRANCHES = """agraph (float[1,4,6,6] x) => (float[1,4,6,6] y, float[1,4,6,6] z) {
    a = Conv(x, w) b = Relu(a) c = Conv(b, w) d = Conv(b, w) e = Add(c, d) t = Tanh(e) f = Conv(t, w) y = Sigmoid(f)
    z = Tanh(d)
}"""


def problem(rewriter: Rewriter) -> tuple[Problem, Placement, ir.Model]:
    model = rewriter.typed(BRANCHES, {"w": W})
    placement = place(model.graph, TARGETS["ort-x86"], keep_heads=False)
    return Problem(model, placement), placement, model


@pytest.mark.parametrize("seed", range(12))
def test_the_cut_is_the_best_of_all_share_outs(rewriter: Rewriter, seed: int) -> None:
    found, placement, model = problem(rewriter)
    rng = np.random.default_rng(seed)
    nodes = {node: number for number, node in enumerate(model.graph)}
    free = [node for node in nodes if node in set(placement.integer_nodes())]
    owner = {node: (nodes_before(node) if node in placement.absorbed else node) for node in nodes}
    times = {kind: {node: float(rng.integers(1, 9)) for node in free} for kind in ("float", "integer")}
    found.learn(
        *({f"#{nodes[node]}#": np.full(3, times[kind][node]) for node in free} for kind in ("float", "integer"))
    )
    price = float(rng.integers(0, 4))
    found.border = Border(per_value=price)

    def cost(floats: set[ir.Node]) -> float:
        total = sum(times["float" if node in floats else "integer"][node] for node in free)
        in_float = {node: owner[node] not in free or owner[node] in floats for node in nodes}
        for value in placement.groups:
            producer = value.producer()
            made = producer is None or in_float[producer]
            read = {in_float[use.node] for use in value.uses()} | ({True} if value.is_graph_output() else set())
            total += price * (read != {made})
        return total

    best = min(cost(set(chosen)) for size in range(len(free) + 1) for chosen in itertools.combinations(free, size))
    floats = {found.nodes[number] for number in found.cut()}
    assert cost(floats) == pytest.approx(best)
    assert floats <= set(free)


def nodes_before(node: ir.Node) -> ir.Node:
    value = node.inputs[0]
    producer = None if value is None else value.producer()
    assert producer is not None
    return producer


def test_a_fusion_that_is_called_by_its_result_counts_for_the_layer_in_it(rewriter: Rewriter) -> None:
    found, _, _ = problem(rewriter)
    conv, relu, second, add = 0, 1, 2, 4
    in_float = {f"#{relu}#_nchwc": np.full(3, 5.0), f"#{add}#_nchwc": np.full(3, 4.0), f"#{3}#": np.full(3, 1.0)}
    on_integers = {f"#{number}#": np.full(3, 3.0) for number in (conv, second, 3, add, 6)}
    found.learn(in_float, on_integers)
    assert found.cut() == {3, 6}  # without the time that is called by the Add, the second Conv would be free in float


def test_numbers_survive_in_names(rewriter: Rewriter) -> None:
    model = rewriter.typed(BRANCHES, {"w": W})
    originals = tuple(model.graph)
    extra = ir.Node("", "Identity", [originals[1].outputs[0]], outputs=[ir.Value(name="i")])
    model.graph.insert_after(originals[1], extra)
    numbered(model, originals)
    assert [node.name for node in originals] == [f"#{number}#" for number in range(len(originals))]
    assert [node.outputs[0].name for node in originals] == [node.name for node in originals]
    assert (extra.name or "").startswith("@1@")


def test_border_is_fitted_to_conversions_and_scaled_to_all_there_is() -> None:
    border = Border([(100, 3.0), (200, 5.0), (400, 9.0)], [([100, 400], 24.0)])
    border.fit()
    assert border.seconds(100) == pytest.approx(6)
    assert border.seconds(1000) == pytest.approx(42)
    Border().fit()
