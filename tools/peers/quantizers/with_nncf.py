"""NNCF's post-training quantization of ONNX models, all samples, with its bias correction.

Variants: the presets `mixed` and `performance`, and `transformer` (mixed, with the model type that NNCF has for them).
"""

from __future__ import annotations

import nncf
import onnx

from peers.quantizers.opset import modern
from peers.quantizers.samples import arguments


def main() -> None:
    """Quantize."""
    model, samples, output, variant = arguments()
    is_transformer = variant == "transformer"
    quantized = nncf.quantize(
        modern(model),
        nncf.Dataset(samples),
        preset=nncf.QuantizationPreset.PERFORMANCE if variant == "performance" else nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
        subset_size=len(samples),
    )
    onnx.save(quantized, output)


if __name__ == "__main__":
    main()
