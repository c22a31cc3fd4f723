"""Pruning small models and holding the result against the original with the same channels set to zero.

Both are run by onnxruntime. The zeros are written into the original's weights by what a `Unit` promises (which output
channels of which layer it holds) and by nothing else that the analysis knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper

from graphopt.analysis import meaning
from graphopt.analysis.coupling import Coupling, Unit, couple, remove
from graphopt.ir.emit import to_proto
from graphopt.ir.verify import verify
from graphopt.lift import lift

Shape = tuple[int, ...]


def model(graph: str, tensors: Mapping[str, Shape | np.ndarray], opset: int = 17) -> onnx.ModelProto:
    """A model from ONNX text; `tensors` are its initializers, drawn at random where only a shape is given."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]>\nmain {graph}')
    rng = np.random.default_rng(0)
    for name, given in tensors.items():
        array = given if isinstance(given, np.ndarray) else rng.normal(size=given).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return proto


def some_of(coupling: Coupling, share: float, seed: int = 0) -> list[Unit]:
    """At random this share of the units of each group, but never all."""
    rng = np.random.default_rng(seed)
    chosen: list[Unit] = []
    for group in coupling.groups:
        count = min(round(share * len(group.units)), len(group.units) - 1)
        chosen.extend(group.units[index] for index in rng.permutation(len(group.units))[:count])
    return chosen


def pruned(proto: onnx.ModelProto, share: float = 0.4, seed: int = 0) -> tuple[onnx.ModelProto, list[Unit]]:
    """The model without some units, which structure and meaning are verified of, and these units."""
    taken = lift(proto).model
    coupling = couple(taken)
    units = some_of(coupling, share, seed)
    remove(taken, coupling, units)
    verify(taken)
    meaning.check(taken)
    result = to_proto(taken)
    onnx.checker.check_model(result, full_check=True)
    return result, units


def inputs(proto: onnx.ModelProto, seed: int = 1, symbol: int = 2) -> dict[str, np.ndarray]:
    """Random inputs; each symbolic extent is `symbol`."""
    rng = np.random.default_rng(seed)
    stored = {tensor.name for tensor in proto.graph.initializer}
    made = {}
    for value in proto.graph.input:
        if value.name not in stored:
            dims = [dim.dim_value or symbol for dim in value.type.tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            made[value.name] = (rng.normal(size=dims) if dtype.kind == "f" else rng.integers(0, 2, dims)).astype(dtype)
    return made


def run(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs in onnxruntime, without its graph optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def silenced(proto: onnx.ModelProto, units: Collection[Unit]) -> onnx.ModelProto:
    """The model with zeros for the weights and biases that make the output channels of `units`."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in result.graph.node:
        gone = sorted({channel for unit in units for channel in unit.outputs.get(node.output[0], ())})
        if not gone:
            continue
        data, axis, per_group = _output_axis(node)
        for position, name in enumerate(node.input):
            if name not in stored or position == data:
                continue
            array = numpy_helper.to_array(stored[name]).copy()
            groups = next((a.i for a in node.attribute if a.name == "group"), 1) if per_group else 1
            if array.ndim == 1:
                array[gone] = 0
            elif groups == 1:
                np.moveaxis(array, axis, 0)[gone] = 0
            else:  # (C, M/group, ...): the channels of each group lie in its own rows
                rows, width = len(array) // groups, array.shape[1]
                for channel in gone:
                    first = channel // width * rows
                    array[first : first + rows, channel % width] = 0
            stored[name].CopyFrom(numpy_helper.from_array(array, name))
    return result


def _output_axis(node: onnx.NodeProto) -> tuple[int, int, bool]:
    """Which input is the data, the axis of the weight with the output channels, and whether these lie per group."""
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return 0, 0, False
    if node.op_type == "ConvTranspose":
        return 0, 1, True
    if node.op_type == "Gemm":
        return 0, 0 if flags.get("transB") else 1, False
    return (1, 1, False) if node.op_type == "Gather" else (0, 1, False)


def same(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    """Whether outputs are the same up to rounding."""
    return len(a) == len(b) and all(
        x.shape == y.shape and np.allclose(x, y, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(x).max(initial=0))))
        for x, y in zip(a, b, strict=True)
    )


def sizes(proto: onnx.ModelProto) -> list[tuple[int, int]]:
    """Units and lanes of each group, in order."""
    return [(len(group.units), group.lanes) for group in couple(lift(proto).model).groups]


def reasons(proto: onnx.ModelProto) -> dict[str, str]:
    """Why channels stay, by layer."""
    return {pin.producer: pin.reason for pin in couple(lift(proto).model).pinned}


def lifted(proto: onnx.ModelProto) -> ir.Model:
    """The model as the analysis takes it."""
    return lift(proto).model
