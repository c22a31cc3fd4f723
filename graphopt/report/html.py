"""The report as one HTML page: no other file, no network, light and dark.

The frame (style, sorting script) is `page.html` beside this module; here the tables are filled in. Everything that
comes from a model is escaped.
"""

from __future__ import annotations

import html
import string
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.report import units
from graphopt.report.terminal import run_lines

if TYPE_CHECKING:
    from graphopt.pricing import Cost, NodeCost
    from graphopt.report.model import Report

NODE_LIMIT = 5000
"""Rows of a per-node table; the page stays usable, and says how many of the cheapest nodes it leaves out."""

_FIGURES = (
    ("MACs", "macs", units.count),
    ("FLOPs", "flops", units.count),
    ("parameters", "params", units.count),
    ("file", "bytes", units.size),
    ("weights", "weight_bytes", units.size),
    ("peak activations", "peak_activation_bytes", units.size),
    ("nodes", "nodes", units.count),
    ("predicted time", "predicted_ms", units.milliseconds),
    ("measured latency", "latency_ms", units.milliseconds),
)


def render(report: Report) -> str:
    """The whole page."""
    frame = resources.files("graphopt.report").joinpath("page.html").read_text(encoding="utf-8")
    path = report.input.path
    before, after = report.nodes() if report.nodes is not None else (report.before.per_node, report.after.per_node)
    return string.Template(frame).substitute(
        title=html.escape(Path(path).name if path else "model in memory"),
        source=html.escape(f"{path or 'in memory'} ({units.size(report.input.bytes)}, sha256 {report.input.sha256})"),
        pipeline=html.escape(report.pipeline or "(no passes)"),
        warnings="".join(f'<p class="warning">{html.escape(warning)}</p>' for warning in report.warnings),
        summary=_summary(report),
        findings="".join(f"<p>{html.escape(line)}</p>" for line in run_lines(report)),
        passes=_passes(report),
        remarks=_remarks(report) + _exceptions(report),
        nodes=_nodes("Result", after, is_open=True) + _nodes("Original", before, is_open=False),
        version=html.escape(report.graphopt),
        predicted_by=html.escape(report.before.predicted_by),
        seconds=units.duration(report.seconds),
        memory=units.size(report.peak_rss_bytes),
    )


def _summary(report: Report) -> str:
    rows = []
    for title, name, shown in _FIGURES:
        before, after = getattr(report.before, name), getattr(report.after, name)
        if before is not None or after is not None:
            timed = report.latency if name == "latency_ms" else None
            gain = _cell("undecided") if timed is not None and timed.undecided else _change(before, after)
            rows.append(_row([_cell(title), _cell(shown(before)), _cell(shown(after)), gain]))
    if report.quality is not None:
        quality = report.quality
        title = f"{quality.metric} ({quality.samples} samples)"
        rows.append(_row([_cell(title), _cell(f"{quality.before:.4g}"), _cell(f"{quality.after:.4g}"), _cell("")]))
    return _table(["", "original", "result", "change"], rows)


def _passes(report: Report) -> str:
    figures = [
        figure for figure in _FIGURES if figure[1] in ("nodes", "macs", "params", "bytes", "peak_activation_bytes")
    ]
    rows = [_pass_row("original", "", report.before, report.before, "", figures, "")]
    for record in report.passes:
        options = ", ".join(f"{key} = {value}" for key, value in record.options.items())
        seconds = units.duration(record.seconds)
        kind = "" if record.modified else "idle"
        rows.append(_pass_row(record.name, options, record.before, record.after, seconds, figures, kind))
    rows.append(_pass_row("total", "", report.before, report.after, units.duration(report.seconds), figures, "total"))
    return _table(["pass", "options", *(title for title, _, _ in figures), "time"], rows)


def _pass_row(
    name: str,
    options: str,
    before: Cost | None,
    after: Cost | None,
    seconds: str,
    figures: Sequence[Any],
    kind: str,
) -> str:
    cells = [_cell(name), _cell(options, text=True)]
    for _, attribute, shown in figures:
        x, y = getattr(before, attribute, None), getattr(after, attribute, None)
        cells.append(_cell(shown(y), style=_direction(x, y)))
    return _row([*cells, _cell(seconds)], kind)


