"""How well a device profile predicts latency, on models that it was not measured on.

    graphopt profile-device -o profile.json
    python tools/bench_device.py profile.json [--corpus DIR] [--models GLOB ...]

Models are those in `models/`, of a corpus, the `light_*` architectures of the onnx wheel and torch exports. Each is timed in
onnxruntime with one thread, in turns with the reference that the profile was measured with (`PacedClock`), so that both
speak of the same pace of the machine. Prints every model with what the profile and the built-in roofline say (the latter
scaled by one factor, the one that suits it best), and what the project asks of the profile: a mean absolute error of at
most 10 %, and the right order in 95 % of the pairs of models that differ by more than 10 %.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from peers.exports import export
from peers.light import light, light_names
from peers.networks import NETWORKS

from graphopt.errors import GraphoptError
from graphopt.lift import lift
from graphopt.pricing import DeviceProfile, price
from graphopt.pricing.designs import reference
from graphopt.pricing.kernel_samples import feeds_of
from graphopt.runtime.inputs import candidate_inputs
from graphopt.runtime.kernel_clock import PacedClock
from graphopt.runtime.latency import accepted
from graphopt.runtime.session import Session

ROOT = Path(__file__).resolve().parent.parent
APART = 1.1


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Hold predicted latency against measured latency.")
    parser.add_argument("profile", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--models", nargs="*", default=["*"], help="patterns of names")
    parser.add_argument("--cache", type=Path, help="folder of the built models")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    profile = DeviceProfile.load(options.profile)
    model = reference()
    clock = PacedClock(model, feeds_of(model), profile.pace)
    rows: list[tuple[float, float, float]] = []
    for name, path in _models(options.corpus, options.cache, options.models):
        try:
            row = _measured(path, profile, clock, options.rounds)
        except GraphoptError as error:
            print(f"{name}: left out, {error}")
            continue
        rows.append(row)
        print(f"{name:40} {row[0]:10.3f} ms  predicted {row[1]:10.3f} ms  {row[1] / row[0] - 1:+6.1%}", flush=True)
    if rows:
        _print_summary(rows)


def _models(corpus: Path | None, cache: Path | None, patterns: Sequence[str]) -> Iterator[tuple[str, Path]]:
    files = sorted((ROOT / "models").glob("*.onnx")) + (sorted(corpus.rglob("*.onnx")) if corpus is not None else [])
    for path in files:
        if any(fnmatch(path.stem, pattern) for pattern in patterns):
            yield path.stem, path
    for name in light_names():
        if any(fnmatch(f"light-{name}", pattern) for pattern in patterns):
            yield f"light-{name}", light(name, cache)
    for name in NETWORKS:
        for batch in (1, 2):
            title = f"{name} batch {batch}"
            if any(fnmatch(title, pattern) for pattern in patterns):
                yield title, export(name, "legacy", cache, batch=batch)


def _measured(path: Path, profile: DeviceProfile, clock: PacedClock, rounds: int) -> tuple[float, float, float]:
    """Milliseconds: measured, predicted by the profile, predicted by the roofline."""
    model = lift(path).model
    feeds = accepted(Session(path), candidate_inputs(model))
    shapes = {name: array.shape for name, array in feeds.items()}
    measured = 1e3 * clock.seconds(path, feeds, rounds=rounds)
    predicted = price(model, shapes=shapes, device=profile).predicted_ms
    return measured, predicted, price(model, shapes=shapes).predicted_ms


def _print_summary(rows: Sequence[tuple[float, float, float]]) -> None:
    measured = [row[0] for row in rows]
    print(f"\n{len(rows)} models")
    for title, column in (("profile", 1), ("roofline", 2)):
        predicted = [row[column] for row in rows]
        factor = statistics.median(p / m for p, m in zip(predicted, measured, strict=True))
        errors = [abs(p / m - 1) for p, m in zip(predicted, measured, strict=True)]
        scaled = [abs(p / m / factor - 1) for p, m in zip(predicted, measured, strict=True)]
        within = sum(error <= 0.1 for error in errors) / len(errors)
        right = _ordered(measured, predicted)
        print(
            f"{title}: mean absolute error {statistics.mean(errors):.1%} (median {statistics.median(errors):.1%}, within 10 % "
            f"{within:.0%}); scaled by one factor {1 / factor:.2f}: {statistics.mean(scaled):.1%}; order right in {right:.1%}"
        )


def _ordered(measured: Sequence[float], predicted: Sequence[float]) -> float:
    """Share of the pairs that differ measurably whose order is predicted."""
    pairs = [
        (m < n) == (p < q)
        for (m, p), (n, q) in itertools.combinations(zip(measured, predicted, strict=True), 2)
        if max(m, n) > APART * min(m, n)
    ]
    return statistics.mean(pairs) if pairs else 1.0


if __name__ == "__main__":
    main()
