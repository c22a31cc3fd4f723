"""Operators of other domains: onnxruntime's own (`com.microsoft`); all others are left open.

Quantized and fused forms of standard operators are inferred as the standard operator they stand for. For the rest of
onnxruntime's operators (the attention family above all) there is the library onnx-shape-inference. It works on nodes
and values of onnx-ir and notes things on them, so it gets a node of its own, made for the question and thrown away
after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt.analysis import dims as extents
from graphopt.analysis import facts, onnx_inference, symbolic
from graphopt.analysis.call import Call
from graphopt.analysis.dims import Arithmetic, Dim
from graphopt.analysis.facts import UNKNOWN, Fact

DOMAIN = "com.microsoft"
STANDARD_VERSION = 13
"""The opset whose operators the quantized and fused forms are modelled on."""

Inputs = Callable[[int], Sequence[int]]

STANDS_FOR: dict[str, tuple[str, Inputs]] = {
    "BiasGelu": ("Add", lambda count: (0, 1)),
    "FastGelu": ("Identity", lambda count: (0,)),
    "FusedConv": ("Conv", lambda count: (0, 1)),
    "FusedGemm": ("Gemm", lambda count: (0, 1)),
    "Gelu": ("Identity", lambda count: (0,)),
    "NhwcMaxPool": ("", lambda count: ()),
    "QGemm": ("Gemm", lambda count: (0, 3)),
    "QLinearAdd": ("Add", lambda count: (0, 3)),
    "QLinearAveragePool": ("AveragePool", lambda count: (0,)),
    "QLinearConcat": ("Concat", lambda count: range(2, count, 3)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", lambda count: (0,)),
    "QLinearLeakyRelu": ("Identity", lambda count: (0,)),
    "QLinearMul": ("Mul", lambda count: (0, 3)),
    "QLinearReduceMean": ("", lambda count: ()),
    "QLinearSigmoid": ("Identity", lambda count: (0,)),
    "QLinearSoftmax": ("Identity", lambda count: (0,)),
    "QLinearWhere": ("Where", lambda count: (0, 1, 4)),
    "QuickGelu": ("Identity", lambda count: (0,)),
}
"""The standard operator, and the inputs that it takes, as which an operator of onnxruntime is inferred; "" for none."""

ATTRIBUTES = frozenset(
    {"auto_pad", "axis", "ceil_mode", "dilations", "group", "kernel_shape", "pads", "strides", "transA", "transB"}
)
"""The attributes that have the same meaning for the standard operator."""

QUANTIZED = (ir.DataType.UINT8, ir.DataType.INT8)

_QGEMM_INPUTS = 9
_FLOAT = ir.TensorType(ir.DataType.FLOAT)


def infer(call: Call, arithmetic: Arithmetic) -> list[Fact]:
    """What is known about the outputs of an operator that ONNX does not define."""
    if call.domain != DOMAIN:
        return [UNKNOWN] * len(call.outputs)
    if call.attributes.get("channels_last") is not None and call.integer("channels_last", 0):
        return [UNKNOWN] * len(call.outputs)
    if call.op_type in STANDS_FOR:
        return _as_standard(call, arithmetic)
    return _ask_library(call)


def _as_standard(call: Call, arithmetic: Arithmetic) -> list[Fact]:
    op_type, inputs = STANDS_FOR[call.op_type]
    if not op_type:
        return [UNKNOWN] * len(call.outputs)
    chosen = [call.fact(index) for index in inputs(len(call.inputs))]
    # Standard operators take no 8-bit integers: they are inferred in floating point.
    quantized = next((fact.type for fact in chosen if fact.dtype in QUANTIZED), None)
    if call.op_type == "QGemm" and len(call.inputs) < _QGEMM_INPUTS:
        quantized = None  # without a zero point of the output, the output is float
    taken = tuple(Fact(_FLOAT, fact.dims) if fact.dtype in QUANTIZED else fact for fact in chosen)
    standard = call._replace(
        domain="",
        op_type=op_type,
        version=STANDARD_VERSION,
        attributes={name: a for name, a in call.attributes.items() if name in ATTRIBUTES},
        inputs=taken,
        contents=(),
        outputs=call.outputs[:1],
    )
    try:
        found = onnx_inference.infer(standard)
    except onnx_inference.InferenceError:
        return [UNKNOWN] * len(call.outputs)
    filled = [
        facts.refine(Fact(quantized or fact.type, fact.dims), Fact(None, extents))
        for fact, extents in zip(found, symbolic.infer(standard, arithmetic), strict=True)
    ]
    return [*filled, *[UNKNOWN] * len(call.outputs)][: len(call.outputs)]


def _ask_library(call: Call) -> list[Fact]:
    import onnx_shape_inference  # with sympy behind it; needed for few models

    onnx_shape_inference.registry.collect()
    rule = onnx_shape_inference.registry.get(call.domain, call.op_type, version=call.version)
    if rule is None:
        return [UNKNOWN] * len(call.outputs)
    node = ir.Node(
        call.domain,
        call.op_type,
        [None if fact is None else _value(fact) for fact in call.inputs],
        [attribute for attribute in call.attributes.values() if not attribute.is_ref()],
        num_outputs=len(call.outputs),
    )
    context = onnx_shape_inference.ShapeInferenceContext({call.domain: call.version}, policy="override")
    try:
        rule(context, node)
    except Exception:  # an alpha library: whatever goes wrong in it, the operator is merely left open
        return [UNKNOWN] * len(call.outputs)
    return [_answer(value, context) for value in node.outputs]


def _value(fact: Fact) -> ir.Value:
    shape = None if fact.dims is None else ir.Shape(fact.dims)
    return ir.Value(type=fact.type, shape=shape)


def _answer(value: ir.Value, context: object) -> Fact:
    """What the library noted on `value`, less the symbols that it made up."""
    fact = facts.declared(value)
    if fact.dims is None:
        return fact
    generated = context.generated_dim_names  # type: ignore[attr-defined]  # the library has no type information

    def kept(dim: Dim) -> Dim:
        return None if isinstance(dim, str) and extents.symbols_of(dim) & generated else dim

    return Fact(fact.type, tuple(map(kept, fact.dims)))
