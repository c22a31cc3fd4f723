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
from graphopt.analysis.fusion import Kernel
from graphopt.lift import lift
from graphopt.pricing.designs import calls, reference
from graphopt.pricing.kernel_times import Row
from graphopt.pricing.kernel_work import kernel_name, work_of
from graphopt.runtime.kernel_clock import KernelTime, PacedClock, kernel_times

_PARTS = {"HardSwish": ("HardSigmoid", "Mul")}
"""Operators that onnxruntime runs as several kernels."""

_UNDISTURBED = 0.25e-3
"""Seconds of a kernel that schedulers hardly ever interrupt."""

_LEAST_SCALE = 0.3

_PREFIXES = ("Fused", "Skip", "Bias", "Fast")
_SAME = {
    "Gemm": "MatMul",
    "ReorderInput": "Reorder",
    "ReorderOutput": "Reorder",
    "DynamicQuantizeMatMul": "MatMulInteger",
}


@dataclass(frozen=True)
class Overhead:
    """Seconds that everything takes: one inference, and each kernel in it whatever it does; `event` is what the profiler
    says that such a kernel takes."""

    run: float
    kernel: float
    event: float


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
        self._scales: list[float] = []

    def _overhead(self) -> Overhead:
        few, many = 8, 200
        models = [calls(count) for count in (few, many)]
        short, long = (self.clock.seconds(model, feeds_of(model)) for model in models)
        kernel = max(0.0, (long - short) / (many - few))
        events = kernel_times(models[1], feeds_of(models[1]))
        return Overhead(max(0.0, short - few * kernel), kernel, float(np.median([time.seconds for time in events])))

    def samples(self, model: onnx.ModelProto, *, runs: int = 30) -> list[Row]:
        """Run `model`, which has one float input, and return its kernels.

        The profiler tells how long each kernel takes when nothing disturbs it, the paced clock how much longer all of
        them take as the machine is. Where kernels are so short that hardly anything disturbs them, that ratio is the chain's
        own; other chains get the median of those.

        Raises:
            RuntimeFailureError: onnxruntime cannot run it.
        """
        lifted = lift(model).model
        execution = Execution(lifted, Extents(lifted), self._block)
        feeds, overhead = feeds_of(model), self.overhead
        times = kernel_times(model, feeds, runs=runs)
        alone = [max(0.0, time.seconds - overhead.event) for time in times]
        if sum(alone) > 0 and max(alone) < _UNDISTURBED:
            total = self.clock.seconds(model, feeds) - overhead.run - len(times) * overhead.kernel
            scale = max(total / sum(alone), _LEAST_SCALE)
            self._scales.append(scale)
        else:
            scale = float(np.median(self._scales)) if self._scales else 1.0
        times = [
            dataclasses.replace(time, seconds=overhead.kernel + own * scale)
            for time, own in zip(times, alone, strict=True)
        ]
        found = []
        for kernel, seconds in matched(execution.steps(lifted.graph), times):
            work = work_of(kernel, execution, self._block)
            if work is not None:
                found.append((work.family, work.amounts, seconds))
        return found


def feeds_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Random numbers for the one input of `model`."""
    (source,) = model.graph.input
    dims = [dim.dim_value for dim in source.type.tensor_type.shape.dim]
    return {source.name: np.random.default_rng(0).random(dims, np.float32)}


def matched(kernels: Sequence[Kernel], times: Sequence[KernelTime]) -> Iterator[tuple[Kernel, float]]:
    """Kernels that were expected, with the seconds of those that ran in their place."""
    wanted: list[str] = []
    owner: list[int] = []
    for index, kernel in enumerate(kernels):
        parts = _expected(kernel)
        wanted += parts
        owner += [index] * len(parts)
    ran = [_plain_name(time.op_type) for time in times]
    pairs: dict[int, list[float]] = {}
    for block in difflib.SequenceMatcher(None, wanted, ran, autojunk=False).get_matching_blocks():
        for step in range(block.size):
            pairs.setdefault(owner[block.a + step], []).append(times[block.b + step].seconds)
    for index, seconds in pairs.items():
        if len(seconds) == owner.count(index):
            yield kernels[index], sum(seconds)


def _expected(kernel: Kernel) -> list[str]:
    name = kernel_name(kernel)
    if kernel.integer:
        return [f"QLinear{_SAME.get(name, name)}"]
    if len(kernel.nodes) > 1 and kernel.main.op_type == "MatMul" and _is_stack(kernel):
        return ["Reshape", "MatMul", "Reshape"]  # a product with a bias takes matrices only
    return list(_PARTS.get(name, (_SAME.get(name, name),)))


def _is_stack(kernel: Kernel) -> bool:
    value = kernel.main.inputs[0]
    return value is not None and value.shape is not None and len(value.shape) > 2


def _plain_name(op_type: str) -> str:
    if op_type == "QGemm":
        return "QLinearMatMul"
    for prefix in _PREFIXES:
        op_type = op_type.removeprefix(prefix)
    return _SAME.get(op_type, op_type)
