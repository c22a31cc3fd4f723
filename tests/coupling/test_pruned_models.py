"""Trained and exported models: pruned by a third, they run, and compute what the original does without the channels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from pruning import lifted, pruned, run, same, silenced

from graphopt.analysis.coupling import couple

MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.onnx"))


def images(proto: onnx.ModelProto, batch: int) -> dict[str, np.ndarray]:
    """Random inputs with a batch where it is symbolic."""
    rng = np.random.default_rng(0)
    stored = {tensor.name for tensor in proto.graph.initializer}
    return {
        value.name: rng.normal(size=[dim.dim_value or batch for dim in value.type.tensor_type.shape.dim]).astype(
            np.float32
        )
        for value in proto.graph.input
        if value.name not in stored
    }


def plain(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of each initializer for every reader, also of those that several names stand for by an Identity."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    kept = [node for node in result.graph.node if not (node.op_type == "Identity" and node.input[0] in stored)]
    names = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "Identity"}
    for number, node in enumerate(kept):
        for index, name in enumerate(node.input):
            if names.get(name, name) in stored:
                copy = result.graph.initializer.add()
                copy.CopyFrom(stored[names.get(name, name)])
                copy.name = node.input[index] = f"{name}_{number}"
    del result.graph.node[:]
    result.graph.node.extend(kept)
    return result


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_models_of_the_project(path: Path) -> None:
    proto = plain(onnx.load(path))
    small, units = pruned(proto, 0.3)
    assert units
    given = images(proto, 2)
    assert same(run(silenced(proto, units), given), run(small, given))


CORPUS = Path(os.environ.get("GRAPHOPT_CORPUS", "/nonexistent"))
SHARES = {
    "cifar10_resnet20/resnet20_bn": 0.02,
    "cifar10_resnet20/resnet20_dynamo": 0.02,
    "imagenet_squeezenet/squeezenet": 0.26,
    "vww_mobilenetv1/vww": 0.01,
    "kws_dscnn/kws": 0.04,
    "structures/fastestdet_coco": 0.1,
    "structures/mlperftiny_ic_resnet8": 0.03,
}
"""Of some models of the corpus, which share of all channels may be pinned: little more than their outputs."""


@pytest.mark.skipif(not CORPUS.exists(), reason="GRAPHOPT_CORPUS names no folder")
@pytest.mark.parametrize("name", SHARES)
def test_models_of_the_corpus(name: str) -> None:
    proto = onnx.load(CORPUS / f"{name}.onnx")
    coupling = couple(lifted(proto))
    assert sum(pin.channels for pin in coupling.pinned) <= SHARES[name] * sum(coupling.widths.values())
    assert all(pin.reason for pin in coupling.pinned)
    small, units = pruned(proto, 0.3)
    assert len(units) > 0.2 * sum(len(group.units) for group in coupling.groups)
    given = images(proto, 1)
    results = run(small, given)
    assert [result.shape for result in results] == [result.shape for result in run(proto, given)]
