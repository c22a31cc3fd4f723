from __future__ import annotations

import io
import json

import pytest

from graphopt.pricing.integer_kernels import IntegerShare, NodeKernel
from graphopt.report import html, terminal
from graphopt.report.model import Integer, Report

HEAD = NodeKernel("head<b>", "Gemm", 100, "float", "its weight 'w' is float")
STEM = NodeKernel("stem", "Conv", 300, "float", "its input 'x' is float")
BODY = NodeKernel("body", "Conv", 600, "integer")


@pytest.fixture
def quantized(report: Report) -> Report:
    """The report of a run that ended in a quantized model."""
    share = IntegerShare(macs_total=1000, macs_integer=600, conversions=3, nodes=(HEAD, BODY, STEM))
    report.integer = Integer(share, size_ratio=0.274, latency_ratio=0.31, sqnr_db=28.04)
    return report


def test_the_terminal_names_the_share_and_the_dearest_exceptions_first(quantized: Report) -> None:
    stream = io.StringIO()
    terminal.print_report(quantized, terminal.console(stream))
    lines = stream.getvalue().splitlines()
    start = lines.index(
        "integer kernels: 60.0 % of 1.00 k MACs, file x0.274, latency x0.31 [0.90, 0.91], SQNR 28.0 dB, 3 conversions "
        "between float and integer"
    )
    assert lines[start + 1 : start + 3] == [
        "  in float: Conv 'stem', 300 MACs: its input 'x' is float",
        "  in float: Gemm 'head<b>', 100 MACs: its weight 'w' is float",
    ]


def test_many_exceptions_are_counted(quantized: Report) -> None:
    share = IntegerShare(500, 0, 0, (HEAD,) * 7)
    lines = list(terminal.integer_lines(Integer(share, 1.0)))
    assert lines[0] == "integer kernels: 0.0 % of 500 MACs, file x1.000"
    assert lines[-1] == "  in float: 3 more in --json and --report"
    assert len(lines) == 6


def test_the_size_is_that_of_the_file_once_it_is_written(quantized: Report) -> None:
    quantized.written(25_600_000)
    found = json.loads(quantized.to_json())
    assert found["integer"]["size_ratio"] == found["after"]["bytes"] / found["before"]["bytes"] == 0.25
    assert "file x0.250" in "\n".join(terminal.run_lines(quantized))


def test_json(quantized: Report) -> None:
    found = json.loads(quantized.to_json())["integer"]
    exceptions = found.pop("exceptions")
    assert [node["name"] for node in exceptions] == ["stem", "head<b>"]
    assert exceptions[0] == {"name": "stem", "op_type": "Conv", "macs": 300, "why": "its input 'x' is float"}
    assert found == {
        "macs": 1000,
        "macs_integer": 600,
        "share": 0.6,
        "conversions": 3,
        "size_ratio": 0.274,
        "latency_ratio": 0.31,
        "sqnr_db": 28.04,
    }


def test_a_float_result_has_none(report: Report) -> None:
    assert json.loads(report.to_json())["integer"] is None


def test_html_escapes_names(quantized: Report) -> None:
    page = html.render(quantized)
    assert "left in float by onnxruntime (2)" in page
    assert "head&lt;b&gt;" in page
    assert "head<b>" not in page
