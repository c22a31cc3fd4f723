"""Factorization of ConvTranspose, as a product at every input position (`reconstruction.transposed`).

A product of low rank is a 1 x 1 Conv to r channels, then a ConvTranspose from there. The metric is the second moment of the
input's channels; contributions that overlap are taken as independent. There is no refit towards the original's output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from graphopt.analysis.extents import Extents
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.requests import Gram
from graphopt_passes.factorization.sites import Site
from graphopt_passes.numerics.quadratic import Array
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.transposed import TransposedLinear


def transposed_site(layer: TransposedLinear, extents: Extents) -> Site | str:
    """The site of a layer, as a product over its input positions."""
    source = extents.dims(layer.data)
    if source is None:
        return "the extents of its input are not known"
    return Site(layer, (), (), (), (math.prod(source[2:]),), source[0])


def second_moments(model: ir.Model, layers: Iterable[Linear], evidence: Evidence) -> Mapping[str, list[Array]]:
    """Per layer, by key, E[x xᵀ] of every group's input channels: (C/G, C/G)."""
    wanted = {layer.key: (layer, Gram(layer.data.name or "", 1)) for layer in layers}
    if not wanted:
        return {}
    found = evidence.collect(model, [request for _, request in wanted.values()])
    result = {}
    for key, (layer, request) in wanted.items():
        second, width = found[request].second, layer.width
        result[key] = [second[at : at + width, at : at + width] for at in range(0, len(second), width)]
    return result
