"""A model of 3 GiB in one external data file, to see who can compress what does not fit twice into memory.

With h = 4096 and h * h float32 = 64 MiB, the data holds

    nine blocks of  Gemm (h, h), MatMul (h, h) and Conv (h/4, h/4, 3, 3)     1476 MiB
    the pair  "pair.a" and "pair.b"  (h, 4h), the same bytes twice            512 MiB
    "huge"  (4h, 4h), one tensor alone                                       1024 MiB
    "head"  (h, k), with the k that makes the sum right                        60 MiB

All sizes shrink with the `gib` asked for, so that a test may use a model of 2 MiB with the same graph. The
content is uniform noise of He's variance, generated and written 16 MiB at a time: writing takes less memory
than one weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from peers.cache import REVISION, cache_folder, publish

_BLOCKS = 9
_CHUNK = 16 * 2**20
_PAGE = 4096  # external tensors start on a page, so that they can be mapped
MODEL, DATA = "big.onnx", "big.onnx.data"


@dataclass(frozen=True)
class _Weight:
    """An external tensor: float32 noise in +-bound, from `seed`."""

    name: str
    shape: tuple[int, ...]
    bound: float
    seed: int
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass
class _Chain:
    """A graph under construction whose nodes form a chain; `tip` is the value at its end."""

    tip: str = "input"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[_Weight] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def weight(self, name: str, shape: tuple[int, ...], fan_in: int, seed: int | None = None) -> str:
        """Add an external tensor of variance 2 / fan_in, at the next free page, and return its name."""
        last = self.weights[-1] if self.weights else None
        end = last.offset + 4 * last.elements if last else 0
        offset = -(-end // _PAGE) * _PAGE
        own_seed = len(self.weights) if seed is None else seed
        self.weights.append(_Weight(name, shape, math.sqrt(6 / fan_in), own_seed, offset))
        return name

    def bias(self, name: str, size: int) -> str:
        """Add an external vector of deviation 0.05."""
        return self.weight(name, (size,), 800)

    def node(self, op_type: str, *inputs: str, name: str, **attributes: Any) -> None:
        """Append a node that reads the tip, then `inputs`."""
        self.nodes.append(helper.make_node(op_type, [self.tip, *inputs], [name], name=name, **attributes))
        self.tip = name


def big(folder: Path | str | None = None, gib: float = 3) -> Path:
    """Return the path of `big.onnx`, beside its `big.onnx.data` of `gib` GiB in a folder of their own."""
    home = cache_folder(folder) / f"big-{gib:g}GiB-r{REVISION}"

    def build(scratch: Path) -> None:
        chain, classes = _chain(gib)
        _write_data(scratch / DATA, chain.weights)
        onnx.save(_model(chain, classes), scratch / MODEL)

    if not (home / MODEL).exists():
        publish(home, [DATA, MODEL], build)
    return home / MODEL


def _chain(gib: float) -> tuple[_Chain, int]:
    """Return the graph of about `gib` GiB of weights and its number of outputs."""
    width = 16 * max(1, round(256 * math.sqrt(gib / 3)))
    wide = 4 * width
    chain = _Chain()
    for index in range(_BLOCKS):
        if index == _BLOCKS // 2:
            _add_wide_part(chain, width, wide)
        _add_block(chain, f"block{index}", width)
    left = round(gib * 2**28) - sum(weight.elements for weight in chain.weights)
    classes = max(1, left // width)
    chain.node("MatMul", chain.weight("head", (width, classes), width), name="output")
    return chain, classes


def _add_block(chain: _Chain, prefix: str, width: int) -> None:
    """Append Gemm, MatMul + Add and a 3x3 Conv on the (width / 4, 2, 2) view, each with its Relu."""
    channels = width // 4

    def name(suffix: str) -> str:
        return f"{prefix}.{suffix}"

    square = (width, width)
    gemm = chain.weight(name("gemm.weight"), square, width), chain.bias(name("gemm.bias"), width)
    chain.node("Gemm", *gemm, name=name("gemm"), transB=1)
    chain.node("Relu", name=name("relu0"))
    chain.node("MatMul", chain.weight(name("matmul.weight"), square, width), name=name("matmul"))
    chain.node("Add", chain.bias(name("matmul.bias"), width), name=name("add"))
    chain.node("Relu", name=name("relu1"))
    chain.node("Reshape", _shape(chain, name("image"), (1, channels, 2, 2)), name=name("to_image"))
    # of the nine taps only four fall on the 2x2 image, the others on the padding
    conv = chain.weight(name("conv.weight"), (channels, channels, 3, 3), 4 * channels)
    chain.node("Conv", conv, chain.bias(name("conv.bias"), channels), name=name("conv"), pads=[1, 1, 1, 1])
    chain.node("Relu", name=name("relu2"))
    chain.node("Reshape", _shape(chain, name("row"), (1, width)), name=name("to_row"))


def _add_wide_part(chain: _Chain, width: int, wide: int) -> None:
    """Append width -> wide -> wide -> width; the outer matrices are the same bytes, the last transposed."""
    pair_seed, fan_in = 1_000_000, 2 * width  # between the fan-ins of the two uses
    chain.node("MatMul", chain.weight("pair.a", (width, wide), fan_in, pair_seed), name="widen")
    chain.node("Relu", name="widen.relu")
    chain.node("MatMul", chain.weight("huge", (wide, wide), wide), name="wide")
    chain.node("Relu", name="wide.relu")
    chain.node("Gemm", chain.weight("pair.b", (width, wide), fan_in, pair_seed), name="narrow", transB=1)
    chain.node("Relu", name="narrow.relu")


def _shape(chain: _Chain, name: str, dims: tuple[int, ...]) -> str:
    chain.constants.append(numpy_helper.from_array(np.array(dims, np.int64), name))
    return name


def _write_data(path: Path, weights: list[_Weight]) -> None:
    """Write the weights to their offsets, a chunk at a time."""
    buffer = np.empty(_CHUNK // 4, np.float32)
    with path.open("wb") as file:
        for weight in weights:
            file.seek(weight.offset)
            random = np.random.default_rng(weight.seed)
            for start in range(0, weight.elements, buffer.size):
                part = buffer[: weight.elements - start]
                random.random(out=part, dtype=np.float32)
                part -= 0.5
                part *= 2 * weight.bound
                file.write(part.data)


def _model(chain: _Chain, classes: int) -> onnx.ModelProto:
    width = chain.weights[0].shape[0]
    graph = helper.make_graph(
        chain.nodes,
        "big",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, width])],
        [helper.make_tensor_value_info(chain.tip, TensorProto.FLOAT, [1, classes])],
        [*chain.constants, *(_external(weight) for weight in chain.weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _external(weight: _Weight) -> TensorProto:
    """Return the tensor that points into the data file."""
    tensor = TensorProto(name=weight.name, data_type=TensorProto.FLOAT, dims=weight.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA), ("offset", weight.offset), ("length", 4 * weight.elements)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
