"""Predicted time of a layer and of its replacements: the roofline of `graphopt.pricing`, from shapes alone.

    seconds = Σ over parts of  overhead + max(2 MACs slowness / flops, bytes / bandwidth)

with MACs on channels rounded up to the runtime's block, depthwise parts at their own efficiency, and everything that a
blocked convolution cannot do slower by `plain_factor` (ANCHORS: ranks obey the same rule as widths). Branches are
summed by an Add that the convolution before it takes in: one more read of the output. A ConvTranspose is a plain product at
every input position, whose contributions are written before they are added up.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.pricing import DeviceProfile
from graphopt_passes.factorization.schemes import Shape

_BYTES = 4
_START = 8
"""What a blocked convolution spends per output block and per output element beyond its MACs, in channels and in inputs.

It makes narrow parts slow; the measured times in tests/passes/test_factorization_emission.py are met within 15 %.
"""


def seconds(shapes: Sequence[Shape], device: DeviceProfile, *, convolution: bool, branches: int = 1) -> float:
    """Predicted seconds of parts that run one after the other.

    Args:
        shapes: of all parts.
        device: what runs them.
        convolution: whether they are convolutions, which run in blocks of channels.
        branches: how many outputs are summed.
    """
    total = 0.0
    for shape in shapes:
        moved = shape.inputs * shape.before + shape.outputs * shape.after + shape.weights
        spread = 2 * shape.outputs * shape.pixels * shape.before if shape.transposed else 0
        blocked = convolution and not shape.transposed
        work = 2 * shape.macs * (_slowness(shape, device) if blocked else 1.0) / device.flops
        total += device.overhead + max(work, _BYTES * moved / device.bandwidth)
        total += _BYTES * spread / device.bandwidth
    added = (branches - 1) * shapes[-1].outputs * shapes[-1].after if shapes else 0
    return total + _BYTES * added / device.bandwidth


def _slowness(shape: Shape, device: DeviceProfile) -> float:
    """Time of one multiply-accumulate relative to a blocked convolution of full blocks."""
    block, groups = device.block, shape.groups
    if groups == shape.inputs == shape.outputs:
        return (1.0 if shape.outputs % block == 0 else device.plain_factor) / device.depthwise_efficiency
    inputs, outputs = shape.inputs // groups, shape.outputs // groups
    if outputs % min(block, 4) or (groups > 1 and (inputs % block or outputs % block)):
        return device.plain_factor
    wide = inputs if inputs < block else -(-inputs // block) * block
    padded = -(-outputs // block) * block
    depth = wide * shape.pixels
    return (depth + _START) * (padded + _START) / (inputs * shape.pixels * outputs)
