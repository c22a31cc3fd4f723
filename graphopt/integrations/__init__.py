"""Export flows: torch and onnx-graphsurgeon."""
