"""onnxruntime's quantizer after its own pre-processing: per channel, u8 activations, s8 weights, QDQ.

Variants: the calibrators `minmax`, `entropy` and `percentile`, and `dynamic`, which needs no samples; with `-7` behind them
weights take 7 bits, as the documentation advises for processors without VNNI.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from peers.quantizers.opset import modern
from peers.quantizers.samples import Reader, arguments

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class OwnReader(Reader, CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no type information
    """The samples as an instance of the class that onnxruntime asks for."""


def prepared(model: Path, folder: Path) -> Path:
    """The model after onnxruntime's pre-processing; without symbolic shapes where these fail, as its message advises."""
    source, path = folder / "modern.onnx", folder / "prepared.onnx"
    onnx.save(modern(model), source)
    try:
        quant_pre_process(source, path)
    except Exception:  # plain `Exception` is what symbolic shape inference raises
        quant_pre_process(source, path, skip_symbolic_shape=True)
    return path


def main() -> None:
    """Quantize."""
    model, samples, output, variant = arguments()
    variant, _, bits = variant.partition("-")
    with tempfile.TemporaryDirectory() as folder:
        source = prepared(model, Path(folder))
        if variant == "dynamic":
            quantize_dynamic(source, output, weight_type=QuantType.QInt8, per_channel=True, reduce_range=bits == "7")
            return
        quantize_static(
            source,
            output,
            OwnReader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=bits == "7",
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[variant],
        )


if __name__ == "__main__":
    main()
