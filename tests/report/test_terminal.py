from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest

from graphopt.analysis.liveness import Held
from graphopt.pipeline.base import Remark
from graphopt.pipeline.records import PassRecord
from graphopt.pricing import Cost
from graphopt.report import terminal
from graphopt.report.model import Comparison, Gate, Report
from graphopt.runtime.equivalence import Status, Verdict
from graphopt.runtime.quality import Fidelity


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def printed(subject: Report | Comparison | Cost, stream: io.StringIO | None = None, **options: bool) -> str:
    stream = io.StringIO() if stream is None else stream
    out = terminal.console(stream)
    if isinstance(subject, Report):
        terminal.print_report(subject, out, **options)
    elif isinstance(subject, Comparison):
        terminal.print_comparison(subject, out)
    else:
        terminal.print_cost(subject, out, **options)
    return stream.getvalue()


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}


def test_one_row_per_pass_and_the_total(report: Report) -> None:
    found = rows(printed(report))
    assert found["original"][:3] == ["176", "4.00", "G"]
    assert found["eliminate-identity"] == ["160", "12.0", "ms"]  # nothing else changed, and nothing else is shown
    assert found["fold-constants"] == ["100", "µs"]
    assert found["fold-batch-norm"] == ["123", "12.8", "M", "51.2", "MB", "200", "ms"]
    assert "0.905" in found["total"]
    assert found["change"][:2] == ["-30.1", "%"]
    assert "-50.0" in found["change"]


def test_what_was_found_is_said_once(report: Report) -> None:
    text = printed(report)
    for line in (
        "top1: 0.91 -> 0.905 on 500 samples",
        "gate: top1 0.92 -> 0.915 on 128 held-out samples, 90 % interval 0.86 to 0.95, within the drop of 0.01 allowed",
        "same outputs in onnxruntime: yes, max|Δ| = 1e-06 of max|y|",
        "latency: 33.2 ms -> 30.1 ms, ratio 0.907 [0.900, 0.910] in 31 rounds, threads: 1, inputs: x[1x3x224x224]",
        "cost unknown, counted as nothing: com.example.Magic",
        "wrote models/net.opt.onnx (51.2 MB)",
        "warning: the model <i>declares</i> opset 8",
    ):
        assert text.splitlines().count(line) == 1


def test_what_was_compared_is_not_what_lossy_passes_made(report: Report) -> None:
    first = dataclasses.replace(report.passes[0], exact=False)
    text = printed(dataclasses.replace(report, passes=(first, *report.passes[1:])))
    assert "\nexact passes alone: same outputs in onnxruntime: yes" in text


def test_what_quantization_measured(report: Report) -> None:
    facts = {
        "sensitivity": [
            {"layer": f"Conv '{number}'", "value": "v", "sqnr_db": 20.0 + number, "kl": None if number else 0.25}
            for number in range(7)
        ],
        "speed": {"against_float": {"ratio": 0.8, "interval": [0.7, 0.9]}, "reverted": ["a", "b"]},
    }
    report.passes = [*report.passes, dataclasses.replace(report.passes[-1], name="quantize", facts=facts)]
    text = printed(report)
    assert "time against float in the trials of 'quantize': x0.80 [0.70, 0.90], 2 nodes in float because it is" in text
    first = "Conv '0' 20.0 dB (KL 0.2), Conv '1' 21.0 dB,"
    assert f"most sensitive of 7 layers, quantized alone, largest KL of the outputs first: {first}" in text
    assert "Conv '5'" not in text
    facts["sensitivity"] = list(facts["sensitivity"])[1:]
    assert "quantized alone, lowest SQNR of the outputs first: Conv '1' 21.0 dB," in printed(report)


def test_what_structural_passes_measured(report: Report) -> None:
    last, time = report.passes[-1], {"ratio": 0.7, "interval": [0.6, 0.8]}
    facts: dict[str, dict[str, Any]] = {
        "prune-channels": {"time": time},
        "factorize": {"time": {**time, "layers": {}}},
    }
    added = [dataclasses.replace(last, name=name, facts=found) for name, found in facts.items()]
    text = printed(dataclasses.replace(report, passes=(*report.passes, *added)))
    for name in ("prune-channels", "factorize"):
        assert f"time against the model before '{name}', measured there: x0.70 [0.60, 0.80]" in text


