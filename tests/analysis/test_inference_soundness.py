"""What inference says is what onnxruntime yields, and no less than what ONNX and the symbolic library find out."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir
import pytest

from graphopt.analysis import dims, shapes
from graphopt.analysis.dims import Bindings
from graphopt.ir import walk

MODELS = Path(__file__).parents[2] / "models"


def undeclared(proto: onnx.ModelProto) -> ir.Model:
    """The model without anything declared on what standard operators yield."""
    model = ir.from_proto(proto)
    for graph in walk.graph_and_bodies(model.graph):
        for node in graph:
            for output in node.outputs if node.domain == "" else ():
                output.type = output.shape = None
    return model


def results(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    for graph in walk.graph_and_bodies(model.graph):
        for node in graph:
            for output in node.outputs:
                if output.name:
                    yield node, output


def symbolized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a symbol of its own for every extent of its inputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    for index, value in enumerate(proto.graph.input):
        if value.type.HasField("tensor_type"):
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                dim.dim_param = f"s{index}_{axis}"
    return proto


def with_all_results(proto: onnx.ModelProto, model: ir.Model) -> onnx.ModelProto:
    """The model with every value of its main graph as an output, and no extents declared on any."""
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    del watched.graph.value_info[:]
    known = {output.name for output in watched.graph.output}
    for output in watched.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    names = [output.name for node in model.graph for output in node.outputs if output.name]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return watched


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
def test_every_inferred_extent_is_what_onnxruntime_yields(
    symbolic: bool, node_cases: list[Any], session: Callable[[onnx.ModelProto], Any]
) -> None:
    wrong, compared = [], 0
    for case in node_cases:
        proto = symbolized(case.model) if symbolic else case.model
        if not case.data_sets:
            continue
        model = undeclared(proto)
        shapes.infer(model)
        inputs = dict(zip((value.name for value in proto.graph.input), case.data_sets[0][0], strict=False))
        try:
            runnable = session(with_all_results(proto, model))
            yielded = runnable.run(None, {value.name: inputs[value.name] for value in runnable.get_inputs()})
        except Exception:  # onnxruntime's own types have no common base; it implements no more than 1,530 of the cases
            continue
        numbers = {
            f"s{index}_{axis}": extent
            for index, array in enumerate(inputs.values())
            for axis, extent in enumerate(np.shape(array) if isinstance(array, np.ndarray) else ())
        }
        values = {output.name: output for _, output in results(model)}
        for output, array in zip(runnable.get_outputs(), yielded, strict=True):
            value = values.get(output.name)
            if value is None or not isinstance(array, np.ndarray) or value.shape is None:
                continue
            compared += 1
            found = [Bindings(numbers).evaluate(dims.from_ir(dim)) for dim in value.shape]
            fits = len(found) == array.ndim and all(a in (None, b) for a, b in zip(found, array.shape, strict=True))
            if not fits:
                wrong.append((case.name, value.name, str(value.shape), array.shape))
    assert wrong == []
    assert compared > 2000


def missing(model: ir.Model, reference: ir.Model, generated: Callable[[ir.SymbolicDim], bool]) -> list[str]:
    """Values of which the reference knows something that the model does not."""
    found = []
    for (node, value), (_, other) in zip(results(model), results(reference), strict=True):
        if other.type is not None and value.type != other.type:
            found.append(f"{node.op_type} {value.name}: type {other.type}, not {value.type}")
        if other.shape is None:
            continue
        if value.shape is None or len(value.shape) != len(other.shape):
            found.append(f"{node.op_type} {value.name}: {other.shape}, not {value.shape}")
            continue
        for dim, known in zip(value.shape, other.shape, strict=True):
            says_something = known >= 0 if isinstance(known, int) else known.value is not None and not generated(known)
            if says_something and (dims.is_invented(dim) or (isinstance(known, int) and dim != known)):
                found.append(f"{node.op_type} {value.name}: {other.shape}, not {value.shape}")
                break
    return found


def onnx_generated(dim: ir.SymbolicDim) -> bool:
    return "unk__" in str(dim) or str(dim) == "?"


def by_onnx(model: ir.Model) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))


def test_as_much_as_onnx_on_its_node_tests(node_cases: list[Any]) -> None:
    less: collections.Counter[str] = collections.Counter()
    for case in node_cases:
        model = undeclared(case.model)
        reference = by_onnx(model)
        shapes.infer(model)
        less.update(f"{case.name}: {text}" for text in missing(model, reference, onnx_generated))
    # ONNX takes the extents of a sequence's first element for those of all.
    assert list(less) == ["test_loop13_seq: Loop seq_res: [], not None"]


def real_models(corpus: Path) -> list[Path]:
    found = sorted(corpus.glob("*/*.onnx")) + sorted(MODELS.glob("*.onnx"))
    assert len(found) >= 20
    # Initializers of IR 3 that are inputs are for lifting to sort out.
    return [path for path in found if path.name != "mnist.onnx"]


def test_as_much_as_onnx_on_real_models(corpus: Path) -> None:
    for path in real_models(corpus):
        model = undeclared(onnx.load(path))
        reference = by_onnx(model)
        shapes.infer(model)
        assert missing(model, reference, onnx_generated) == [], path


def test_as_much_as_the_symbolic_library_on_real_models(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    import onnx_shape_inference

    caplog.set_level(logging.CRITICAL)
    compared = 0
    for path in real_models(corpus):
        model, reference = undeclared(onnx.load(path)), undeclared(onnx.load(path))
        shapes.infer(model)
        try:
            onnx_shape_inference.infer_symbolic_shapes(reference)
        except ValueError:
            continue  # it cannot read a dim called '?'
        compared += 1
        assert missing(model, reference, lambda dim: "_d" in str(dim)) == [], path
    assert compared >= 20


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.name)
def test_exports_with_a_dynamic_batch_leave_nothing_open(path: Path) -> None:
    model = undeclared(onnx.load(path))
    assert shapes.infer(model) == []
    for node, value in results(model):
        assert value.type is not None, node
        assert value.shape is not None, node
        symbols = {name for dim in value.shape if not isinstance(dim, int) for name in dim.free_symbols()}
        assert symbols <= {"batch"}, (node.op_type, value)
