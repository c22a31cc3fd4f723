"""graphopt's `quantize` against the quantizers that people use today, on trained models: quality, kernels and time.

    python tools/bench_quantize.py --corpus CORPUS
    python tools/bench_quantize.py --corpus CORPUS --tasks 'resnet20*' kws --peers 'ORT*' 'NNCF*' --seeds 0

All tools get the same calibration samples and run as whole processes from file to file, in turn. Then each result is
measured on the evaluation samples, which nothing has seen before:

* metric: change against the float model in points, with the standard error of the paired difference; "agree" is the share
  of predictions that stay; SQNR is that of all float outputs against the float model's, in dB;
* integer: share of the MACs that onnxruntime runs in integer kernels (`graphopt.pricing.integer_kernels`);
* time: of onnxruntime on one thread and one sample over that of the float model, both in the same round: median, and
  upper end of its 90 % interval; processor time of the thread, which other processes disturb least;
* size: of the file over that of the float model; cpu and peak: processor seconds and MiB of the quantization itself.

graphopt's quality is the mean over the calibration seeds, its time that of the first. Peers get the first seed's samples.
Figures to hold, per task: SQNR, integer share and time that the task asks for (`quantization_tasks.py`); as fast as the
fastest peer of equal integer share (bound 1.05) and as float (1.03); no SQNR more than 0.5 dB below the best peer's, and
over all tasks 2 dB above it on average.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import measure
import quantizers
from peers.cache import cache_folder
from quantization_tasks import Task, tasks
from quantizers import TRANSFORMERS_ONLY, Quantizer

from graphopt.errors import GraphoptError
from graphopt.lift import lift
from graphopt.pricing.integer_kernels import integer_share
from graphopt.runtime import quality
from graphopt.runtime.latency import median_interval
from graphopt.runtime.session import Feeds, Session

PLAIN = "graphopt plain"
EQUAL_SHARE = 0.01
PEER_LIMIT, FLOAT_LIMIT = 1.05, 1.03
SESSIONS = 3
"""Where a session's weights come to lie is luck that stays with it; so the rounds are spread over several."""
_SAMPLE_SECONDS = 0.005


@dataclass
class Row:
    """What one quantizer made of one task: a quality per seed, the rest of the first seed."""

    name: str
    run: measure.Run
    file: Path
    qualities: list[quality.Quality] = field(default_factory=list)
    share: float = 0.0
    why: str = ""
    times: list[float] = field(default_factory=list)

    @property
    def sqnr(self) -> float:
        """dB, the mean over the seeds."""
        return statistics.mean(one.fidelity.sqnr_db or 0.0 for one in self.qualities)

    @property
    def size(self) -> int:
        """Bytes of the file and of what lies beside it as external data."""
        return sum(path.stat().st_size for path in self.file.parent.glob(f"{self.file.name}*"))


def quantize(
    task: Task, tools: Sequence[Quantizer], seeds: Sequence[int], folder: Path, results: Path
) -> list[tuple[int, Row]]:
    """Run the tools in turn, graphopt once per seed; one that fails is left out, with a line that says so.

    What a peer has made of the same samples before is found in the folder `results`; its seconds are those of then.
    """
    rows = []
    for place, seed in enumerate(seeds):
        samples = folder / f"calibration-{seed}.npz"
        task.calibration(samples, seed)
        for tool in tools:
            if place and not tool.seeded:
                continue
            known = None if tool.seeded else results / _digest(task, tool, samples)
            home = folder / f"{tool.name}-{seed}" if known is None else known
            try:
                rows.append((place, Row(tool.name, *_run(task, tool, samples, home, seed))))
            except RuntimeError as error:
                print(f"  {tool.name} fails: {reason(str(error))}", flush=True)
    return rows


def _run(task: Task, tool: Quantizer, samples: Path, home: Path, seed: int) -> tuple[measure.Run, Path]:
    """Let `tool` write into the folder `home`, unless it has done so; what its run took, and the file."""
    output, account = home / "quantized.onnx", home / "run.json"
    if not account.exists():
        home.mkdir(parents=True, exist_ok=True)
        run = measure.run(tool.command(task.model, samples, output, seed), env=tool.variables)
        if not output.exists():
            raise RuntimeError("it writes nothing")
        account.write_text(json.dumps(dataclasses.asdict(run)))
    return measure.Run(**json.loads(account.read_text())), output


