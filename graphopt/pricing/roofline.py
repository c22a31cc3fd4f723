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

import dataclasses
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.analysis.execution import Execution
from graphopt.analysis.fusion import Kernel
from graphopt.errors import OptionError
from graphopt.ops import attributes
from graphopt.ops.base import input_at
from graphopt.pricing.runs import Work

_INTEGER = frozenset(
    {
        *("ConvInteger", "QLinearConv", "MatMulInteger", "QLinearMatMul"),
        *("QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    }
)


@dataclass(frozen=True)
class DeviceProfile:
    """What the roofline knows about a device; the defaults are for one thread of an AVX-512 server.

    Attributes:
        name: how reports call it.
        isa: instruction set: avx512, avx2, neon or other.
        block: channels per block of float convolutions; 1 where there are no blocked ones.
        flops: float32 operations per second of convolutions and matrix products, 2 per MAC.
        scalar_flops: operations per second of everything else.
        bandwidth: bytes per second between the cores and the caches and memory behind them.
        integer_speedup: of 8-bit convolutions and matrix products over float32.
        depthwise_efficiency: share of `flops` that depthwise convolutions reach.
        plain_factor: time of a convolution outside of the blocked path, relative to one inside.
        overhead: seconds that any kernel takes.
    """

    name: str = "avx512"
    isa: str = "avx512"
    block: int = 16
    flops: float = 105e9
    scalar_flops: float = 13e9
    bandwidth: float = 30e9
    integer_speedup: float = 3.8
    depthwise_efficiency: float = 0.4
    plain_factor: float = 1.27
    overhead: float = 0.5e-6

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value <= 0:
                raise OptionError(f"device profile '{self.name}': {field.name} must be positive, not {value}")

    @classmethod
    def load(cls, path: Path) -> DeviceProfile:
        """Read a profile from JSON. Raises OptionError where it is not one."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise OptionError(f"device profile {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise OptionError(f"device profile {path}: not JSON ({error})") from error
        kinds = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        if not isinstance(data, dict) or not data.keys() <= kinds.keys():
            known = ", ".join(kinds)
            raise OptionError(f"device profile {path}: must be an object with some of the keys {known}")
        for key, value in data.items():
            fits = isinstance(value, int | float) and not isinstance(value, bool)
            if not (isinstance(value, str) if kinds[key] is str else fits):
                raise OptionError(f"device profile {path}: {key} must be {kinds[key].__name__}, not {value!r}")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as `load` reads them."""
        return dataclasses.asdict(self)


@cache
def this_machine() -> DeviceProfile:
    """The built-in profile that fits the instruction set of this machine."""
    flags = _cpu_flags()
    if "avx512f" in flags:
        return DeviceProfile()
    if "avx2" in flags:
        return DeviceProfile("avx2", "avx2", 8, 55e9, 7e9, 20e9, 2.5)
    if platform.machine().lower() in ("arm64", "aarch64"):
        return DeviceProfile("neon", "neon", 16, 30e9, 4e9, 15e9, 3.0)
    return DeviceProfile("other", "other", 1, 15e9, 2e9, 10e9, 1.5)


def _cpu_flags() -> set[str]:
    """Features as Linux lists them; elsewhere an x86 machine is taken to have AVX2, as all since 2015 have."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    except OSError:
        if platform.machine().lower() in ("x86_64", "amd64"):
            return {"avx2"}
    return set()


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
