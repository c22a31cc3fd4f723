"""Device profiles: what is known about the machine that a model is to run on.

A profile says how wide the runtime's blocks of channels are, which passes ask so that they leave no width that the
machine pays for and does not use, and how fast it computes, which predictions of time are made from. The speeds are those
of a roofline; `graphopt profile-device` adds kernels that it measured, and these are better.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import ProfileError

if TYPE_CHECKING:
    from graphopt.pricing.kernel_times import KernelTimes

_NARROWEST = 4
"""Channels of a float convolution that is not a multiple of this leave onnxruntime's blocked path (see `analysis.layout`)."""


@dataclass(frozen=True)
class DeviceProfile:
    """What the roofline knows about a device; the defaults are for one thread of an AVX-512 server.

    Attributes:
        name: how reports call it.
        isa: instruction set: avx512, avx2, neon or other.
        block: channels per block of float convolutions; 1 where there are no blocked ones.
        flops: float32 operations per second of convolutions and matrix products, 2 per MAC.
        scalar_flops: operations per second of everything else.
        bandwidth: bytes per second between the cores and the caches and memory behind them.
        integer_speedup: of 8-bit convolutions and matrix products over float32.
        depthwise_efficiency: share of `flops` that depthwise convolutions reach.
        plain_factor: time of a convolution outside of the blocked path, relative to one inside.
        overhead: seconds that any kernel takes.
        inference: seconds that one inference takes beside its kernels; counts only beside measured kernels.
        kernels: measured kernels: family, amounts of work, seconds (see `graphopt.pricing.kernel_work`), 0 where that is
            less than a profiler can tell.
        chains: of each measured network, how many of `kernels` are its own, in order, and the seconds of one inference;
            0 where onnxruntime ran it otherwise than expected.
        pace: seconds of the reference that all measurements are relative to, 1 where there are none.
        designs: names of the networks that were measured.
        machine: what they were measured on.
    """

    name: str = "built-in avx512"
    isa: str = "avx512"
    block: int = 16
    flops: float = 105e9
    scalar_flops: float = 13e9
    bandwidth: float = 30e9
    integer_speedup: float = 3.8
    depthwise_efficiency: float = 0.4
    plain_factor: float = 1.27
    overhead: float = 0.5e-6
    inference: float = 10e-6
    kernels: tuple[tuple[str, Mapping[str, float], float], ...] = ()
    chains: tuple[tuple[int, float], ...] = ()
    designs: tuple[str, ...] = ()
    pace: float = 1.0
    machine: str = ""

    @property
    def title(self) -> str:
        """What predictions of time with this profile are called in reports."""
        if self.kernels:
            return f"{len(self.kernels)} kernels measured on '{self.name}'"
        return f"the roofline of '{self.name}'"

    @cached_property
    def times(self) -> KernelTimes | None:
        """What predicts from measured kernels, fitted when it is asked for first (half a second); None where there are none."""
        if not self.kernels:
            return None
        from graphopt.pricing.kernel_times import KernelTimes
        from graphopt.pricing.reconciling import reconciled
        from graphopt.runtime.blas import one_thread

        with one_thread():  # hundreds of small systems
            return KernelTimes(reconciled(self.kernels, self.chains, self.inference)).fitted()

    @property
    def alignment(self) -> int:
        """What widths should be multiples of, at least 4: others are paid for in full blocks, or leave the fast path."""
        return max(self.block, _NARROWEST)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value <= 0:
                raise ProfileError(f"device profile '{self.name}': {field.name} must be positive, not {value}")

    @classmethod
    def load(cls, path: Path) -> DeviceProfile:
        """Read a profile from JSON. Raises ProfileError where it is not one."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ProfileError(f"device profile {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise ProfileError(f"device profile {path}: not JSON ({error})") from error
        known: dict[str, type] = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        if not isinstance(data, dict) or not data.keys() <= known.keys():
            raise ProfileError(f"device profile {path}: must be an object with some of the keys {', '.join(known)}")
        for key, value in data.items():
            allowed = {float: (int, float), tuple: (list,)}.get(known[key], (known[key],))
            if not isinstance(value, allowed) or isinstance(value, bool):
                kind = "list" if known[key] is tuple else known[key].__name__
                raise ProfileError(f"device profile {path}: {key} must be {kind}, not {value!r}")
        if not (
            all(map(_is_kernel, data.get("kernels", ())))
            and all(map(_is_chain, data.get("chains", ())))
            and all(isinstance(name, str) for name in data.get("designs", ()))
            and sum(row[0] for row in data.get("chains", ()))
            == (len(data.get("kernels", ())) if data.get("chains") else 0)
        ):
            raise ProfileError(f"device profile {path}: the measured kernels in it are damaged; measure it again")
        lists = {key: tuple(map(tuple, data.get(key, ()))) for key in ("kernels", "chains")}
        return cls(**{**data, **lists, "designs": tuple(data.get("designs", ()))})

    def to_dict(self) -> dict[str, Any]:
        """The fields, as `load` reads them."""
        return dataclasses.asdict(self)


def _is_kernel(row: Any) -> bool:
    """Whether `row` is a family, positive amounts of work, and seconds."""
    if not isinstance(row, list) or len(row) != 3 or not isinstance(row[0], str) or not isinstance(row[1], dict):
        return False
    if not all(isinstance(value, int | float) for value in (row[2], *row[1].values())):
        return False
    return row[2] >= 0 and all(amount > 0 for amount in row[1].values())


def _is_chain(row: Any) -> bool:
    """Whether `row` is a number of kernels and seconds."""
    if not isinstance(row, list) or len(row) != 2:
        return False
    return isinstance(row[0], int) and isinstance(row[1], int | float) and min(row) >= 0


@cache
def this_machine() -> DeviceProfile:
    """The built-in profile that fits the instruction set of this machine."""
    flags = _cpu_flags()
    if "avx512f" in flags:
        return DeviceProfile()
    if "avx2" in flags:
        return DeviceProfile("built-in avx2", "avx2", 8, 55e9, 7e9, 20e9, 2.5)
    if platform.machine().lower() in ("arm64", "aarch64"):
        return DeviceProfile("built-in neon", "neon", 16, 30e9, 4e9, 15e9, 3.0)
    return DeviceProfile("built-in", "other", 1, 15e9, 2e9, 10e9, 1.5)


def _cpu_flags() -> set[str]:
    """Features as Linux lists them; elsewhere an x86 machine is taken to have AVX2, as all since 2015 have."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    except OSError:
        if platform.machine().lower() in ("x86_64", "amd64"):
            return {"avx2"}
    return set()
