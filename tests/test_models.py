"""The networks of `models/`: they load, agree with each other and with their card, and are what they claim to be."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import graphopt

MODELS = Path(__file__).resolve().parents[1] / "models"
FILES = sorted(path.name for path in MODELS.glob("*.onnx"))
NETWORKS = sorted(name.removesuffix(".onnx") for name in FILES if not name.endswith(".dynamo.onnx"))
EXPECTED_NETWORKS = {"depthwise", "mlp", "residual", "shuffle", "transformer"}

Arrays = dict[str, NDArray[np.generic]]


@cache
def held_out() -> Arrays:
    return load_data("eval")


def load_data(part: str) -> Arrays:
    with np.load(MODELS / f"digits.{part}.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@cache
def logits(file: str) -> NDArray[np.float32]:
    """Run the model on the held-out inputs with onnxruntime's own graph optimizations off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(MODELS / file, options, providers=["CPUExecutionProvider"])
    feeds = {value.name: held_out()[value.name] for value in session.get_inputs()}
    answer: NDArray[np.float32]
    (answer,) = session.run(None, feeds)
    return answer


def operators(file: str) -> set[str]:
    return {node.op_type for node in onnx.load(MODELS / file).graph.node}


def initializers(file: str) -> dict[str, NDArray[np.generic]]:
    graph = onnx.load(MODELS / file).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    # The exporter stores equal tensors once and names the others with Identity.
    aliases = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity" and n.input[0] in arrays}
    return arrays | {alias: arrays[name] for alias, name in aliases.items()}


def card_accuracies() -> dict[str, tuple[str, str]]:
    """Return accuracy and standard error in per cent by file, as the card prints them."""
    row = re.compile(r"^\| `(\S+\.onnx)` \|.*\| ([\d.]+) ± ([\d.]+) % \|$", re.MULTILINE)
    card = (MODELS / "README.md").read_text(encoding="utf-8")
    return {file: (share, error) for file, share, error in row.findall(card)}


def test_each_network_is_there_from_both_exporters() -> None:
    assert set(NETWORKS) == EXPECTED_NETWORKS
    assert set(FILES) == {name + end for name in NETWORKS for end in (".onnx", ".dynamo.onnx")}


def test_everything_together_is_under_three_megabytes() -> None:
    assert 0 < sum(path.stat().st_size for path in MODELS.iterdir()) < 3_000_000


