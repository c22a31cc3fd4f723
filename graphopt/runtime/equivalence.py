"""Whether a rewritten model still computes what the original does.

Both run in onnxruntime, its own graph optimizations off, on the same seeded inputs; the original once, its outputs
kept. Floats may differ by a fraction of the largest output, by element type; integers, truth values and strings must
be equal, NaN and infinities must be in the same places. Where nothing can be concluded (the original itself fails, an
operator is random by design) the verdict is "not done" and says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import RuntimeFailureError, UnsupportedModelError
from graphopt.ir.walk import all_nodes, constant_tensor, label
from graphopt.runtime.inputs import candidate_inputs
from graphopt.runtime.metrics.deviation import decibels
from graphopt.runtime.saturation import expose, logits_of
from graphopt.runtime.session import Feeds, ModelSource, Session, SessionOptions

TOLERANCE: Mapping[str, float] = {
    "float64": 1e-7,
    "float32": 1e-4,
    "float16": 1e-2,
    "bfloat16": 4e-2,
    "float8_e4m3fn": 0.25,
    "float8_e4m3fnuz": 0.25,
    "float8_e5m2": 0.5,
    "float8_e5m2fnuz": 0.5,
}
"""Largest max|Δ| / max|y| of an output, by the coarsest float type that it is computed in."""

_RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


class Status(enum.StrEnum):
    """What a comparison found."""

    SAME = "same"
    DIFFERENT = "different"
    NOT_DONE = "not_done"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison.

    Attributes:
        status: same, different or not done.
        detail: where they differ most, or why nothing was compared; empty when they agree.
        max_error: largest max|Δ| / max|y| over all float outputs and seeds.
        sqnr_db: the original's float outputs over their change, in dB; None where nothing was compared.
        inputs: what both ran on, such as "x[2x3]"; empty where nothing was compared.
    """

    status: Status
    detail: str = ""
    max_error: float = 0.0
    sqnr_db: float | None = None
    inputs: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The verdict as reports hold it."""
        return {**dataclasses.asdict(self), "status": str(self.status)}


class Equivalence:
    """The original's outputs on seeded inputs, to hold any number of rewritten models against.

    Args:
        model: the original before any rewrite. It is read here and not kept.
        source: what to run as the original where that is not `model`: the file it came from, or a function that
            makes the model anew. It runs when the first verdict is asked for; `model` itself would run at once.
        seed: first seed; each of `seeds` runs draws other values.
        seeds: number of runs.
        shapes: extents of inputs by name.
        threads: threads of onnxruntime.
        provider: execution provider, None for the CPU.
        tolerance: overrides `TOLERANCE` for every float type.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        source: ModelSource | Callable[[], ModelSource] | None = None,
        seed: int = 0,
        seeds: int = 2,
        shapes: Mapping[str, Sequence[int]] | None = None,
        threads: int = 1,
        provider: str | None = None,
        tolerance: float | None = None,
    ) -> None:
        """Draw the inputs. Whatever keeps the original from running becomes the reason of every later verdict."""
        self._options = SessionOptions(optimize=False, threads=threads, provider=provider, arena=False)
        self._tolerance = tolerance
        self._coarsest = _coarsest_float(model)
        self._logits = logits_of(model)
        self._source = source
        self._candidates: list[tuple[dict[str, np.ndarray], ...]] = []
        self._runs: list[_Run] = []
        self._why_not = _randomness(model)
        if self._why_not is None:
            try:
                draws = [candidate_inputs(model, seed=seed + i, shapes=shapes) for i in range(seeds)]
                self._candidates = list(zip(*draws, strict=True))
            except UnsupportedModelError as error:
                self._why_not = str(error)
        if source is None:
            self._run_original(model)

    def verdict(self, candidate: ir.Model) -> Verdict:
        """Run `candidate` on the same inputs and compare."""
        if self._source is not None:
            self._run_original(self._source() if callable(self._source) else self._source)
            self._source = None
        if self._why_not is not None:
            return Verdict(Status.NOT_DONE, self._why_not)
        found: list[Difference] = []
        try:
            model = _Runnable(candidate, logits_of(candidate), self._options, "the result")
            for run in self._runs:
                found += self._differences(run.outputs, model.run(run.feeds))
        except RuntimeFailureError as error:
            return Verdict(Status.DIFFERENT, str(error), float("inf"))
        return self._judged(found)

    def _judged(self, found: Sequence[Difference]) -> Verdict:
        """What `found` comes to: the largest difference of those beyond tolerance is the one that is told."""
        inputs = _shapes(self._runs[0].feeds) if self._runs else ""
        beyond = max((one for one in found if one.detail), key=lambda one: one.error, default=Difference())
        comparable = all(math.isfinite(one.error) for one in found)
        signal, noise = (sum(getattr(one, name) for one in found) for name in ("signal", "noise"))
        return Verdict(
            Status.DIFFERENT if beyond.detail else Status.SAME,
            f"{beyond.detail}, on random inputs {inputs}" if beyond.detail and comparable else beyond.detail,
            max((one.error for one in found), default=0.0),
            decibels(signal, noise) if comparable and signal else None,
            inputs,
        )

    def _run_original(self, source: ModelSource) -> None:
        """Fill `_runs`, with the first guess at open extents that the original accepts."""
        candidates, self._candidates = self._candidates, []
        if self._why_not is not None:
            return
        try:
            original = _Runnable(source, self._logits, self._options, "the original")
        except RuntimeFailureError as error:
            self._why_not = str(error)
            return
        failure = ""
        for inputs in candidates:
            try:
                self._runs = [_Run(feeds, original.run(feeds)) for feeds in inputs]
            except RuntimeFailureError as error:
                failure = failure or str(error)
            else:
                return
        self._why_not = f"the original does not run on seeded inputs: {failure}"

    def _differences(self, expected: dict[str, Any], actual: dict[str, Any]) -> Iterator[Difference]:
        for name, wanted in expected.items():
            if name in actual:
                found = compare(name, wanted, actual[name], self._limit)
                yield dataclasses.replace(found, signal=0.0, noise=0.0) if name.startswith(_LOGITS) else found
            elif not name.startswith(_LOGITS):  # an output that no longer ends in a Softmax has no logits to show
                yield Difference(f"{name} is missing", float("inf"))

    def _limit(self, dtype: np.dtype[Any]) -> float:
        """The tolerance of an output: a float32 output that a float16 body computes is as coarse as float16."""
        if self._tolerance is not None:
            return self._tolerance
        return max(TOLERANCE.get(dtype.name, 0.0), self._coarsest)


