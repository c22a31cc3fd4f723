"""The operator table: everything we know about an ONNX operator, in one place."""
