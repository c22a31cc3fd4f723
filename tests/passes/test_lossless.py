"""The preset `lossless` as a whole: whatever the graph, its outputs stay what they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.analysis import meaning, shapes
from graphopt.ir import emit
from graphopt.ir.verify import verify
from graphopt.lift import lift
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.manager import Manager, Tools
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.records import RunRecord
from graphopt.pipeline.registry import Registry
from graphopt.runtime.equivalence import Equivalence, Status
from graphopt.runtime.evaluate import evaluate

SHAPE = "float[1,2,3,3]"
FUNCTION = """<domain: "local", opset_import: ["": 17]> mix (a, b) => (r)
  { k = Constant<value = float[1] {0.5}>()  h = Neg(k)  i = Identity(a)  p = Mul(i, h)  d = Exp(a)  r = Add(p, b) }"""
UNARY = ["Relu", "Neg", "Tanh", "Identity", "Dropout"]


@dataclasses.dataclass
class Scope:
    """A graph in the making: what its nodes can read, and its text so far."""

    prefix: str
    values: list[str]
    constants: list[str]
    lines: list[str] = dataclasses.field(default_factory=list)
    initializers: list[str] = dataclasses.field(default_factory=list)

    def fresh(self) -> str:
        return f"{self.prefix}{len(self.lines) + len(self.initializers)}"

    def add(self, expression: str, extra: str = "") -> str:
        name = self.fresh()
        self.lines.append(f"{name}{extra and f', {name}{extra}'} = {expression}")
        return name

    def constant(self, kind: str, numbers: list[float]) -> str:
        name = self.fresh()
        self.initializers.append(f"{kind} {name} = {{{', '.join(map(str, numbers))}}}")
        return name


NUMBER = st.sampled_from([0.0, 0.5, 1.0, -1.0, 2.0, 3.5])


@st.composite
def grown(draw: st.DrawFn, scope: Scope, depth: int) -> Scope:
    """`scope` with a few more nodes."""

    def numbers(count: int, strategy: st.SearchStrategy[float] = NUMBER) -> list[float]:
        return draw(st.lists(strategy, min_size=count, max_size=count))

    for _ in range(draw(st.integers(1, 6))):
        value = draw(st.sampled_from(scope.values))
        kind = draw(st.sampled_from(["unary", "binary", "constant", "shift", "conv", "shape", "if", "call", "dead"]))
        if kind == "unary":
            operator = draw(st.sampled_from(UNARY))
            scope.values.append(scope.add(f"{operator}({value})", extra="m" * (operator == "Dropout")))
        elif kind == "binary":
            scope.values.append(scope.add(f"Add({value}, {draw(st.sampled_from(scope.values))})"))
        elif kind == "constant":
            scope.constants.append(scope.constant("float[2,1,1]", numbers(2)))
            pair = draw(st.sampled_from(scope.constants)), draw(st.sampled_from(scope.constants))
            scope.constants.append(scope.add(f"{draw(st.sampled_from(['Add', 'Mul']))}({', '.join(pair)})"))
        elif kind == "shift" and scope.constants:
            scope.values.append(scope.add(f"Sub({value}, {draw(st.sampled_from(scope.constants))})"))
        elif kind == "conv":
            convolved = scope.add(f"Conv({value}, {scope.constant('float[2,2,1,1]', numbers(4))})")
            positive = scope.constant("float[2]", numbers(2, st.sampled_from([0.25, 1.0, 4.0])))
            others = [scope.constant("float[2]", numbers(2)) for _ in range(3)]
            scope.values.append(scope.add(f"BatchNormalization({', '.join([convolved, *others, positive])})"))
            if draw(st.booleans()):
                scope.values.append(convolved)
        elif kind == "shape":
            extents = scope.add(f"Identity({scope.add(f'Shape({value})')})")
            scope.values.append(scope.add(f"Reshape({value}, {extents})"))
        elif kind == "if" and depth:
            scope.values.append(scope.add(f"If (c) <{', '.join(bodies(draw, scope, depth))}>"))
        elif kind == "call":
            scope.values.append(scope.add(f"local.mix({value}, {draw(st.sampled_from(scope.values))})"))
        elif kind == "dead":
            scope.add(f"Exp({value})")
    return scope


def bodies(draw: st.DrawFn, scope: Scope, depth: int) -> list[str]:
    found = []
    for branch in ("then_branch", "else_branch"):
        prefix = f"{scope.fresh()}{branch[0]}_"
        body = draw(grown(Scope(prefix, list(scope.values), list(scope.constants)), depth - 1))
        output = body.add(f"{draw(st.sampled_from(['Identity', 'Abs']))}({draw(st.sampled_from(body.values))})")
        found.append(f"{branch} = {prefix}g () => ({SHAPE} {output}) {declared(body)}")
    return found


def declared(scope: Scope) -> str:
    initializers = f"<{', '.join(scope.initializers)}>" if scope.initializers else ""
    return f"{initializers} {{ {'  '.join(scope.lines)} }}"


@st.composite
def models(draw: st.DrawFn) -> str:
    scope = draw(grown(Scope("v", ["x", "z"], []), depth=2))
    results = draw(st.lists(st.sampled_from(scope.values), min_size=1, max_size=3, unique=True))
    outputs = [name if name not in ("x", "z") else scope.add(f"Identity({name})") for name in results]
    signature = f"g ({SHAPE} x, {SHAPE} z, bool c) => ({', '.join(f'{SHAPE} {name}' for name in outputs)})"
    return f'<ir_version: 10, opset_import: ["": 17, "local": 1]> {signature} {declared(scope)} {FUNCTION}'


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(models())
def test_outputs_are_preserved(rewriter: Any, text: str) -> None:
    outcome = rewriter.run(rewriter.model(text), "lossless")
    rewriter.same_outputs(rewriter.model(text), outcome.model, seeds=1)
    for node in outcome.model.graph:
        assert node.op_type not in ("Identity", "Dropout") or node.outputs[0].is_graph_output()
        assert any(output.uses() or output.is_graph_output() for output in node.outputs)


def managed(source: Any) -> tuple[RunRecord, Equivalence]:
    """The preset over a lifted model, as `graphopt run` does it."""
    lifted = lift(source)
    equivalence = Equivalence(lifted.relift())
    tools = Tools(
        verify_structure=verify,
        infer=shapes.infer,
        verify_meaning=meaning.check,
        save=emit.emit,
        equivalent=equivalence.verdict,
        relift=lifted.relift,
    )
    manager = Manager(Registry(), PassContext(evaluate=evaluate), tools)
    return manager.run(lifted.model, Pipeline.parse("lossless", Registry())), equivalence


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(models())
def test_the_manager_has_nothing_to_complain_about(text: str) -> None:
    record, equivalence = managed(onnx.parser.parse_model(text))
    assert record.warnings == ()
    assert equivalence.verdict(record.model).status is Status.SAME


def test_every_model_of_the_corpus(corpus: Path) -> None:
    for path in sorted(corpus.rglob("*.onnx")):
        record, _ = managed(path)
        assert all("not compared" in warning for warning in record.warnings), path
        kept = [str(r) for p in record.passes for r in p.remarks if p.name == "fold-batch-norm" and not r.applied]
        assert all("constant" in remark for remark in kept), path  # UltraFace's weights are inputs, which may change
