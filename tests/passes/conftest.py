"""Running passes over models given as ONNX text: golden comparison, and numerical comparison in onnxruntime."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnx.printer
import onnx_ir as ir
import pytest

from graphopt.analysis import meaning, shapes
from graphopt.ir.verify import verify
from graphopt.pipeline.base import PassContext, PassResult, Remark
from graphopt.pipeline.manager import MOST_SWEEPS
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.registry import Registry
from graphopt.runtime.evaluate import evaluate
from graphopt.runtime.session import Session, SessionOptions

HEADER = '<ir_version: 10, opset_import: ["": 17, "local": 1, "acme": 1]>\n'


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A rewritten model, and what the passes said."""

    model: ir.Model
    modified: bool
    remarks: tuple[Remark, ...]

    @property
    def reasons(self) -> str:
        """All remarks in one text."""
        return "\n".join(map(str, self.remarks))


class Rewriter:
    """Passes applied to text; a header with the IR version and opsets is put before text that has none."""

    def model(self, text: str, tensors: Mapping[str, np.ndarray] | None = None) -> ir.Model:
        """The model that `text` describes; the values that `tensors` names are initializers."""
        proto = onnx.parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text)
        for name, array in (tensors or {}).items():
            proto.graph.initializer.append(ir.serde.serialize_tensor(ir.Tensor(array, name=name)))
        onnx.checker.check_model(proto)
        return ir.from_proto(proto)

    def printed(self, model: ir.Model) -> str:
        """The model as text, without the types of inner values."""
        proto = ir.to_proto(model)
        forget_inner_types(proto.graph)
        return str(onnx.printer.to_text(proto))

    def run(self, model: ir.Model, pipeline: str, exclude: str | None = None, *, runtime: bool = True) -> Outcome:
        """Run `pipeline` to a fixed point, as the manager does; whatever it changes must verify.

        A single pass must be done after one run, several after a few sweeps; a run after that must change nothing.
        """
        context = PassContext(exclude=re.compile(exclude) if exclude else None, evaluate=evaluate if runtime else None)
        passes = Pipeline.parse(pipeline, Registry())
        results: list[PassResult] = []
        for _ in range(1 if len(passes) == 1 else MOST_SWEEPS):
            sweep = [self._applied(pass_.run(model, context), model) for pass_ in passes]
            results += sweep
            if not any(result.modified for result in sweep):
                break
        after = self.printed(model)
        assert not any(pass_.run(model, context).modified for pass_ in passes)
        assert self.printed(model) == after
        remarks = tuple(remark for result in results for remark in result.remarks)
        return Outcome(model, any(result.modified for result in results), remarks)

    def _applied(self, result: PassResult, model: ir.Model) -> PassResult:
        verify(model)
        if result.touched is not None:
            verify(model, result.touched)
            assert result.modified or not result.touched
        return result

    def golden(self, before: str, pipeline: str, after: str | None = None, exclude: str | None = None) -> Outcome:
        """Compare the rewritten `before` with `after` as text; without `after` nothing may change."""
        outcome = self.run(self.model(before), pipeline, exclude)
        assert self.printed(outcome.model) == self.printed(self.model(before if after is None else after))
        assert outcome.modified == (after is not None)
        return outcome

    def typed(self, text: str, tensors: Mapping[str, np.ndarray] | None = None) -> ir.Model:
        """The model that `text` describes, every value with the type and shape that follow."""
        model = self.model(text, tensors)
        shapes.infer(model)
        return model

    def rewrites(self, before: str, pipeline: str, after: str | None = None, exclude: str | None = None) -> Outcome:
        """`golden` on typed models; the result must be legal and compute the same."""
        outcome = self.run(self.typed(before), pipeline, exclude)
        assert self.printed(outcome.model) == self.printed(self.typed(before if after is None else after))
        assert outcome.modified == (after is not None)
        shapes.infer(outcome.model)
        meaning.check(outcome.model)
        if after is not None:
            self.same_outputs(self.typed(before), outcome.model)
        return outcome

    def outputs(self, model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What onnxruntime, its optimizations off, computes from `feeds`."""
        return Session(model, SessionOptions(optimize=False, arena=False)).run(feeds)

    def same_outputs(self, before: ir.Model, after: ir.Model, seeds: int = 2) -> None:
        """Run both in onnxruntime, its optimizations off, on random inputs; symbolic dims are 3."""
        options = SessionOptions(optimize=False, arena=False)
        sessions = [Session(model, options) for model in (before, after)]
        assert sessions[0].output_names == sessions[1].output_names
        for seed in range(seeds):
            feeds = random_inputs(before, np.random.default_rng(seed))
            expected, actual = (session.run(feeds) for session in sessions)
            for name, wanted in expected.items():
                if wanted.dtype.kind == "O":
                    assert actual[name].tolist() == wanted.tolist()
                    continue
                tolerance = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-9}.get(wanted.dtype.name, 0)
                scale = float(np.abs(wanted).max(initial=0)) if tolerance else 0
                np.testing.assert_allclose(actual[name], wanted, rtol=0, atol=tolerance * scale, err_msg=name)
                assert actual[name].dtype == wanted.dtype


def forget_inner_types(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                forget_inner_types(attribute.g)


def random_inputs(model: ir.Model, rng: np.random.Generator) -> dict[str, np.ndarray]:
    feeds = {}
    for value in model.graph.inputs:
        assert value.dtype is not None
        assert value.shape is not None
        shape = [dim if isinstance(dim, int) else 3 for dim in value.shape]
        numbers = rng.standard_normal(shape) if value.dtype.is_floating_point() else rng.integers(0, 2, shape)
        is_text = value.dtype == ir.DataType.STRING
        feeds[value.name or ""] = numbers.astype(str).astype(object) if is_text else numbers.astype(value.dtype.numpy())
    return feeds


@pytest.fixture(scope="session")
def rewriter() -> Rewriter:
    return Rewriter()
