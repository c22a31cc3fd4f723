"""MACs of well-known networks: the architectures that ship with the onnx wheel, against the published figures."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from graphopt.lift import lift
from graphopt.pricing import price

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

MILLIONS = {
    "bvlc_alexnet": 654.6,
    "zfnet512": 1482,
    "squeezenet": 349.2,
    "inception_v1": 1432,
    "inception_v2": 2019,
    "shufflenet": 124.7,
    "resnet50": 4089,
    "densenet121": 2834,
    "vgg19": 19632,
}


@pytest.mark.parametrize("name", MILLIONS)
def test_macs(name: str) -> None:
    cost = price(lift(LIGHT / f"light_{name}.onnx").model)
    assert cost.macs / 1e6 == pytest.approx(MILLIONS[name], rel=0.001)
    assert cost.unknown_cost_ops == ()
