"""What tests of quantized models share: legality, outputs beside the original's, and the graph that onnxruntime runs."""

from __future__ import annotations

import collections
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.analysis import meaning, shapes
from graphopt.ir.verify import verify
from graphopt.pipeline.base import PassContext, Remark
from graphopt.runtime.evaluate import evaluate
from graphopt.runtime.optimized import optimized
from graphopt.runtime.session import Session, SessionOptions
from graphopt_passes.quantization.saturation import measured

SATURATES = measured(PassContext(evaluate=evaluate))
"""Whether pairs of products saturate on this machine."""


def checked(model: ir.Model, result: tuple[Collection[ir.Node], Sequence[Remark]]) -> str:
    """Verify what a conversion made, and return all its remarks as one text."""
    touched, remarks = result
    verify(model, touched)
    verify(model)
    shapes.infer(model, nodes=touched)
    meaning.check(model, touched)
    shapes.infer(model)
    meaning.check(model)
    return "\n".join(map(str, remarks))


def counts(model: ir.Model) -> collections.Counter[str]:
    """How often each operator stands in the main graph."""
    return collections.Counter(node.op_type for node in model.graph)


def weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The constants of the main graph by name."""
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def kernels(model: ir.Model) -> collections.Counter[str]:
    """How often each operator runs in onnxruntime's own form of the model."""
    return counts(optimized(model))


def outputs(model: ir.Model, feeds: Mapping[str, np.ndarray], *, optimize: bool = True) -> list[np.ndarray]:
    return list(Session(model, SessionOptions(optimize=optimize)).run(feeds).values())


def sqnr(expected: np.ndarray, actual: np.ndarray) -> float:
    """Signal-to-noise ratio in dB."""
    exact = expected.astype(np.float64)
    noise = np.square(exact - actual).sum()
    return float("inf") if noise == 0 else float(10 * np.log10(np.square(exact).sum() / noise))
