"""The report on a terminal: what ran, what each pass changed, what the result is worth.

Plain text of at most 100 columns where the output is no terminal. Numbers that a pass did not change stay blank, so
that what changed stands out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from graphopt.report import units

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from graphopt.pipeline.records import PassRecord
    from graphopt.pricing import Cost
    from graphopt.report.model import Comparison, Integer, Quality, Report
    from graphopt.runtime.equivalence import Verdict
    from graphopt.runtime.quality import Fidelity

_PLAIN_WIDTH = 100
_NAME_LENGTH = 40
_TEXT_COLUMNS = 2  # the first columns of the node table, aligned to the left
_LISTED_EXCEPTIONS = 4
_LISTED_OUTPUTS = 8
_LISTED_LAYERS = 5
_LISTED_BUFFERS = 4
_SHORT = 3  # passes in a pipeline that somebody typed

_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("nodes", "nodes", lambda number: str(number)),
    ("MACs", "macs", units.count),
    ("params", "params", units.count),
    ("file", "bytes", units.size),
    ("memory", "peak_activation_bytes", units.size),
    ("latency", "latency_ms", units.milliseconds),
)
"""Title, attribute of Cost, format."""


def console(file: IO[str]) -> Console:
    """A console that writes to `file`: colours on a terminal, plain text elsewhere."""
    from rich.console import Console

    return Console(file=file, width=None if file.isatty() else _PLAIN_WIDTH, highlight=False, soft_wrap=False)


def print_pipeline(pipeline: str, out: Console) -> None:
    """The passes of a run that is about to start, as they were understood."""
    _print_lines([f"pipeline: {pipeline or '(no passes)'}", ""], out)
    out.file.flush()


def print_report(report: Report, out: Console, *, verbose: bool = False) -> None:
    """The table of a run, its verdicts and its warnings."""
    out.print(_pass_table(report))
    out.print()
    _print_lines(run_lines(report), out)
    if verbose:
        _print_lines(_remarks(report), out)
    if report.output is not None:
        _print_lines([f"wrote {report.output} ({units.size(report.after.bytes)})"], out)
    _print_warnings(report.warnings, out)


def run_lines(report: Report) -> list[str]:
    """What there is to say of a run below its table, a line each."""
    return [
        *findings(report),
        *quality_hint(report),
        *pass_lines(report),
        *unchanged_lines(report),
        *sensitivity_lines(report),
    ]


def print_comparison(comparison: Comparison, out: Console) -> None:
    """Two models side by side."""
    before, after = comparison.before, comparison.after
    table = _table("", "reference", "model", "change")
    for title, name, shown in _columns(before, after):
        x, y = getattr(before, name), getattr(after, name)
        table.add_row(title, shown(x), shown(y), _gain(comparison, name, x, y))
    predicted = (before.predicted_ms, after.predicted_ms)
    if comparison.predicted:
        table.add_row("predicted", *map(units.milliseconds, predicted), _coloured(units.change(*predicted), *predicted))
    out.print(table)
    out.print()
    said = [f"time is predicted by {before.predicted_by}"] if comparison.predicted else []
    _print_lines([*findings(comparison, difference_hint(comparison)), *said], out)
    if comparison.check.status == "not_done":
        _print_warnings([comparison.check.detail], out)
    _print_warnings(comparison.warnings, out)


def print_cost(cost: Cost, out: Console, *, per_node: bool = False) -> None:
    """The cost of one model: totals, and one row per node, the dearest first."""
    if per_node:
        out.file.writelines(f"{line}\n" for line in _node_lines(cost))
        out.print()
    table = _table("total", "")
    rows = [
        ("MACs", units.count(cost.macs)),
        ("FLOPs", units.count(cost.flops)),
        ("parameters", units.count(cost.params)),
        ("file", units.size(cost.bytes)),
        ("weights", units.size(cost.weight_bytes)),
        ("peak activations", units.size(cost.peak_activation_bytes)),
        ("nodes", str(cost.nodes)),
        ("predicted time", units.milliseconds(cost.predicted_ms)),
    ]
    for row in rows:
        table.add_row(*row)
    out.print(table)
    notes = [f"time is predicted by {cost.predicted_by}"] if cost.predicted_by else []
    notes += [f"peak activations: {_peak(cost)}"] if cost.peak_held else []
    notes += [f"assumed: {name} = {number}" for name, number in cost.assumed.items()]
    _print_lines([*notes, *([_unknown(cost)] if cost.unknown_cost_ops else [])], out)


def _pass_table(report: Report) -> Table:
    columns = _columns(report.before, report.after)
    measured = report.quality is not None
    table = _table("pass", *(title for title, _, _ in columns), *(["quality"] if measured else []), "time")
    quality = (f"{report.quality.before:.4g}", f"{report.quality.after:.4g}") if report.quality else ("", "")

    def row(title: str, cells: Sequence[str], metric: str, time: str, style: str | None = None) -> None:
        table.add_row(title, *cells, *([metric] if measured else []), time, style=style)

    row("original", [shown(getattr(report.before, name)) for _, name, shown in columns], quality[0], "")
    for record in report.passes:
        priced = record.after is not None
        cells = [_changed(record.before, record.after, name, shown) if priced else "" for _, name, shown in columns]
        row(_escaped(record.name), cells, "", units.duration(record.seconds), None if record.modified else "dim")
    table.add_section()
    totals = [shown(getattr(report.after, name)) for _, name, shown in columns]
    row("total", totals, quality[1], units.duration(report.seconds), "bold")
    names = [name for _, name, _ in columns]
    gains = [_gain(report, name, getattr(report.before, name), getattr(report.after, name)) for name in names]
    row("change", gains, "", "")
    return table


def _node_lines(cost: Cost) -> Iterator[str]:
    """One line per node, the dearest first. Not a rich table: laying out one of 20,000 rows takes it ten seconds."""
    rows = [("node", "operator", "MACs", "share", "params", "memory", "predicted")]
    for node in sorted(cost.per_node, key=lambda node: (node.macs or 0, node.seconds or 0), reverse=True):
        row = (
            _end_of(node.name),
            node.op_type,
            units.count(node.macs),
            f"{100 * node.macs / cost.macs:.1f} %" if node.macs and cost.macs else "",
            units.count(node.params) if node.params else "",
            units.size(node.activation_bytes),
            units.duration(node.seconds),
        )
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[:_TEXT_COLUMNS] = [cell.ljust(width) for cell, width in zip(row[:_TEXT_COLUMNS], widths, strict=False)]
        yield " " + "  ".join(cells)


def _table(first: str, *titles: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_edge=False, padding=(0, 0, 0, 1), header_style="bold")
    table.add_column(first, overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _columns(before: Cost, after: Cost) -> list[tuple[str, str, Callable[[Any], str]]]:
    """The columns that hold anything: latency only where it was measured."""
    return [c for c in _COLUMNS if c[1] != "latency_ms" or (before.latency_ms, after.latency_ms) != (None, None)]


def _end_of(name: str) -> str:
    """A long name by its end, which is what tells it from its neighbours."""
    return name if len(name) <= _NAME_LENGTH else f"…{name[1 - _NAME_LENGTH :]}"


def _changed(before: Cost, after: Cost, name: str, shown: Callable[[Any], str]) -> str:
    x, y = getattr(before, name), getattr(after, name)
    return "" if y is None or x == y else _coloured(shown(y), x, y)


def _gain(subject: Report | Comparison, name: str, before: float | None, after: float | None) -> str:
    """The change of a figure; of a measured time only where its interval decides that there is one."""
    if name == "latency_ms" and subject.latency is not None and subject.latency.undecided:
        return "undecided"
    return _coloured(units.change(before, after), before, after)


def _coloured(text: str, before: float | None, after: float | None) -> str:
    if before is None or after is None or before == after:
        return text
    return f"[green]{text}[/]" if after < before else f"[red]{text}[/]"


def findings(subject: Report | Comparison, hint: Iterable[str] = ()) -> list[str]:
    """One line per verdict: quality, equivalence and a `hint` on it, latency, unknown costs."""
    lines: list[str] = []
    quality, check, latency = subject.quality, subject.check, subject.latency
    if quality is not None:
        lines += quality_lines(quality)
    if check is not None:
        scope = "exact passes alone: " if subject.lossy else ""
        lines.append(f"{scope}same outputs in onnxruntime: {verdict(check)}")
        lines += hint
    if latency is not None:
        low, high = latency.interval
        lines.append(
            f"latency: {units.milliseconds(latency.before_ms)} -> {units.milliseconds(latency.after_ms)}, ratio "
            f"{latency.ratio:.3f} [{low:.3f}, {high:.3f}]{_doubt(latency.interval)} in {latency.rounds} rounds, "
            f"threads: {latency.threads}, inputs: {_shapes(latency.shapes)}"
        )
    if subject.integer is not None:
        lines += integer_lines(subject.integer, None if latency is None else latency.interval)
    if subject.after.peak_activation_bytes > subject.before.peak_activation_bytes:
        lines.append(f"memory rises: {_peak(subject.after)}; it was {units.size(subject.before.peak_activation_bytes)}")
    if subject.after.unknown_cost_ops:
        lines.append(_unknown(subject.after))
    if subject.before.assumed:
        lines.append(
            f"costs are for {', '.join(f'{name} = {number}' for name, number in subject.before.assumed.items())}"
        )
    return lines


def quality_hint(report: Report) -> Iterator[str]:
    """How to learn what a lossy run has lost, where nobody asked."""
    if report.lossy and report.quality is None:
        yield "quality: not measured; --eval-data SAMPLES does, --metric says how, --max-drop bounds what is lost"


def quality_lines(quality: Quality) -> Iterator[str]:
    """The metric before and after with its interval, the gate, and how near the outputs are."""
    gate = quality.gate
    unit = f" {quality.unit}" if quality.unit else ""
    if gate is None or (gate.samples, gate.before, gate.after) != (quality.samples, quality.before, quality.after):
        reference = " against the original" if quality.against == "original" else ""
        error = "" if quality.standard_error is None else f", standard error {quality.standard_error:.2g}"
        yield (
            f"{quality.metric}{reference}: {quality.before:.4g} -> {quality.after:.4g}{unit} on {quality.samples} samples"
            f"{_interval(quality.interval)}{error}"
        )
    if gate is not None:
        allowed = "" if gate.max_drop is None else f", within the drop of {gate.max_drop:g} allowed"
        yield (
            f"gate: {quality.metric} {gate.before:.4g} -> {gate.after:.4g}{unit} on {gate.samples} held-out samples"
            f"{_interval(gate.interval)}{allowed}"
        )
    if quality.fidelity is not None:
        yield from _fidelity_lines(quality.fidelity)


def _interval(interval: tuple[float, float] | None) -> str:
    from graphopt.runtime.bootstrap import CONFIDENCE

    return "" if interval is None else f", {100 * CONFIDENCE:.0f} % interval {interval[0]:.4g} to {interval[1]:.4g}"


def _fidelity_lines(fidelity: Fidelity) -> Iterator[str]:
    facts = []
    if fidelity.max_change is not None:
        facts.append(f"max|Δ| = {fidelity.max_change:.2g}, {fidelity.max_error:.2g} of max|y|")
    if fidelity.sqnr_db is not None:
        facts.append(f"SQNR {fidelity.sqnr_db:.1f} dB")
    if len(fidelity.outputs) > 1:
        shown = list(fidelity.outputs.items())[:_LISTED_OUTPUTS]
        each = [f"'{_end_of(name)}' {decibels:.1f}" for name, decibels in shown]
        more = [f"{len(fidelity.outputs) - _LISTED_OUTPUTS} more"] if len(fidelity.outputs) > _LISTED_OUTPUTS else []
        facts.append(f"per output {', '.join([*each, *more])}")
    if fidelity.agreement is not None:
        facts.append(f"same class for {100 * fidelity.agreement:.1f} % of samples")
    if facts:
        yield f"outputs against the original's: {', '.join(facts)}"


def _doubt(interval: Sequence[float]) -> str:
    """That a ratio with this interval may as well be a gain as a loss."""
    low, high = interval
    return " (undecided: the interval contains 1)" if low <= 1 <= high else ""


def _ratio(ratio: float, interval: Sequence[float]) -> str:
    """A ratio of times with its interval, and whether this decides anything."""
    low, high = interval
    return f"x{ratio:.2f} [{low:.2f}, {high:.2f}]{_doubt(interval)}"


def integer_lines(proof: Integer, interval: Sequence[float] | None = None) -> Iterator[str]:
    """What runs in integer kernels, what that brought, and the dearest nodes that do not; `interval` is of the latency."""
    share, exceptions = proof.share, proof.share.exceptions
    facts = [f"integer kernels: {100 * share.share:.1f} % of {units.count(share.macs_total)} MACs"]
    facts.append(f"file x{proof.size_ratio:.3f}")
    if proof.latency_ratio is not None and interval is not None:
        facts.append(f"latency {_ratio(proof.latency_ratio, interval)}")
    if proof.sqnr_db is not None:
        facts.append(f"SQNR {proof.sqnr_db:.1f} dB")
    if share.conversions:
        plural = "s" if share.conversions > 1 else ""
        facts.append(f"{share.conversions} conversion{plural} between float and integer")
    yield ", ".join(facts)
    for node in exceptions[:_LISTED_EXCEPTIONS]:
        yield f"  in float: {node.op_type} '{_end_of(node.name)}', {units.count(node.macs)} MACs: {node.why}"
    if len(exceptions) > _LISTED_EXCEPTIONS:
        yield f"  in float: {len(exceptions) - _LISTED_EXCEPTIONS} more in --json and --report"


def unchanged_lines(report: Report) -> Iterator[str]:
    """Which passes found nothing to do: lossy ones, which were asked for, with the reason, exact ones together."""
    idle = [record for record in report.passes if not record.modified]
    for record in idle:
        if not record.exact:
            yield f"'{record.name}' changed nothing: {record.facts.get('unchanged') or _first_reason(record)}"
    exact = {record.name for record in report.passes if record.exact}
    busy = {record.name for record in report.passes if record.modified}
    unneeded = len(exact - busy)
    if unneeded:
        many = "no exact pass" if unneeded == len(exact) else f"{unneeded} of {len(exact)} exact passes"
        what = "anything" if unneeded == len(exact) else "nothing"
        yield f"{many} found {what} to rewrite{_where_exact(idle, len(report.passes))}"


def _where_exact(idle: Sequence[PassRecord], count: int) -> str:
    """What kept the passes of a short pipeline from rewriting anything; among many that is no more than noise."""
    reasons = [f"'{record.name}': {record.remarks[0]}" for record in idle if record.exact and record.remarks]
    return f" ({'; '.join(reasons)})" if reasons and count <= _SHORT else ""


def _first_reason(record: PassRecord) -> str:
    """Why a pass left things alone, in the words of its first remark."""
    reasons = [remark for remark in record.remarks if not remark.applied]
    if not reasons:
        return "it found nothing to rewrite"
    more = len(reasons) - 1
    return f"{reasons[0]}" + (
        f" ({'one more reason' if more == 1 else f'{more} more reasons'} with -v)" if more else ""
    )


def pass_lines(report: Report) -> Iterator[str]:
    """What passes have to say of their results, and what these came to in time while they decided what is faster."""
    for record in report.passes:
        for note in record.facts.get("notes", ()):
            yield f"'{record.name}': {note}"
        taken = record.facts.get("time")
        if taken:
            measured = _ratio(taken["ratio"], taken["interval"])
            yield f"time against the model before '{record.name}', measured there: {measured}"
        speed = record.facts.get("speed")
        if speed:
            measured = _ratio(speed["against_float"]["ratio"], speed["against_float"]["interval"])
            reverted = f", {len(speed['reverted'])} nodes in float because it is faster" if speed["reverted"] else ""
            yield f"time against float in the trials of '{record.name}': {measured}{reverted}"


def sensitivity_lines(report: Report) -> Iterator[str]:
    """The layers whose quantization alone changes the outputs most."""
    for record in report.passes:
        layers = record.facts.get("sensitivity", ())
        if layers:
            listed = [
                f"{_end_of(layer['layer'])} {layer['sqnr_db']:.1f} dB"
                + ("" if layer["kl"] is None else f" (KL {layer['kl']:.1g})")
                for layer in layers[:_LISTED_LAYERS]
            ]
            by_kl = any(layer["kl"] is not None for layer in layers)
            order = "largest KL of the outputs first" if by_kl else "lowest SQNR of the outputs first"
            yield f"most sensitive of {len(layers)} layers, quantized alone, {order}: {', '.join(listed)}"


def _shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name}[{'x'.join(map(str, dims))}]" for name, dims in shapes.items()) or "none"


def verdict(check: Verdict) -> str:
    """Whether two models compute the same, with the figures that say how nearly."""
    if check.status == "same":
        return f"yes, max|Δ| = {check.max_error:.1g} of max|y|"
    if check.status != "different":
        return "not checked"
    return f"NO: {check.detail}" + ("" if check.sqnr_db is None else f", SQNR {check.sqnr_db:.1f} dB")


def difference_hint(comparison: Comparison) -> Iterator[str]:
    """What a difference on random inputs says, and what to ask for instead."""
    if comparison.check.status == "different" and comparison.check.sqnr_db is not None:
        elsewhere = "" if comparison.quality is not None else "; -d SAMPLES tells how much on real ones"
        yield f"  rounding alone stays within that bound, lossy passes do not, on random inputs least of all{elsewhere}"


def _peak(cost: Cost) -> str:
    """What fills the memory at its peak, the largest first."""
    held = [
        f"'{_end_of(one.name)}' {units.size(one.bytes)}" + (" (copied to another layout)" if one.copy else "")
        for one in cost.peak_held
    ]
    shown = held[:_LISTED_BUFFERS]
    if len(held) > len(shown):
        shown.append(f"{len(held) - len(shown)} more")
    rest = cost.peak_activation_bytes - sum(one.bytes for one in cost.peak_held)
    if rest > 0:
        shown.append(f"{units.size(rest)} inside of the node")
    return f"at '{_end_of(cost.peak_node)}' there are {' + '.join(shown)}"


def _unknown(cost: Cost) -> str:
    return f"cost unknown, counted as nothing: {', '.join(cost.unknown_cost_ops)}"


def _remarks(report: Report) -> list[str]:
    return [f"{record.name}: {remark}" for record in report.passes for remark in record.remarks]


def _print_lines(lines: Sequence[str], out: Console) -> None:
    """Text as it is: no markup, and no line breaks that would keep a path or a pipeline from being copied."""
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def _print_warnings(warnings: Sequence[str], out: Console) -> None:
    from rich.text import Text

    for warning in warnings:
        out.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
