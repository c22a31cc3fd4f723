"""Binary and ternary weights: signs times a scale per output channel, in the layers that bear it.

    w_mk = Σ_b α_mb s_mkb,      s in {-1, 1} (binary) or {-1, 0, 1} (ternary),   b = 1 .. bases

Signs are chosen with error feedback from what the layer sees, scales by least squares, in turn (`numerics.codebook`; after
Rastegari et al. 2016, "XNOR-Net", and Li & Liu 2016, "Ternary Weight Networks", which look at the weights alone). What a
layer's signs do to the outputs is measured, all others left as they are. Of the harm that is allowed a layer gets the share that
it has of the weights; it takes the fewest bases that stay within, or keeps its weights. Then all layers are refitted in one
walk, those that keep their weights too, so that they make up for the signs (`weights.walking`).

Stored packed, one bit or log2(3) bits per weight and basis, restored when the model is loaded (`weights.packing`), or plain.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphopt.ir.walk import label
from graphopt.pipeline.base import PassContext, PassResult, option
from graphopt.pipeline.remarks import Remarks
from graphopt_passes.lossy import LossyPass
from graphopt_passes.numerics import codebook
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.reconstruction.harm import Harm
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.problem import MOST_INPUTS, Problem
from graphopt_passes.reconstruction.walk import Walk
from graphopt_passes.weights import packing
from graphopt_passes.weights.shared import Shared, pack_all
from graphopt_passes.weights.sizes import Sizes
from graphopt_passes.weights.walking import candidates, fit, problem_of, rewrite

_SAMPLES = 256
_ROUNDS = 4


@dataclass(frozen=True)
class Binarize(LossyPass):
    """Replace weights by signs and a scale per channel, where the outputs bear it."""

    name: ClassVar[str] = "binarize"
    needs_data: ClassVar[bool] = True

    levels: Literal["binary", "ternary"] = option("binary", "signs, or signs and zero")
    bases: int = option(1, "how many signs with scales of their own add up to a weight at most", minimum=1, maximum=4)
    harm: float = option(
        0.01,
        "how much the outputs may change, the harm of all layers added: divergence in nats of classifiers, else "
        "squared error over the energy",
        minimum=0,
    )
    form: Literal["packed", "plain"] = option(
        "packed", "bits that are looked up in a table when the model is loaded, or plain floats, which compress well"
    )

    @property
    def min_opset(self) -> int:
        """Scales per channel are read by GatherElements."""
        return packing.SINCE if self.form == "packed" else 1

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Binarize the layers of the main graph that bear it.

        Raises:
            DataError: activations are not finite.
        """
        remarks = Remarks()
        layers = candidates(model, context, remarks)
        if any(self._is_binary(layer) for layer in layers) or _has_tables(model, len(self._pattern(self.bases))):
            remarks.missed(model.graph.name or "model", "left alone: it has such weights, and bears no more of them")
            return PassResult(False, (), remarks.listed())
        bases = self._bases(model, context, layers, remarks)
        chosen = [layer for layer in layers if layer.key in bases]
        if not chosen:
            remarks.missed(model.graph.name or "model", "no layer bears to have its weights replaced")
            return PassResult(False, (), remarks.listed())
        sizes = Sizes(chosen)
        done = rewrite(model, context, {key: partial(self._fit, bases=count) for key, count in bases.items()}, remarks)
        taken = [layer for layer in chosen if layer.key in done]
        if self.form == "packed":
            pack_all(model, taken, done, remarks)
        total = sum(layer.channels * layer.width for layer in layers)
        share = sum(layer.channels * layer.width for layer in taken) / total
        sizes.remark(model, remarks, f"{share:.1%} of {total:,} weights are {self.levels}")
        return PassResult(bool(done), None, remarks.listed())

    def _pattern(self, bases: int) -> Array:
        """(V, bases): the signs of every entry."""
        signs = (-1, 1) if self.levels == "binary" else (-1, 0, 1)
        return np.array(list(itertools.product(signs, repeat=bases)), np.float64)

    def _fit(self, problem: Problem, bases: int) -> Shared:
        pattern = self._pattern(bases)
        return Shared(codebook.share(problem.best, problem.second, _start(problem, pattern), pattern, _ROUNDS))

    def _is_binary(self, layer: Linear) -> bool:
        """Whether a layer's rows have no more numbers than entries; rows too short to tell do not count."""
        entries = len(self._pattern(self.bases))
        if layer.width <= 4 * entries:
            return False
        rows = layer.weight().reshape(layer.channels, layer.width)
        return bool(rows.any()) and max(len(np.unique(row)) for row in rows) <= entries

    def _bases(
        self, model: ir.Model, context: PassContext, layers: Sequence[Linear], remarks: Remarks
    ) -> dict[str, int]:
        """How many bases the layers that bear it take, by their keys."""
        assert context.evidence is not None  # the manager has seen to it
        evidence = context.evidence.subset(_SAMPLES)
        total, found = sum(layer.channels * layer.width for layer in layers), {}
        with Walk(model, model, evidence, seed=context.seed) as walk, Harm(model, evidence) as judge:
            for layer in layers:
                observed = layer.width <= MOST_INPUTS
                problem = problem_of(layer, walk.observe(layer)) if observed else Problem.alone(layer)
                walk.advance(layer.key)
                allowed = self.harm * layer.channels * layer.width / total
                for bases in range(1, self.bases + 1):
                    weight = fit(copy.copy(problem), partial(self._fit, bases=bases)).weight
                    dense = weight.reshape(layer.groups, -1, layer.width)
                    (harm,) = judge.measure(layer, [(dense, problem.bias_for(weight))])
                    if harm <= allowed:
                        found[layer.key] = bases
                        kind = f"{bases} x {self.levels}" if self.bases > 1 else self.levels
                        remarks.applied(label(layer.node), f"{kind}, harm alone {harm:.2g}")
                        break
                else:
                    remarks.missed(label(layer.node), f"keeps its weights: harm alone {harm:.2g} of {allowed:.2g}")
        return found


