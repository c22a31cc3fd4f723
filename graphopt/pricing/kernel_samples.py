"""Measured kernels: what each of them had to do, and how long it took.

The kernels that the analysis expects of a model are held against those that onnxruntime ran. Both are sequences of operators,
and nearly always the same; where they differ, only kernels that correspond beyond doubt become samples.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from graphopt.analysis.execution import Execution
from graphopt.analysis.extents import Extents
from graphopt.analysis.fusion import ACTIVATIONS, Kernel
from graphopt.lift import lift
from graphopt.pricing.designs import calls, reference
from graphopt.pricing.kernel_times import Row
from graphopt.pricing.kernel_work import kernel_name, work_of
from graphopt.pricing.vanishing import vanishing
from graphopt.runtime.kernel_clock import KernelTime, PacedClock, kernel_times

_PARTS = {"HardSwish": ("HardSigmoid", "Mul")}
"""Operators that onnxruntime runs as several kernels."""

_PROFILED = 0.5
"""Seconds that are profiled of each chain."""

_FEWEST_RUNS, _MOST_RUNS = 8, 40

_PREFIXES = ("Fused", "Skip", "Bias", "Fast")
_SAME = {
    "Gemm": "MatMul",
    "ReorderInput": "Reorder",
    "ReorderOutput": "Reorder",
    "Upsample": "Resize",
    "DynamicQuantizeMatMul": "MatMulInteger",
}


@dataclass(frozen=True)
class Overhead:
    """Seconds that everything takes: one inference, and each kernel in it whatever it does; `event` is what the profiler
    says that such a kernel takes."""

    run: float
    kernel: float
    event: float


@dataclass(frozen=True)
class MeasuredChain:
    """The kernels of one network, in order, and the seconds of one inference.

    A kernel that onnxruntime did not run as expected has 0 seconds, and a network with such a kernel too.
    """

    kernels: tuple[Row, ...]
    seconds: float


class Bench:
    """This machine, ready to measure kernels.

    Args:
        block: channels per block of its convolutions.
        pace: seconds of the reference in a profile that is gone on with (see `PacedClock`).
    """

    def __init__(self, block: int, pace: float | None = None) -> None:
        self._block = block
        model = reference()
        self.clock = PacedClock(model, feeds_of(model), pace)
        self.overhead = self._overhead()

    def _overhead(self) -> Overhead:
        few, many = 8, 200
        models = [calls(count) for count in (few, many)]
        short, long = (self.clock.seconds(model, feeds_of(model)) for model in models)
        kernel = max(0.0, (long - short) / (many - few))
        events = kernel_times(models[1], feeds_of(models[1]))
        return Overhead(max(0.0, short - few * kernel), kernel, float(np.median([time.seconds for time in events])))

    def chain(self, model: onnx.ModelProto) -> MeasuredChain:
        """Run `model`, which has one float input, and return what was expected of it and what it took.

        The profiler tells how the time is shared out among kernels, the paced clock how much it is as a whole: its
        microseconds are too coarse for short kernels, and its own work is in them (see `graphopt.pricing.reconciling`).

        Raises:
            RuntimeFailureError: onnxruntime cannot run it.
        """
        lifted = lift(model).model
        execution = Execution(lifted, Extents(lifted), self._block)
        feeds = feeds_of(model)
        total = self.clock.seconds(model, feeds)
        runs = int(min(max(_PROFILED / total, _FEWEST_RUNS), _MOST_RUNS))
        times = [
            dataclasses.replace(time, seconds=max(0.0, time.seconds - self.overhead.event))
            for time in kernel_times(model, feeds, runs=runs)
        ]
        gone = vanishing(lifted.graph)
        expected = [
            kernel for kernel in execution.steps(lifted.graph) if not gone.issuperset(kernel.nodes) or not kernel.nodes
        ]
        rows: list[Row] = []
        ran = 0
        for kernel, seconds, parts in matched(expected, times):
            work = work_of(kernel, execution, self._block)
            if work is not None:
                rows.append((work.family, work.amounts, seconds))
                ran += parts
        return MeasuredChain(tuple(rows), total if ran == len(times) else 0.0)


def feeds_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Random numbers for the one input of `model`, 1 for extents that it leaves open."""
    (source,) = model.graph.input
    dims = [dim.dim_value or 1 for dim in source.type.tensor_type.shape.dim]
    return {source.name: np.random.default_rng(0).random(dims, np.float32)}


def matched(kernels: Sequence[Kernel], times: Sequence[KernelTime]) -> Iterator[tuple[Kernel, float, int]]:
    """Kernels that were expected, with the seconds of those that ran in their place, and how many those are."""
    wanted: list[str] = []
    owner: list[int] = []
    for index, kernel in enumerate(kernels):
        parts = _expected(kernel)
        wanted += parts
        owner += [index] * len(parts)
    found: dict[int, dict[int, float]] = {}
    for want, run in _pairs(wanted, [_plain_name(time.op_type) for time in times]):
        found.setdefault(owner[want], {})[want] = times[run].seconds
    for index, seconds in sorted(found.items()):
        needed = [at for at in range(len(wanted)) if owner[at] == index and wanted[at] != "Reshape"]
        if all(at in seconds for at in needed):
            yield kernels[index], sum(seconds.values()), len(seconds)


def _pairs(wanted: Sequence[str], ran: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Places that correspond: in the same order, and of what is left those of which there are as many on either side."""
    lacking, unexpected = dict(enumerate(wanted)), dict(enumerate(ran))
    for block in difflib.SequenceMatcher(None, wanted, ran, autojunk=False).get_matching_blocks():
        for step in range(block.size):
            yield block.a + step, block.b + step
            del lacking[block.a + step], unexpected[block.b + step]
    for name in set(lacking.values()):
        sides = [[at for at, other in side.items() if other == name] for side in (lacking, unexpected)]
        if len(sides[0]) == len(sides[1]):
            yield from zip(*sides, strict=True)


def _expected(kernel: Kernel) -> list[str]:
    name = kernel_name(kernel)
    if kernel.integer:
        return [f"QLinear{_SAME.get(name, name)}"]
    if len(kernel.nodes) > 1 and kernel.main.op_type == "MatMul" and _is_stack(kernel):
        # a product with a bias takes matrices only; of two Reshapes in a row one is left, and activations come after
        return ["Reshape", "MatMul", "Reshape", *(node.op_type for node in kernel.nodes if node.op_type in ACTIVATIONS)]
    return list(_PARTS.get(name, (_plain_name(name),)))


def _is_stack(kernel: Kernel) -> bool:
    value = kernel.main.inputs[0]
    return value is not None and value.shape is not None and len(value.shape) > 2


def _plain_name(op_type: str) -> str:
    if op_type == "QGemm":
        return "QLinearMatMul"
    for prefix in _PREFIXES:
        op_type = op_type.removeprefix(prefix)
    return _SAME.get(op_type, op_type)
