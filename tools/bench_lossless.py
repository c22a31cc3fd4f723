"""The preset `lossless` against the simplifiers that people use today: nodes left, time, memory, outputs, latency.

    python tools/bench_lossless.py
    python tools/bench_lossless.py --models 'resnet50*' 'light-*' --rounds 3 --latency-seconds 0 --gib 0 --nodes 0

All tools run as whole processes from file to file, in turn; seconds are medians, and "gain" is the median over the
rounds of the tool's seconds divided by graphopt's in the same round: above 1, graphopt is faster. Nodes are all that
are not Constant, in bodies and functions too; those of other domains than ONNX's are counted apart. Outputs are
compared with the original's, before a final Softmax, in onnxruntime without its own optimizations. "Latency" is
graphopt's result over the original in onnxruntime with all its optimizations, with the upper end of the paired
ratio's 90 % interval.

Figures to hold, over all models: nodes never more than the best of the others; on files over 10 MB faster than OnnxSlim
and onnxsim and within 2 times ORT basic, with less memory than OnnxSlim and onnxsim; same outputs; a second run changes
nothing; latency bound at most 1.03. The large model in 3 times onnx-ir's load and save and 250 MiB, the long one in
1.5 times onnxsim.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import measure
import onnx
import peer_models
import simplifiers
from bench_scale import LOAD_AND_SAVE, compare
from simplifiers import Simplifier

LARGE_FILE = 10 * 10**6
SLOWER_ONES = ("OnnxSlim", "onnxsim")
SPEED_LIMIT = {"OnnxSlim": 1.0, "onnxsim": 1.0, "ORT basic": 2.0}
LATENCY_LIMIT = 1.03


@dataclass(frozen=True)
class Result:
    """What one tool made of one model."""

    tool: str
    runs: Sequence[measure.Run]
    nodes: int
    foreign: int
    outputs: str

    @property
    def wall(self) -> float:
        """Median seconds on the clock."""
        return statistics.median(run.wall for run in self.runs)

    @property
    def peak(self) -> int:
        """Largest resident bytes of any run."""
        return max(run.peak for run in self.runs)


@dataclass
class Figures:
    """What was held and what was missed, over all models."""

    missed: dict[str, list[str]] = field(default_factory=dict)

    def check(self, figure: str, model: str, held: bool, detail: str) -> None:
        """Note whether `model` holds a figure."""
        misses = self.missed.setdefault(figure, [])
        if not held:
            misses.append(f"{model} ({detail})")

    def __str__(self) -> str:
        return "\n".join(f"{figure}: {', '.join(misses) or 'held'}" for figure, misses in self.missed.items())


def model_names() -> list[str]:
    """The light models, and the torch exports by both exporters, with BatchNormalization folded by them and kept."""
    exports = [f"{name}-{exporter}" for name in peer_models.REFERENCES for exporter in peer_models.EXPORTERS]
    normalized = [f"{name}-{exporter}-bn" for name in ("resnet50", "mobilenetv2") for exporter in peer_models.EXPORTERS]
    open_batch = [f"{name}-bN" for name in exports]
    return [*(f"light-{name}" for name in peer_models.light_names()), *exports, *normalized, *open_batch]


def model_path(name: str, folder: Path | None) -> Path:
    """The file of a model, built into the cache if it is not there."""
    if name.startswith("light-"):
        return peer_models.light(name.removeprefix("light-"), folder)
    network, exporter, *variants = name.split("-")
    chosen = next(known for known in peer_models.EXPORTERS if known == exporter)
    batch = None if "bN" in variants else 1
    return peer_models.export(network, chosen, folder, batch=batch, keep_bn="bn" in variants)


def count_nodes(path: Path) -> tuple[int, int]:
    """The nodes of a file that are not Constant, and how many of them are no operators of ONNX's main domain."""
    model = onnx.load(path, load_external_data=False)
    nodes = [node for graph in (model.graph, *model.functions) for node in _nodes(graph.node)]
    return len(nodes), sum(node.domain not in ("", "ai.onnx") for node in nodes)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        if node.op_type != "Constant":
            yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body.node)


