"""Static quantization: all numbers are fixed from calibration samples, and what they cost is repaired layer by layer.

1. Equalize what lies between linear layers, exactly in float (`equalize`, `smooth`).
2. Decide what runs on integers (`placement`), gather histograms of what is quantized and the mean of every layer's
   output in one run, and choose ranges (`calibration`).
3. Walk through the quantized model in topological order, beside what the float model did. At each layer, whose inputs
   now carry the errors of all layers before it: round the weight with error feedback from the second moments of these
   inputs (`numerics.feedback_rounding`), then move the bias by the difference that is left between the means of the
   output in float and now (Nagel et al. 2019, section 4.2, empirical and sequential).
4. Write QuantizeLinear and DequantizeLinear (`insertion`), and keep what stays float in float (`islands`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import DataError
from graphopt.ir.walk import label, subgraphs
from graphopt.ops.base import operator
from graphopt.pipeline.base import PassContext, PassResult, Remark
from graphopt.pipeline.evidence import Evidence
from graphopt.pipeline.remarks import Remarks
from graphopt.runtime.requests import Gram, GramResult, Moments, PatchGram, Request, Results
from graphopt_passes.numerics.feedback_rounding import centred, feedback_round
from graphopt_passes.quantization import calibration, equalize, layers
from graphopt_passes.quantization.insertion import Array, LayerWeights, Quantizer, Recipe, insert
from graphopt_passes.quantization.islands import keep_float
from graphopt_passes.quantization.placement import NOT_FINITE, Layer, Placement, place
from graphopt_passes.quantization.selection import select
from graphopt_passes.quantization.targets import Target

if TYPE_CHECKING:
    from graphopt.runtime.stepping import Stepper

MOST_MOMENTS = 4608
"""Largest number of inputs of a layer whose second moments are gathered: 170 MB in float64."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to quantize; see the options of the pass `quantize`.

    Attributes:
        target: what the runtime can do.
        activations: element type of activations.
        ranges: how their ranges are chosen, one of `calibration.METHODS`, or "auto" for `selection`.
        equalize: whether channels are equalized first.
        clip_margin: how far below a clip's ceiling channels stay that are equalized.
        feedback: whether weights are rounded with error feedback.
        correct_biases: whether biases take up the mean error.
        keep_heads: whether heads stay float.
        rows: rows of a layer's input that its second moments are taken from.
    """

    target: Target
    activations: ir.DataType
    ranges: str = "auto"
    equalize: bool = True
    clip_margin: float = 1.1
    feedback: bool = True
    correct_biases: bool = True
    keep_heads: bool = True
    rows: int = 40_000


def quantize(model: ir.Model, context: PassContext, settings: Settings) -> PassResult:
    """Quantize `model` in place.

    Raises:
        DataError: there are no calibration samples.
    """
    return _Static(model, context, settings).run()


class _Static:
    def __init__(self, model: ir.Model, context: PassContext, settings: Settings) -> None:
        if context.evidence is None:
            raise DataError("quantize: it needs calibration samples")
        self.model = model
        self.context = context
        self.evidence: Evidence = context.evidence
        self.settings = settings
        self.target = settings.target
        self.remarks = Remarks()
        self.touched: dict[ir.Node, None] = {}

    def run(self) -> PassResult:
        placement = self._place(self.model)
        if not placement.layers:
            self.remarks.missed("the model", "stays float: no layer with constant float32 weights can run on integers")
            self._remark_kept(placement)
            return PassResult(False, (), self.remarks.listed())
        remarks = self._equalize() if self.settings.equalize else ()
        placement = self._place(self.model)
        results = self._statistics(placement)
        values = calibration.by_name(placement, self._quantizers(placement, results))
        recipe = Recipe(values, {layer.key: self._nearest(layer, values) for layer in placement.layers})
        if self.settings.feedback or self.settings.correct_biases:
            recipe = self._repaired(placement, recipe, results)
        self.touched.update(dict.fromkeys(insert(self.model, self.model.graph, placement, recipe)))
        if self.target.quantizes_floats:
            self.touched.update(dict.fromkeys(keep_float(self.model, self.model.graph)))
        self._remark_kept(placement)
        touched = [node for node in self.touched if node.graph is not None]
        return PassResult(True, touched, (*remarks, *self.remarks.listed()))

    def _place(self, model: ir.Model) -> Placement:
        return place(model.graph, self.target, excluded=self.context.excluded, keep_heads=self.settings.keep_heads)

    def _equalize(self) -> Sequence[Remark]:
        wanted = equalize.requests(self.model, self.context)
        if not wanted:
            return ()
        rescaled = equalize.equalize(
            self.model,
            self._collect(wanted),
            self.context,
            activation=calibration.grid_of(self.settings.activations, symmetric=self.target.symmetric),
            weight=layers.grid(self.target),
            clip_margin=self.settings.clip_margin,
        )
        self.touched.update(dict.fromkeys(rescaled.touched))
        return rescaled.remarks

    def _statistics(self, placement: Placement) -> Results:
        wanted: list[Request[Any]] = [*calibration.requests(placement)]
        if self.settings.correct_biases:
            wanted += [_mean(layer) for layer in placement.layers if layer.form.bias is not None]
        return self._collect(wanted)

    def _collect(self, wanted: Collection[Request[Any]]) -> Results:
        try:
            return self.evidence.collect(self.model, wanted)
        except DataError as error:
            kept = self._place(self.model).kept
            broken = next((label(node) for node, why in kept.items() if why == NOT_FINITE), None)
            if broken is None:
                raise
            raise DataError(f"{error}; the weight or bias of {broken} does too") from error

    def _quantizers(self, placement: Placement, results: Results) -> dict[ir.Value, Quantizer]:
        dtype, symmetric = self.settings.activations, self.target.symmetric
        sources = calibration.sources(placement)
        distributions = {root: calibration.distribution(names, results) for root, names in sources.items()}
        method = self.settings.ranges
        if method != "auto":
            return calibration.by_method(distributions, dtype, symmetric=symmetric, method=method)
        return select(self.model, placement, distributions, self.evidence, dtype, symmetric=symmetric)

    def _nearest(self, layer: Layer, values: Mapping[str, Quantizer]) -> LayerWeights:
        data = values[layer.data.name or ""]
        return layers.nearest(layer, self.target, data, biased=self.settings.correct_biases)

    def _repaired(self, placement: Placement, recipe: Recipe, float_results: Results) -> Recipe:
        """`recipe` with weights and biases that make up for errors, found on a quantized copy of the model."""
        trial = self.model.clone()
        copy = self._place(trial)
        nodes = {layer.key: layer.node for layer in copy.layers}  # before graph outputs hand their names over
        insert(trial, trial.graph, copy, recipe)
        tied = _tied(placement.layers)
        repaired = dict(recipe.layers)
        with self.evidence.stepper(trial) as stepper:
            for layer in placement.layers:
                node, weights = nodes[layer.key], repaired[layer.key]
                if self.settings.feedback and layer.key not in tied:
                    weights = self._rounded(layer, node, weights, stepper)
                if self.settings.correct_biases and weights.bias is not None:
                    data = recipe.values[layer.data.name or ""]
                    mean = float_results[_mean(layer)].mean
                    weights = self._corrected(layer, node, weights, data, mean, stepper)
                repaired[layer.key] = weights
                stepper.advance([node.outputs[0]])
        return Recipe(recipe.values, repaired)

    def _rounded(self, layer: Layer, node: ir.Node, weights: LayerWeights, stepper: Stepper) -> LayerWeights:
        """The weight, rounded with error feedback from the inputs as they are now."""
        request = _second_moments(layer, node, self.settings.rows)
        if request is None:
            return weights
        seen = stepper.collect([request])[request]
        # what the bias will take away does not count
        moments = centred(seen.second, seen.mean) if weights.bias is not None else seen.second
        exact = layers.float_weight(layer)
        scale = np.broadcast_to(weights.scale.reshape(-1), (len(exact),))
        rows = feedback_round(exact, moments, scale, layers.grid(self.target))
        weights = dataclasses.replace(weights, weight=layers.integers(layer, self.target, rows))
        _store(node, layer.form.weight, weights.weight)
        return weights

    def _corrected(
        self,
        layer: Layer,
        node: ir.Node,
        weights: LayerWeights,
        data: Quantizer,
        mean: Array,
        stepper: Stepper,
    ) -> LayerWeights:
        """The bias, moved by what the output is off its `mean` in float."""
        bias, request = layers.float_bias(layer), Moments(node.outputs[0].name or "", layer.output_axis)
        assert bias is not None
        bias += mean - stepper.collect([request])[request].mean
        stored = layers.integer_bias(bias, weights, self.target, data)
        _store(node, layer.form.bias, stored)
        return dataclasses.replace(weights, bias=stored)

    def _remark_kept(self, placement: Placement) -> None:
        for node, why in placement.kept.items():
            self.remarks.missed(label(node), f"stays float: {why}")
        for node in self.model.graph:
            if any(self._layers_in(body) for body in self._bodies(node)):
                self.remarks.missed(label(node), "its bodies stay float: what flows inside is not measured")

    def _layers_in(self, body: ir.Graph) -> bool:
        """Whether `body`, or a body in it, multiplies in a way that has integer kernels."""
        for node in body:
            form = operator(node).integer_form(node) if node.op_type in self.target.kernels else None
            if form is not None and form.weight is not None:
                return True
        return any(self._layers_in(inner) for node in body for inner in self._bodies(node))

    def _bodies(self, node: ir.Node) -> Sequence[ir.Graph]:
        """The bodies of `node`, or that of the function it calls."""
        function = self.model.functions.get(node.op_identifier())
        return tuple(subgraphs(node)) if function is None else (function.graph,)


def _mean(layer: Layer) -> Moments:
    return Moments(layer.key, layer.output_axis)


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


def _tied(found: Iterable[Layer]) -> frozenset[str]:
    """Keys of the layers whose weight another layer reads too: they are rounded to nearest, which keeps them tied."""
    readers: dict[ir.Value | None, list[str]] = {}
    for layer in found:
        assert layer.form.weight is not None
        readers.setdefault(layer.node.inputs[layer.form.weight], []).append(layer.key)
    return frozenset(key for keys in readers.values() if len(keys) > 1 for key in keys)
