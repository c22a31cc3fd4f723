from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.errors import GraphoptError
from graphopt.runtime.session import Session

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from graphopt.integrations.torch import export  # noqa: E402 - only where torch is


@pytest.fixture(autouse=True)
def _exporters_warn() -> Iterator[None]:
    """Both exporters warn about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def network() -> Any:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Dropout(),
        torch.nn.Flatten(), torch.nn.Linear(8 * 64, 5),
    )  # fmt: skip
    layers[1].running_mean.uniform_(-1, 1)
    layers[1].running_var.uniform_(0.5, 2)
    return layers.eval()


OPTIONS: dict[str, dict[str, Any]] = {
    "dynamo": {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},), "verbose": False},
    "torchscript": {"dynamo": False, "dynamic_axes": {"image": {0: "N"}}, "opset_version": 17},
}


@pytest.mark.parametrize("exporter", OPTIONS)
def test_both_exporters(exporter: str, tmp_path: Path) -> None:
    module, path = network(), tmp_path / "net.onnx"
    names = {"input_names": ["image"], "output_names": ["logits"]}
    result = export(module, (torch.zeros(2, 3, 8, 8),), path, export_options={**OPTIONS[exporter], **names})
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert "BatchNormalization" not in operators
    assert result.report.after.nodes == len(operators)
    x = torch.randn(5, 3, 8, 8)
    logits = Session(path).run({"image": x.numpy()})["logits"]
    np.testing.assert_allclose(logits, module(x).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_optimize_options_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    args = (torch.zeros(2, 3, 8, 8),)
    result = export(network(), args, path, export_options={"dynamo": False}, pipeline="eliminate-dead-code")
    assert result.report.pipeline == "eliminate-dead-code"
    with pytest.raises(GraphoptError, match="exists already"):
        export(network(), args, path, export_options={"dynamo": False})
    export(network(), args, path, export_options={"dynamo": False}, overwrite=True)


def test_nothing_is_left_when_the_pipeline_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(GraphoptError, match="no-such-pass"):
        export(
            network(), (torch.zeros(2, 3, 8, 8),), tmp_path / "net.onnx",
            export_options={"dynamo": False}, pipeline="no-such-pass",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
