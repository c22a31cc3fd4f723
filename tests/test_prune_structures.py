"""The bench of structures says what pruning did, and what it could not do."""

from __future__ import annotations

from pathlib import Path

import pytest
from prune_structures import Subject, print_row, structure_row, subjects

MODELS = Path(__file__).parent.parent / "models"


def test_a_row_has_what_pruning_did(capsys: pytest.CaptureFixture[str]) -> None:
    row = structure_row(Subject("resnet50-like", MODELS / "residual.onnx"), 0.3, {})
    assert (row.problem, row.level) == ("", 0.4)
    assert row.macs is not None
    assert 0.3 < row.macs < 0.7
    assert row.holds == (row.macs <= 0.6)
    assert row.pinned is not None
    assert 0 < row.pinned < 0.5
    print_row(row, [])
    assert "feeds graph output" in capsys.readouterr().out


def test_nothing_is_pruned_at_ratio_0_and_the_level_is_missed() -> None:
    row = structure_row(Subject("vgg", MODELS / "depthwise.onnx"), 0.0, {})
    assert (row.problem, row.holds) == ("", False)
    assert row.macs == pytest.approx(1, abs=0.02)


def test_a_failure_is_a_row_too(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    row = structure_row(Subject("broken", broken), 0.3, {})
    assert row.problem
    assert not row.holds


def test_subjects_are_chosen_by_name(tmp_path: Path) -> None:
    (tmp_path / "structures").mkdir()
    for name in ("a", "b"):
        (tmp_path / "structures" / f"{name}.onnx").touch()
    assert [subject.name for subject in subjects(tmp_path, tmp_path, ["b", "c*x"])] == ["b"]
