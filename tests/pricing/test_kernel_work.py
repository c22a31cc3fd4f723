"""What kernels have to do: counted by hand for each algorithm."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.execution import Execution
from graphopt.analysis.extents import Extents
from graphopt.lift import lift
from graphopt.pricing.chains import Chain
from graphopt.pricing.designs import designs
from graphopt.pricing.kernel_samples import feeds_of, matched
from graphopt.pricing.kernel_work import KernelWork, kernel_name, work_of
from graphopt.runtime.kernel_clock import kernel_times


def works(chain: Chain, block: int = 8) -> dict[str, KernelWork]:
    """The kernels of a chain, by what onnxruntime calls them; of several the last."""
    model = lift(chain.model()).model
    execution = Execution(model, Extents(model), block)
    found = {kernel_name(kernel): work_of(kernel, execution, block) for kernel in execution.steps(model.graph)}
    return {name: work for name, work in found.items() if work is not None}


@pytest.mark.parametrize(("block", "wide"), [(8, 40), (16, 48)])
def test_blocked_convolutions_count_whole_blocks(block: int, wide: int) -> None:
    chain = Chain((1, 32, 10, 12))
    chain.conv(36, 3)
    work = works(chain, block)["Conv"]
    assert work.family == "blocked window"
    assert work.amounts["macs"] == 10 * 12 * wide * 32 * 9
    assert work.amounts["edge"] == 10 * 2 * wide * 32 * 9  # a column at each side touches the padding
    sets = -(-wide // block // 4)
    assert work.amounts["calls"] == 10 * sets * -(-32 // block)
    assert work.amounts["weights"] == wide * 32 * 9


def test_other_convolutions_are_told_apart() -> None:
    chain = Chain((2, 3, 8, 8))
    chain.conv(16, 3, 2)
    assert works(chain)["Conv"].family == "blocked image"
    chain = Chain((1, 16, 8, 8))
    chain.conv(16, 3, 1, 16)
    depthwise = works(chain)["Conv"]
    assert (depthwise.family, depthwise.amounts["macs"]) == ("blocked depthwise", 16 * 64 * 9)
    chain = Chain((1, 13, 8, 8))
    chain.conv(7, 3)
    plain = works(chain)["Conv"]
    assert (plain.family, plain.amounts["macs"]) == ("plain convolution", 64 * 13 * 7 * 9)
    assert plain.amounts["patches"] == 64 * 13 * 9
    chain = Chain((1, 16, 8, 8))
    chain.conv(24, 1)
    assert works(chain)["Conv"].family == "blocked pointwise"


def test_products() -> None:
    chain = Chain((1, 5, 24))
    chain.dense(40)
    work = works(chain)["MatMul"]
    assert (work.family, work.amounts["macs"]) == ("float product", 5 * 24 * 48)
    assert work.amounts["weights"] == 24 * 40
    assert "packed" not in work.amounts
    chain = Chain((1, 24))
    chain.dense(40)
    assert works(chain)["MatMul"].family == "float vector"
    text = "<ir_version: 9, opset_import: ['': 20]> g (float[3,5,24] x, float[3,24,7] z) => (float[3,5,7] y) { y = MatMul(x, z) }"
    model = lift(ir.to_proto(ir.from_onnx_text(text.replace("'", '"')))).model
    execution = Execution(model, Extents(model), 8)
    (kernel,) = execution.steps(model.graph)
    both = work_of(kernel, execution, 8)
    assert both is not None
    assert (both.family, both.amounts["packed"]) == ("float product of activations", 3 * 24 * 7)


def test_runs_of_data_movement() -> None:
    chain = Chain((1, 4, 6, 10))
    chain.layer("Transpose", perm=[0, 2, 1, 3], dims=(1, 6, 4, 10))
    chain.layer("Mul", chain.constant(np.full((1, 6, 1, 1), 2, np.float32)))
    chain.layer("Softmax", axis=-1)
    found = works(chain)
    assert found["Transpose"].amounts["runs"] == 4 * 6
    assert found["Mul"].amounts["runs"] == 6
    assert found["Softmax"].amounts["runs"] == 4 * 6
    assert found["Mul"].amounts["elements"] == 240


@pytest.mark.parametrize("kind", sorted({design.name.rpartition(" ")[0] for design in designs()}))
def test_designs_run_and_their_kernels_are_the_expected_ones(kind: str) -> None:
    """Of each kind one network: most of the layers that were expected ran as they were, and none took no time."""
    model = next(design for design in designs() if design.name == f"{kind} 0").build()
    lifted = lift(model).model
    execution = Execution(lifted, Extents(lifted), 8)
    kernels = execution.steps(lifted.graph)
    times = kernel_times(model, feeds_of(model), runs=2)
    pairs = list(matched(kernels, times))
    assert all(seconds > 0 for _, seconds, _ in pairs)
    computing = [k for k in kernels if kernel_name(k) in ("Conv", "MatMul", "Gemm", "LSTM", "GRU") and k.nodes]
    found = {id(kernel) for kernel, _, _ in pairs}
    assert sum(id(kernel) in found for kernel in computing) >= 0.7 * len(computing)


def test_a_layer_normalization_that_takes_the_sum_before_it_is_another_kernel() -> None:
    chain = Chain((2, 4, 8))
    before = chain.layer("Tanh")
    chain.dense(8)
    chain.layer("Add", before)
    chain.layer("LayerNormalization", chain.weight(8), chain.weight(8), axis=-1)
    assert works(chain)["SkipLayerNormalization"].family == "SkipLayerNormalization"
    total = chain.layer("Add", before)
    chain.layer("LayerNormalization", chain.weight(8), chain.weight(8), axis=-1)
    chain.layer("Mul", total)
    assert {"Add", "LayerNormalization"} <= works(chain).keys()


def test_a_softmax_across_channels_is_another_kernel() -> None:
    chain = Chain((2, 4, 6, 6))
    chain.layer("Softmax", axis=1)
    assert works(chain)["Softmax"].family == "Softmax across"
