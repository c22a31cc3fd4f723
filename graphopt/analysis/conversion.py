"""One node from one opset to another.

ONNX's version converter knows what changed between opsets, but it is made for whole models, of which it keeps little:
functions, metadata and more are lost. So it is given models of a single node, whose inputs are named `i0`, `i1` ...
and whose outputs `o0`, `o1` ...; everything else never passes through it. What it is known to get wrong is done here:

* Clip and Pad get limits and fill values of their data's type (the converter always writes float32, and a lower limit
  where there was none);
* Upsample and Resize before opset 11 sample `asymmetric`, which has to be said from then on; the nearest neighbour
was the
  one below where the tensor grows and the one above where it shrinks;
* Hardmax before opset 13 flattened its input to a matrix, as Softmax did;
* GroupNormalization before opset 21 took scales per group, which no attribute of the newer one can say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx.checker
import onnx.shape_inference
import onnx.version_converter
import onnx_ir as ir
from onnx import helper, numpy_helper

from graphopt.analysis import facts, schemas
from graphopt.analysis.call import Call

REFUSALS = (onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError, RuntimeError, ValueError)
"""What the converter raises."""


class ConversionError(Exception):
    """Why a node cannot be expressed in another opset."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a node becomes.

    Attributes:
        nodes: in order; their values are named `i0` ... for the inputs, `o0` ... for the outputs, anything else
        inside. constants: tensors that the nodes read besides, by name.
    """

    nodes: Sequence[onnx.NodeProto]
    constants: Mapping[str, onnx.TensorProto]


def changes(call: Call, version: int) -> bool:
    """Whether the operator of `call` may mean something else in opset `version` of ONNX's own domain."""
    old, new = schemas.schema("", call.op_type, call.version), schemas.schema("", call.op_type, version)
    return old is None or new is None or old.since_version != new.since_version


def convert(call: Call, version: int) -> Converted | None:
    """Express `call`, an operator of ONNX's own domain, in opset `version`; None where it stays as it is.

    Raises:
        ConversionError: it cannot be expressed, or nobody knows how.
    """
    schema = schemas.schema("", call.op_type, call.version)
    if schema is None:
        _check_runtime_only(call, version)
        return None
    unchanged = _as_nodes(call)
    _check(unchanged.nodes[0], call.version)  # the converter takes it for granted
    step, at = unchanged, call.version
    if call.op_type in ADAPTERS:
        boundary, adapter = ADAPTERS[call.op_type]
        if call.version < boundary <= version:
            step, at = adapter(call), boundary
    if at < version:
        step = _by_converter(call, step, at, version)
    for node in step.nodes:
        _check(node, version)
    return None if _same(step, unchanged) else step


def _check_runtime_only(call: Call, version: int) -> None:
    """Operators that onnxruntime defined before ONNX did stay as they are, if the newer definition has all they use."""
    newer = schemas.schema("", call.op_type, version)
    unknown = set(call.attributes) - set(newer.attributes) if newer is not None else ()
    if call.op_type not in schemas.RUNTIME_ONLY or unknown:
        raise ConversionError(f"opset {call.version} has no such operator, and it cannot be carried to {version}")


def _as_nodes(call: Call) -> Converted:
    inputs = [f"i{index}" if fact is not None else "" for index, fact in enumerate(call.inputs)]
    outputs = [f"o{index}" if used else "" for index, used in enumerate(call.outputs)]
    node = onnx.NodeProto(op_type=call.op_type, input=inputs, output=outputs)
    for attribute in call.attributes.values():
        if attribute.is_ref():
            raise ConversionError(f"its attribute '{attribute.name}' is a parameter of the function it stands in")
        ir.serde.serialize_attribute_into(node.attribute.add(), attribute)
    return Converted([node], {})


def _by_converter(call: Call, step: Converted, at: int, version: int) -> Converted:
    # Softmax is converted as Hardmax should be.
    stand_in = {"Hardmax": "Softmax"}.get(call.op_type, call.op_type)
    graph = onnx.GraphProto(name="node")
    for node in step.nodes:
        graph.node.add().CopyFrom(node)
        if node.op_type == call.op_type:
            graph.node[-1].op_type = stand_in
    for index, fact in enumerate(call.inputs):
        if fact is not None:
            graph.input.add(name=f"i{index}", type=facts.to_proto(fact))
    for name, tensor in step.constants.items():
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    graph.output.extend(onnx.ValueInfoProto(name=f"o{index}") for index, used in enumerate(call.outputs) if used)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", at)], ir_version=8)
    try:
        converted = onnx.version_converter.convert_version(model, version).graph
    except REFUSALS as error:
        raise ConversionError(str(error).strip().rsplit("failed: ", 1)[-1]) from error
    constants = {**step.constants, **{tensor.name: tensor for tensor in converted.initializer}}
    nodes = []
    for node in converted.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
            continue
        if node.op_type == stand_in:
            node.op_type = call.op_type
        nodes.append(node)
    return Converted(nodes, constants)


