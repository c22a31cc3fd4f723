"""Structure: reading, checking and writing the graph. The IR itself is onnx-ir; see docs/architecture.md."""
