"""AMD Quark's quantizer for ONNX.

Variants: the names of its configurations in lower case, such as `a8w8` and `u8s8_aaws`.
"""

from __future__ import annotations

import os

import onnx
from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config import Config, get_default_config

from peers.quantizers.opset import modern
from peers.quantizers.samples import Reader, arguments


def main() -> None:
    """Quantize."""
    model, samples, output, variant = arguments()
    source = output.with_name("modern.onnx").resolve()
    onnx.save(modern(model), source)
    os.chdir(output.parent)  # it leaves reports in the current folder
    config = Config(global_quant_config=get_default_config(variant.upper()))
    ModelQuantizer(config).quantize_model(str(source), output.name, Reader(samples))


if __name__ == "__main__":
    main()