def test_a_ratio_that_may_be_a_loss_is_called_undecided(report: Report) -> None:
    assert report.latency is not None
    time = {"ratio": 0.9, "interval": [0.6, 1.3]}
    facts = {"time": time, "speed": {"against_float": time, "reverted": []}}
    report.passes = [*report.passes, dataclasses.replace(report.passes[-1], facts=facts)]
    report.latency = dataclasses.replace(report.latency, ratio=0.89, interval=(0.53, 5.18))
    text, doubt = printed(report), "(undecided: the interval contains 1)"
    assert f"ratio 0.890 [0.530, 5.180] {doubt} in 31 rounds" in text
    assert text.count(f": x0.90 [0.60, 1.30] {doubt}\n") == 2
    assert rows(text)["change"][-1] == "undecided"
    assert "<td>undecided</td>" in report.to_html()


def lossy(record: PassRecord, name: str, remarks: tuple[Remark, ...] = (), **facts: Any) -> PassRecord:
    return dataclasses.replace(record, name=name, exact=False, modified=False, remarks=remarks, facts=facts)


def test_each_lossy_pass_that_does_nothing_says_why(report: Report) -> None:
    last = report.passes[-1]
    kept, other = Remark("Conv 'c'", "kept: too small"), Remark("Conv 'd'", "kept: too wide")
    report.passes = (
        *report.passes,
        lossy(last, "prune", unchanged="no layer"),
        lossy(last, "one", (Remark("x", "done", applied=True), kept)),
        lossy(last, "two", (kept, other)),
        lossy(last, "none"),
        dataclasses.replace(lossy(last, "busy", (kept,)), modified=True),
    )
    lines = printed(report).splitlines()
    assert "'prune' changed nothing: no layer" in lines
    assert "'one' changed nothing: Conv 'c': kept: too small" in lines
    assert "'two' changed nothing: Conv 'c': kept: too small (one more reason with -v)" in lines
    assert "'none' changed nothing: it found nothing to rewrite" in lines
    assert not any("'busy' changed" in line for line in lines)
    assert "1 of 3 exact passes found nothing to rewrite" in lines


def test_exact_passes_that_do_nothing_share_a_line(report: Report) -> None:
    idle = dataclasses.replace(report.passes[-1], modified=False)
    report.passes = (idle,)
    assert (
        "no exact pass found anything to rewrite ('fold-batch-norm': bn <script>: its input has two uses)"
        in printed(report)
    )
    report.passes = (idle,) * 4
    assert "no exact pass found anything to rewrite\n" in printed(report)
    report.passes = (report.passes[0], dataclasses.replace(idle, modified=True))  # repeated until nothing is left
    assert "exact pass" not in printed(report).replace("exact passes alone", "")


def test_what_a_pass_has_to_say_is_printed(report: Report) -> None:
    note = dataclasses.replace(
        report.passes[-1], name="prune", facts={"notes": ["ratio=0.3 means 0.25 of the channels here"]}
    )
    assert (
        "'prune': ratio=0.3 means 0.25 of the channels here"
        in printed(dataclasses.replace(report, passes=(note,))).splitlines()
    )


def test_pipeline_comes_first_and_alone() -> None:
    stream = io.StringIO()
    terminal.print_pipeline("a{b=[1]}," * 30, terminal.console(stream))
    terminal.print_pipeline("", terminal.console(stream))
    assert stream.getvalue() == f"pipeline: {'a{b=[1]},' * 30}\n\npipeline: (no passes)\n\n"


def test_quality_of_the_gate_alone_is_said_once(report: Report) -> None:
    assert report.quality is not None
    gate = Gate(0.91, 0.905, 500, (0.9, 0.91), 0.01)
    report.quality = dataclasses.replace(
        report.quality, gate=gate, fidelity=Fidelity(31.25, {"a": 30, "b": 33.3}, 0.75, 2.5, 0.125)
    )
    lines = [line for line in printed(report).splitlines() if "0.905" in line and "samples" in line]
    assert [line.split()[0] for line in lines] == ["gate:"]
    shown = (
        "outputs against the original's: max|Δ| = 2.5, 0.12 of max|y|, SQNR 31.2 dB, per output 'a' 30.0, 'b' 33.3, "
        "same class for 75.0 % of samples"
    )
    assert shown in printed(report).splitlines()


