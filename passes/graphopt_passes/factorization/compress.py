"""From options to a compressed network: candidates of every layer, one choice, one walk.

With samples: candidates are fitted to what the layers see, their harm is measured in the network, and how much of it
remains after refits; the choice is a small integer program under the budget, and one sequential walk refits all layers.
Without samples weights are approximated as they are, and the relative error of a layer's weights stands for its harm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.extents import Extents
from graphopt.ir.surgery import FreshNames
from graphopt.ir.walk import label
from graphopt.pipeline.base import PassContext, PassResult
from graphopt.pipeline.evidence import Evidence
from graphopt.pipeline.remarks import Remarks
from graphopt.runtime.blas import one_thread
from graphopt_passes.factorization import remaining, sequential, settling
from graphopt_passes.factorization.attention import attention_pairs
from graphopt_passes.factorization.candidates import Candidate, Search, fit_all, interpolated, probed
from graphopt_passes.factorization.decision import Budget, decide
from graphopt_passes.factorization.emission import emit
from graphopt_passes.factorization.feed_forward import feed_forward_pairs
from graphopt_passes.factorization.pair_fits import PairFits
from graphopt_passes.factorization.pair_fits import candidates as candidates_of
from graphopt_passes.factorization.pairs import Pair, disjoint, shrink
from graphopt_passes.factorization.regression import Regression
from graphopt_passes.factorization.saying import say_layers, say_time
from graphopt_passes.factorization.schemes import Fits, Fitted
from graphopt_passes.factorization.sites import Site, site_of
from graphopt_passes.factorization.units import TOGETHER, Proposal
from graphopt_passes.numerics.quadratic import Array, Quadratic
from graphopt_passes.reconstruction import stopwatch
from graphopt_passes.reconstruction.distillation import distill, is_distillable
from graphopt_passes.reconstruction.harm import Harm
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.problem import MOST_INPUTS
from graphopt_passes.reconstruction.transposed import layers_of
from graphopt_passes.reconstruction.walk import Walk

EXACT = 1e-10
"""Relative squared error below which a replacement counts as lossless."""


_NARROW = 1024
"""Inputs of the widest layer up to which products are too small for several threads."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to compress.

    Attributes:
        search: what is tried.
        budget: of the whole model; without one every layer is decided on its own.
        error: bound on a layer's squared output error over its energy.
        rows: of a layer that are looked at.
        samples: that harm is measured on.
        probes: candidates per layer whose harm is measured.
        through: whether refits look through the activation behind a layer.
        title: of the pass, for messages.
    """

    search: Search
    budget: Budget
    error: float = np.inf
    rows: int = 40_000
    samples: int = 128
    probes: int = 4
    through: bool = False
    title: str = "factorize"


def compress(model: ir.Model, context: PassContext, settings: Settings) -> PassResult:
    """Compress `model` in place.

    Raises:
        TargetNotMetError: not even the smallest candidates keep the budget; the message says what they come to.
        DataError: activations are not finite on the samples.
    """
    compression = Compression(model, context, settings)
    small = max((layer.width for layer in layers_of(model.graph)), default=0) <= _NARROW
    with one_thread() if small else contextlib.nullcontext():
        proposals = compression.propose()
        chosen = compression.choose(proposals, settings.budget)
        touched = compression.apply(model, proposals, chosen)
    left = [node for node in touched if node.graph is not None]
    if not left:
        compression.facts["unchanged"] = "no replacement pays; -v says of each layer why"
    elif context.evidence is None and any(one.error > EXACT for one in chosen.values()):
        compression.warnings.append(
            f"{settings.title}: no samples: parts fit the weights alone and nothing is refitted, which can cost most of the "
            f"accuracy; give samples with -d"
        )
    return PassResult(bool(left), left, compression.remarks.listed(), compression.warnings, compression.facts)


class Compression:
    """The three steps; proposals serve any number of choices."""

    def __init__(self, model: ir.Model, context: PassContext, settings: Settings) -> None:
        """Nothing is looked at yet."""
        self.model = model
        self.context = context
        self.settings = settings
        self.remarks = Remarks()
        self.warnings: list[str] = []
        self.facts: dict[str, Any] = {}
        self._typical: dict[str, remaining.Replacement] = {}

    def propose(self) -> dict[str, Proposal]:
        """All candidates of every layer, by the layer's key, in topological order."""
        sites = self._sites()
        evidence = self.context.evidence
        if evidence is None:
            return {key: self._with_partner(self._from_weights(site), sites) for key, site in sites.items()}
        return self._from_samples(sites, evidence)

    def choose(self, proposals: Mapping[str, Proposal], budget: Budget) -> dict[str, Candidate]:
        """One candidate per layer, with a remark for each.

        Where the result is to be fast and runs on this machine, replacements that gain no time are given up.

        Raises:
            TargetNotMetError: the budget cannot be kept.
        """
        evidence, search, title = stopwatch.clock(self.context), self.settings.search, self.settings.title
        settled, decided = None, functools.partial(decide, self.model, budget=budget, search=search, title=title)
        if evidence is None or not search.faster or search.fixed:
            chosen = decided(proposals)
        else:
            settled = settling.settle(self.model, proposals, decided, evidence, bounded=bool(budget))
            chosen = settled.chosen
        measured = self.context.evidence is not None and bool(self.settings.budget)
        say_layers(self.remarks, proposals, chosen, settled, harm=measured)
        if settled is not None and settled.comparison is not None:
            self.facts["time"] = settled.comparison.to_dict()
            self.warnings += say_time(self.remarks, settled.comparison, title)
        return chosen

    def apply(
        self, model: ir.Model, proposals: Mapping[str, Proposal], chosen: Mapping[str, Candidate]
    ) -> list[ir.Node]:
        """Rewrite `model`, the one that proposals were made for or a clone; returns the nodes that were made."""
        replaced = {key: one for key, one in chosen.items() if one.scheme not in (*TOGETHER, "keep")}
        names = FreshNames(model)
        evidence = self.context.evidence
        original = model.clone()
        turned, touched = self._shrink_pairs(model, chosen, names)
        if not replaced and not touched:
            return []
        layers = [one for one in layers_of(model.graph) if one.key in proposals]
        sites = {one.key: dataclasses.replace(proposals[one.key].site, layer=one) for one in layers}
        if evidence is None:
            for key, candidate in replaced.items():
                fits = Fits(sites[key], [Quadratic.of(one) for one in sites[key].layer.weight()], rounds=4)
                touched += emit(sites[key], fits.fit(candidate.scheme, candidate.amount), names)
            return touched
        pairs = {key: (sites[key], one) for key, one in replaced.items()}
        with Walk(original, model, evidence, rows=self.settings.rows, seed=self.context.seed) as walk:
            touched += sequential.apply(walk, layers, pairs, names, turned, through=self.settings.through)
        return touched + distill(original, model, evidence, seed=self.context.seed, fixed=self.context.excluded)

    def _shrink_pairs(
        self, model: ir.Model, chosen: Mapping[str, Candidate], names: FreshNames
    ) -> tuple[dict[str, Array], list[ir.Node]]:
        """Take dimensions out between layers; what layers' outputs were multiplied with, and the nodes that changed."""
        turned: dict[str, Array] = {}
        touched: list[ir.Node] = []
        for pair in _pairs_of(model, self.settings.search):
            candidate = chosen.get(pair.judged.key)
            if candidate is None or candidate.scheme != pair.scheme:
                continue
            turned |= shrink(pair, self._pair_fits.bases(pair, candidate.amount[0]), names)
            touched += [pair.first.node, pair.second.node]
        return turned, touched

    @functools.cached_property
    def _weighs_refits(self) -> bool:
        """Whether harm counts by what refits leave of it; where all weights are refitted in the end that came out behind."""
        evidence = self.context.evidence
        if evidence is None or not self.settings.budget or not remaining.is_measurable(self.model, evidence):
            return False
        return not is_distillable(self.model, evidence, self.context.excluded)

    @functools.cached_property
    def _pairs(self) -> dict[str, Pair]:
        """Pairs of layers that may lose dimensions together, by the key of the layer that they are judged by."""
        return {pair.judged.key: pair for pair in _pairs_of(self.model, self.settings.search)}

    @functools.cached_property
    def _pair_fits(self) -> PairFits:
        return PairFits(self.model, list(self._pairs.values()), self.context.evidence)

    # Candidates

    def _sites(self) -> dict[str, Site]:
        extents = Extents(self.model)
        sites = {}
        for layer in layers_of(self.model.graph):
            if self.context.excluded(layer.node):
                continue
            site = site_of(layer, extents)
            if isinstance(site, str):
                self.remarks.missed(label(layer.node), f"kept: {site}")
            elif not np.isfinite(layer.weight()).all():
                self.remarks.missed(label(layer.node), "kept: its weights are not finite")
            elif layer.output.uses() or layer.output.is_graph_output():
                sites[layer.key] = site
                if not layer.weight().any():
                    self.remarks.missed(label(layer.node), "its weights are zero: every rank is exact")
        return sites

    def _from_weights(self, site: Site) -> Proposal:
        fits = Fits(site, [Quadratic.of(one) for one in site.layer.weight()])
        found = [dataclasses.replace(one, harm=one.error) for one, _ in self._fit(fits)]
        return Proposal(site, [self.settings.search.keep(site), *found])

    def _from_samples(self, sites: Mapping[str, Site], evidence: Evidence) -> dict[str, Proposal]:
        proposals = {}
        few = evidence.subset(self.settings.samples)
        still = self.model.clone()
        with (
            Walk(self.model, still, evidence, rows=self.settings.rows, seed=self.context.seed) as walk,
            Harm(self.model, few) as harm,
        ):
            for layer in layers_of(still.graph):
                site = sites.get(layer.key)
                if site is None:
                    continue
                proposals[layer.key] = self._with_partner(self._on_rows(site, layer, walk, harm), sites, harm)
                walk.advance(layer.key)
        if not self._weighs_refits:
            return proposals
        shares = remaining.shares(self.model, self._typical, proposals, evidence, seed=self.context.seed)
        self._say_shares(shares)
        return proposals | {key: remaining.after_refits(proposals[key], share) for key, share in shares.items()}

    def _say_shares(self, shares: Mapping[str, float]) -> None:
        if not shares:
            return
        low, high = min(shares.values()), max(shares.values())
        self.remarks.applied(
            "model",
            f"x{low:.2f} to x{high:.2f} of a layer's harm remain after refits behind it, which is what is given as harm",
        )
        self.facts["harm after refits"] = dict(shares)

    def _on_rows(self, site: Site, layer: Linear, walk: Walk, harm: Harm) -> Proposal:
        keep = self.settings.search.keep(site)
        if not self.settings.search.candidates(site):
            return Proposal(site, [keep])
        seen = walk.observe(layer)
        if layer.width > MOST_INPUTS:
            self.remarks.missed(
                label(site.layer.node), f"more than {MOST_INPUTS:,} inputs: parts fit its weights alone"
            )
        elif seen.rows < layer.width:
            why = f"fewer calibration rows ({seen.rows}) than inputs ({layer.width}): held near its own weights"
            self.remarks.missed(label(site.layer.node), why)
        regression = Regression(seen, layer.weight(), centred=layer.takes_bias)
        if regression.silent:
            why = f"{regression.silent} of {layer.groups * layer.width} inputs never vary: held near its own weights there"
            self.remarks.missed(label(site.layer.node), why)
        return self._measured(layer, Fits(site, regression.quadratics()), regression, harm)

    def _measured(self, layer: Linear, fits: Fits, regression: Regression, harm: Harm) -> Proposal:
        """Candidates with their harm; without a budget only errors count."""
        keep = self.settings.search.keep(fits.site)
        found = self._fit(fits)
        candidates = [one for one, _ in found]
        if not self.settings.budget:
            return Proposal(fits.site, [keep, *candidates])
        probes = probed(candidates, self.settings.probes)
        denses = [found[index][1].dense for index in probes]
        tried = [(one, regression.bias(one)) for one in denses]
        harms = harm.measure(layer, tried)
        if tried and self._weighs_refits:
            replacements = [remaining.Replacement(*one, harm) for one, harm in zip(tried, harms, strict=True)]
            self._typical[layer.key] = min(replacements, key=lambda one: one.oddity)
        return Proposal(fits.site, [keep, *interpolated(candidates, probes, harms)])

    def _with_partner(self, proposal: Proposal, sites: Mapping[str, Site], harm: Harm | None = None) -> Proposal:
        """The same with candidates for a layer and its partner together."""
        pair = self._pairs.get(proposal.site.layer.key)
        if pair is None or pair.other.key not in sites:
            return proposal
        bound = max(EXACT, self.settings.error)
        offered = candidates_of(self.settings.search, pair, sites, self._pair_fits)
        found = sorted((one for one in offered if one[0].error <= bound), key=lambda one: one[0].error)
        shared = [one for one, _ in found]
        if harm is None:
            shared = [dataclasses.replace(one, harm=one.error) for one in shared]
        elif self.settings.budget:
            probes = probed(shared, self.settings.probes)
            replacements = [self._pair_fits.replacement(pair, found[index][1]) for index in probes]
            shared = interpolated(shared, probes, harm.measure(pair.judged, replacements))
        return dataclasses.replace(proposal, partner=pair.other.key, shared=shared)

    def _fit(self, fits: Fits) -> list[tuple[Candidate, Fitted]]:
        search = self.settings.search
        ranks = {} if search.fixed else fits.ranks()
        return fit_all(fits, search.candidates(fits.site, ranks), max(EXACT, self.settings.error))


def _pairs_of(model: ir.Model, search: Search) -> list[Pair]:
    """Pairs of layers of a model that may lose dimensions together."""
    if not search.together or search.fixed:
        return []
    extents = Extents(model)
    found = [*attention_pairs(model.graph, extents), *feed_forward_pairs(model.graph, extents)]
    return disjoint(pair for pair in found if pair.scheme in search.together)
