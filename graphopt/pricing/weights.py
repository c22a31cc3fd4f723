"""What counts as a parameter, and how many bytes constants have.

Parameters are the numbers that a network has learned: floating-point tensors, and the integers that stand for such
after quantization. Integers that say something about shapes are none, and neither are scales and zero points, so that
quantizing a model does not change its number of parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.ir.walk import constant_tensor
from graphopt.ops.base import operator

_COMPLEX = frozenset({ir.DataType.COMPLEX64, ir.DataType.COMPLEX128})


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters and bytes of everything constant that a model stores."""

    params: int
    bytes: int


class Weighing:
    """Adds up constants; how large a tensor is, is looked up once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[ir.TensorProtocol, int, int]] = {}

    def of(self, graphs: Iterable[ir.Graph], nodes: Iterable[ir.Node]) -> Weights:
        """The initializers of `graphs` and the tensors of the Constant nodes among `nodes`, each once."""
        constants = [(value, value.const_value) for graph in graphs for value in graph.initializers.values()]
        for node in nodes:
            if node.op_type == "Constant" and node.domain == "":
                constants.append((node.outputs[0], constant_tensor(node.outputs[0])))
        params = total = 0
        stored: dict[int, tuple[ir.TensorProtocol, int, int]] = {}
        for value, tensor in constants:
            if tensor is not None:
                elements, size = self.measure(tensor)
                stored[id(tensor)] = (tensor, elements, size)
                total += size
                params += elements if is_parameter(value, tensor) else 0
        self._known = stored  # tensors of earlier versions are let go
        return Weights(params, total)

    def measure(self, tensor: ir.TensorProtocol) -> tuple[int, int]:
        """Elements and bytes of a tensor."""
        known = self._known.get(id(tensor))
        if known is None or known[0] is not tensor:  # an id may be used again
            known = self._known[id(tensor)] = (tensor, tensor.size, tensor.nbytes)
        return known[1:]


def is_parameter(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Whether `tensor`, the constant that `value` holds, is something that the network has learned."""
    dtype = tensor.dtype
    if dtype.is_floating_point() or dtype in _COMPLEX:
        return not _all_quantization_parameters(value)
    if not dtype.is_integer() or dtype in (ir.DataType.INT64, ir.DataType.UINT64):
        return False
    if dtype.itemsize <= 1:
        return not _all_quantization_parameters(value)
    return any(_stands_for_a_number(use.node, use.idx) for use in value.uses())


def _all_quantization_parameters(value: ir.Value) -> bool:
    positions = [use.idx in operator(use.node).quantization_parameters for use in value.uses()]
    return bool(positions) and all(positions)


def _stands_for_a_number(node: ir.Node, index: int) -> bool:
    """Whether `node` works on quantized numbers and reads input `index` as one of them (an int32 bias)."""
    parameters = operator(node).quantization_parameters
    return bool(parameters) and index not in parameters
