"""Whether a structural pass measures what its result gains, and the race of the whole models.

Time is measured where the model is to run on the machine at hand: samples are there to run it on, and no device was named that
a profile speaks for.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.pipeline.base import PassContext
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.kernel_times import KernelTimes
from graphopt.runtime.latency import Latency, summarize

CONFIDENCE = 0.9
_SECONDS = 0.6
_NUMBER = re.compile(r"#(\d+)#")
_CPU = (None, "CPUExecutionProvider")


def clock(context: PassContext) -> Evidence | None:
    """What measures; None where another machine is meant, or there are no samples."""
    evidence = context.evidence
    if evidence is None or context.profile is not None or evidence.provider not in _CPU:
        return None
    return evidence


def race(original: ir.Model, result: ir.Model, evidence: Evidence) -> Latency:
    """Time of `result` against `original`, in turns, with a confidence interval of 90 %."""
    rows = evidence.race([original, result], seconds=_SECONDS)
    return summarize([(row[0], row[1]) for row in rows], evidence.threads, CONFIDENCE)


def said(latency: Latency) -> str:
    """The ratio in words."""
    low, high = latency.interval
    doubt = ", undecided" if latency.undecided else ""
    return f"time x{latency.ratio:.2f} of the original's ({low:.2f} to {high:.2f}{doubt})"


def by_number(times: KernelTimes) -> dict[int, list[npt.NDArray[np.float64]]]:
    """Seconds per round, (rounds,), of all kernels whose nodes have `#N#` in their names, by the number N.

    onnxruntime names kernels after the nodes that it makes them of.
    """
    found: dict[int, list[npt.NDArray[np.float64]]] = {}
    for name, seconds in times.items():
        match = _NUMBER.search(name)
        if match is not None:
            found.setdefault(int(match[1]), []).append(seconds)
    return found
