"""The numbers of a quantized model, for a choice of what stays float.

Drafts round layers to nearest, which is quick and good enough to compare choices by; a plan has the final numbers, with
ranges chosen and errors made up for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import onnx_ir as ir

from graphopt.errors import DataError
from graphopt.ir.walk import constant_tensor, label
from graphopt.ops.base import input_at
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.requests import Request, Results
from graphopt_passes.quantization import calibration, layers, repair, saturation, widths
from graphopt_passes.quantization.insertion import Array, LayerWeights, Quantizer, Recipe, insert
from graphopt_passes.quantization.islands import keep_float
from graphopt_passes.quantization.placement import NOT_FINITE, Layer, Placement, place
from graphopt_passes.quantization.selection import select
from graphopt_passes.quantization.targets import Spare, Target, wide_type

_OF_ONE_TENSOR = "mse"
"""How ranges on 16 bits are chosen where they are not told: there is hardly a choice."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to quantize; see the options of the pass `quantize`.

    Attributes:
        target: what the runtime can do.
        activations: element type of activations.
        ranges: how their ranges are chosen, one of `calibration.METHODS`, or "auto" for `selection`.
        equalize: whether channels are equalized first.
        clip_margin: how far below a clip's ceiling channels stay that are equalized.
        clip_weights: whether weights are clipped where that lowers the error of outputs.
        feedback: whether weights are rounded with error feedback.
        correct_biases: whether biases take up the mean error.
        reestimate: whether scales of weights then give each channel its variance back.
        keep_heads: whether heads stay float.
        smooth: whether channels of normalizations are divided, "auto" where that is found to help.
        fastest: whether what is slower on integers on this machine stays float.
        known_slow: whether what is known to be slow on integers on the target stays float.
        spare_layers: how many of the layers that do most harm are spared.
        spare_as: what they are spared as, float or 16-bit activations.
        sqnr: what the outputs must come to in dB, by sparing more layers; 0 for no such bound.
        sensitivity: whether the harm of each layer is measured where nothing depends on it.
        saturates: whether the runtime adds products in pairs that saturate, so that weights must leave room.
        rows: rows of a layer's input that its second moments are taken from.
    """

    target: Target
    activations: ir.DataType
    ranges: str = "auto"
    equalize: bool = True
    clip_margin: float = 1.1
    clip_weights: bool = True
    feedback: bool = True
    correct_biases: bool = True
    reestimate: bool = False
    keep_heads: bool = True
    smooth: str = "auto"
    fastest: bool = False
    known_slow: bool = False
    spare_layers: int = 0
    spare_as: Spare = "float"
    sqnr: float = 0.0
    sensitivity: bool = False
    saturates: bool = False
    rows: int = 40_000


@dataclasses.dataclass(frozen=True)
class Plan:
    """What runs on integers, and its numbers.

    Attributes:
        spared: keys of layers that are spared for what they would cost in accuracy.
        floats: those of them that stay float; the others have 16-bit activations.
        placement: of the float model, without what stays float.
        recipe: its numbers.
    """

    spared: frozenset[str]
    floats: frozenset[str]
    placement: Placement
    recipe: Recipe


class Stopwatch:
    """Seconds by step; what is noted inside a step does not count for it, too."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = 0.0

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note how long what is done inside takes."""
        outside, self._inside = self._inside, 0.0
        started = time.perf_counter()
        yield
        took = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inside
        self._inside = outside + took

    def add(self, name: str, seconds: float) -> None:
        """Note `seconds` that were measured elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self._inside += seconds


