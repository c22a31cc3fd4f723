"""Making up for quantization layer by layer, with inputs that carry the errors of all layers before.

The walk goes through the quantized model in topological order, beside what the float model did. At each layer the weight
is rounded with error feedback from the second moments of its inputs as they are now (`numerics.feedback_rounding`), then
the bias moves by the difference that is left between the means of the output in float and now (Nagel et al. 2019,
section 4.2, empirical and sequential). Where statistics are re-estimated, the scale of the weight gives each channel its
variance back as well, which costs nothing either (what re-estimating a BatchNormalization does that is folded already).
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.requests import Gram, GramResult, Moments, PatchGram, Request, Results
from graphopt_passes.numerics.feedback_rounding import centred
from graphopt_passes.quantization import layers
from graphopt_passes.quantization.insertion import Array, LayerWeights, Quantizer, Recipe, insert
from graphopt_passes.quantization.placement import Layer, Placement
from graphopt_passes.quantization.targets import Target

if TYPE_CHECKING:
    from graphopt.runtime.stepping import Stepper

_MOST_GAIN = 1.25
"""Beyond this, or below its reciprocal, it is no rounding error: the inputs have hardly any variance."""
MOST_MOMENTS = 4608
"""Largest number of inputs of a layer whose second moments are gathered: 170 MB in float64."""


@dataclasses.dataclass(frozen=True)
class Repairs:
    """Which repairs are made.

    Attributes:
        target: what the runtime can do.
        feedback: whether weights are rounded with error feedback.
        correct_biases: whether biases take up the mean error.
        reestimate: whether scales of weights, where each channel has its own, then give back its variance.
        rows: rows of a layer's input that its second moments are taken from.
    """

    target: Target
    feedback: bool = True
    correct_biases: bool = True
    reestimate: bool = False
    rows: int = 40_000


def requests(placement: Placement) -> list[Moments]:
    """What has to be known of the float model to correct biases."""
    return [mean_of(layer) for layer in placement.layers if layer.form.bias is not None]


def mean_of(layer: Layer) -> Moments:
    """The request for the mean of a layer's output, per channel."""
    return Moments(layer.key, layer.activation_axis)


def repaired(
    placement: Placement,
    recipe: Recipe,
    float_results: Results,
    trial: tuple[ir.Model, Placement],
    evidence: Evidence,
    repairs: Repairs,
) -> tuple[Recipe, dict[str, float]]:
    """`recipe` with weights and biases that make up for errors, and the seconds that each repair took.

    Args:
        placement: of the float model.
        recipe: its layers rounded to nearest.
        float_results: answers to `requests` about the float model.
        trial: a copy of the float model, which is quantized here, and its placement.
        evidence: samples to run it on.
        repairs: which are made.
    """
    model, copy = trial
    nodes = {layer.key: layer.node for layer in copy.layers}  # before graph outputs hand their names over
    insert(model, model.graph, copy, recipe)
    with evidence.stepper(model) as stepper:
        walk = _Walk(stepper, recipe, float_results, repairs, layers.tied(placement.layers))
        return walk.run(placement, nodes), walk.seconds