def _remarks(report: Report) -> str:
    parts = []
    for record in report.passes:
        if record.remarks:
            items = "".join(
                f"<li>{'' if remark.applied else 'not done: '}<code>{html.escape(remark.where)}</code>: "
                f"{html.escape(remark.what)}</li>"
                for remark in record.remarks
            )
            title = f"{html.escape(record.name)} ({len(record.remarks)})"
            parts.append(f"<details><summary>{title}</summary><ul>{items}</ul></details>")
    return "".join(parts) or "<p>None.</p>"


def _exceptions(report: Report) -> str:
    """The convolutions and matrix products of a quantized result that still run in float, the dearest first."""
    nodes = report.integer.share.exceptions if report.integer is not None else []
    if not nodes:
        return ""
    rows = [
        _row(
            [
                _cell(node.name),
                _cell(node.op_type, text=True),
                _cell(units.count(node.macs)),
                _cell(node.why, text=True),
            ]
        )
        for node in nodes[:NODE_LIMIT]
    ]
    table = _table(["node", "operator", "MACs", "why"], rows)
    summary = f"left in float by onnxruntime ({len(nodes)})"
    return f'<details><summary>{summary}</summary><div class="scroll">{table}</div></details>'


def _nodes(title: str, nodes: Sequence[NodeCost], *, is_open: bool) -> str:
    """The nodes of one model, the dearest first, in a block that folds."""
    total = len(nodes)
    count = f"{total} nodes" if total <= NODE_LIMIT else f"the {NODE_LIMIT} dearest of {total} nodes"
    rows = [
        _row(
            [
                _cell(node.name),
                _cell(node.op_type, text=True),
                _cell(units.count(node.macs), node.macs),
                _cell(units.count(node.flops), node.flops),
                _cell(units.count(node.params), node.params),
                _cell(units.size(node.weight_bytes), node.weight_bytes),
                _cell(units.size(node.activation_bytes), node.activation_bytes),
                _cell("" if node.intensity is None else f"{node.intensity:.3g}", node.intensity),
                _cell(units.duration(node.seconds), node.seconds),
            ]
        )
        for node in sorted(nodes, key=lambda node: node.macs or 0, reverse=True)[:NODE_LIMIT]
    ]
    titles = ["node", "operator", "MACs", "FLOPs", "parameters", "weights", "activations", "FLOPs/byte", "predicted"]
    table = _table(titles, rows, sortable=True)
    opened = " open" if is_open else ""
    return f'<details{opened}><summary>{title} ({count})</summary><div class="scroll">{table}</div></details>'


def _table(titles: Sequence[str], rows: Iterable[str], *, sortable: bool = False) -> str:
    words = ("", "node", "operator", "pass", "options", "why")
    heads = "".join(
        f'<th class="text">{title}</th>' if title in words else f"<th>{html.escape(title)}</th>" for title in titles
    )
    kind = ' class="sortable"' if sortable else ""
    return f"<table{kind}><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(cells: Iterable[str], kind: str = "") -> str:
    return f'<tr class="{kind}">{"".join(cells)}</tr>' if kind else f"<tr>{''.join(cells)}</tr>"


def _cell(shown: str, value: float | str | None = "", *, text: bool = False, style: str = "") -> str:
    """A cell; `value` is what sorting goes by (unknown sorts below everything known)."""
    classes = " ".join(filter(None, ["text" if text else "", style]))
    kind = f' class="{classes}"' if classes else ""
    data = "" if value == "" else f' data-v="{-1 if value is None else value}"'
    return f"<td{kind}{data}>{html.escape(shown)}</td>"


def _change(before: float | None, after: float | None) -> str:
    return _cell(units.change(before, after), style=_direction(before, after))


def _direction(before: float | None, after: float | None) -> str:
    if before is None or after is None or before == after:
        return ""
    return "less" if after < before else "more"
