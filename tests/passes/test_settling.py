"""Choosing again without what is slower: times are made up, the choice is the least harm within a number of MACs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import Rewriter

from graphopt.errors import TargetNotMetError
from graphopt.runtime.latency import Latency
from graphopt_passes.factorization import racing, settling
from graphopt_passes.factorization.candidates import Candidate
from graphopt_passes.factorization.racing import Comparison
from graphopt_passes.factorization.units import Proposal

MODEL = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)


def layer(*candidates: tuple[str, int, float]) -> Proposal:
    """A layer of 100 MACs, and (scheme, MACs, harm); the MACs are the predicted time as well."""
    site: Any = None
    made = [Candidate(scheme, (macs,), macs, macs, macs, 0.0, harm) for scheme, macs, harm in candidates]
    return Proposal(site, [Candidate("keep", (), 100, 100, 100), *made])


def within(budget: float) -> settling.Choose:
    """The least harm by brute force."""

    def choose(proposals: Mapping[str, Proposal]) -> dict[str, Candidate]:
        every = itertools.product(*(one.candidates for one in proposals.values()))
        found = [one for one in every if sum(each.macs for each in one) <= budget]
        if not found:
            raise TargetNotMetError("too little")
        return dict(zip(proposals, min(found, key=lambda one: sum(each.harm for each in one)), strict=True))

    return choose


def settle(
    monkeypatch: pytest.MonkeyPatch,
    proposals: Mapping[str, Proposal],
    choose: settling.Choose,
    ratios: Mapping[tuple[str, str], tuple[float, float, float]],
    *,
    bounded: bool = True,
) -> tuple[dict[str, str], settling.Settled]:
    """What became of each layer, where (layer, candidate) measures (ratio, low, high), and 0.8 where nothing is said."""

    def compare(model: Any, replaced: Mapping[str, Candidate], evidence: Any) -> Comparison:
        found = {key: ratios.get((key, str(one)), (0.8, 0.79, 0.81)) for key, one in replaced.items()}
        layers = {key: Latency(1.0, one, one, (low, high), 9, 1) for key, (one, low, high) in found.items()}
        return Comparison(Latency(1.0, 0.9, 0.9, (0.89, 0.91), 9, 1), layers)

    monkeypatch.setattr(racing, "compare", compare)
    evidence: Any = None
    settled = settling.settle(MODEL, proposals, choose, evidence, bounded=bounded)
    return {key: str(one) for key, one in settled.chosen.items()}, settled


SLOWER, TIE = (1.2, 1.1, 1.3), (1.05, 0.9, 1.2)


def test_another_layer_gives_what_a_slow_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    proposals = {"a": layer(("channel", 50, 0.1)), "b": layer(("channel", 80, 0.1), ("channel", 50, 0.5))}
    chosen, settled = settle(monkeypatch, proposals, within(150), {("a", "channel 50"): SLOWER})
    assert chosen == {"a": "keep", "b": "channel 50"}
    assert set(settled.slower) == {"a"}


def test_what_measured_faster_is_offered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second choice goes to a smaller replacement of b, which is slower; the one that was faster must not go with it."""
    proposals = {
        "a": layer(("channel", 40, 0.1), ("channel", 20, 0.7)),
        "b": layer(("input", 70, 0.1), ("tucker", 10, 0.3)),
    }
    ratios = {("a", "channel 40"): SLOWER, ("b", "tucker 10"): SLOWER}
    chosen, settled = settle(monkeypatch, proposals, within(110), ratios)
    assert chosen == {"a": "channel 20", "b": "input 70"}
    assert settled.comparison is not None
    assert all(one.interval[0] <= 1 for one in settled.comparison.layers.values())


