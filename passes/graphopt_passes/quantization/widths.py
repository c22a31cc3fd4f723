"""Activations of two widths in one model: 16 bits around the layers that 8 bits would harm most.

A layer that is spared so reads and makes 16 bits. A kernel takes all its activations in one type (as onnxruntime's
`mixed_precision_overrides_utils.py` sees to for QNN), and the values of a group share one quantizer, so that two rules
follow:

* a group is wide if a spared layer reads or makes one of its values;
* a kernel is wide if its result is, or where it leaves its result in float, if it is spared. One that moves data is what
  its group is.

A kernel whose data have the other type reads a conversion, DequantizeLinear and QuantizeLinear. From 8 to 16 bits that is
exact: 256 times the integers, a 256th of the scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping

import onnx_ir as ir

from graphopt_passes.numerics.quantizer import representable
from graphopt_passes.quantization.insertion import Quantizer, Recipe
from graphopt_passes.quantization.placement import Placement

_FINER = 256


@dataclasses.dataclass(frozen=True)
class Widths:
    """What has 16 bits.

    Attributes:
        groups: roots of the wide groups.
        crossings: values whose type is not that of a kernel which reads them, with the kernel, and whether that one is wide.
    """

    groups: frozenset[ir.Value]
    crossings: tuple[tuple[ir.Value, ir.Node, bool], ...]


def widen(placement: Placement, spared: Collection[str]) -> Widths:
    """The widths where the layers whose keys are `spared` have 16-bit activations, and all else 8-bit ones."""
    groups = placement.groups
    nodes = {layer.node for layer in placement.layers if layer.key in spared}
    around = [
        value
        for layer in placement.layers
        if layer.node in nodes
        for value in (layer.data, *_made(layer.node, placement))
    ]
    wide = frozenset(groups.root(value) for value in around if value in groups)

    def is_wide(node: ir.Node) -> bool:
        form = placement.others.get(node)
        decisive = _made(node, placement)
        if not decisive and form is not None and form.same_scale:
            decisive = [value for value in node.inputs if value is not None and value in groups]
        return groups.root(decisive[0]) in wide if decisive else node in nodes

    crossings = [
        (value, node, is_wide(node))
        for node in placement.integer_nodes()
        for value in dict.fromkeys(_read(node, placement))
        if (groups.root(value) in wide) != is_wide(node)
    ]
    return Widths(wide, tuple(crossings))


def _read(node: ir.Node, placement: Placement) -> Iterator[ir.Value]:
    """The quantized values that `node` reads."""
    yield from (value for value in node.inputs if value is not None and value in placement.groups)


def _made(node: ir.Node, placement: Placement) -> list[ir.Value]:
    """The quantized values that the kernel of `node` makes, behind the activation that it absorbs."""
    made = []
    for output in node.outputs:
        absorbed = next((use.node for use in output.uses() if use.node in placement.absorbed), None)
        value = output if absorbed is None else absorbed.outputs[0]
        if value in placement.groups:
            made.append(value)
    return made


def finer(quantizer: Quantizer, dtype: ir.DataType) -> Quantizer:
    """The 16-bit quantizer that holds all numbers of an 8-bit one exactly."""
    scale = float(representable(quantizer.scale / _FINER))
    return Quantizer(scale, quantizer.zero_point * _FINER, dtype)


def mixed(placement: Placement, spared: Collection[str], narrow: Recipe, wide: Mapping[str, Quantizer]) -> Recipe:
    """The quantizers where the `spared` layers have 16-bit activations.

    Args:
        placement: of the graph.
        spared: keys of layers.
        narrow: 8-bit quantizers of all values.
        wide: 16-bit quantizers of all values, by name.
    """
    found = widen(placement, spared)
    kernels = {*placement.integer_nodes(), *placement.absorbed}
    values = {}
    for root, members in placement.groups.members().items():
        source = wide if root in found.groups else narrow.values
        values.update({value.name or "": source[value.name or ""] for value in members})
    converted = {}
    for value, node, to_wide in found.crossings:
        name = value.name or ""
        if not to_wide:
            quantizer = narrow.values[name]
        elif value.producer() in kernels:
            quantizer = finer(narrow.values[name], wide[name].dtype)
        else:
            quantizer = wide[name]
        converted[name, node.outputs[0].name or ""] = quantizer
    return Recipe(values, narrow.layers, converted)
