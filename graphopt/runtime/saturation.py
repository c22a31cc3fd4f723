"""Looking behind a final Softmax or Sigmoid.

An output that has saturated (one probability of 1, the rest 0) hides every error that its logits may have. For the
equivalence check the input of such a final operator therefore becomes one more output, in the original and in the
rewritten model alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt.runtime.session import SPILL_BYTES, ModelSource, weight_bytes

_SATURATING = frozenset({"Softmax", "Sigmoid", "HardSigmoid", "Tanh"})


def logits_of(model: ir.Model) -> dict[str, str]:
    """Names of saturating outputs and of the values that they come from: output -> logits."""
    found = {}
    for output in model.graph.outputs:
        node = output.producer()
        if node is None or node.op_type not in _SATURATING or node.domain != "":
            continue
        logits = node.inputs[0]
        if logits is not None and logits.producer() is not None and not logits.is_graph_output():
            found[output.name or ""] = logits.name or ""
    return found


def expose(source: ModelSource, names: Iterable[str]) -> ModelSource | None:
    """`source` with the values called `names` among its outputs.

    None where that would cost too much: the model is large, or has external data.
    """
    names = tuple(dict.fromkeys(names))
    if isinstance(source, ir.Model):
        from graphopt.ir import emit

        return emit.to_bytes(source, exposed=names) if weight_bytes(source) <= SPILL_BYTES else None
    proto = onnx.ModelProto()
    if isinstance(source, onnx.ModelProto):
        proto.CopyFrom(source)
    elif isinstance(source, bytes):
        proto.ParseFromString(source)
    else:
        path = Path(os.fspath(source))
        if path.stat().st_size > SPILL_BYTES:
            return None
        proto.ParseFromString(path.read_bytes())
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        return None
    for name in names:
        proto.graph.output.add(name=name)
    return proto
