"""Measuring a device profile: one network of the design after the other, into a file that is whole at any time.

Some minutes of work, so it can be stopped and gone on with: the file is written anew every few seconds, a second call skips
what it has, and a file that was stopped early is a profile too, only of fewer kernels.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from graphopt.errors import ProfileError, RuntimeFailureError
from graphopt.pricing.designs import Design, designs
from graphopt.pricing.device import DeviceProfile, this_machine
from graphopt.pricing.kernel_samples import Bench, MeasuredChain

_WRITE_EVERY = 5.0
_FAST = 75
"""Percentile of measured speeds that the roofline gets: it bounds what kernels reach."""


def measure_profile(
    path: Path, *, overwrite: bool = False, progress: Callable[[float, float], None] | None = None
) -> DeviceProfile:
    """Measure this machine with one thread, and write the profile to `path`.

    Args:
        path: the file; one that is there is gone on with.
        overwrite: start anew instead.
        progress: told how many networks of how many are done.

    Raises:
        ProfileError: the file is no profile, was measured elsewhere or otherwise, or cannot be written.
    """
    profile = _started(path, overwrite)
    todo = list(designs())
    bench: Bench | None = None
    _write(path, profile)
    written = time.monotonic()
    try:
        for number, design in enumerate(todo):
            if design.name not in profile.designs:
                bench = bench or Bench(profile.block, profile.pace if profile.kernels else None)
                profile = _extended(profile, design, bench)
            if progress is not None:
                progress(number + 1, len(todo))
            if time.monotonic() - written > _WRITE_EVERY:
                _write(path, profile)
                written = time.monotonic()
    finally:  # Ctrl-C leaves what there is
        profile = _with_speeds(profile)
        _write(path, profile)
    return profile


def _started(path: Path, overwrite: bool) -> DeviceProfile:
    machine = f"{_processor()}, onnxruntime {version('onnxruntime')}, 1 thread"
    if overwrite or not path.exists():
        return dataclasses.replace(this_machine(), name=_processor(), machine=machine)
    profile = DeviceProfile.load(path)
    if profile.machine != machine:
        made = f"measured on {profile.machine}" if profile.machine else "not measured"
        raise ProfileError(f"{path}: that profile was {made}, this is {machine}; --overwrite starts anew")
    if profile.kernels and not profile.chains:
        raise ProfileError(f"{path}: an earlier version measured that profile; --overwrite starts anew")
    return profile


def _extended(profile: DeviceProfile, design: Design, bench: Bench) -> DeviceProfile:
    """The profile with the kernels of one more network; one that this onnxruntime cannot run has none."""
    try:
        chain = bench.chain(design.build())
    except RuntimeFailureError:
        chain = MeasuredChain((), 0.0)
    rows = [(family, amounts, float(f"{seconds:.4g}")) for family, amounts, seconds in chain.kernels]
    return dataclasses.replace(
        profile,
        pace=bench.clock.pace,
        inference=max(bench.overhead.run, 1e-9),
        overhead=max(bench.overhead.kernel, 1e-9),
        kernels=(*profile.kernels, *rows),
        chains=(*profile.chains, (len(rows), float(f"{chain.seconds:.5g}"))),
        designs=(*profile.designs, design.name),
    )


def _with_speeds(profile: DeviceProfile) -> DeviceProfile:
    """The speeds of the roofline, which predicts what nothing was measured of."""
    flops = [
        2 * amounts["macs"] / seconds
        for family, amounts, seconds in profile.kernels
        if family == "blocked window" and seconds > 0
    ]
    moved = [
        4 * amounts["moved"] / seconds for _, amounts, seconds in profile.kernels if "moved" in amounts and seconds > 0
    ]
    if not flops or not moved:
        return profile
    speeds = [float(f"{np.percentile(found, _FAST):.4g}") for found in (flops, moved)]
    return dataclasses.replace(profile, flops=speeds[0], bandwidth=speeds[1])


def _write(path: Path, profile: DeviceProfile) -> None:
    """Replace the file whole."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in profile.to_dict().items() if key != "kernels"]
    rows = ",\n".join(json.dumps(_short(row), separators=(",", ":")) for row in profile.kernels)
    lines.append(f'"kernels": [\n{rows}\n]')
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            draft.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be written ({error.strerror or error})") from error


def _short(row: tuple[str, object, float]) -> list[object]:
    family, amounts, seconds = row
    assert isinstance(amounts, dict)
    return [family, {key: int(amount) for key, amount in amounts.items()}, seconds]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
