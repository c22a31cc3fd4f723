"""Weights rewritten layer by layer: each fitted on what it really gets, once those before it have been rewritten.

A form is a bound on weights that a layer can take (few numbers, many zeros, signs). It is fitted to a layer's problem, and
then, its discrete part fixed, refitted to targets that the activation behind leaves free. Layers that keep their weights are
refitted densely, so that they make up for what the others have lost; so are ConvTransposes, which take no form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import FreshNames
from graphopt.ir.walk import label
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.remarks import Remarks
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.reconstruction.linear import Linear, linear_layers
from graphopt_passes.reconstruction.problem import MOST_INPUTS, PENALTIES, Problem
from graphopt_passes.reconstruction.transposed import layers_of
from graphopt_passes.reconstruction.walk import Observed, Walk

RIDGE = 1e-3
ROWS = 20_000
_ROWS_OF_RIDGE = 10
"""Rows per input that `RIDGE` is meant for."""
_ROWS_PER_UNKNOWN = 4
"""Layers that keep their weights are refitted where there are so many rows per input at least."""


class Fitted(Protocol):
    """Weights within a bound."""

    @property
    def weight(self) -> Array:
        """(C, K)."""
        ...

    def refitted(self, problem: Problem) -> Fitted:
        """The best weights for `problem` with the same discrete part."""
        ...


Form = Callable[[Problem], Fitted]


def candidates(model: ir.Model, context: PassContext, remarks: Remarks | None = None) -> list[Linear]:
    """The linear layers of the main graph that the pass may touch, in topological order.

    A weight that several layers read stays as it is: it is smallest as one.
    """
    return _open(linear_layers(model.graph), context, remarks)


def _open(layers: Sequence[Linear], context: PassContext, remarks: Remarks | None = None) -> list[Linear]:
    found = []
    for layer in layers:
        weight = layer.node.inputs[1]
        assert weight is not None
        if context.excluded(layer.node):
            continue
        if len(weight.uses()) == 1 and not weight.is_graph_output():
            found.append(layer)
        elif remarks is not None:
            remarks.missed(label(layer.node), "left alone: other nodes read its weight too")
    return found


def fit(problem: Problem, form: Form) -> Fitted:
    """`form` fitted to a layer, through the activation behind it."""
    fitted = form(problem)
    for penalty in PENALTIES:
        if not problem.look_through(fitted.weight, penalty):
            break
        fitted = fitted.refitted(problem)
    return fitted


def rewrite(
    model: ir.Model,
    context: PassContext,
    forms: Mapping[str, Form],
    remarks: Remarks,
) -> dict[str, Fitted]:
    """Give the layers named by `forms` weights of these forms, in place; returns what each was given.

    Without samples every layer is fitted to its own weights, and the others stay as they are.
    """
    names = FreshNames(model)
    done: dict[str, Fitted] = {}
    layers = _open(layers_of(model.graph), context)
    if context.evidence is None:
        for layer in layers:
            if layer.key in forms:
                _put(layer, forms[layer.key](Problem.alone(layer)), None, names, done, remarks)
        return done
    original = model.clone()
    with Walk(original, model, context.evidence, rows=ROWS, seed=context.seed) as walk:
        for layer in layers:
            form = forms.get(layer.key)
            if layer.width > MOST_INPUTS:
                if form is not None:
                    why = f"more than {MOST_INPUTS:,} inputs: fitted to its weights alone"
                    remarks.missed(label(layer.node), why)
                    _put(layer, form(Problem.alone(layer)), None, names, done, remarks)
            elif form is None:
                if done:  # until then it gets what it always got
                    refit_dense(walk, layer, names)
            else:
                seen = walk.observe(layer)
                if seen.rows < layer.width:
                    remarks.missed(label(layer.node), "fewer calibration rows than inputs: held near its own weights")
                problem = problem_of(layer, seen)
                fitted = fit(problem, form)
                _put(layer, fitted, problem.bias_for(fitted.weight), names, done, remarks)
            walk.advance(layer.key)
    return done


def problem_of(layer: Linear, seen: Observed) -> Problem:
    """The problem of `layer` on its rows; the fewer rows there are per input, the nearer it is held to its own weights."""
    return Problem.of(layer, seen, RIDGE * max(1.0, _ROWS_OF_RIDGE * layer.width / seen.rows))


def refit_dense(walk: Walk, layer: Linear, names: FreshNames) -> bool:
    """Give a layer its best weights, where there are enough rows to tell; says whether it did.

    Layers in groups stay: those of few inputs gain nothing.
    """
    if layer.groups > 1 or layer.width > MOST_INPUTS:
        return False
    seen = walk.observe(layer)
    if seen.rows < _ROWS_PER_UNKNOWN * layer.width:
        return False
    problem, done = problem_of(layer, seen), dict[str, Fitted]()
    fitted = fit(problem, _Dense)
    _put(layer, fitted, problem.bias_for(fitted.weight), names, done, Remarks())
    return bool(done)


class _Dense:
    """No bound at all."""

    def __init__(self, problem: Problem) -> None:
        self.weight = problem.best

    def refitted(self, problem: Problem) -> _Dense:
        """The best weights."""
        return _Dense(problem)


def _put(
    layer: Linear, fitted: Fitted, bias: Array | None, names: FreshNames, done: dict[str, Fitted], remarks: Remarks
) -> None:
    """Store weights, unless the layer's element type cannot hold them."""
    old = layer.node.inputs[1]
    assert old is not None
    assert old.dtype is not None
    weight = fitted.weight
    with np.errstate(over="ignore"):
        held = [array.astype(old.dtype.numpy()) for array in (weight, bias) if array is not None]
    if not all(np.isfinite(array.astype(np.float64)).all() for array in held):
        remarks.missed(label(layer.node), f"left alone: its new weights are beyond {old.dtype}")
        return
    layer.store(weight.reshape(layer.groups, -1, layer.width), bias, names)
    done[layer.key] = fitted
