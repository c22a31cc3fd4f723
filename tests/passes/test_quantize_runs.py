"""Runs of quantize whose result cannot be measured here, and runs that find statistics of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from test_quantize import samples, small_model

import graphopt
from graphopt.errors import RuntimeFailureError
from graphopt.runtime.statistics import collect


def test_bfloat16_is_written_though_it_cannot_be_measured(tmp_path: Path) -> None:
    result = graphopt.optimize(
        small_model(), "quantize{mode=bfloat16}", data=samples(), eval_data=samples(16), latency=True
    )
    assert result.report.quality is None
    assert result.report.latency is None
    said = "\n".join(result.warnings)
    assert "quality was not measured: the result computes in bfloat16" in said
    assert "latency was not measured: the result computes in bfloat16" in said
    result.save(tmp_path / "b.onnx")
    stored = {tensor.data_type for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in stored


def test_bfloat16_cannot_be_gated() -> None:
    with pytest.raises(RuntimeFailureError, match="--max-drop cannot be judged here, in bfloat16"):
        graphopt.optimize(small_model(), "quantize{mode=bfloat16}", data=samples(64), max_drop=0.5)


def test_statistics_are_kept_between_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(model: Any, requests: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(len(requests))
        return collect(model, requests, *arguments, **options)

    monkeypatch.setattr("graphopt.runtime.statistics_cache.collect", counted)

    def run(count: int) -> bytes:
        asked.clear()
        data = samples(count)
        result = graphopt.optimize(small_model(), "quantize{mode=static}", data=data, statistics_folder=tmp_path / "s")
        return bytes(result.model.SerializeToString())

    first = run(32)
    assert asked
    assert run(32) == first
    assert not asked
    run(31)
    assert asked
