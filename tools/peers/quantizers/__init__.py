"""The quantizers that `bench_quantize` holds graphopt against: one module each, run in an environment of its own.

    python -m peers.quantizers.with_nncf MODEL SAMPLES.npz OUTPUT VARIANT

SAMPLES.npz holds arrays by input name, as the model reads them; the first axis is samples. Every module does what the
tool's documentation tells its users to do; what VARIANT may be stands in its first paragraph.
"""
