"""Products run on one thread inside the block, and as before behind it."""

from __future__ import annotations

import pytest

from graphopt.runtime.blas import one_thread, threads


def test_threads_come_back() -> None:
    before = threads()
    with one_thread():
        assert threads() == [1] * len(before)
        with one_thread():
            pass
        assert threads() == [1] * len(before)
    assert threads() == before


def test_threads_come_back_after_an_error() -> None:
    before = threads()
    with pytest.raises(ValueError, match="inside"), one_thread():
        raise ValueError("inside")
    assert threads() == before


def test_the_wheels_of_numpy_and_scipy_are_known() -> None:
    import numpy as np

    libraries = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    assert bool(threads()) or "openblas" not in str(libraries)
