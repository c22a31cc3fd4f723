"""What all tests share: where the corpus of real models is, and a fresh folder to work in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, and no clock: a busy machine must not fail a test. To look for new examples, run
# `pytest --hypothesis-profile=default`.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real trained models; tests that need it skip without `GRAPHOPT_CORPUS`."""
    folder = os.environ.get("GRAPHOPT_CORPUS")
    if not folder:
        pytest.skip("GRAPHOPT_CORPUS is not set")
    return Path(folder)


@pytest.fixture(autouse=True)
def few_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refit of all weights together takes seconds, not a minute; what long ones gain is measured elsewhere."""
    monkeypatch.setattr("graphopt_passes.reconstruction.distillation._MIXED_EPOCHS", 40)


@pytest.fixture(autouse=True)
def no_stopwatch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes choose must not depend on how busy the machine is, but where a test is about that."""
    if request.node.get_closest_marker("stopwatch") is None:
        monkeypatch.setattr("graphopt_passes.quantize.runs_here", lambda target, evidence: False)
        monkeypatch.setattr("graphopt_passes.reconstruction.stopwatch.clock", lambda context: None)
