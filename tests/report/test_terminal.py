from __future__ import annotations

import dataclasses
import io

import pytest

from graphopt.pricing import Cost
from graphopt.report import terminal
from graphopt.report.model import Comparison, Report


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
    assert text.startswith("pipeline: eliminate-identity,fold-constants,fold-batch-norm\n")
    for line in (
        "top1: 0.91 -> 0.905 on 500 samples",
        "same outputs in onnxruntime: yes, max|Δ| = 1e-06 of max|y|",
        "latency: 33.2 ms -> 30.1 ms, ratio 0.907 [0.900, 0.910] in 31 rounds, threads: 1, inputs: x[1x3x224x224]",
        "cost unknown, counted as nothing: com.example.Magic",
        "wrote models/net.opt.onnx (51.2 MB)",
        "warning: the model <i>declares</i> opset 8",
    ):
        assert text.splitlines().count(line) == 1


def test_remarks_only_when_asked(report: Report) -> None:
    assert "two uses" not in printed(report)
    assert "fold-batch-norm: bn <script>: its input has two uses" in printed(report, verbose=True)


def test_columns_for_what_was_not_measured_are_left_out(report: Report) -> None:
    report.quality = None
    report.before, report.after = (dataclasses.replace(cost, latency_ms=None) for cost in (report.before, report.after))
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
