"""Runs of quantize whose result cannot be measured here, and runs that find statistics of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from test_quantize import samples, small_model

import graphopt
from graphopt.data import open_samples
from graphopt.errors import DataError, RuntimeFailureError
from graphopt.pipeline.evidence import Evidence
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


def test_what_was_measured_is_remembered() -> None:
    model = graphopt.load(small_model())
    evidence = Evidence(open_samples(samples(8), model))
    answers = iter(range(9))
    assert [evidence.remember("it", model, lambda: next(answers)) for _ in range(2)] == [0, 0]
    assert evidence.remember("other", model, lambda: next(answers)) == 1
    weight = model.graph.initializers["w2"]
    weight.const_value = ir.Tensor(np.zeros((4, 4, 1, 1), np.float32), name="w2")
    assert evidence.remember("it", model, lambda: next(answers)) == 2


def test_samples_that_judge_are_apart_and_the_same_each_time() -> None:
    model = graphopt.load(small_model())
    evidence = Evidence(open_samples(samples(9), model))
    rest, judge = evidence.split(3)
    assert sorted((*rest.samples.indices(), *judge.samples.indices())) == list(range(9))
    assert len(judge.samples) == 2
    assert evidence.split(3) == (rest, judge)  # the very same: what these remember is not lost
    with pytest.raises(DataError, match="one calibration sample cannot be divided"):
        evidence.subset(1).split(0)


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
