"""How many threads numpy's and scipy's products use.

Threads of OpenBLAS wait for each other by spinning, which costs more than it brings where matrices are small, and many times as
much where other processes want the processor: thousands of decompositions of some hundred rows took 20 s of processor time on one
thread and more than 100 on two.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """Products on one thread until the block ends, for the whole process."""
    with _libraries().limit(limits=1):
        yield


def threads() -> list[int]:
    """How many threads each library uses now."""
    return [library["num_threads"] for library in _libraries().info()]


@functools.cache
def _libraries() -> ThreadpoolController:
    """The libraries of linear algebra that are loaded; scipy's comes with its decompositions."""
    import scipy.linalg  # noqa: F401

    return ThreadpoolController().select(user_api="blas")