_LOGITS = "logits of "


@dataclasses.dataclass(frozen=True)
class _Run:
    """Inputs, and the original's outputs on them."""

    feeds: dict[str, np.ndarray]
    outputs: dict[str, Any]


class _Runnable:
    """A session whose outputs go by what messages call them: "output 'y'", "logits of output 'y'"."""

    def __init__(self, source: ModelSource, logits: Mapping[str, str], options: SessionOptions, name: str) -> None:
        self._session, logits = _session(source, logits, options, name)
        shown = set(logits.values())
        self._labels = {f"output '{name}'": name for name in self._session.output_names if name not in shown}
        self._labels.update({f"{_LOGITS}output '{output}'": name for output, name in logits.items()})

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Outputs by label."""
        outputs = self._session.run({name: feeds[name] for name in self._session.input_names if name in feeds})
        return {label: outputs[name] for label, name in self._labels.items()}


def _session(
    source: ModelSource, logits: Mapping[str, str], options: SessionOptions, name: str
) -> tuple[Session, Mapping[str, str]]:
    """A session that shows the logits as well where it can, and those that it shows."""
    exposed = expose(source, logits.values()) if logits else None
    if exposed is not None:
        with contextlib.suppress(RuntimeFailureError):  # a file may know these values by other names
            return Session(exposed, options, name=name), logits
    return Session(source, options, name=name), {}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How one output differs.

    Attributes:
        detail: what is wrong; empty where it is within tolerance.
        error: max|Δ| / max|y|; infinite where the two cannot be compared.
        signal: Σ y², of floats only.
        noise: Σ Δ², likewise.
    """

    detail: str = ""
    error: float = 0.0
    signal: float = 0.0
    noise: float = 0.0


