"""Sparsification: weights that matter least become zero, and the others make up for them.

The zeros lie anywhere (`sparsity`), spread over the layers by measured harm or evenly, or in a pattern n:m, at most n of m
successive input channels of each tap, as sparse tensor cores read it. Which weights go is decided by optimal brain
surgery and alternating directions or by magnitude (`numerics.sparse_support`); those that stay are refitted by least squares,
layer by layer with inputs from the compressed network and targets from the original (`weights.walking`).

The result computes as many multiplications as before in runtimes that do not know sparse kernels: what gets smaller is the
compressed file, or with form=sparse the file itself, where 8 bytes of index per weight that is left are less than the zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphopt.ir.tensors import SparseTensor
from graphopt.ir.walk import label
from graphopt.pipeline.base import PassContext, PassResult, option
from graphopt.pipeline.remarks import Remarks
from graphopt_passes.lossy import LossyPass
from graphopt_passes.numerics import sparse_support
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.numerics.sparse_support import Sparsity
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.problem import Problem
from graphopt_passes.weights.sizes import Sizes
from graphopt_passes.weights.walking import candidates, rewrite

_LEAST_SHARE = 0.01
"""Layers that get fewer zeros than this stay dense."""


@dataclass(frozen=True)
class Sparsify(LossyPass):
    """Set the weights that matter least to zero, and refit the others."""

    name: ClassVar[str] = "sparsify"

    sparsity: float = option(0.5, "share of the weights that become zero", minimum=0, maximum=1)
    pattern: tuple[int, ...] = option((), "n:m, at most n of m successive input channels stay, such as 2:4")
    criterion: Literal["obs", "magnitude"] = option("obs", "how the zeros are chosen; obs needs samples")
    spread: Literal["harm", "even"] = option(
        "harm",
        "how zeros without a pattern are spread over layers: by what the outputs lose, or the same share in each",
    )
    form: Literal["dense", "sparse"] = option(
        "dense", "how zeros are stored: as numbers, or as sparse initializers where that is smaller"
    )

    def __post_init__(self) -> None:
        if self.pattern and not (len(self.pattern) == 2 and 0 < self.pattern[0] < self.pattern[1]):
            raise ValueError("pattern must be n:m with 0 < n < m, such as 2:4")

    @property
    def reads_data(self) -> bool:
        """Zeros are chosen by what layers see, where there are samples."""
        return True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Make the linear layers of the main graph sparse."""
        remarks = Remarks()
        layers = candidates(model, context, remarks)
        forms = self._forms(model, context, layers, remarks)
        if not forms:
            remarks.missed(model.graph.name or "model", "no layer has weights to set to zero")
            return PassResult(False, (), remarks.listed())
        sizes = Sizes(layers)
        done = rewrite(model, context, forms, remarks)
        changed = [layer for layer in layers if layer.key in done]
        for layer in changed:
            remarks.applied(label(layer.node), f"{_zeros(layer.weight()):.0%} of the weights are zero")
            if self.form == "sparse" and not _make_sparse(layer):
                remarks.missed(label(layer.node), "stored dense: indices would take more than the zeros")
        total = sum(layer.channels * layer.width for layer in layers)
        zeros = sum(_zeros(layer.weight()) * layer.channels * layer.width for layer in layers)
        sizes.remark(model, remarks, f"{zeros / total:.1%} of {total:,} weights are zero")
        return PassResult(bool(done), None, remarks.listed())

    def _forms(
        self, model: ir.Model, context: PassContext, layers: Sequence[Linear], remarks: Remarks
    ) -> dict[str, partial[Sparse]]:
        """What each layer that is not sparse enough becomes, by its key."""
        if self.pattern or self.spread == "even":
            wanted = {layer.key: self._bound(self.sparsity) for layer in layers}
        else:
            zeros = sum(round(_zeros(layer.weight()) * layer.channels * layer.width) for layer in layers)
            if zeros >= self.sparsity * sum(layer.channels * layer.width for layer in layers) - len(layers):
                return {}
            from graphopt_passes.weights.allotment import allot

            shares = allot(model, context, layers, self.sparsity)
            wanted = {key: self._bound(share) for key, share in shares.items()}
        forms = {}
        for layer in layers:
            bound, order = wanted[layer.key], _order(layer)
            if bound.pattern is None and bound.share < _LEAST_SHARE:
                remarks.missed(label(layer.node), "stays dense: the outputs need it most")
            elif _fits(layer, bound, order):
                remarks.missed(label(layer.node), "left alone: as sparse as it should be")
            else:
                forms[layer.key] = partial(Sparse.choose, bound=bound, order=order, surgery=self.criterion == "obs")
        return forms

    def _bound(self, share: float) -> Sparsity:
        return Sparsity(pattern=(self.pattern[0], self.pattern[1])) if self.pattern else Sparsity(share)