def _digest(task: Task, tool: Quantizer, samples: Path) -> str:
    """A name for what a peer of some version makes of a model and samples."""
    digest = hashlib.sha256(f"{tool.name} {tool.version}".encode())
    for path in (task.model, samples):
        digest.update(path.read_bytes())
    return f"{task.name}-{tool.name}-{digest.hexdigest()[:16]}".replace(" ", "-")


def reason(text: str) -> str:
    """The line of a failed command's last words that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalpha, line))]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines)[-1][:200]


def evaluate(task: Task, runs: Sequence[tuple[int, Row]]) -> list[Row]:
    """Measure quality and kernels of all results; those of later seeds join the row of the first."""
    samples, rows = task.evaluation(), dict[str, Row]()
    for place, row in runs:
        try:
            (found,) = quality.measure(task.model, [row.file], samples, task.metric)
            share = integer_share(lift(row.file).model)
        except GraphoptError as error:
            print(f"  {row.name} makes an invalid model: {str(error)[:200]}")
            continue
        first = rows.setdefault(row.name, row) if not place else rows.get(row.name, row)
        first.qualities.append(found)
        row.share = share.share
        row.why = share.exceptions[0].why if share.exceptions else ""
    return list(rows.values())


def time_all(models: Mapping[str, Path], feeds: Feeds, rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of one inference per round, all models in turn, in sessions made anew `SESSIONS` times."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for block in range(SESSIONS):
        sessions = {name: Session(path) for name, path in models.items()}
        repeats = {name: _repeats(session, feeds) for name, session in sessions.items()}
        for turn in range(-(-rounds // SESSIONS)):
            order = list(sessions) if (turn + block) % 2 else list(reversed(sessions))
            for name in order:
                found[name].append(_seconds(sessions[name], feeds, repeats[name]))
    return found


def _repeats(session: Session, feeds: Feeds) -> int:
    once = min(_seconds(session, feeds, 1) for _ in range(3))
    return max(1, round(_SAMPLE_SECONDS / max(once, 1e-7)))


def _seconds(session: Session, feeds: Feeds, repeats: int) -> float:
    """Of one inference, with caches filled by a run ahead: else models at the ends of the order have an advantage."""
    session.run(feeds)
    start = time.thread_time()
    for _ in range(repeats):
        session.run(feeds)
    return (time.thread_time() - start) / repeats


def ratio(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The median ratio within a round, and the upper end of its 90 % interval."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return statistics.median(ratios), median_interval(ratios, 0.9)[1]


def bench(task: Task, tools: Sequence[Quantizer], options: argparse.Namespace, figures: Figures) -> None:
    """Run one task and print its table."""
    print(f"\n{task.name}: {task.model.stat().st_size / 1e6:.2f} MB", flush=True)
    able = [tool for tool in tools if task.transformer or tool.name not in TRANSFORMERS_ONLY]
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        results = cache_folder(options.cache) / "results"
        rows = evaluate(task, quantize(task, able, options.seeds, Path(scratch), results))
        (batch,) = task.evaluation().subset([0]).batches(1)
        models = {"": task.model} | {row.name: row.file for row in rows}
        times = time_all(models, batch.feeds, options.rounds)
        for row in rows:
            row.times = times[row.name]
        print_table(task, rows, times[""])
        figures.check(task, rows, times[""])


def print_table(task: Task, rows: Sequence[Row], float_times: Sequence[float]) -> None:
    """One line per tool, the float model's metric above them."""
    if rows:
        first = rows[0].qualities[0]
        metric = f"{first.metric} {first.before:.4g} of " if first.against == "labels" else ""
        print(f"  float: {metric}{first.samples} samples, {1e3 * statistics.median(float_times):.3f} ms")
    print(
        f"  {'':<17}{'metric':>15}{'agree':>7}{'SQNR':>7}{'integer':>9}{'time':>6} {'(<=)':<7}{'size':>5}{'cpu s':>8}"
        f"{'peak MiB':>10}",
        flush=True,
    )
    for row in rows:
        median, bound = ratio(row.times, float_times)
        agreements = [q.fidelity.agreement for q in row.qualities if q.fidelity.agreement is not None]
        agree = f"{100 * statistics.mean(agreements):.1f}" if agreements else ""
        print(
            f"  {row.name:<17}{change(row):>15}{agree:>7}{row.sqnr:>7.1f}{100 * row.share:>8.1f}%{median:>6.2f} "
            f"{f'({bound:.2f})':<7}{row.size / task.model.stat().st_size:>5.2f}{row.run.cpu:>8.1f}"
            f"{row.run.peak / 2**20:>10.0f}" + (f"  float: {row.why}" if row.why else "")
        )


