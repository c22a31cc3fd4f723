"""The `light_*` architectures of the onnx wheel, with real random weights.

The wheel ships nine published networks for its own tests. To be small, a file holds no large weight: a
ConstantOfShape node fills each with 0.02, which makes all channels equal and every error invisible. Here each
such node becomes an initializer of its name and shape, and whatever feeds a weight slot, generated or
shipped, is drawn at random with the scale that its role asks for. All other nodes stay.

The seed of a tensor is its name: its values depend neither on the order of nodes nor on what else is in the
file.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from peers.cache import cached

_PREFIX = "light_"
_WEIGHT_SLOTS = {
    "Conv": ("weight", "bias"),
    "Gemm": ("weight", "bias"),
    "BatchNormalization": ("scale", "bias", "bias", "variance"),
    "Mul": ("scale",),
    "Add": ("bias",),
}
"""Operator -> roles of its inputs from the second on."""

_DRAW: dict[str, Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]] = {
    # He et al. 2015, eq. 10: variance 2 / fan-in; weights are (outputs, inputs, ...), which _roles checks
    "weight": lambda random, shape: random.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape),
    "bias": lambda random, shape: random.normal(0, 0.1, shape),
    "scale": lambda random, shape: random.uniform(0.6, 1.4, shape),
    # the last scale of a residual branch starts small (Goyal et al. 2017, section 5.1, has 0), or each block
    # would double the variance and the logits reach 1e5
    "branch scale": lambda random, shape: random.uniform(0.2, 0.6, shape),
    "variance": lambda random, shape: random.uniform(0.6, 1.4, shape),
}


def _sources() -> Path:
    return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def light_names() -> list[str]:
    """Return the names that `light` accepts: those of the wheel's files without `light_`."""
    return sorted(path.stem.removeprefix(_PREFIX) for path in _sources().glob(f"{_PREFIX}*.onnx"))


def light(name: str, folder: Path | str | None = None) -> Path:
    """Return the ONNX file of the architecture `name` with random weights, built into the cache if missing.

    Raises:
        ValueError: the wheel has no such architecture.
    """
    if name not in light_names():
        raise ValueError(f"no light model {name!r}: choose from {', '.join(light_names())}")

    def build(path: Path) -> None:
        onnx.save(with_random_weights(onnx.load(_sources() / f"{_PREFIX}{name}.onnx")), path)

    return cached(folder, f"light-{name}", build)


def with_random_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the weight generators and the shipped weights of `model`, in place, and return it."""
    graph = model.graph
    shipped = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {name: tuple(tensor.dims) for name, tensor in shipped.items()}
    generators = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    spent = {node.input[0] for node in generators}
    for node in generators:
        shapes[node.output[0]] = tuple(int(size) for size in numpy_helper.to_array(shipped[node.input[0]]))
    weights = {name: _DRAW[role](_random(name), shapes[name]) for name, role in _roles(graph, shapes).items()}
    missing = {node.output[0] for node in generators} - set(weights)
    if missing:
        raise ValueError(f"no weight slot known for {sorted(missing)}: add its operator to _WEIGHT_SLOTS")

    kept_nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    kept_tensors = [tensor for name, tensor in shipped.items() if name not in spent and name not in weights]
    drawn = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    _replace(graph.node, kept_nodes)
    _replace(graph.initializer, [*kept_tensors, *drawn])
    # IR version 3 lists every initializer among the inputs too; to a reader of version 4 that would mean "a
    # default that the caller may replace". Left out, they are constants to everybody.
    _replace(graph.input, [value for value in graph.input if value.name not in shipped])
    model.ir_version = 4
    return model


def _roles(graph: onnx.GraphProto, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the role of every tensor of `shapes` that a weight slot reads, directly or through a view."""
    viewed = {n.output[0]: n.input[0] for n in graph.node if n.op_type in ("Unsqueeze", "Reshape")}
    summed = {name for node in graph.node if node.op_type == "Sum" for name in node.input}
    roles = {}
    for node in graph.node:
        if node.op_type == "Gemm" and not any(a.name == "transB" and a.i == 1 for a in node.attribute):
            raise ValueError(f"Gemm {node.output[0]!r} without transB: its fan-in is not shape[1]")
        for name, role in zip(node.input[1:], _WEIGHT_SLOTS.get(node.op_type, ()), strict=False):
            origin = viewed.get(name, name)
            if origin in shapes:
                roles[origin] = f"branch {role}" if role == "scale" and node.output[0] in summed else role
    return roles


def _random(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def _replace(field: Any, items: list[Any]) -> None:
    """Give a repeated protobuf field new items."""
    copies = list(items)
    del field[:]
    field.extend(copies)
