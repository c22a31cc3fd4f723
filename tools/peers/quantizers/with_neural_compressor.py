"""Intel Neural Compressor for ONNX: per channel, u8 activations, s8 weights, QDQ.

Variants: `static`, and `smooth` with SmoothQuant before it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnx_neural_compressor.data_reader import CalibrationDataReader
from onnx_neural_compressor.quantization import config, quantize
from onnxruntime.quantization import QuantFormat, QuantType

from peers.quantizers.opset import modern
from peers.quantizers.samples import Reader, arguments


class OwnReader(Reader, CalibrationDataReader):  # type: ignore[misc]  # it has no type information
    """The samples as an instance of the class that the library asks for."""


def main() -> None:
    """Quantize."""
    model, samples, output, variant = arguments()
    settings = config.StaticQuantConfig(
        OwnReader(samples),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibration_sampling_size=len(samples),
        extra_options={"SmoothQuant": variant == "smooth"},
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "modern.onnx"
        onnx.save(modern(model), source)
        quantize(str(source), str(output), settings)


if __name__ == "__main__":
    main()
