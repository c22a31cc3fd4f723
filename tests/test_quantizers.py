"""The tools around `bench_quantize`: which peers run, what they are fed, and what becomes of failures."""

from __future__ import annotations

from pathlib import Path

import bench_quantize
import numpy as np
import pytest
import quantizers
from peers.quantizers import samples
from quantization_tasks import CALIBRATION_SAMPLES, tasks


def test_slow_peers_run_only_by_name() -> None:
    names = [name for name, _, _ in quantizers.PEERS]
    chosen = [name for name in names if quantizers.wanted(name, ["*"])]
    assert set(names) - set(chosen) == quantizers.SLOW
    assert [name for name in names if quantizers.wanted(name, ["Quark AdaRound", "INC"])] == ["Quark AdaRound", "INC"]


def test_an_environment_that_cannot_be_made_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def create(folder: Path, **options: bool) -> None:
        program = folder / "bin" / "python"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\necho progress >&2\necho 'no such package' >&2\nexit 1\n")
        program.chmod(0o755)

    monkeypatch.setattr("venv.create", create)
    nowhere = quantizers.Environment("nowhere", "with_nothing", ("no-such-package",))
    assert nowhere.python(tmp_path) is None
    assert "nowhere is left out: no such package\n" in capsys.readouterr().out


def test_peers_get_the_samples_that_the_seed_chose(tmp_path: Path) -> None:
    task = tasks(None, tmp_path)["depthwise"]()
    files = [tmp_path / f"{seed}.npz" for seed in (0, 0, 1)]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        task.calibration(file, seed)
    first, again, other = (samples.read(file) for file in files)
    assert len(first) == CALIBRATION_SAMPLES
    assert first[0]["input"].shape == (1, 1, 16, 16)
    assert all(np.array_equal(a["input"], b["input"]) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a["input"], b["input"]) for a, b in zip(first, other, strict=True))


def test_a_reader_can_start_again() -> None:
    reader = samples.Reader([{"x": np.zeros((1, 2))}])
    assert reader.get_next() is not None
    assert reader.get_next() is None
    reader.rewind()
    assert reader.get_next() is not None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("python exited with 1:\n  quantise\n  ^\n", "quantise"),
        ("Traceback\nValueError: no shape\n  note\n", "ValueError: no shape"),
    ],
)
def test_the_reason_of_a_failure(text: str, line: str) -> None:
    assert bench_quantize.reason(text) == line


def test_ratios_are_paired() -> None:
    own, other = [1.0, 10.0, 100.0], [2.0, 20.0, 200.0]
    assert bench_quantize.ratio(own, other) == (0.5, 0.5)