def change(row: Row) -> str:
    """The metric's change in points for the better, and its standard error; nothing where the metric is SQNR."""
    if row.qualities[0].metric == "sqnr":
        return ""
    drop = statistics.mean(one.drop for one in row.qualities)
    error = statistics.mean(one.standard_error for one in row.qualities)
    return f"{-100 * drop:+.2f} +- {100 * error:.2f}"


@dataclass
class Figures:
    """What was held and what was missed, over all tasks."""

    missed: list[str] = field(default_factory=list)
    gains: dict[str, float] = field(default_factory=dict)

    def check(self, task: Task, rows: Sequence[Row], float_times: Sequence[float]) -> None:
        """Hold graphopt's result on a task against what it must reach."""
        own = next((row for row in rows if row.name == "graphopt"), None)
        if own is None:
            self._need(task, False, "graphopt has no result")
            return
        self._need(task, own.sqnr >= task.least_sqnr, f"SQNR {own.sqnr:.1f} < {task.least_sqnr:g} dB")
        self._need(task, own.share >= task.least_share, f"integer {own.share:.1%} < {task.least_share:.0%}")
        against_float = ratio(own.times, float_times)[1]
        self._need(task, against_float <= FLOAT_LIMIT, f"time bound to float {against_float:.3f}")
        others = [row for row in rows if row.name not in ("graphopt", PLAIN)]
        if others:
            best = max(others, key=lambda row: row.sqnr)
            gain = self.gains[task.name] = own.sqnr - best.sqnr
            self._need(task, gain >= -0.5, f"{-gain:.1f} dB below {best.name}")
        equal = [row for row in others if abs(row.share - own.share) <= EQUAL_SHARE]
        if equal:
            fastest = min(equal, key=lambda row: statistics.median(row.times))
            median, bound = ratio(own.times, fastest.times)
            print(f"  graphopt / {fastest.name}: time {median:.3f} (at most {bound:.3f})")
            self._need(task, bound <= PEER_LIMIT, f"time bound to {fastest.name} {bound:.3f}")

    def _need(self, task: Task, held: bool, detail: str) -> None:
        if not held:
            self.missed.append(f"{task.name}: {detail}")

    def __str__(self) -> str:
        lines = [f"missed: {miss}" for miss in self.missed] or ["all figures held"]
        if self.gains:
            gains = ", ".join(f"{name} {gain:+.1f}" for name, gain in self.gains.items())
            lines.append(f"dB above the best peer: {gains}; mean {statistics.mean(self.gains.values()):+.2f}")
        return "\n".join(lines)


def machine() -> str:
    """The processor, and whether it multiplies 8-bit integers in one instruction."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown processor"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in facts.get("flags", "").split() if flag in ("avx512_vnni", "avx_vnni", "amx_int8")]
    return f"{facts.get('model name', 'unknown processor')}, VNNI: {', '.join(flags) or 'no'}"


def main() -> None:
    """Run everything, print the tables, and then which figures were missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=None, help="folder of trained models with data")
    parser.add_argument("--tasks", nargs="*", default=["*"], help="names or patterns; --list prints the names")
    parser.add_argument("--peers", nargs="*", default=["*"], help="names or patterns; slow ones run by full name only")
    parser.add_argument("--list", action="store_true", help="print the names of tasks and peers and leave")
    parser.add_argument("--pipeline", default="quantize", help="what graphopt runs; empty leaves it out")
    parser.add_argument("--plain", action="store_true", help="run graphopt's plain recipe too, for its time and memory")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="choices of calibration samples")
    parser.add_argument("--rounds", type=int, default=15, help="of timing")
    parser.add_argument("--cache", type=Path, default=None, help="where environments and models are kept")
    parser.add_argument("--folder", type=Path, default=None, help="where results go; default: a temporary folder")
    options = parser.parse_args()
    known = tasks(options.corpus, options.cache)
    if options.list:
        print("\n".join([*known, "", *(name for name, _, _ in quantizers.PEERS)]))
        return
    print(machine())
    own = [quantizers.graphopt(options.pipeline)] if options.pipeline else []
    own += [quantizers.graphopt(quantizers.PLAIN, PLAIN)] if options.plain else []
    tools = [*own, *quantizers.peers(options.peers, options.cache)]
    figures = Figures()
    for name, make in known.items():
        if any(fnmatch(name, pattern) for pattern in options.tasks):
            bench(make(), tools, options, figures)
    if options.pipeline:
        print(f"\n{figures}")


if __name__ == "__main__":
    main()
