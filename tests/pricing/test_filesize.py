"""The size that is added up is the size that is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ir import emit
from graphopt.lift import lift
from graphopt.pricing.filesize import FileSize

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_own_models(path: Path) -> None:
    model = lift(path).model
    assert FileSize().of(model) == emit.serialized_size(model)


def test_corpus(corpus: Path) -> None:
    for path in sorted(corpus.rglob("*.onnx")):
        model = lift(path).model
        # Forgetting a made-up symbol can shorten the lengths around it, too.
        assert FileSize().of(model) == pytest.approx(emit.serialized_size(model), rel=2e-5), path


@pytest.mark.parametrize(
    "text",
    [
        """g (bool c, float[4] x) => (float[4] y) <float[3] t = {1,2,3}> {
            [named] y = If (c) <then_branch = t () => (float[4] a) <float[4] k = {1,2,3,4}> { a = Add(x, k) },
                else_branch = e () => (float[4] b) { b = LeakyRelu<alpha=0.5>(x) }> }""",
        """g (float[2,8] x) => (float[2,8] y) { y = local.f<n=3>(x) }
            <domain: "local", opset_import: ["" : 20]>
            f <n> (a) => (o) { p = Softmax<axis: int = @n>(a) o = Exp(p) }""",
        "g (float[N,M] x) => (float[N,M] y) { y = Clip(x) }",
    ],
)
def test_what_models_are_made_of(text: str, model_of: Callable[..., ir.Model]) -> None:
    model = model_of(text)
    model.doc_string, model.producer_name, model.model_version = "ü" * 200, "somebody", 300
    model.metadata_props["key"] = "value"
    model.graph[0].metadata_props["pass"] = "mine"
    model.graph.metadata_props["graph"] = "props"
    assert FileSize().of(model) == emit.serialized_size(model)


def test_sizes_are_remembered_until_they_are_forgotten(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        "g (float[8,8] x, float[8,8] w) => (float[8,8] y) { y = MatMul(x, w) }", w=np.zeros((8, 8), np.float32)
    )
    size = FileSize()
    before = size.of(model)
    node = model.graph[0]
    node.name = "a rather long name"
    assert size.of(model) == before
    size.forget([node])
    assert size.of(model) == emit.serialized_size(model) > before
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(np.zeros((8, 80), np.float32), name="w")
    assert size.of(model) == emit.serialized_size(model)
