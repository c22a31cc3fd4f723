"""What reports say of a choice: per layer what it became, what that saves, and its error, harm and time."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.ir.walk import label
from graphopt.pipeline.remarks import Remarks
from graphopt.runtime.latency import Latency
from graphopt_passes.factorization.candidates import Candidate
from graphopt_passes.factorization.racing import Comparison
from graphopt_passes.factorization.settling import Settled
from graphopt_passes.factorization.units import TOGETHER, Proposal, both
from graphopt_passes.reconstruction import stopwatch


def say_layers(
    remarks: Remarks,
    proposals: Mapping[str, Proposal],
    chosen: Mapping[str, Candidate],
    settled: Settled | None,
    *,
    harm: bool,
) -> None:
    """One remark per layer.

    Args:
        remarks: what they are added to.
        proposals: what there was to choose from.
        chosen: by the layers' keys.
        settled: what time was measured; None where none was.
        harm: whether the harm of candidates is known.
    """
    times = settled.comparison.layers if settled is not None and settled.comparison else {}
    for key, one in chosen.items():
        if one.scheme == "partner":
            continue
        place = label(proposals[key].site.layer.node)
        if one.scheme == "keep":
            remarks.missed(place, f"kept: {_why_kept(key, proposals[key], settled)}")
            continue
        time = _measured(times[key]) if key in times else ""
        remarks.applied(place, _replaced(one, proposals, key, time, harm=harm))


def _measured(time: Latency) -> str:
    low, high = time.interval
    return f"x{time.ratio:.2f} measured{f' ({low:.2f} to {high:.2f})' if low < 1 < high else ''}, "


def _why_kept(key: str, proposal: Proposal, settled: Settled | None) -> str:
    if settled is not None and key in settled.slower:
        tried, taken = settled.slower[key]
        return f"{tried} measured x{taken.ratio:.2f} of its time"
    return "others pay better" if len(proposal.candidates) > 1 else "no replacement would be cheaper"


def _replaced(one: Candidate, proposals: Mapping[str, Proposal], key: str, time: str, *, harm: bool) -> str:
    proposal = proposals[key]
    keep = proposal.candidates[0]
    if one.scheme in TOGETHER:
        keep = both(keep, proposals[proposal.partner or ""].candidates[0])
    return (
        f"{one}: {_change(one.macs, keep.macs)} MACs, {_change(one.weights, keep.weights)} weights, "
        f"{_change(one.seconds, keep.seconds)} predicted time, {time}output error {one.error:.2g}"
        f"{f', harm {one.harm:.2g}' if harm else ''}"
    )


def say_time(remarks: Remarks, comparison: Comparison, title: str) -> list[str]:
    """One remark on the whole model's time; a warning where something is slower than before.

    Args:
        remarks: what it is added to.
        comparison: what was measured.
        title: of the pass.
    """
    whole = comparison.whole
    said = stopwatch.said(whole)
    remarks.applied("model", f"measured {said}")
    slow = [key for key, one in comparison.layers.items() if one.interval[0] > 1]
    if whole.interval[0] <= 1 and not slow:
        return []
    return [
        f"{title}: {len(slow)} of {len(comparison.layers)} replaced layers are slower on this machine than before, the whole "
        f"model has {said}; more of macs or params avoids that"
    ]


def _change(new: float, old: float) -> str:
    return f"{100 * (new / old - 1):+.0f} %" if old else "0 %"