@pytest.mark.parametrize("file", FILES)
def test_model_is_valid_and_complete_in_one_file(file: str) -> None:
    onnx.checker.check_model(str(MODELS / file), full_check=True)
    model = onnx.load(MODELS / file, load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize("file", FILES)
def test_model_has_a_symbolic_batch_axis(file: str) -> None:
    graph = onnx.load(MODELS / file).graph
    for value in [*graph.input, *graph.output]:
        first, *others = value.type.tensor_type.shape.dim
        assert first.dim_param
        assert all(dim.dim_value for dim in others)


@pytest.mark.parametrize("file", FILES)
def test_model_holds_no_machine_paths(file: str) -> None:
    content = (MODELS / file).read_bytes()
    assert not re.search(rb'File "|\.py\b|site-packages|/(?:home|Users|root|opt|tmp|usr|work)/', content)


@pytest.mark.parametrize("network", NETWORKS)
def test_both_exports_agree_on_the_held_out_logits(network: str) -> None:
    legacy, dynamo = logits(f"{network}.onnx"), logits(f"{network}.dynamo.onnx")
    assert np.abs(legacy - dynamo).max() <= 2e-4 * np.abs(legacy).max()


@pytest.mark.parametrize("file", FILES)
def test_card_states_the_measured_accuracy(file: str) -> None:
    correct = logits(file).argmax(axis=1) == held_out()["labels"]
    error = np.sqrt(correct.mean() * (1 - correct.mean()) / len(correct))
    assert card_accuracies()[file] == (f"{100 * correct.mean():.2f}", f"{100 * error:.2f}")


@pytest.mark.parametrize("file", FILES)
def test_card_counts_parameters_as_cost_does(file: str) -> None:
    card, count = (MODELS / "README.md").read_text(encoding="utf-8"), f"{graphopt.cost(MODELS / file).params:,}"
    assert re.search(rf"^\| `{re.escape(file)}` \| \w+ \| \d+ \| {count} \|", card, re.MULTILINE)
    if file in {f"{network}.onnx" for network in NETWORKS}:
        assert f"(#{file.removesuffix('.onnx')}) | {count} |" in card


@pytest.mark.parametrize("network", NETWORKS)
def test_network_has_learned_its_task(network: str) -> None:
    share = (logits(f"{network}.onnx").argmax(axis=1) == held_out()["labels"]).mean()
    assert share > 0.8


@pytest.mark.parametrize(("part", "least"), [("calib", 256), ("eval", 400)])
def test_data_fits_the_models(part: str, least: int) -> None:
    data = load_data(part)
    assert set(data) == {"input", "labels"}
    images, labels = data["input"], data["labels"]
    assert images.dtype == np.float32
    assert images.shape == (len(labels), 1, 16, 16)
    assert len(labels) >= least
    assert labels.dtype == np.int64
    assert set(labels.tolist()) == set(range(10))


def test_calibration_and_held_out_images_are_disjoint() -> None:
    calibration = {image.tobytes() for image in load_data("calib")["input"]}
    images = {image.tobytes() for image in held_out()["input"]}
    assert len(images) == len(held_out()["labels"])
    assert not calibration & images


@pytest.mark.parametrize("network", ["residual", "depthwise"])
def test_legacy_export_keeps_a_batch_normalization_per_convolution(network: str) -> None:
    nodes = [node.op_type for node in onnx.load(MODELS / f"{network}.onnx").graph.node]
    assert nodes.count("BatchNormalization") == nodes.count("Conv") > 10


def test_residual_has_downsampling_projection_shortcuts() -> None:
    strides = {
        tuple(attribute.ints)
        for node in onnx.load(MODELS / "residual.onnx").graph.node
        for attribute in node.attribute
        if node.op_type == "Conv" and attribute.name == "strides"
    }
    kernels = {array.shape[2:] for array in initializers("residual.onnx").values() if array.ndim == 4}
    assert strides == {(1, 1), (2, 2)}
    assert kernels == {(1, 1), (3, 3)}
    assert "Add" in operators("residual.onnx")


def test_depthwise_scales_span_three_decades() -> None:
    arrays = initializers("depthwise.onnx")
    norms = [n for n in onnx.load(MODELS / "depthwise.onnx").graph.node if n.op_type == "BatchNormalization"]
    scales = [np.abs(arrays[node.input[1]]) for node in norms]
    assert max(scale.max() / scale.min() for scale in scales) > 1000


@pytest.mark.parametrize("file", ["depthwise.onnx", "depthwise.dynamo.onnx"])
def test_depthwise_needs_the_clip_of_its_relu6(file: str) -> None:
    model = onnx.load(MODELS / file)
    clips = [node for node in model.graph.node if node.op_type == "Clip"]
    assert clips
    for node in clips:
        node.op_type = "Relu"
        del node.input[1:]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (unclipped,) = session.run(None, {"input": held_out()["input"]})
    labels = held_out()["labels"]
    assert (logits(file).argmax(axis=1) == labels).mean() > (unclipped.argmax(axis=1) == labels).mean() + 0.1


@pytest.mark.parametrize("file", ["shuffle.onnx", "shuffle.dynamo.onnx"])
def test_shuffle_splits_concatenates_and_shuffles(file: str) -> None:
    assert operators(file) >= {"Split", "Concat", "Reshape", "Transpose"}


def test_transformer_is_spelled_as_each_exporter_does() -> None:
    shared = {"LayerNormalization", "MatMul", "Softmax"}
    assert operators("transformer.onnx") >= shared | {"Erf"}
    assert operators("transformer.dynamo.onnx") >= shared | {"Gelu"}


def test_mlp_is_made_of_gemms() -> None:
    assert operators("mlp.onnx") == {"Flatten", "Gemm", "Relu"}
