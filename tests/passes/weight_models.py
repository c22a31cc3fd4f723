"""What tests of the passes on single weights share: a small residual network, samples, and a run of one pass."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
from conftest import Rewriter

from graphopt.analysis import meaning, shapes
from graphopt.data import open_samples
from graphopt.ir.verify import verify
from graphopt.pipeline.base import PassContext, PassResult
from graphopt.pipeline.evidence import Evidence
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.registry import Registry
from graphopt.runtime.session import Session, SessionOptions

NETWORK = """
    g (float[n,3,8,8] x) => (float[n,5] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, wa, ba)
        s = Relu(a)
        b = Conv<pads = [1, 1, 1, 1]>(s, wb)
        t = Add(b, s)
        u = Clip(t, low, high)
        d = Conv<pads = [1, 1, 1, 1], group = 16>(u, wd)
        r = Relu(d)
        p = GlobalAveragePool(r)
        f = Flatten(p)
        m = MatMul(f, wm)
        e = Relu(m)
        y = Gemm(e, wf, bf)
    }"""
EXTENTS = {
    "wa": (16, 3, 3, 3),
    "ba": (16,),
    "wb": (16, 16, 3, 3),
    "wd": (16, 1, 3, 3),
    "wm": (16, 40),
    "wf": (40, 5),
    "bf": (5,),
}


def network(rewriter: Rewriter, kind: type[np.floating] = np.float32, factor: float = 1.0) -> ir.Model:
    rng = np.random.default_rng(0)
    tensors = {
        name: (factor * rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(kind)
        for name, shape in EXTENTS.items()
    }
    text = NETWORK if kind == np.float32 else NETWORK.replace("float[", "float16[")
    return rewriter.typed(text, {**tensors, "low": np.array(0, kind), "high": np.array(6, kind)})


def images(count: int = 40, kind: type[np.floating] = np.float32, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(count, 3, 4, 4)).repeat(2, axis=2).repeat(2, axis=3)
    return np.asarray((smooth + 0.3 * rng.normal(size=(count, 3, 8, 8))).astype(kind))


def run(
    model: ir.Model, pipeline: str, samples: np.ndarray | None = None, exclude: str | None = None
) -> tuple[PassResult, str]:
    """Run one pass, check what it made, and return its result and remarks as one text."""
    evidence = None if samples is None else Evidence(open_samples({"x": samples}, model))
    (pass_,) = Pipeline.parse(pipeline, Registry())
    result = pass_.run(model, PassContext(evidence=evidence, exclude=re.compile(exclude) if exclude else None))
    verify(model)
    shapes.infer(model)
    meaning.check(model)
    return result, "\n".join(map(str, result.remarks))


def named(model: ir.Model) -> ir.Model:
    """`model`, every node with the name of its output, so that nodes can be excluded."""
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def outputs(model: ir.Model, samples: np.ndarray) -> np.ndarray:
    return np.asarray(Session(model, SessionOptions(optimize=False)).run({"x": samples})["y"])


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    """Initializers of the main graph by name."""
    values = model.graph.initializers.items()
    return {name: value.const_value.numpy() for name, value in values if value.const_value is not None}


def error(original: ir.Model, model: ir.Model, samples: np.ndarray) -> float:
    """Relative squared error of the output."""
    right, found = outputs(original, samples).astype(np.float64), outputs(model, samples).astype(np.float64)
    return float(np.square(found - right).sum() / np.square(right - right.mean(axis=0)).sum())