def compare(what: str, expected: Any, actual: Any, limit: Any) -> Difference:
    """Compare two outputs, of any type that onnxruntime returns.

    Args:
        what: the output's name in messages.
        expected: the original's output: an array, or a list, dict or None.
        actual: the candidate's output.
        limit: `limit(dtype)` is the largest max|Δ| / max|y| allowed.
    """
    if isinstance(expected, np.ndarray) and isinstance(actual, np.ndarray):
        return _compare_arrays(what, expected, actual, limit)
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        items = [(f"{what}[{i}]", x, y) for i, (x, y) in enumerate(zip(expected, actual, strict=True))]
    elif isinstance(expected, dict) and isinstance(actual, dict) and expected.keys() == actual.keys():
        items = [(f"{what}[{key!r}]", x, actual[key]) for key, x in expected.items()]
    elif isinstance(expected, float) and isinstance(actual, float):
        return _compare_arrays(what, np.array([expected], np.float32), np.array([actual], np.float32), limit)
    elif type(expected) is type(actual) and not isinstance(expected, list | dict) and expected == actual:
        return Difference()
    else:
        return Difference(f"{what} is {_describe(actual)}, was {_describe(expected)}", float("inf"))
    found = [compare(name, x, y, limit) for name, x, y in items]
    telling = next((d for d in found if d.detail), max(found, key=lambda d: d.error, default=Difference()))
    return dataclasses.replace(telling, signal=sum(d.signal for d in found), noise=sum(d.noise for d in found))


def _compare_arrays(what: str, expected: np.ndarray, actual: np.ndarray, limit: Any) -> Difference:
    if (expected.dtype, expected.shape) != (actual.dtype, actual.shape):
        return Difference(f"{what} is {_describe(actual)}, was {_describe(expected)}", float("inf"))
    if expected.dtype.name not in TOLERANCE and expected.dtype.kind != "c":
        wrong = int(np.count_nonzero(expected != actual))
        if not wrong:
            return Difference()
        return Difference(f"{what}: {wrong} of {expected.size} elements differ", float("inf"))
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    x, y = expected.astype(wide), actual.astype(wide)
    finite = np.isfinite(x)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.isfinite(y[finite]).all():
        return Difference(f"{what}: NaN or infinity where the original has none, or the reverse", float("inf"))
    change, size = np.abs(x[finite] - y[finite]), np.abs(x[finite])
    delta, largest = float(change.max(initial=0.0)), float(size.max(initial=0.0))
    energies = float(np.sum(size**2)), float(np.sum(change**2))
    error = 0.0 if delta == 0 else delta / largest if largest else float("inf")
    allowed = limit(expected.dtype)
    if error <= allowed:
        return Difference("", error, *energies)
    return Difference(f"{what}: max|Δ| = {delta:.3g} is {error:.2g} of max|y|, more than {allowed:g}", error, *energies)


def _shapes(feeds: Feeds) -> str:
    """Inputs by name and extents."""
    shown = [f"{name}[{'x'.join(map(str, array.shape))}]" for name, array in feeds.items()]
    return ", ".join(shown) or "(none)"


def _describe(output: Any) -> str:
    if isinstance(output, np.ndarray):
        return f"{output.dtype}{list(output.shape)}"
    return f"a list of {len(output)}" if isinstance(output, list) else f"a {type(output).__name__}"


def _coarsest_float(model: ir.Model) -> float:
    """The tolerance of the coarsest float type that any node of `model` computes."""
    types = {output.dtype for node in all_nodes(model) for output in node.outputs}
    floats = [np.dtype(dtype.numpy()).name for dtype in types if dtype is not None and dtype.is_floating_point()]
    return max((TOLERANCE.get(name, 0.0) for name in floats), default=0.0)


def _randomness(model: ir.Model) -> str | None:
    """The operator that makes two runs of `model` differ, as a reason not to compare; None where there is none."""
    for node in all_nodes(model):
        if node.op_type in _RANDOM_OPERATORS or (node.op_type == "Dropout" and _is_training(node)):
            return f"{label(node)} is random: two runs differ by design"
    return None


def _is_training(node: ir.Node) -> bool:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    mode = constant_tensor(node.inputs[2])
    return mode is None or bool(mode.numpy().reshape(-1)[0])