class _Walk:
    def __init__(
        self, stepper: Stepper, recipe: Recipe, float_results: Results, repairs: Repairs, tied: frozenset[str]
    ) -> None:
        self.stepper = stepper
        self.recipe = recipe
        self.float_results = float_results
        self.repairs = repairs
        self.tied = tied
        self.seconds = {"feedback": 0.0, "biases": 0.0}

    def run(self, placement: Placement, nodes: dict[str, ir.Node]) -> Recipe:
        done = dict(self.recipe.layers)
        for layer in placement.layers:
            node, weights = nodes[layer.key], done[layer.key]
            started = time.perf_counter()
            if self.repairs.feedback and layer.key not in self.tied:
                weights = self._rounded(layer, node, weights)
            rounded = time.perf_counter()
            if self.repairs.correct_biases and weights.bias is not None:
                weights = self._corrected(layer, node, weights)
            done[layer.key] = weights
            self.stepper.advance([node.outputs[0]])
            self.seconds["feedback"] += rounded - started
            self.seconds["biases"] += time.perf_counter() - rounded
        return dataclasses.replace(self.recipe, layers=done)

    def _rounded(self, layer: Layer, node: ir.Node, weights: LayerWeights) -> LayerWeights:
        """The weight, rounded with error feedback from the inputs as they are now."""
        request = _second_moments(layer, node, self.repairs.rows)
        if request is None:
            return weights
        seen = self.stepper.collect([request])[request]
        # what the bias will take away does not count
        moments = centred(seen.second, seen.mean) if weights.bias is not None else seen.second
        weights = layers.with_feedback(layer, self.repairs.target, weights, moments)
        _store(node, layer.form.weight, weights.weight)
        return weights

    def _corrected(self, layer: Layer, node: ir.Node, weights: LayerWeights) -> LayerWeights:
        """The bias, moved by what the output is off its mean in float, and the scale by what it is off its variance."""
        bias, request = layers.float_bias(layer), Moments(node.outputs[0].name or "", layer.activation_axis)
        assert bias is not None
        before, now = self.float_results[mean_of(layer)], self.stepper.collect([request])[request]
        data: Quantizer = self.recipe.read(layer.data.name or "", layer.key)
        shifted = bias + before.mean - now.mean
        if self.repairs.reestimate and layer.key not in self.tied and weights.scale.size == bias.size:
            gain = _gain(before.variance, now.variance)
            rescaled = dataclasses.replace(weights, scale=(weights.scale * gain).astype(np.float32))
            amplified = gain * bias + before.mean - gain * now.mean
            if layers.fits_bias(amplified, rescaled, data):
                weights, shifted = rescaled, amplified
                _store_scale(node, layer.form.weight, weights.scale)
                if self.repairs.target.quantized_bias:
                    _store_scale(node, layer.form.bias, weights.bias_scale(data, bias.size))
        stored = layers.integer_bias(shifted, weights, self.repairs.target, data)
        _store(node, layer.form.bias, stored)
        return dataclasses.replace(weights, bias=stored)


def _gain(before: npt.NDArray[np.float64], now: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(C,) what brings the standard deviation now back to what it was; 1 where either is nothing, or far off the other."""
    usable = (before > 0) & (now > 0)
    gain = np.sqrt(np.divide(before, now, where=usable, out=np.ones(len(now))))
    return np.where((gain > 1 / _MOST_GAIN) & (gain < _MOST_GAIN), gain, 1.0)


def _second_moments(layer: Layer, node: ir.Node, rows: int) -> Request[GramResult] | None:
    """What to ask for the second moments of a layer's inputs; None where they would not fit, or are not known how."""
    if layers.matrix_inputs(layer) > MOST_MOMENTS or layer.node.op_type == "ConvTranspose":
        return None
    if layer.node.op_type == "Conv":
        return PatchGram(node.outputs[0].name or "", rows)
    data = node.inputs[layer.form.data[0]]
    assert data is not None
    return Gram(data.name or "", -1, rows)


def _store(node: ir.Node, index: int | None, array: Array) -> None:
    """Put other integers into the DequantizeLinear (or the constant) at an input of `node`."""
    assert index is not None
    value = node.inputs[index]
    producer = None if value is None else value.producer()
    stored = value if producer is None else producer.inputs[0]
    assert stored is not None
    stored.const_value = ir.Tensor(array, name=stored.name)


def _store_scale(node: ir.Node, index: int | None, scale: Array) -> None:
    """Give the DequantizeLinear at an input of `node` a scale of its own."""
    assert index is not None
    value = node.inputs[index]
    producer = None if value is None else value.producer()
    assert producer is not None
    assert producer.graph is not None
    name = f"{producer.outputs[0].name}_own_scale"
    own = ir.Value(name=name, const_value=ir.Tensor(scale, name=name), type=ir.TensorType(ir.DataType.FLOAT))
    own.shape = ir.Shape(scale.shape)
    producer.graph.initializers[name] = own
    producer.replace_input_with(1, own)
