"""Models of old opsets, made fit for quantizers that write per-channel scales (opset 13) and do not convert themselves."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import version_converter

LEAST, MODERN = 13, 17


def modern(path: Path) -> onnx.ModelProto:
    """The model, converted where its opset is too old, as the quantizers' own messages advise."""
    model = onnx.load(path)
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return version_converter.convert_version(model, MODERN) if version < LEAST else model