def test_remarks_only_when_asked(report: Report) -> None:
    assert "two uses" not in printed(report)
    assert "fold-batch-norm: bn <script>: its input has two uses" in printed(report, verbose=True)
    many = tuple(Remark(f"node {number}", "left alone") for number in range(40))
    report.passes = [dataclasses.replace(report.passes[0], remarks=many)]
    assert printed(report, verbose=True).count(": left alone\n") == len(many)


def test_columns_for_what_was_not_measured_are_left_out(report: Report) -> None:
    report.quality = None
    before, after = (dataclasses.replace(cost, latency_ms=None) for cost in report.costs())
    report.costs = lambda: (before, after)
    header = next(line for line in printed(report).splitlines() if line.strip().startswith("pass"))
    assert header.split() == ["pass", "nodes", "MACs", "params", "file", "memory", "time"]


def test_nodes_are_sorted_by_macs_and_names_are_no_markup(report: Report) -> None:
    lines = printed(report.before, per_node=True).splitlines()
    names = [line.split()[0] for line in lines if line.split() and line.split()[0] in {"small", "mystery"}]
    conv = next(i for i, line in enumerate(lines) if "/body/conv<1>[red]" in line)
    assert conv < min(i for i, line in enumerate(lines) if line.split()[:1] == ["small"])
    assert names == ["small", "mystery"]
    assert "unknown" in next(line for line in lines if "mystery" in line)
    assert "assumed: N = 1" in lines


def test_comparison_says_that_they_differ(comparison: Comparison) -> None:
    text = printed(comparison)
    assert "same outputs in onnxruntime: NO: output 'y': far away" in text
    assert rows(text)["nodes"] == ["176", "123", "-30.1", "%"]


@pytest.mark.parametrize("name", ["report", "comparison", "cost"])
def test_plain_text_is_plain_and_terminals_get_colours(
    name: str, report: Report, comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    subjects: dict[str, Report | Comparison | Cost] = {
        "report": report,
        "comparison": comparison,
        "cost": report.before,
    }
    plain = printed(subjects[name])
    assert "\x1b" not in plain
    assert "[/]" not in plain
    assert "\x1b" in printed(subjects[name], Terminal())


def test_a_lossy_run_without_quality_says_how_to_get_it(report: Report) -> None:
    lossy = dataclasses.replace(report, passes=(dataclasses.replace(report.passes[0], exact=False),), quality=None)
    assert "quality: not measured; --eval-data SAMPLES" in printed(lossy)
    assert "quality: not measured" not in printed(dataclasses.replace(lossy, passes=()))


def test_a_difference_is_told_in_figures_and_where_to_look(comparison: Comparison) -> None:
    far = Verdict(Status.DIFFERENT, "output 'y': max|Δ| = 3 is 0.5 of max|y|, more than 0.0001", 0.5, 12.34, "x[2]")
    comparison.check = far
    said = printed(comparison)
    assert (
        "same outputs in onnxruntime: NO: output 'y': max|Δ| = 3 is 0.5 of max|y|, more than 0.0001, SQNR 12.3 dB"
        in said
    )
    assert "rounding alone stays within that bound" in said
    assert "-d SAMPLES" in said
    comparison.check = Verdict(Status.SAME, "", 1e-7, 144.0, "x[2]")
    assert "rounding alone" not in printed(comparison)


def test_measured_time_takes_the_place_of_predicted_time(comparison: Comparison) -> None:
    assert " predicted " in printed(comparison)
    assert "time is predicted by" in printed(comparison)
    comparison.predicted = False
    assert "predicted" not in printed(comparison)


def test_what_was_assumed_for_open_extents_is_said(report: Report, comparison: Comparison) -> None:
    assert "costs are for N = 1" in printed(report).splitlines()
    assert "costs are for N = 1" in printed(comparison).splitlines()
    comparison.before = dataclasses.replace(comparison.before, assumed={})
    assert "costs are for" not in printed(comparison)


def test_memory_that_rises_is_explained(comparison: Comparison) -> None:
    assert "memory rises" not in printed(comparison)
    held = tuple(Held(name, 1_000_000, copy=name == "c") for name in "cdefg")
    comparison.after = dataclasses.replace(comparison.after, peak_activation_bytes=8_000_000, peak_held=held)
    line = (
        "memory rises: at 'conv' there are 'c' 1.00 MB (copied to another layout) + 'd' 1.00 MB + 'e' 1.00 MB + "
        "'f' 1.00 MB + 1 more + 3.00 MB inside of the node; it was 7.20 MB"
    )
    assert line in printed(comparison).splitlines()
