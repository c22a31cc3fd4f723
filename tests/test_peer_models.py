"""The bench models are what they claim to be: known sizes, live outputs, removable nodes, one pair."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import peer_models
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

NETWORKS = sorted(peer_models.REFERENCES)
STRUCTURES = sorted(peer_models.NETWORKS.keys() - peer_models.REFERENCES.keys())


def run(path: Path, inputs: dict[str, NDArray[Any]], output: str | None = None) -> NDArray[Any]:
    """Return the first output of the model, or the value `output`, without graph optimizations."""
    model = onnx.load(path)
    if output is not None:
        model.graph.output.insert(0, onnx.helper.make_empty_tensor_value_info(output))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    result: NDArray[Any] = session.run(None, inputs)[0]
    return result


def relative_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_published_parameters_and_macs(name: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = peer_models.network(name).eval()
    inputs = [torch.from_numpy(array).to("meta") for array in peer_models.example_inputs(name).values()]
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    reference = peer_models.REFERENCES[name]
    assert sum(parameter.numel() for parameter in network.parameters()) == reference.parameters
    assert counter.get_total_flops() / 2e6 == pytest.approx(reference.macs, rel=1e-3)


@pytest.mark.parametrize("name", STRUCTURES)
def test_networks_of_each_structure_tell_inputs_apart(name: str) -> None:
    torch = pytest.importorskip("torch")
    inputs = [torch.from_numpy(array) for array in peer_models.example_inputs(name, batch=2).values()]
    outputs = peer_models.weighted_network(name)(*inputs)
    array = (outputs if isinstance(outputs, torch.Tensor) else outputs[0]).numpy()
    assert np.isfinite(array).all()
    assert array.std() > 0.1
    assert relative_distance(array[0], array[1]) > 0.01


def test_exports_with_a_symbolic_batch_compute_what_torch_computes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    inputs = peer_models.example_inputs("swin", batch=3)
    expected = peer_models.weighted_network("swin")(torch.from_numpy(inputs["input"])).numpy()
    path = peer_models.export("swin", "legacy", tmp_path, batch=None)
    assert relative_distance(expected, run(path, inputs)) < 1e-4


def test_an_export_with_batch_norm_computes_what_torch_computes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    path = peer_models.export("mobilenetv2", "legacy", tmp_path, batch=None, keep_bn=True)
    inputs = peer_models.example_inputs("mobilenetv2", batch=3)
    expected = peer_models.weighted_network("mobilenetv2")(torch.from_numpy(inputs["input"])).numpy()

    operators = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert operators["Conv"] == operators["BatchNormalization"] == 52
    assert relative_distance(expected, run(path, inputs)) < 1e-4
    assert relative_distance(expected[0], expected[1]) > 0.01
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mobilenetv2"):
        peer_models.export("alexnet", "legacy", tmp_path)
    with pytest.raises(ValueError, match="shufflenet"):
        peer_models.light("alexnet", tmp_path)


@pytest.mark.parametrize(("name", "nodes"), [("squeezenet", 66), ("shufflenet", 203)])
def test_light_models_are_alive(tmp_path: Path, name: str, nodes: int) -> None:
    path = peer_models.light(name, tmp_path)
    graph = onnx.load(path).graph
    assert len(graph.node) == nodes
    assert "ConstantOfShape" not in {node.op_type for node in graph.node}
    assert graph.node[-1].op_type == "Softmax"

    logits = graph.node[-1].input[0]
    first, second = (
        run(
            path,
            {graph.input[0].name: peer_models.images(np.random.default_rng(seed), (1, 3, 224, 224))},
            logits,
        )
        for seed in (0, 1)
    )
    assert np.isfinite(first).all()
    assert 0.1 < first.std() < 1e3
    assert relative_distance(first, second) > 0.01


def test_light_weights_depend_on_nothing_but_their_names(tmp_path: Path) -> None:
    once, again = (peer_models.light("squeezenet", tmp_path / part) for part in ("a", "b"))
    assert once.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("nodes", [200, 207])
def test_many_nodes_runs_and_can_be_simplified(tmp_path: Path, nodes: int) -> None:
    path = peer_models.many_nodes(tmp_path, nodes)
    graph = onnx.load(path).graph
    assert len(graph.node) == nodes
    read = {name for node in graph.node for name in node.input} | {graph.output[0].name}
    assert sum(node.output[0] not in read for node in graph.node) == 10
    operators = Counter(node.op_type for node in graph.node)
    assert (operators["Identity"], operators["BatchNormalization"], operators["Constant"]) == (20, 10, 10)

    inputs = [np.random.default_rng(seed).standard_normal((1, 8, 8, 8), np.float32) for seed in (0, 1)]
    first, second = (run(path, {"input": values}) for values in inputs)
    assert np.isfinite(first).all()
    assert 0.1 < first.std() < 100
    assert relative_distance(first, second) > 0.1


def test_big_is_valid_and_has_one_duplicate_pair(tmp_path: Path) -> None:
    path = peer_models.big(tmp_path, gib=0.004)
    onnx.checker.check_model(path, full_check=True)
    data = path.with_name("big.onnx.data")
    assert data.stat().st_size == pytest.approx(0.004 * 2**30, rel=0.05)
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, data.name]

    model = onnx.load(path)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    names: dict[bytes, list[str]] = {}
    for name, array in arrays.items():
        if array.dtype == np.float32:
            names.setdefault(array.tobytes(), []).append(name)
    assert [group for group in names.values() if len(group) > 1] == [["pair.a", "pair.b"]]
    assert arrays["huge"].nbytes == max(array.nbytes for array in arrays.values())

    width = arrays["head"].shape[0]
    inputs = [np.random.default_rng(seed).standard_normal((1, width), np.float32) for seed in (0, 1)]
    first, second = (run(path, {"input": values}) for values in inputs)
    assert np.isfinite(first).all()
    assert relative_distance(first, second) > 0.01


def test_a_failed_build_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    from peers.cache import cached

    def fail(path: Path) -> None:
        path.write_bytes(b"half a model")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cached(tmp_path, "model", fail)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_names_and_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer_models.main(["--list"])
    assert {"resnet50", "light-densenet121", "big", "many-nodes"} <= set(capsys.readouterr().out.split())
    peer_models.main(["many-nodes", "--nodes", "40", "--folder", str(tmp_path)])
    assert Path(capsys.readouterr().out.strip()).parent == tmp_path
