"""How long a kernel takes on a device: by kernels that were measured there, else by the roofline."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.analysis.execution import Execution
from graphopt.analysis.fusion import Kernel
from graphopt.pricing import roofline
from graphopt.pricing.device import DeviceProfile
from graphopt.pricing.kernel_work import work_of
from graphopt.pricing.runs import Work


def kernel_seconds(
    kernel: Kernel, work: Mapping[ir.Node, Work], execution: Execution, device: DeviceProfile
) -> float | None:
    """Predicted seconds of one run of `kernel`, or None where its work is unknown. Arguments as for the roofline."""
    if device.times is not None:
        found = work_of(kernel, execution, device.block)
        seconds = None if found is None else device.times.seconds(found)
        if seconds is not None:
            return seconds
    return roofline.kernel_seconds(kernel, work, execution, device)
