"""The roofline: how long a kernel takes on a device, if it is bound by arithmetic or by memory and by nothing else.

    seconds = overhead + max(work / speed, bytes moved / bandwidth)

(Williams, Waterman and Patterson 2009), with what decides speed in onnxruntime on a CPU:

* a blocked convolution works on whole blocks of channels: MACs count on widths rounded up to the block;
* a convolution that cannot be blocked is slower by `plain_factor`, depthwise ones run at `depthwise_efficiency`;
* integer kernels are faster by `integer_speedup`;
* operations that are no multiply-accumulates run at `scalar_flops`.

The result is a prediction, good for comparing versions of a model; only measured latency is latency.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx_ir as ir

from graphopt.analysis.execution import Execution
from graphopt.analysis.fusion import Kernel
from graphopt.ops import attributes
from graphopt.ops.base import input_at
from graphopt.pricing.device import DeviceProfile
from graphopt.pricing.runs import Work

_INTEGER = frozenset(
    {
        *("ConvInteger", "QLinearConv", "MatMulInteger", "QLinearMatMul"),
        *("QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    }
)


def kernel_seconds(
    kernel: Kernel, work: Mapping[ir.Node, Work], execution: Execution, device: DeviceProfile
) -> float | None:
    """Predicted seconds of one run of `kernel`, or None where its work is unknown.

    Args:
        kernel: of a schedule of `execution`.
        work: of every node.
        execution: sizes of tensors.
        device: the machine.
    """
    if kernel.view_of is not None:
        return 0.0
    seconds = moved = 0.0
    for node in kernel.nodes:
        macs, flops = work[node].macs, work[node].flops
        if macs is None or flops is None:
            return None
        moved += work[node].weight_bytes
        seconds += (flops - 2 * macs) / device.scalar_flops
        if macs:
            seconds += 2 * macs * _slowness(node, kernel, execution, device) / device.flops
    for tensor in (*kernel.reads, *kernel.writes):
        moved += execution.bytes(tensor) or 0
    if kernel.integer:  # its weights stand before DequantizeLinear
        sources = [value.producer() for value in kernel.main.inputs if value is not None]
        moved += sum(work[source].weight_bytes for source in sources if source is not None and source in work)
    return device.overhead + max(seconds, moved / device.bandwidth)


def _slowness(node: ir.Node, kernel: Kernel, execution: Execution, device: DeviceProfile) -> float:
    """Time of a MAC of `node` relative to one at full speed."""
    factor = 1 / device.integer_speedup if kernel.integer or node.op_type in _INTEGER else 1.0
    weight = execution.extents.dims(input_at(node, 1))
    if node.op_type not in ("Conv", "FusedConv") or not weight or len(weight) < 3 or not prod(weight):
        return factor
    depthwise = weight[1] == 1 and weight[0] == attributes.integer(node, "group", 1)
    if depthwise:
        factor /= device.depthwise_efficiency
    if kernel.integer:
        return factor
    if any(tensor.block for tensor in kernel.writes):
        inputs = weight[1] if weight[1] < device.block else _rounded(weight[1], device.block)
        return factor * _rounded(weight[0], device.block) / weight[0] * inputs / weight[1]
    return factor * device.plain_factor if device.block > 1 else factor


def _rounded(width: int, block: int) -> int:
    return -(-width // block) * block
