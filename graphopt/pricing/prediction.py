"""How long kernels take on a device: by kernels that were measured there, else by the roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graphopt.analysis.execution import Execution
from graphopt.analysis.fusion import Kernel
from graphopt.pricing import roofline
from graphopt.pricing.device import DeviceProfile
from graphopt.pricing.kernel_work import work_of
from graphopt.pricing.runs import Work


def kernel_seconds(
    kernels: Sequence[Kernel], work: Mapping[ir.Node, Work], execution: Execution, device: DeviceProfile
) -> list[float | None]:
    """Predicted seconds of one run of each of `kernels`, which belong to one inference, or None where its work is unknown.

    Other arguments as for the roofline.
    """
    times = device.times
    if times is None:
        return [roofline.kernel_seconds(kernel, work, execution, device) for kernel in kernels]
    from graphopt.pricing.kernel_times import footprint

    works = [work_of(kernel, execution, device.block) for kernel in kernels]
    around = footprint([found.amounts for found in works if found is not None])
    seconds = [None if found is None else times.seconds(found, around) for found in works]
    return [
        roofline.kernel_seconds(kernel, work, execution, device) if predicted is None else predicted
        for kernel, predicted in zip(kernels, seconds, strict=True)
    ]
