"""onnxsim's structured pruner, after its simplifier: MODEL OUTPUT RATIO."""

from __future__ import annotations

import sys

import onnx
import onnxsim


def main() -> None:
    """Prune."""
    model, output, ratio = sys.argv[1:]
    simplified, _ = onnxsim.simplify(model)
    onnx.save(onnxsim.apply_structured_pruning(simplified, float(ratio)), output)


if __name__ == "__main__":
    main()
