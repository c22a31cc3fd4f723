"""Models from text, with weights where the text has none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis import shapes

ModelOf = Callable[..., ir.Model]


@pytest.fixture(scope="session")
def model_of() -> ModelOf:
    """`model_of(text, **weights)`: graph inputs named in `weights` become initializers of these arrays."""

    def make(text: str, **weights: np.ndarray | ir.TensorProtocol) -> ir.Model:
        header = '<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1, "local" : 1, "my" : 1]>\n'
        model = ir.from_onnx_text(header + text)
        for value in list(model.graph.inputs):
            if value.name in weights:
                array = weights[value.name]
                value.const_value = ir.tensor(array, name=value.name) if isinstance(array, np.ndarray) else array
                value.const_value.name = value.name
                model.graph.inputs.remove(value)
                model.graph.initializers.add(value)
        shapes.infer(model)
        return model

    return make
