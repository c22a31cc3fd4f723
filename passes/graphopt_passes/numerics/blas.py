"""How many threads numpy's and scipy's products use.

Threads of OpenBLAS wait for each other by spinning, which costs more than it brings where matrices are small, and many times as
much where other processes want the processor: thousands of decompositions of some hundred rows took 20 s of processor time on one
thread and more than 100 on two. The libraries come with the wheels of both packages; others are left as they are.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDERS = ("../{}.libs", ".dylibs")
_NAMES = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Products on one thread until the block ends, for the whole process."""
    before = [(change, ask()) for ask, change in _libraries()]
    for change, _ in before:
        change(1)
    try:
        yield
    finally:
        for change, count in before:
            change(count)


def threads() -> list[int]:
    """How many threads each library uses now."""
    return [ask() for ask, _ in _libraries()]


@functools.cache
def _libraries() -> tuple[tuple[Callable[[], int], Callable[[int], None]], ...]:
    """What reads and what sets the number of threads of every OpenBLAS that is loaded with numpy and scipy."""
    import numpy as np
    import scipy

    found = []
    for package in (np, scipy):
        home = Path(package.__path__[0])
        for folder in _FOLDERS:
            for file in sorted((home / folder.format(package.__name__)).glob("*openblas*")):
                found += _controls(file)
    return tuple(found)


def _controls(file: Path) -> list[tuple[Callable[[], int], Callable[[int], None]]]:
    try:
        library = ctypes.CDLL(str(file))
    except OSError:
        return []
    for name in _NAMES:
        if hasattr(library, name.format("get_num_threads")):
            ask, change = (getattr(library, name.format(what)) for what in ("get_num_threads", "set_num_threads"))
            ask.restype, change.argtypes, change.restype = ctypes.c_int, [ctypes.c_int], None
            return [(ask, change)]
    return []