@dataclass(frozen=True)
class Sparse:
    """Weights of one layer with zeros in fixed places."""

    weight: Array
    kept: Array

    @classmethod
    def choose(cls, problem: Problem, bound: Sparsity, order: Array, surgery: bool) -> Sparse:
        """The zeros within `bound`, inputs counted in `order` (K,), and the best weights around them."""
        kept, weight = np.ones(problem.best.shape, bool), problem.best.copy()
        count = len(kept) // len(problem.by_group())
        for group, (second, wanted) in enumerate(problem.by_group()):
            rows = slice(group * count, (group + 1) * count)
            turned, sorted_wanted = None if second is None else second[np.ix_(order, order)], wanted[:, order]
            if turned is None or not surgery:
                own = sparse_support.magnitude(sorted_wanted, None, bound)
                fitted = sparse_support.fit_support(sorted_wanted, turned, own)
            else:
                own, fitted = sparse_support.chosen(sorted_wanted, turned, bound)
            kept[rows, order], weight[rows, order] = own, fitted
        return cls(weight, kept)

    def refitted(self, problem: Problem) -> Sparse:
        """Other weights around the same zeros."""
        count = len(self.kept) // len(problem.by_group())
        parts = [
            sparse_support.fit_support(
                wanted, second, self.kept[i * count : (i + 1) * count], self.weight[i * count : (i + 1) * count]
            )
            for i, (second, wanted) in enumerate(problem.by_group())
        ]
        return Sparse(np.concatenate(parts), self.kept)


def _order(layer: Linear) -> Array:
    """(K,) the inputs of a layer, channels of one tap of the kernel in succession."""
    taps = 1
    if layer.node.op_type == "Conv":
        weight = layer.node.inputs[1]
        assert weight is not None
        assert weight.shape is not None
        taps = int(np.prod(weight.shape.numpy()[2:]))
    return np.arange(layer.width).reshape(-1, taps).T.reshape(-1)


def _zeros(weight: Array) -> float:
    return float(np.count_nonzero(weight == 0)) / weight.size


def _fits(layer: Linear, bound: Sparsity, order: Array) -> bool:
    """Whether a layer's weight is within `bound` as it is."""
    weight = layer.weight().reshape(layer.channels, layer.width)[:, order]
    if bound.pattern is None:
        return _zeros(weight) >= bound.share - layer.groups / weight.size
    return bool((weight[~bound.keep(np.square(weight))] == 0).all())


def _make_sparse(layer: Linear) -> bool:
    """Store a layer's weight as a sparse initializer where that takes fewer bytes; says whether it does."""
    value = layer.node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    dense = value.const_value.numpy()
    places = np.flatnonzero(dense)
    if value.producer() is not None or len(places) * (8 + dense.itemsize) >= dense.nbytes or not len(places):
        return False
    numbers = ir.Tensor(dense.reshape(-1)[places])
    indices = ir.Tensor(places.astype(np.int64))
    value.const_value = SparseTensor(numbers, indices, ir.Shape(dense.shape), value.name or "")
    return True
