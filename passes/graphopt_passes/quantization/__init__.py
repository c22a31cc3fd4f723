"""Quantization: integers and 16-bit floats in place of float32."""
