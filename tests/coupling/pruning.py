"""Pruning small models and holding the result against the original in which the same channels count for nothing.

Both are run by onnxruntime. Zeros are written into the original's weights by what a `Unit` promises (which channels of
which layers it holds) and by nothing else that the analysis knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

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
    """The model with zeros where the channels of `units` are made and where linear layers read them.

    Whatever activation or normalization lies between, such channels then count for nothing. The zeros in weight and
    bias at the beginning are for channels that no layer reads, such as queries and keys, which meet each other.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    nodes = {node.output[0]: node for node in result.graph.node}
    readers = {name: node for node in result.graph.node for name in node.input}
    for unit in units:
        for name, channels in unit.inputs.items():
            _zero(nodes[name], stored, channels, outputs=False)
        for name, channels in unit.outputs.items():
            _zero(nodes[name], stored, channels, outputs=True)
            after = readers.get(name) if nodes[name].op_type == "MatMul" else None
            sum_after = [] if after is None or after.op_type != "Add" else [after]
            for bias in (bias for node in (nodes[name], *sum_after) for bias in node.input if bias in stored):
                if len(stored[bias].dims) == 1 and stored[bias].dims[0] > 1:
                    _write(stored[bias], (list(channels),))
    return result


def _zero(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto], channels: Sequence[int], outputs: bool) -> None:
    """Zeros in the weight of `node` for some of its output or input channels."""
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    weight = next(stored[name] for name in node.input if name in stored and len(stored[name].dims) > 1)
    left = node.op_type == "MatMul" and node.input[0] in stored
    first = node.op_type == "Conv" or left or (node.op_type == "Gemm" and flags.get("transB", 0) == 1)
    groups = flags.get("group", 1)
    for channel in channels:
        if groups == 1:
            _write(weight, (channel,) if first == outputs else (slice(None), channel))
        elif (node.op_type == "Conv") == outputs:  # along the first axis, channels of all groups follow each other
            _write(weight, (channel,))
        else:  # the second axis has one group, the first tells which
            rows, width = weight.dims[0] // groups, weight.dims[1]
            group = channel // width
            _write(weight, (slice(group * rows, (group + 1) * rows), channel % width))


def _write(tensor: onnx.TensorProto, where: Any) -> None:
    array = numpy_helper.to_array(tensor).copy()
    array[where] = 0
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


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