def _start(problem: Problem, pattern: Array) -> Array:
    """(C, bases) scales to start from: in each row those whose entries are nearest to the weights.

    Tried are the mean of what is left of a row, basis after basis, and geometric sequences that reach its largest weights
    or less far: several bases with the former alone cut off heavy tails.
    """
    weight, second = problem.best, problem.second
    importance: Array = np.ones((1, weight.shape[1])) if second is None else np.einsum("gkk->gk", second)
    importance = np.repeat(importance, len(weight) // len(importance), axis=0)
    bases, ternary = pattern.shape[1], bool((pattern == 0).any())
    ratio = 3.0 if ternary else 2.0
    steps = ratio ** -np.arange(bases)
    most = np.abs(weight).max(axis=1, keepdims=True)
    tried = [_residual_means(weight, bases, ternary=ternary)]
    tried += [most * reach * steps / steps.sum() for reach in (1.0, 0.8, 0.65, 0.5, 0.4, 0.3)]
    errors = []
    for scales in tried:
        books = np.sort(scales @ pattern.T, axis=1)
        edges = (books[:, 1:] + books[:, :-1]) / 2
        places = np.stack([np.searchsorted(edge, row) for edge, row in zip(edges, weight, strict=True)])
        errors.append((importance * np.square(weight - np.take_along_axis(books, places, axis=1))).sum(axis=1))
    best = np.argmin(errors, axis=0)
    return np.asarray(np.stack(tried)[best, np.arange(len(weight))])


def _residual_means(weight: Array, bases: int, *, ternary: bool) -> Array:
    """(C, bases) the mean of what is left of each row, basis after basis."""
    left, scales = weight.copy(), []
    for _ in range(bases):
        size = np.abs(left)
        # what is above 0.7 of the mean keeps its sign: Li & Liu 2016, section 2.2
        kept = size > 0.7 * size.mean(axis=1, keepdims=True) if ternary else np.ones(size.shape, bool)
        scale = np.where(kept, size, 0).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
        left -= np.where(kept, np.sign(left), 0) * scale[:, None]
        scales.append(scale)
    return np.stack(scales, axis=1)


def _has_tables(model: ir.Model, entries: int) -> bool:
    """Whether weights are looked up in tables of so many numbers per channel."""
    for node in model.graph:
        if node.op_type != "GatherElements" or node.domain != "" or node.inputs[0] is None:
            continue
        table = node.inputs[0].const_value
        axis = node.attributes.get_int("axis", 0)
        if table is not None and table.shape.numpy()[axis] == entries:
            return True
    return False
