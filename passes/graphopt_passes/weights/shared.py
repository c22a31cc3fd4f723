"""Weights of a layer that share numbers, as the walk fits them and as the model stores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.ir.surgery import FreshNames
from graphopt.ir.walk import label
from graphopt.pipeline.remarks import Remarks
from graphopt_passes.numerics import codebook
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.problem import Problem
from graphopt_passes.weights import packing
from graphopt_passes.weights.walking import Fitted


@dataclass(frozen=True)
class Shared:
    """Weights of one layer that share numbers."""

    coded: codebook.Coded

    @property
    def weight(self) -> Array:
        """(C, K)."""
        return self.coded.weight

    def refitted(self, problem: Problem) -> Shared:
        """Other numbers, shared by the same weights."""
        return Shared(codebook.refit(self.coded, problem.best, problem.second))


def pack_all(model: ir.Model, layers: Sequence[Linear], done: Mapping[str, Fitted], remarks: Remarks) -> None:
    """Store the weights of those `layers` that are in `done` as entries of tables, where that is smaller."""
    packer = packing.Packer(model, FreshNames(model))
    for layer in layers:
        fitted = done.get(layer.key)
        if not isinstance(fitted, Shared):
            continue
        tables = fitted.coded.codebooks
        tensor = layer.node.inputs[1]
        assert tensor is not None
        assert tensor.const_value is not None
        if packing.packed_size(layer, len(tables), tables.shape[1]) < tensor.const_value.nbytes:
            packer.pack(layer, fitted.coded.choice, tables)
        else:
            remarks.missed(label(layer.node), "stored plain: too small for a table to pay")
