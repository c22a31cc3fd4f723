"""What onnxruntime's profiler wrote: the kernels of each run, in the order in which they ran."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ENDING = "_kernel_time"


@dataclass(frozen=True, slots=True)
class KernelEvent:
    """One run of one kernel: the operator, its node's name in the graph that onnxruntime made, and seconds on the clock.

    The profiler cuts seconds off to whole microseconds.
    """

    op_type: str
    name: str
    seconds: float


def read_runs(profile: Path, count: int) -> list[list[KernelEvent]]:
    """The last `count` runs in a file that `Session.end_profiling` wrote."""
    events: list[dict[str, Any]] = json.loads(profile.read_text(encoding="utf-8"))
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")[-count:]
    runs: list[list[KernelEvent]] = [[] for _ in starts]
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(_ENDING):
            continue
        run = bisect_right(starts, event["ts"]) - 1
        if run >= 0:
            name = event["name"].removesuffix(_ENDING)
            runs[run].append(KernelEvent(event["args"]["op_name"], name, 1e-6 * event["dur"]))
    return runs
