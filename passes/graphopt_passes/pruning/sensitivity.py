"""What the error of a layer does to the outputs: measured, group by group.

Each group is pruned alone to the few widths that its curve kept refitted layers for, and the harm of the outputs is
measured. Between and beyond these points harm is a power of the layer's error, H = a · E^p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import FreshNames
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.pruning.curves import Curve, Probe
from graphopt_passes.pruning.harm import Judge
from graphopt_passes.reconstruction.transposed import layers_of

_POWERS = (0.7, 1.3)
"""The exponent is kept within these: two noisy points must not decide about widths far from them."""


def measured(model: ir.Model, curves: Mapping[int, Curve], judge: Judge) -> dict[int, list[tuple[float, float]]]:
    """For each group (E, H) at its probes: the curve's error, and the harm of the outputs of `model`."""
    return {
        number: [(probe.error, judge.harm(_with(model, probe))) for probe in curve.probes]
        for number, curve in curves.items()
    }


def _with(model: ir.Model, probe: Probe) -> ir.Model:
    tried = model.clone()
    names = FreshNames(tried)
    keys = {key for key, _ in probe.layers}
    for layer in layers_of(tried.graph):
        if layer.key not in keys:
            continue
        weight, bias = layer.weight(), layer.bias()
        bias = np.zeros(layer.channels) if bias is None else bias
        size = layer.channels // layer.groups
        for block in range(layer.groups):
            new = probe.layers.get((layer.key, block))
            if new is not None:
                weight[block], bias[block * size : (block + 1) * size] = new.weight, new.bias
        layer.store(weight, bias if layer.takes_bias else None, names)
    return tried


def harms(curve: Array, points: list[tuple[float, float]], blend: float) -> Array:
    """The curve (U + 1,) of errors E as harm: E^(1 - blend) · (a E^p)^blend.

    Args:
        curve: by width.
        points: (E, H) at the probes; none leave the errors as they are. One at width 0 counts there and nowhere else.
        blend: 0 believes in relative errors alone, 1 in measured harm alone.
    """
    usable = [(error, harm) for error, harm in points if error > 0 and 0 < harm < math.inf]
    nothing = [point for point in usable if point[0] == curve[0]]
    usable = [point for point in usable if point not in nothing] or usable
    if not usable or blend == 0:
        return curve
    logs = np.log(np.array(usable))
    power = 1.0
    if len(usable) > 1 and logs[-1, 0] - logs[0, 0] > 1e-3:
        power = float(np.clip((logs[-1, 1] - logs[0, 1]) / (logs[-1, 0] - logs[0, 0]), *_POWERS))
    level = float(np.mean(logs[:, 1] - power * logs[:, 0]))
    found = np.zeros(len(curve))
    positive = (curve > 0) & np.isfinite(curve)
    found[positive] = np.exp(blend * level + (1 - blend + blend * power) * np.log(curve[positive]))
    found[~np.isfinite(curve)] = np.inf
    if nothing:
        found[0] = nothing[0][0] ** (1 - blend) * nothing[0][1] ** blend
    return found