class Planner:
    """Makes drafts and plans for one model.

    Attributes:
        evidence: calibration samples.
        reverted: names of the values that nodes make which were found to be slow on integers.
        stopwatch: told how long each step takes.
    """

    def __init__(self, model: ir.Model, context: PassContext, settings: Settings, evidence: Evidence) -> None:
        """For `model`, as it is whenever it is asked about."""
        self.evidence = evidence
        self.reverted: frozenset[str] = frozenset()
        self.stopwatch = Stopwatch()
        self._model = model
        self._context = context
        self._settings = settings
        self._target = settings.target

    def place(self, model: ir.Model, floats: Collection[str] = ()) -> Placement:
        """The placement with the nodes in float that make `floats`, or were found to be slow on integers."""

        def excluded(node: ir.Node) -> bool:
            made = {output.name or "" for output in node.outputs}
            if not made.isdisjoint(floats) or not made.isdisjoint(self.reverted):
                return True
            return self._context.excluded(node) or self.is_known_slow(node)

        return place(model.graph, self._target, excluded=excluded, keep_heads=self._settings.keep_heads)

    def is_known_slow(self, node: ir.Node) -> bool:
        """Whether `node` stays float by a rule of the target."""
        taps = self._target.float_taps if self._settings.known_slow else None
        weight = constant_tensor(input_at(node, 1)) if taps is not None and node.op_type == "Conv" else None
        if taps is None or weight is None or node.domain != "":
            return False
        _, inputs, *kernel = weight.shape.numpy()
        return bool(inputs == 1 and node.attributes.get_int("group", 1) > 1 and math.prod(kernel) >= taps)

    def plan(self, spared: frozenset[str]) -> Plan:
        """The final numbers of a model in which the layers whose keys are `spared` are spared."""
        nothing = frozenset[str]()
        floats, wide = (spared, nothing) if self._settings.spare_as == "float" else (nothing, spared)
        placement = self.place(self._model, floats)
        if not placement.layers:
            return Plan(spared, floats, placement, Recipe({}, {}))
        with self.stopwatch.step("statistics"):
            results = self.statistics(placement)
        with self.stopwatch.step("ranges"):
            recipe = self.draft(placement, results, self._settings.ranges, wide)
        if self._settings.feedback or self._settings.correct_biases:
            recipe = self._repaired(floats, placement, recipe, results)
        return Plan(spared, floats, placement, recipe)

    def statistics(
        self, placement: Placement, model: ir.Model | None = None, evidence: Evidence | None = None
    ) -> Results:
        """What has to be known to choose all numbers; of the model, unless of a copy on other samples."""
        wanted: list[Request[Any]] = [*calibration.requests(placement)]
        if self._settings.saturates:
            wanted += saturation.requests(placement.layers)
        if self._settings.correct_biases:
            wanted += repair.requests(placement)
        if self._settings.clip_weights:
            wanted += layers.importance(placement.layers).values()
        return self.collect(wanted) if model is None else (evidence or self.evidence).collect(model, wanted)

    def collect(self, wanted: Collection[Request[Any]]) -> Results:
        """Answers about the model. Raises DataError, which names a weight that is not finite where one is to blame."""
        try:
            return self.evidence.collect(self._model, wanted)
        except DataError as error:
            kept = self.place(self._model).kept
            broken = next((label(node) for node, why in kept.items() if why == NOT_FINITE), None)
            if broken is None:
                raise
            raise DataError(f"{error}; the weight or bias of {broken} does too") from error

    def draft(self, placement: Placement, results: Results, method: str, wide: frozenset[str] = frozenset()) -> Recipe:
        """Ranges as `method` chooses them, and layers rounded to nearest; those with `wide` keys on 16 bits."""
        dtype, symmetric = self._settings.activations, self._target.symmetric
        distributions = calibration.distributions(placement, results)
        if method == "auto":
            chosen = select(self._model, placement, distributions, self.evidence, dtype, symmetric=symmetric)
        else:
            chosen = calibration.by_method(distributions, dtype, symmetric=symmetric, method=method)
        recipe = Recipe(calibration.by_name(placement, chosen), {})
        if wide:
            method = _OF_ONE_TENSOR if method == "auto" else method
            wider = calibration.by_method(distributions, wide_type(dtype), symmetric=symmetric, method=method)
            recipe = widths.mixed(placement, wide, recipe, calibration.by_name(placement, wider))
        narrow = [layer for layer in placement.layers if self._reads(layer, recipe).dtype == dtype]
        data = {layer.data.name or "": self._reads(layer, recipe) for layer in narrow}
        highest = saturation.highest(narrow, results, data) if self._settings.saturates else {}
        asked = layers.importance(placement.layers) if self._settings.clip_weights else {}
        squares = {
            layer.key: layers.seen(layer, results[asked[layer.key]]) for layer in placement.layers if layer.key in asked
        }
        rounded = {layer.key: self._nearest(layer, recipe, highest, squares) for layer in placement.layers}
        return dataclasses.replace(recipe, layers=rounded)

    def _reads(self, layer: Layer, recipe: Recipe) -> Quantizer:
        return recipe.read(layer.data.name or "", layer.key)

    def _nearest(
        self, layer: Layer, recipe: Recipe, highest: Mapping[str, Array], squares: Mapping[str, Array]
    ) -> LayerWeights:
        return layers.nearest(
            layer,
            self._target,
            self._reads(layer, recipe),
            biased=self._settings.correct_biases,
            highest=highest.get(layer.key),
            squares=squares.get(layer.key),
        )

    def _repaired(self, floats: frozenset[str], placement: Placement, recipe: Recipe, float_results: Results) -> Recipe:
        settings = self._settings
        repairs = repair.Repairs(
            self._target, settings.feedback, settings.correct_biases, settings.reestimate, settings.rows
        )
        trial = self._model.clone()
        copy = self.place(trial, floats)
        found, seconds = repair.repaired(placement, recipe, float_results, (trial, copy), self.evidence, repairs)
        for step, took in seconds.items():
            self.stopwatch.add(step, took)
        return found

    def written(self, model: ir.Model, plan: Plan, placement: Placement) -> list[ir.Node]:
        """Write `plan` into `model`, of which `placement` is; returns nodes that are new or changed."""
        touched = insert(model, model.graph, placement, plan.recipe)
        return [*touched, *keep_float(model, model.graph)] if self._target.quantizes_floats else touched
