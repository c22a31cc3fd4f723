"""The two commands of the README, on the networks of this repository and on the corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Call

MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.onnx"))
CORPUS = [
    "cifar10_resnet20/resnet20_bn.onnx",
    "cifar10_resnet20/resnet20_dynamo.onnx",
    "imagenet_squeezenet/squeezenet.onnx",
    "kws_dscnn/kws.onnx",
    "structures/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "structures/fastestdet_coco.onnx",
    "structures/mlperftiny_ic_resnet8.onnx",
    "structures/mnist.onnx",
    "structures/silero_vad.onnx",
    "structures/silero_vad_op18_ifless.onnx",
    "structures/superres_core_op18.onnx",
    "structures/ultraface_version-RFB-320.onnx",
    "vww_mobilenetv1/vww.onnx",
]


def run_and_compare(path: Path, folder: Path, call: Call) -> None:
    out = folder / "out.onnx"
    run = call("run", path, "-o", out, "--json", "-")
    assert run.code == 0, run.err
    report = json.loads(run.out)
    assert report["after"]["nodes"] <= report["before"]["nodes"]
    assert 0 < report["after"]["macs"] <= report["before"]["macs"]
    assert report["after"]["bytes"] == out.stat().st_size
    compared = call("compare", path, out, "--json", "-", "-q")
    assert json.loads(compared.out)["check"]["status"] == "same", compared
    cost = call("cost", path, "--per-node", "--json", "-", "-q")
    assert json.loads(cost.out)["macs"] == report["before"]["macs"]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_own_networks(path: Path, tmp_path: Path, call: Call) -> None:
    run_and_compare(path, tmp_path, call)


@pytest.mark.parametrize("name", CORPUS)
def test_corpus(name: str, corpus: Path, tmp_path: Path, call: Call) -> None:
    run_and_compare(corpus / name, tmp_path, call)