def run_tools(model: Path, tools: Sequence[Simplifier], folder: Path, rounds: int) -> dict[str, Sequence[measure.Run]]:
    """Run the tools in turn; one that fails on `model` is left out, with a line that says so."""
    commands = {tool.name: tool.command(model, folder / f"{tool.name}.onnx") for tool in tools}
    for name, command in list(commands.items()):
        try:
            measure.run(command)
        except RuntimeError as error:
            del commands[name]
            print(f"  {name} fails: {str(error).splitlines()[-1]}")
    return dict(measure.interleaved(commands, rounds, warmup=0))


def verdicts(model: Path, outputs: Mapping[str, Path]) -> dict[str, str]:
    """How far the outputs of each file are from those of `model`: max|Δ| / max|y|, or what is wrong."""
    from graphopt.errors import GraphoptError
    from graphopt.lift import lift
    from graphopt.runtime.equivalence import Equivalence, Status

    equivalence = Equivalence(lift(model).model, source=model, seeds=1, threads=2)
    found = {}
    for name, path in outputs.items():
        try:
            verdict = equivalence.verdict(lift(path).model)
        except GraphoptError as error:
            found[name] = f"invalid: {error}"
            continue
        same = verdict.status is Status.SAME
        found[name] = f"{verdict.max_error:.0e}" if same else f"{verdict.status}: {verdict.detail}"
    return found


def latency(model: Path, result: Path, seconds: float) -> tuple[float, float]:
    """Time of `result` over that of `model` in onnxruntime: median ratio, and the upper end of its 90 % interval.

    Where a session's weights come to lie is luck that stays with it and can make 2 %. So there are three pairs of sessions,
    made in either order, and the middle one counts.
    """
    from graphopt.lift import lift
    from graphopt.runtime.inputs import guesses, seeded_inputs
    from graphopt.runtime.latency import measure as paired

    original = lift(model).model
    found = []
    for swap in (False, True, False):
        candidates = (seeded_inputs(original, seed=0, guess=guess) for guess in guesses(original))
        pair = (result, model) if swap else (model, result)
        one = paired(*pair, candidates, seconds=seconds / 3, confidence=0.9)
        found.append((1 / one.ratio, 1 / one.interval[0]) if swap else (one.ratio, one.interval[1]))
    return sorted(found)[1]


def bench(
    name: str, model: Path, tools: Sequence[Simplifier], options: argparse.Namespace, folder: Path, figures: Figures
) -> None:
    """Run every tool over one model, print the rows, and check the figures."""
    nodes, _ = count_nodes(model)
    print(f"\n{name}: {nodes} nodes, {model.stat().st_size / 1e6:.1f} MB")
    runs = run_tools(model, tools, folder, options.rounds)
    written = {tool: folder / f"{tool}.onnx" for tool in runs}
    outputs = verdicts(model, written)
    results = [Result(tool, runs[tool], *count_nodes(written[tool]), outputs[tool]) for tool in runs]
    own = next((result for result in results if result.tool == "graphopt"), None)
    figures.check("runs", name, own is not None, "fails")
    print(f"  {'':<12}{'nodes':>6}{'foreign':>8}{'wall s':>8}{'cpu s':>8}{'gain':>7}{'peak MiB':>10}   outputs")
    for result in results:
        print(row(result, own or result))
    if own is not None:
        check(name, model, own, [result for result in results if result is not own], figures)
        check_again(name, written["graphopt"], tools[0], folder, figures)
        if options.latency_seconds:
            ratio, bound = latency(model, written["graphopt"], options.latency_seconds)
            print(f"  latency {ratio:.3f}, at most {bound:.3f}")
            figures.check(f"latency bound <= {LATENCY_LIMIT}", name, bound <= LATENCY_LIMIT, f"{bound:.3f}")


def row(result: Result, own: Result) -> str:
    """One line of a table."""
    cpu = statistics.median(run.cpu for run in result.runs)
    return (
        f"  {result.tool:<12}{result.nodes:>6}{result.foreign:>8}{result.wall:>8.2f}{cpu:>8.2f}"
        f"{gain(result, own):>7.2f}{result.peak / 2**20:>10.0f}   {result.outputs}"
    )


