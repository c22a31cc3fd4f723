"""Static quantization: all numbers are fixed from calibration samples, and what they cost is repaired layer by layer.

1. Equalize what lies between linear layers, exactly in float (`equalize`, `smooth`).
2. Decide what runs on integers (`placement`), gather histograms of what is quantized and the mean of every layer's
   output in one run, and choose ranges (`calibration`).
3. Walk through the quantized model, and let weights and biases make up for errors layer by layer (`repair`).
4. Write QuantizeLinear and DequantizeLinear (`insertion`), and keep what stays float in float (`islands`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graphopt.errors import DataError
from graphopt.ir.walk import label, subgraphs
from graphopt.ops.base import operator
from graphopt.pipeline.base import PassContext, PassResult, Remark
from graphopt.pipeline.evidence import Evidence
from graphopt.pipeline.remarks import Remarks
from graphopt.runtime.requests import Request, Results
from graphopt_passes.quantization import calibration, equalize, layers, repair, saturation
from graphopt_passes.quantization.insertion import LayerWeights, Quantizer, Recipe, insert
from graphopt_passes.quantization.islands import keep_float
from graphopt_passes.quantization.placement import NOT_FINITE, Layer, Placement, place
from graphopt_passes.quantization.selection import select
from graphopt_passes.quantization.targets import Target


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
        saturates: whether the runtime adds products in pairs that saturate, so that weights must leave room.
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
    saturates: bool = False
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
        recipe = Recipe(values, {layer.key: self._nearest(layer, values, results) for layer in placement.layers})
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
        if self.settings.saturates:
            wanted += saturation.requests(placement.layers)
        if self.settings.correct_biases:
            wanted += repair.requests(placement)
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

    def _nearest(self, layer: Layer, values: Mapping[str, Quantizer], results: Results) -> LayerWeights:
        data = values[layer.data.name or ""]
        highest = saturation.highest(layer, results, data) if self.settings.saturates else None
        return layers.nearest(layer, self.target, data, biased=self.settings.correct_biases, highest=highest)

    def _repaired(self, placement: Placement, recipe: Recipe, float_results: Results) -> Recipe:
        settings = self.settings
        repairs = repair.Repairs(self.target, settings.feedback, settings.correct_biases, settings.rows)
        trial = self.model.clone()
        copy = self._place(trial)
        found, _ = repair.repaired(placement, recipe, float_results, (trial, copy), self.evidence, repairs)
        return found

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
