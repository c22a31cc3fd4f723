"""What all tests share: where the corpus of real models is, and a fresh folder to work in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real trained models; tests that need it skip without `GRAPHOPT_CORPUS`."""
    folder = os.environ.get("GRAPHOPT_CORPUS")
    if not folder:
        pytest.skip("GRAPHOPT_CORPUS is not set")
    return Path(folder)
