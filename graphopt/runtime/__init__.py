"""The only place that imports onnxruntime: sessions, equivalence, measured latency."""
