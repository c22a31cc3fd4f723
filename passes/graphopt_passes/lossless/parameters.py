"""Parameters that are attributes in older opsets and inputs in newer ones: axes, pads, starts and the like.

Source: ONNX Operators.md and Changelog.md, "Version history" of each operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from graphopt_passes.rewriting import Site

_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
)  # fmt: skip

INPUTS: Mapping[str, Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "Expand": {"shape": (1, 8)},
        "Pad": {"pads": (1, 11), "axes": (3, 18)},
        "ReduceSum": {"axes": (1, 13)},
        "Reshape": {"shape": (1, 5)},
        "Slice": {"starts": (1, 10), "ends": (2, 10), "axes": (3, 10), "steps": (4, 10)},
        "Split": {"split": (1, 13)},
        "Squeeze": {"axes": (1, 13)},
        "Tile": {"repeats": (1, 6)},
        "Unsqueeze": {"axes": (1, 13)},
        **{name: {"axes": (1, 18)} for name in _REDUCTIONS},
    }
)
"""Per operator and parameter: the input that it is, and since which opset."""


def given(site: Site, node: ir.Node, name: str) -> bool:
    """Whether `node` has the parameter `name` at all."""
    index = _input_index(site, node.op_type, name)
    if index is None:
        return name in node.attributes
    return index < len(node.inputs) and node.inputs[index] is not None


def integers(site: Site, node: ir.Node, name: str, default: Sequence[int] | None = None) -> tuple[int, ...] | None:
    """The parameter `name` of `node`: `default` where it is left out, None where it is not constant."""
    if not given(site, node, name):
        return None if default is None else tuple(default)
    index = _input_index(site, node.op_type, name)
    if index is None:
        return tuple(node.attributes.get_ints(name))
    array = site.array(node.inputs[index])
    return None if array is None else tuple(int(number) for number in array.reshape(-1))


def spelled(
    site: Site, op_type: str, parameters: Mapping[str, Sequence[int]], base: str, before: ir.Node
) -> tuple[list[ir.Value | None], dict[str, Sequence[int]]]:
    """`parameters` of a new node of `op_type` as the opset wants them.

    Args:
        site: where the node will be.
        op_type: its operator.
        parameters: name to numbers, in the order in which the operator lists them.
        base: stem of the names of new constants.
        before: what the node will stand before.

    Returns:
        The inputs that follow the first one, and the attributes.
    """
    inputs: list[ir.Value | None] = []
    attributes: dict[str, Sequence[int]] = {}
    for name, numbers in parameters.items():
        index = _input_index(site, op_type, name)
        if index is None:
            attributes[name] = tuple(numbers)
            continue
        inputs += [None] * (index - 1 - len(inputs))
        inputs.append(site.new_constant(np.array(numbers, np.int64), f"{base}_{name}", before))
    return inputs, attributes


def axis(number: int, rank: int) -> int:
    """An axis that may be counted from the end, counted from the start."""
    return number + rank if number < 0 else number


def axes(numbers: Sequence[int], rank: int | None) -> tuple[int, ...] | None:
    """Axes counted from the start; None where some are counted from the end of an unknown rank."""
    if rank is None:
        return tuple(numbers) if all(number >= 0 for number in numbers) else None
    return tuple(axis(number, rank) for number in numbers)


def _input_index(site: Site, op_type: str, name: str) -> int | None:
    """Which input of the operator the parameter is; None where it is an attribute in this opset."""
    index, since = INPUTS[op_type][name]
    return index if site.opset >= since else None