def test_as_many_are_given_up_as_the_budget_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    proposals = {"a": layer(("channel", 50, 0.1)), "b": layer(("channel", 50, 0.1)), "c": layer(("channel", 20, 0.9))}
    ratios = {("a", "channel 50"): SLOWER, ("b", "channel 50"): (1.4, 1.3, 1.5)}
    chosen, settled = settle(monkeypatch, proposals, within(170), ratios)
    assert chosen == {"a": "channel 50", "b": "keep", "c": "channel 20"}
    assert set(settled.slower) == {"b"}
    assert settled.comparison is not None
    assert settled.comparison.layers["a"].ratio == 1.2


def test_what_takes_as_long_stays_under_a_budget_only(monkeypatch: pytest.MonkeyPatch) -> None:
    proposals = {"a": layer(("channel", 50, 0.1)), "b": layer(("channel", 50, 0.5))}
    ratios = {("a", "channel 50"): TIE}
    assert settle(monkeypatch, proposals, within(150), ratios)[0] == {"a": "channel 50", "b": "keep"}

    def cheapest(offered: Mapping[str, Proposal]) -> dict[str, Candidate]:
        return {key: min(one.candidates, key=lambda each: each.macs) for key, one in offered.items()}

    chosen, _ = settle(monkeypatch, proposals, cheapest, ratios, bounded=False)
    assert chosen == {"a": "keep", "b": "channel 50"}


def test_nothing_else_keeps_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    proposals = {"a": layer(("channel", 50, 0.1))}
    chosen, settled = settle(monkeypatch, proposals, within(60), {("a", "channel 50"): SLOWER})
    assert chosen == {"a": "channel 50"}
    assert not settled.slower


class Clock:
    """Stands for evidence: the profiler says `kernels`, races of whole models say `whole`, in seconds before and after."""

    threads = 1

    def __init__(self, kernels: tuple[float, float], whole: Sequence[tuple[float, float]]) -> None:
        self.kernels, self.whole, self.races = kernels, list(whole), 0

    def remember(self, what: Any, model: Any, compute: Any) -> Any:
        return compute()

    def race(self, models: Any, *, seconds: float) -> list[tuple[float, ...]]:
        self.races += 1
        return [*self.whole * 5]

    def kernel_times(self, models: Any, *, seconds: float) -> list[dict[str, np.ndarray]]:
        found = []
        for model, time in zip(models, self.kernels, strict=True):
            names = [node.name for node in model.graph if node.op_type == "Conv"]
            found.append({name: np.full(9, time / len(names)) for name in names})
        return found


def compared(rewriter: Rewriter, clock: Clock) -> Latency:
    weight = np.random.default_rng(0).normal(size=(8, 8, 1, 1)).astype(np.float32)
    model = rewriter.typed("g (float[1,8,4,4] x) => (float[1,8,4,4] y) { y = Conv(x, w) }", {"w": weight})
    evidence: Any = clock
    return racing.compare(model, {"y": Candidate("channel", (2,), 1, 1)}, evidence).layers["y"]


def test_races_decide_about_short_layers_that_the_profiler_calls_slower(rewriter: Rewriter) -> None:
    clock = Clock((5e-6, 6e-6), [(50e-6, 49e-6)])
    found = compared(rewriter, clock)
    assert found.ratio == pytest.approx(1 - 0.02 * 50 / 5)
    assert found.before_ms == pytest.approx(5e-3)
    assert clock.races == 2  # of the draft, and of this replacement alone


def test_the_profiler_has_the_last_word_where_layers_are_long_or_races_cannot_tell(rewriter: Rewriter) -> None:
    long, hidden = Clock((2e-4, 3e-4), [(1e-3, 9e-4)]), Clock((5e-6, 6e-6), [(1e-2, 9e-3)])
    for clock, ratio in ((long, 1.5), (hidden, 1.2)):
        assert compared(rewriter, clock).ratio == pytest.approx(ratio)
        assert clock.races == 1


def test_races_go_on_until_it_is_known_or_there_have_been_enough(rewriter: Rewriter) -> None:
    clock = Clock((5e-6, 6e-6), [(50e-6, 40e-6), (50e-6, 60e-6)])
    found = compared(rewriter, clock)
    assert found.interval[0] < 1 < found.interval[1]
    assert clock.races == 1 + 5
