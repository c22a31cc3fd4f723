"""Static quantization: all numbers are fixed from calibration samples, and what they cost is repaired layer by layer.

1. Equalize what lies between linear layers, exactly in float (`equalize`, `smooth`).
2. Decide what runs on integers (`placement`): what is slower there on this machine stays float (`speed`). As many of the
   layers that do most harm (`sensitivity`) as were asked for, or as it takes to come to a signal-to-noise ratio, stay
   float, too, or get 16-bit activations (`widths`).
3. Gather histograms of what is quantized and the mean of every layer's output in one run, and choose ranges
   (`calibration`).
4. Walk through the quantized model, and let weights and biases make up for errors layer by layer (`repair`).
5. Write QuantizeLinear and DequantizeLinear (`insertion`), and keep what stays float in float (`islands`). In bodies of If
   and Loop, where nothing is measured, layers are quantized dynamically (`bodies`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from graphopt.errors import DataError
from graphopt.ir.walk import label, subgraphs
from graphopt.pipeline.base import PassContext, PassResult, Remark
from graphopt.pipeline.evidence import Evidence
from graphopt.pipeline.fewest import fewest
from graphopt.pipeline.remarks import Remarks
from graphopt.runtime.latency import summarize
from graphopt_passes.quantization import bodies, calibration, equalize, layers, sensitivity, share_outs, speed
from graphopt_passes.quantization.insertion import insert
from graphopt_passes.quantization.placement import EXCLUDED, QUANTIZED, Placement
from graphopt_passes.quantization.plans import Plan, Planner, Settings
from graphopt_passes.quantization.smooth import smooth_if_better

_FEW = 32
"""Samples that decide where a rough answer does."""


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
        self.settings = settings
        self.target = settings.target
        self.evidence: Evidence = context.evidence
        self.judge: Evidence | None = None
        if settings.sqnr:
            self.evidence, self.judge = self.evidence.split(context.seed)
        self.planner = Planner(model, context, settings, self.evidence)
        self.remarks = Remarks()
        self.touched: dict[ir.Node, None] = {}
        self.facts: dict[str, Any] = {"seconds_by_step": self.planner.stopwatch.seconds}
        self.warnings: list[str] = []

    def run(self) -> PassResult:
        placement = self.planner.place(self.model)
        if not placement.layers:
            return self._without_layers(placement)
        remarks: list[Remark] = []
        if self.settings.smooth != "never":
            with self.planner.stopwatch.step("smooth"):
                remarks += self._smooth()
        if self.settings.equalize:
            with self.planner.stopwatch.step("equalize"):
                remarks += self._equalize()
        if self.settings.fastest:
            self._revert_slow()
        plan = self._mixed()
        placement = plan.placement
        if placement.layers:
            self.touched.update(dict.fromkeys(self.planner.written(self.model, plan, placement)))
        self._remark_kept(placement)
        remarks += self._quantize_bodies()
        touched = [node for node in self.touched if node.graph is not None]
        if not self.touched:
            self.facts["unchanged"] = self._why_nothing(plan)
        return PassResult(
            bool(self.touched),
            touched,
            (*remarks, *self.remarks.listed()),
            self.warnings,
            self.facts,
            sparable=max(0, len(placement.layers) + len(plan.floats) - self.settings.spare_layers),
        )

    def _why_nothing(self, plan: Plan) -> str:
        if plan.floats:
            return f"all layers are spared ({len(plan.floats)} for the harm they do alone); spare_layers and sqnr say how many are"
        return "integers are slower than float on this machine; prefer=integer quantizes all the same"

    def _without_layers(self, placement: Placement) -> PassResult:
        """What is left to do where the main graph has nothing to quantize."""
        remarks = self._quantize_bodies()
        if not self.touched:
            self.facts["unchanged"] = "no layer with constant float32 weights can run on integers"
            self.remarks.missed("the model", f"stays as it is: {self.facts['unchanged']}")
        self._remark_kept(placement)
        touched = [node for node in self.touched if node.graph is not None]
        return PassResult(bool(self.touched), touched, (*self.remarks.listed(), *remarks), facts=self.facts)

    def _revert_slow(self) -> None:
        """Find out what is slower on integers."""
        with self.planner.stopwatch.step("speed"):
            choice = self.evidence.remember(
                ("speed", self.target.name, self.settings.activations, *self._keys()),
                self.model,
                lambda: speed.fastest(
                    self.model, self.planner.place, self.target, self.settings.activations, self.evidence
                ),
            )
        self.planner.reverted = choice.floats
        self.facts["speed"] = choice.to_dict()
        for where, why in choice.regions:
            self.remarks.missed(where, why)
        if not self._keys():
            self.warnings.append(share_outs.ALL_FLOAT)

    def _keys(self) -> Sequence[str]:
        return [layer.key for layer in self.planner.place(self.model).layers]

    def _mixed(self) -> Plan:
        """What runs on integers with which numbers, with the layers spared that do most harm."""
        settings = self.settings
        if not self._keys() or not (settings.sensitivity or settings.spare_layers or settings.sqnr):
            return self.planner.plan(frozenset())
        harms = self._sensitivities()
        self.facts["sensitivity"] = [harm.to_dict() for harm in harms]
        plan = self.planner.plan(sensitivity.worst(harms, settings.spare_layers))
        if self.judge is not None:
            plan = self._up_to_bound(plan, harms)
        for harm in harms:
            if harm.key in plan.floats:
                self.remarks.missed(harm.layer, f"stays float: its quantization alone costs much ({harm})")
            elif harm.key in plan.spared:
                self.remarks.applied(harm.layer, f"has 16-bit activations: with 8 bits it alone costs much ({harm})")
        return plan

    def _sensitivities(self) -> Sequence[sensitivity.Sensitivity]:
        """The harm of every layer that is left on integers, the worst first."""
        method = "mse" if self.settings.ranges == "auto" else self.settings.ranges

        def measured() -> Sequence[sensitivity.Sensitivity]:
            placement = self.planner.place(self.model)
            recipe = self.planner.draft(placement, self.planner.statistics(placement), method)
            return sensitivity.measure(self.model, self.planner.place, placement, recipe, self.evidence)

        with self.planner.stopwatch.step("sensitivity"):
            return self.evidence.remember(("sensitivity", method, *self._keys()), self.model, measured)

    def _up_to_bound(self, plan: Plan, harms: Sequence[sensitivity.Sensitivity]) -> Plan:
        """The plan with the fewest layers spared that comes to the bound on the samples that judge."""
        plans = {self.settings.spare_layers: plan}

        def is_enough(count: int) -> bool:
            plans[count] = self.planner.plan(sensitivity.worst(harms, count))
            return self._sqnr(plans[count]) >= self.settings.sqnr

        with self.planner.stopwatch.step("mixed"):
            if self._sqnr(plan) >= self.settings.sqnr:
                return plan
            count = fewest(self.settings.spare_layers, len(harms), is_enough)
            return plans[count] if count in plans else self.planner.plan(sensitivity.worst(harms, count))

    def _sqnr(self, plan: Plan) -> float:
        """The signal to noise ratio of the model that is quantized so, on the samples that judge."""
        assert self.judge is not None
        copy = self.model.clone()
        self.planner.written(copy, plan, self.planner.place(copy, plan.floats))
        return self.judge.sqnr(self.model, copy)

    def _smooth(self) -> Sequence[Remark]:
        few = self.evidence.subset(_FEW)

        def quantize(copy: ir.Model) -> None:
            placement = self.planner.place(copy)
            insert(
                copy,
                copy.graph,
                placement,
                self.planner.draft(placement, self.planner.statistics(placement, copy, few), "mse"),
            )

        rescaled = smooth_if_better(
            self.model,
            self.context,
            self.evidence,
            quantize,
            always=self.settings.smooth == "always",
            activation=calibration.grid_of(self.settings.activations, symmetric=self.target.symmetric),
            weight=layers.grid(self.target),
        )
        self.touched.update(dict.fromkeys(rescaled.touched))
        return rescaled.remarks

    def _equalize(self) -> Sequence[Remark]:
        wanted = equalize.requests(self.model, self.context)
        if not wanted:
            return ()
        rescaled = equalize.equalize(
            self.model,
            self.planner.collect(wanted),
            self.context,
            activation=calibration.grid_of(self.settings.activations, symmetric=self.target.symmetric),
            weight=layers.grid(self.target),
            clip_margin=self.settings.clip_margin,
        )
        self.touched.update(dict.fromkeys(rescaled.touched))
        return rescaled.remarks

    def _remark_kept(self, placement: Placement) -> None:
        for node, why in placement.kept.items():
            if self.planner.is_known_slow(node):
                self.remarks.missed(
                    label(node), f"stays float: such a depthwise Conv is faster so on {self.settings.target.name}"
                )
                continue
            if why == EXCLUDED and not self.context.excluded(node):
                continue  # said already, with figures
            self.remarks.missed(label(node), f"left alone: {why}" if why == QUANTIZED else f"stays float: {why}")

    def _quantize_bodies(self) -> Sequence[Remark]:
        """Quantize what lies in bodies, where the target can and it is not slower; returns remarks."""
        owners = bodies.with_layers(self.model, self.target)
        own = [node for node in owners if any(subgraphs(node))] if self.target.dynamic else []
        for node in owners:
            if node not in own:
                self.remarks.missed(label(node), "its bodies stay float: what flows inside is not measured")
        why_not = self._why_slow_bodies() if own and self.settings.fastest else None
        if why_not is not None:
            for node in own:
                self.remarks.missed(label(node), why_not)
        if not own or why_not is not None:
            return ()
        touched, remarks = bodies.quantize(self.model, self.context, saturates=self.settings.saturates)
        self.touched.update(dict.fromkeys(touched))
        return remarks

    def _why_slow_bodies(self) -> str | None:
        """Why bodies are faster in float."""

        def raced() -> str | None:
            trial = self.model.clone()
            bodies.quantize(trial, self.context, saturates=self.settings.saturates)
            rows = self.evidence.race([self.model, trial])
            return bodies.why_slow(summarize(rows, self.evidence.threads, share_outs.CONFIDENCE))

        with self.planner.stopwatch.step("speed"):
            return self.evidence.remember("bodies", self.model, raced)