def gain(result: Result, own: Result) -> float:
    """How many times longer `result` took than `own`, paired by round."""
    return statistics.median(one.wall / other.wall for one, other in zip(result.runs, own.runs, strict=True))


def check(name: str, model: Path, own: Result, others: Sequence[Result], figures: Figures) -> None:
    """Hold graphopt's result against the others'."""
    portable = [other for other in others if not other.foreign]
    fewest = min(portable, key=lambda other: other.nodes, default=own)
    detail = f"{own.nodes}, {fewest.tool} {fewest.nodes}"
    figures.check("nodes <= the best", name, own.nodes <= fewest.nodes and not own.foreign, detail)
    figures.check("same outputs", name, own.outputs[0].isdigit(), own.outputs)
    if model.stat().st_size < LARGE_FILE:
        return
    for other in others:
        limit = SPEED_LIMIT.get(other.tool)
        if limit is not None:
            slower = 1 / gain(other, own)
            figures.check(f"time <= {limit:g} x {other.tool}", name, slower <= limit, f"{slower:.2f}")
        if other.tool in SLOWER_ONES:
            share = own.peak / other.peak
            figures.check(f"memory < {other.tool}", name, share < 1, f"{share:.2f}")


def check_again(name: str, written: Path, tool: Simplifier, folder: Path, figures: Figures) -> None:
    """Run graphopt over its own result: nothing but the record of its run may change."""
    second = folder / "again.onnx"
    measure.run(tool.command(written, second))
    held = content(written) == content(second)
    figures.check("a second run changes nothing", name, held, "it does")


def content(path: Path) -> bytes:
    """The model in a file without its metadata, which name the run that made it."""
    model = onnx.load(path)
    del model.metadata_props[:]
    return bytes(model.SerializeToString(deterministic=True))


def bench_scale(tools: Sequence[Simplifier], options: argparse.Namespace, folder: Path) -> None:
    """The large model and the long one."""
    own = tools[0]
    if options.gib:
        large = peer_models.big(options.cache, options.gib)
        save = measure.python(LOAD_AND_SAVE, large, folder / "ir.onnx", "ir.onnx.data")
        commands = {"onnx-ir load + save": save, own.name: own.command(large, folder / "large.onnx")}
        compare(f"{options.gib:g} GiB, external data", commands, "onnx-ir load + save", options.rounds)
    if options.nodes:
        long = peer_models.many_nodes(options.cache, options.nodes)
        quick = [tool for tool in tools if tool.name in ("graphopt", "onnxsim", "ORT basic")]
        commands = {tool.name: tool.command(long, folder / f"{tool.name}.onnx") for tool in quick}
        reference = "onnxsim" if "onnxsim" in commands else own.name
        compare(f"{options.nodes} nodes (the other tools take minutes)", commands, reference, options.rounds)


def main() -> None:
    """Run everything, print the tables, and then which figures were missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["*"], help="names or patterns; --list prints the names")
    parser.add_argument("--list", action="store_true", help="print the names of the models and leave")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pipeline", default="lossless", help="what graphopt runs")
    parser.add_argument("--latency-seconds", type=float, default=5, help="per model; 0 leaves latency out")
    parser.add_argument("--gib", type=float, default=3, help="size of the large model; 0 leaves it out")
    parser.add_argument("--nodes", type=int, default=20_000, help="nodes of the long model; 0 leaves it out")
    parser.add_argument("--cache", type=Path, default=None, help="where models are kept")
    parser.add_argument("--folder", type=Path, default=None, help="where results go; default: a temporary folder")
    options = parser.parse_args()
    names = [name for name in model_names() if any(fnmatch(name, pattern) for pattern in options.models)]
    if options.list:
        print("\n".join(names))
        return
    tools = [simplifiers.graphopt(options.pipeline), *simplifiers.installed()]
    print("  ".join(f"{tool.name} {tool.version}" for tool in tools))
    figures = Figures()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for name in names:
            bench(name, model_path(name, options.cache), tools, options, Path(scratch), figures)
        bench_scale(tools, options, Path(scratch))
    print(f"\n{figures}")


if __name__ == "__main__":
    main()
