"""Timing whole commands fairly: interleaved, repeated, medians, with the kernel's own account of time and memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
wall = time.perf_counter() - start
result = [os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]
os.write(int(sys.argv[1]), json.dumps(result).encode())
"""
"""A process starts with the peak memory of the one that starts it, so that one must be small."""


@dataclass(frozen=True)
class Run:
    """One finished process: seconds on the clock, seconds of processor time, peak resident bytes."""

    wall: float
    cpu: float
    peak: int


@cache
def _bytecode() -> tempfile.TemporaryDirectory[str]:
    """A folder for compiled Python modules, the same for all commands: installed or not, a second run finds them."""
    return tempfile.TemporaryDirectory(prefix="bytecode-")


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end. Raises RuntimeError with its last words where it fails."""
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": _bytecode().name}
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile("w+") as account:
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(account.fileno()), *command]
        environment = {**os.environ, **compiled, **(env or {})}
        subprocess.run(
            launcher, stdout=log, stderr=subprocess.STDOUT, env=environment, pass_fds=[account.fileno()], check=True
        )
        account.seek(0)
        exit_code, wall, cpu, peak = json.load(account)
        if exit_code:
            log.seek(0)
            tail = log.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command)} exited with {exit_code}:\n{tail}")
    return Run(wall, cpu, peak)


def interleaved(commands: Mapping[str, Sequence[str]], rounds: int, warmup: int = 1) -> dict[str, list[Run]]:
    """Run every command `rounds` times in turn, A B A B ..., after `warmup` rounds that do not count."""
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for turn in range(warmup + rounds):
        for name, command in commands.items():
            result = run(command)
            if turn >= warmup:
                runs[name].append(result)
    return runs


def table(runs: Mapping[str, Sequence[Run]], reference: str) -> str:
    """Medians per command, and the median of the paired wall-time ratios to `reference`."""
    rows = [f"{'command':<28}{'wall s':>9}{'cpu s':>9}{'peak MiB':>10}{'wall ratio':>12}"]
    for name, own in runs.items():
        ratio = statistics.median(one.wall / other.wall for one, other in zip(own, runs[reference], strict=True))
        rows.append(
            f"{name:<28}{statistics.median(one.wall for one in own):>9.2f}"
            f"{statistics.median(one.cpu for one in own):>9.2f}{max(one.peak for one in own) / 2**20:>10.0f}"
            f"{ratio:>12.2f}"
        )
    return "\n".join(rows)


def python(code: str, *arguments: str | Path) -> list[str]:
    """The command that runs a piece of Python code in a fresh interpreter."""
    return [sys.executable, "-c", code, *map(str, arguments)]


def graphopt(*arguments: str | Path) -> list[str]:
    """The command that runs graphopt's command line in a fresh interpreter."""
    return [sys.executable, "-m", "graphopt", *map(str, arguments)]
