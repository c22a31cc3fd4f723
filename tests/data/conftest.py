"""Models that samples are opened for, written as their inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import onnx_ir as ir
import pytest

MakeModel: TypeAlias = Callable[..., ir.Model]


@pytest.fixture
def make_model() -> MakeModel:
    """`make_model("float[N, 3] x, int64[N] i")`: the first input is copied to the output, of type `output`."""

    def make(inputs: str, output: str | None = None) -> ir.Model:
        kind, _, name = inputs.partition(" x")
        assert name == "" or name.startswith(","), "the first input is called x"
        text = f'<ir_version: 10, opset_import: ["": 21]> g ({inputs}) => ({output or kind} y) {{ y = Identity(x) }}'
        return ir.from_onnx_text(text)

    return make
