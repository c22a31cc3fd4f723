"""ConvTransposes behind layers whose weights were bound: they make up for what these have lost, and take no bound themselves."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conftest import Rewriter
from weight_models import error, images, named, outputs, run, weights

EXTENTS = {"wa": (16, 3, 3, 3), "wt": (16, 4, 4, 4), "wb": (4, 4, 1, 1)}


def decoder(rewriter: Rewriter, kind: type[np.floating] = np.float32) -> ir.Model:
    rng = np.random.default_rng(0)
    arrays = {
        name: (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(kind) for name, shape in EXTENTS.items()
    }
    text = """g (float[n,3,8,8] x) => (float[n,4,16,16] y) { a = Conv<pads=[1,1,1,1]>(x, wa) s = Relu(a)
        t = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(s, wt) r = Relu(t) y = Conv(r, wb) }"""
    return named(rewriter.typed(text if kind == np.float32 else text.replace("float[", "float16["), arrays))


@pytest.mark.parametrize("pipeline", ["sparsify{sparsity=0.6,spread=even}", "cluster-weights{values=4}"])
def test_transposed_convolutions_are_refitted(rewriter: Rewriter, pipeline: str) -> None:
    original, refitted, kept = (decoder(rewriter) for _ in range(3))
    run(refitted, pipeline, images(40))
    run(kept, pipeline, images(40), exclude="t")
    np.testing.assert_array_equal(weights(kept)["wt"], weights(original)["wt"])
    others = images(20, seed=2)
    assert error(original, refitted, others) < 0.97 * error(original, kept, others)


def test_float16_stays_float16(rewriter: Rewriter) -> None:
    model = decoder(rewriter, np.float16)
    run(model, "sparsify{sparsity=0.6,spread=even}", images(40, np.float16))
    assert weights(model)["wt"].dtype == np.float16
    assert np.isfinite(outputs(model, images(4, np.float16))).all()


def test_without_samples_and_with_nothing_to_do_they_stay(rewriter: Rewriter) -> None:
    for samples, pipeline in ((None, "sparsify{sparsity=0.6,spread=even}"), (images(40), "sparsify{sparsity=0.0}")):
        model = decoder(rewriter)
        run(model, pipeline, samples)
        np.testing.assert_array_equal(weights(model)["wt"], weights(decoder(rewriter))["wt"])
