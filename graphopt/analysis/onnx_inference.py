"""ONNX's own type and shape inference, asked about one node at a time.

ONNX's C++ functions know every standard operator; a call takes microseconds. They work on numbers and pass symbols
through, but do no arithmetic on symbols: extents that would need some come back open, and
`graphopt.analysis.symbolic` fills them in. Asking per node rather than per model needs no copy of the graph, works
inside bodies and functions, and serves the incremental case as well as the first.
"""

from __future__ import annotations

import onnx
import onnx.checker
import onnx.shape_inference
import onnx_ir as ir
from onnx import numpy_helper

from graphopt.analysis import facts, schemas
from graphopt.analysis.call import Answers, Call
from graphopt.analysis.facts import UNKNOWN, Fact


class InferenceError(Exception):
    """ONNX's inference rejects the node: its inputs do not fit together."""


SAME_AS_FIRST = frozenset(
    {
        # Standard operators that ONNX infers through their function bodies only.
        "GroupNormalization", "MeanVarianceNormalization",
        # Opset 1 came without inference; its binary operators broadcast the second input to the first.
        "Abs", "Add", "BatchNormalization", "Ceil", "Clip", "Div", "Dropout", "Elu", "Exp", "Floor", "HardSigmoid",
        "InstanceNormalization", "LeakyRelu", "Log", "Mul", "Neg", "PRelu", "Reciprocal", "Relu", "Selu", "Sigmoid",
        "Sqrt", "Sub", "Tanh",
        # Defined by onnxruntime in ONNX's domain, see `schemas.RUNTIME_ONLY`.
        "Affine", "ImageScaler", "LayerNormalization", "ParametricSoftplus", "Scale", "ScaledTanh",
        "SimplifiedLayerNormalization", "ThresholdedRelu",
    }
)  # fmt: skip
"""Operators whose first output is like their first input, wherever ONNX has no inference function of its own."""

COMPARISONS = {"GreaterOrEqual": "Greater", "LessOrEqual": "Less"}
"""Operators of opset 12 that ONNX infers through their function bodies only, and the ones that are inferred alike."""


_ANSWERS = Answers[list[Fact]]()


def infer(call: Call) -> list[Fact]:
    """What ONNX says about the outputs of `call`.

    Raises:
        InferenceError: ONNX finds that the inputs do not fit the operator or each other.
    """
    schema = schemas.schema(call.domain, COMPARISONS.get(call.op_type, call.op_type), call.version)
    if schema is not None and schema.has_type_and_shape_inference_function:
        key = call.key()
        found = None if key is None else _ANSWERS.get(key)
        if found is None:
            found = _ask(schema, call)
            if key is not None:
                _ANSWERS.keep(key, found)
        return found
    outputs = [UNKNOWN] * len(call.outputs)
    if call.domain == "" and call.op_type in SAME_AS_FIRST and outputs:
        outputs[0] = call.fact(0)
    return outputs


def _ask(schema: onnx.defs.OpSchema, call: Call) -> list[Fact]:
    _refuse_what_crashes(call)
    inputs = [f"i{index}" if fact is not None else "" for index, fact in enumerate(call.inputs)]
    outputs = [f"o{index}" if used else "" for index, used in enumerate(call.outputs)]
    node = onnx.NodeProto(op_type=schema.name, domain=call.domain, input=inputs, output=outputs)
    for attribute in call.attributes.values():
        ir.serde.serialize_attribute_into(node.attribute.add(), attribute)
    types = {name: facts.to_proto(fact) for name, fact in zip(inputs, call.inputs, strict=True) if fact is not None}
    data = {
        name: numpy_helper.from_array(array, name)
        for name, array in zip(inputs, call.contents, strict=False)
        if array is not None and array.dtype != object
    }
    try:
        answer = onnx.shape_inference.infer_node_outputs(
            schema, node, types, data, opset_imports=[onnx.helper.make_opsetid(call.domain, call.version)]
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise InferenceError(_reason(error)) from error
    found = [facts.from_proto(answer[name]) if name in answer else UNKNOWN for name in outputs]
    return [_believed(fact, call) for fact in found]


def _refuse_what_crashes(call: Call) -> None:
    """Uses on which ONNX's C++ code reads beyond the end of an array, which ends the process."""
    if call.op_type == "Split" and call.integer("num_outputs", 0) not in (0, len(call.outputs)):
        raise InferenceError(f"it has {len(call.outputs)} outputs, but its attribute 'num_outputs' says otherwise")
    if call.op_type == "GatherND" and call.integer("batch_dims", 0) < 0:
        raise InferenceError("its attribute 'batch_dims' is negative")


def _believed(fact: Fact, call: Call) -> Fact:
    """`fact` without the zeros that ONNX reads where an extent is open (Attention: heads times a width of 0)."""
    if fact.dims is None or 0 not in fact.dims:
        return fact
    given = [dim for source in call.inputs if source is not None and source.dims is not None for dim in source.dims]
    if 0 in given or all(isinstance(dim, int) for dim in given):
        return fact
    return Fact(fact.type, tuple(None if dim == 0 else dim for dim in fact.dims))


def _reason(error: Exception) -> str:
    """The sentence in ONNX's message, without the C++ file and the bracketed kind around it."""
    text = str(error).strip().splitlines()[0]
    return text.rsplit("] ", 1)[-1].rstrip(".")
