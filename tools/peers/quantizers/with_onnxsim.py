"""onnxsim's static quantizer over the whole graph, after its simplifier: per channel, u8 activations, s8 weights, QDQ.

Variants: its calibrators `minmax`, `entropy`, `mse`, `percentile` and `auto`.
"""

from __future__ import annotations

import onnx
import onnxsim

from peers.quantizers.opset import modern
from peers.quantizers.samples import arguments


def main() -> None:
    """Quantize."""
    model, samples, output, variant = arguments()
    simplified, _ = onnxsim.simplify(modern(model))
    onnx.save(onnxsim.quantize_static(simplified, samples, method=variant, full_graph=True), output)


if __name__ == "__main__":
    main()
