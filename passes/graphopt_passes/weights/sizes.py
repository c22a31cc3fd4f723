"""How large weights are before and after, as they lie in the file and after DEFLATE, which gzip and zip files use."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.ir.tensors import SparseTensor, chunks
from graphopt.pipeline.remarks import Remarks
from graphopt_passes.reconstruction.linear import Linear


class Sizes:
    """Weights of some layers, measured when this is made."""

    def __init__(self, layers: Sequence[Linear]) -> None:
        """Measure the weights of `layers`."""
        self._layers = layers
        self._before = self._measure()

    def remark(self, model: ir.Model, remarks: Remarks, what: str) -> None:
        """Say what became of the weights' size in `model`: `what`, then bytes and bytes after DEFLATE."""
        (stored, packed), (now, now_packed) = self._before, self._measure()
        remarks.applied(
            model.graph.name or "model",
            f"{what}: their weights take {now:,} bytes instead of {stored:,}, deflated {now_packed:,} instead of {packed:,}",
        )

    def _measure(self) -> tuple[int, int]:
        """Bytes of everything constant that the weights are made from, each tensor once, plain and deflated."""
        tensors: dict[ir.Value, ir.TensorProtocol] = {}
        pending = [layer.node.inputs[1] for layer in self._layers]
        while pending:
            value = pending.pop()
            if value is None:
                continue
            producer = value.producer()
            if producer is not None:
                pending.extend(producer.inputs)
            if value.const_value is not None:
                tensors[value] = value.const_value
        sizes = [_sizes(tensor) for tensor in tensors.values()]
        return sum(size for size, _ in sizes), sum(size for _, size in sizes)


def _sizes(tensor: ir.TensorProtocol) -> tuple[int, int]:
    if isinstance(tensor, SparseTensor):
        parts = [_sizes(tensor.values), _sizes(tensor.indices)]
        return sum(size for size, _ in parts), sum(size for _, size in parts)
    packer, packed = zlib.compressobj(6), 0
    for chunk in chunks(tensor):
        packed += len(packer.compress(chunk))
    return tensor.nbytes, packed + len(packer.flush())
