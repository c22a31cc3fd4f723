"""The order of kernels, and the kernels themselves, against the graph that onnxruntime really makes."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from graphopt.analysis.execution import Execution
from graphopt.analysis.extents import Extents
from graphopt.analysis.schedule import depth_first, stored_order
from graphopt.lift import lift
from graphopt.pricing.device import this_machine

MODELS = Path(__file__).resolve().parents[2] / "models"
VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}


def execution_of(model: ir.Model) -> Execution:
    return Execution(model, Extents(model), this_machine().block)


def predicted(path: Path) -> list[str]:
    """The operators of the kernels, convolutions with their filters in whole blocks, reorders as onnxruntime says."""
    model = lift(path).model
    execution = execution_of(model)
    found = []
    for kernel in execution.steps(model.graph):
        if kernel.view_of is not None:
            continue
        layout, op_type = execution.layout(kernel.writes[0]), kernel.main.op_type
        if not kernel.nodes:
            op_type = "ReorderInput" if kernel.writes[0].block else "ReorderOutput"
        filters = f" {layout[0][1]}" if op_type == "Conv" and layout is not None else ""
        found.append(op_type + filters)
    return found


def actual(path: Path, folder: Path) -> list[str]:
    """The same of the graph that onnxruntime made and would run."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(folder / "optimized.onnx").graph
    filters = {tensor.name: f" {tensor.dims[0]}" for tensor in graph.initializer if tensor.dims}
    found = []
    for node in graph.node:
        op_type = node.op_type.removeprefix("Fused")
        if op_type not in VIEWS:
            found.append(op_type + (filters[node.input[1]] if op_type == "Conv" else ""))
    return found


x86 = pytest.mark.skipif(this_machine().isa not in ("avx512", "avx2"), reason="layouts were studied on x86")


@x86
@pytest.mark.parametrize("name", ["residual", "residual.dynamo", "depthwise", "depthwise.dynamo", "shuffle.dynamo"])
def test_kernels_and_order_are_onnxruntimes(name: str, tmp_path: Path) -> None:
    path = MODELS / f"{name}.onnx"
    assert predicted(path) == actual(path, tmp_path)


@x86
@pytest.mark.parametrize("shortcut_first", [False, True])
@pytest.mark.parametrize("operands", ["c, d", "d, c"])
@pytest.mark.parametrize("activation", ["s", "Relu(s)"])
def test_branches_run_in_onnxruntimes_order(
    shortcut_first: bool, operands: str, activation: str, tmp_path: Path
) -> None:
    """A residual block with a convolution in its shortcut: each fusion makes new nodes and turns the order round."""
    widths = {"t": (16, 16), "u": (32, 16), "v": (64, 32), "w": (64, 16), "z": (16, 64)}
    main, shortcut = "a = Conv(x, u) b = Relu(a) c = Conv(b, v)", "d = Conv(x, w)"
    body = f"{shortcut} {main}" if shortcut_first else f"{main} {shortcut}"
    end = "y = Conv(s, z)" if activation == "s" else "r = Relu(s) y = Conv(r, z)"
    proto = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 17]>
        g (float[1,16,8,8] i) => (float[1,16,8,8] y) {{ x = Conv(i, t) {body} s = Add({operands}) {end} }}""")
    for name, (filters, channels) in widths.items():
        weight = onnx.helper.make_tensor(name, 1, [filters, channels, 1, 1], [0.5] * (filters * channels))
        proto.graph.initializer.append(weight)
    path = tmp_path / "block.onnx"
    onnx.save(proto, path)
    assert predicted(path) == actual(path, tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        "a = Exp(x) b = Sin(x) y = Sub(a, b)",
        "a = Exp(x) b = Sin(x) y = Sub(b, a)",
        "a = Exp(x) b = Sin(a) c = Cos(a) d = Sub(c, b) e = Neg(x) y = Sub(e, d)",
    ],
)
def test_of_two_operands_the_later_one_is_made_first(body: str, tmp_path: Path) -> None:
    # The Identity is there to be eliminated: of a graph that it did not change, onnxruntime hands back the original.
    text = f'<ir_version: 9, opset_import: ["" : 17]> g (float[8] i) => (float[8] y) {{ x = Identity(i) {body} }}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "branches.onnx")
    assert predicted(tmp_path / "branches.onnx") == actual(tmp_path / "branches.onnx", tmp_path)


@pytest.mark.parametrize("name", ["residual", "shuffle", "transformer"])
def test_every_order_is_topological(name: str) -> None:
    model = lift(MODELS / f"{name}.onnx").model
    steps = execution_of(model).steps(model.graph)
    for order in (steps, depth_first(steps, latest_first=False), stored_order(steps)):
        assert sorted(map(id, order)) == sorted(map(id, steps))
        written: set[object] = set()
        for kernel in order:
            assert all(tensor in written or tensor.value.producer() is None for tensor in kernel.reads)
            written.update(kernel.writes)
