"""The pass that docs/writing-passes.md shows: it works, and has the text form that the guide says."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import onnx_ir as ir
import pytest

from graphopt.analysis.shapes import infer
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.registry import GROUP, Registry

GUIDE = Path(__file__).parents[2] / "docs" / "writing-passes.md"
MODEL = """<ir_version: 10, opset_import: ["": 17]> g (float[2] x) => (float[2] y)
           { a = Cast<to = 1>(x)  b = Cast<to = 7>(a)  c = Cast<to = 7>(b)  y = Cast<to = 1>(c) }"""


@pytest.mark.parametrize(
    ("text", "left"), [("remove-casts", ["b", "y"]), ("remove-casts{only=FLOAT:DOUBLE}", ["b", "c", "y"])]
)
def test_the_example_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, left: list[str]) -> None:
    match = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    (tmp_path / "example_of_the_guide.py").write_text(match[1])
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry([EntryPoint("remove-casts", "example_of_the_guide:RemoveCasts", GROUP)])
    pipeline = Pipeline.parse(text, registry)
    assert str(pipeline) == text
    model = ir.from_onnx_text(MODEL)
    infer(model)
    (pass_,) = pipeline
    assert pass_.run(model, PassContext()).modified
    assert [node.outputs[0].name for node in model.graph] == left
    assert not pass_.run(model, PassContext()).modified