def _check(node: onnx.NodeProto, version: int) -> None:
    """The converter passes on what it has no rule for, such as attributes that are no more."""
    context = type(onnx.checker.DEFAULT_CONTEXT)()
    context.ir_version, context.opset_imports = onnx.IR_VERSION, {"": version}
    try:
        onnx.checker.check_node(node, context)
    except onnx.checker.ValidationError as error:
        raise ConversionError(str(error).strip().splitlines()[0]) from error


def _same(a: Converted, b: Converted) -> bool:
    return len(a.nodes) == len(b.nodes) == 1 and not a.constants and _canonical(a.nodes[0]) == _canonical(b.nodes[0])


def _canonical(node: onnx.NodeProto) -> tuple[object, ...]:
    attributes = sorted((attribute.name, attribute.SerializeToString()) for attribute in node.attribute)
    return node.op_type, tuple(node.input), tuple(node.output), tuple(attributes)


# --- What the converter gets wrong ----------------------------------------------------------------


def _constant(call: Call, number: float) -> onnx.TensorProto:
    """A scalar of the type of the first input."""
    dtype = call.fact(0).dtype
    if dtype is None:
        raise ConversionError("the type of its data is not known")
    return numpy_helper.from_array(np.array(number, dtype=dtype.numpy()))


def _plain(call: Call, drop: set[str], keep_inputs: int) -> onnx.NodeProto:
    """The node of `call` with its first inputs and without some attributes."""
    node = _as_nodes(call).nodes[0]
    kept = [attribute for attribute in node.attribute if attribute.name not in drop]
    return onnx.NodeProto(op_type=node.op_type, input=node.input[:keep_inputs], output=node.output, attribute=kept)


def _clip(call: Call) -> Converted:
    node = _plain(call, {"min", "max"}, 1)
    constants = {
        name: _constant(call, call.attributes[name].as_float()) for name in ("min", "max") if name in call.attributes
    }
    if constants:
        node.input.append("min" if "min" in constants else "")
    if "max" in constants:
        node.input.append("max")
    return Converted([node], constants)


def _pad(call: Call) -> Converted:
    node = _plain(call, {"pads", "value"}, 1)
    constants = {"pads": numpy_helper.from_array(np.array(call.integers("pads") or [], dtype=np.int64))}
    node.input.append("pads")
    if "value" in call.attributes:
        constants["value"] = _constant(call, call.attributes["value"].as_float())
        node.input.append("value")
    return Converted([node], constants)


def _resize(call: Call) -> Converted:
    node = _plain(call, {"scales"}, 1)
    node.op_type = "Resize"
    constants = {"roi": numpy_helper.from_array(np.zeros(0, dtype=np.float32))}
    # Upsample only ever grows; of Resize it has to be known.
    scales = np.ones(1) if call.op_type == "Upsample" else call.content(1)
    if "scales" in call.attributes:
        scales = np.array(call.attributes["scales"].as_floats(), dtype=np.float32)
        constants["scales"] = numpy_helper.from_array(scales)
    elif not call.has(1):
        raise ConversionError("it says its scales in a way that opset 7 did away with")
    node.input.extend(["roi", "scales" if "scales" in constants else "i1"])
    node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
    if call.text("mode", "nearest") == "nearest":
        node.attribute.append(helper.make_attribute("nearest_mode", _nearest_mode(scales)))
    return Converted([node], constants)


def _nearest_mode(scales: np.ndarray | None) -> str:
    if scales is None or scales.dtype == object:
        raise ConversionError("it takes the nearest neighbour at scales that are not known")
    if np.all(scales >= 1):
        return "floor"
    if np.all(scales <= 1):
        return "ceil"
    raise ConversionError("it takes the nearest neighbour and both grows and shrinks its input")


def _group_normalization(call: Call) -> Converted:
    raise ConversionError("its scales are per group; from opset 21 on they are per channel")


def _batch_normalization(call: Call) -> Converted:
    if sum(call.outputs) > 1:
        raise ConversionError("it yields training statistics, which changed with opset 14")
    return _as_nodes(call)


ADAPTERS: dict[str, tuple[int, Callable[[Call], Converted]]] = {
    "BatchNormalization": (9, _batch_normalization),
    "Clip": (11, _clip),
    "GroupNormalization": (21, _group_normalization),
    "Pad": (11, _pad),
    "Resize": (11, _resize),
    "Upsample": (11, _resize),
}
"""For operators that the converter gets wrong: the opset in which they changed, and how to express them in it."""
