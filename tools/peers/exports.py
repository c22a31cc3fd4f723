"""Networks as ONNX files from both of torch's exporters.

"legacy" is the TorchScript exporter (`dynamo=False`); it folds BatchNormalization into convolutions unless
told to keep it. "dynamo" is the exporter built on `torch.export`, with its own optimizer after it. The files
that users bring come from either, and they look quite different to a graph compiler.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from peers.cache import cached
from peers.networks import NETWORKS, example_inputs, weighted_network

if TYPE_CHECKING:
    from torch import Tensor

Exporter = Literal["legacy", "dynamo"]
EXPORTERS: tuple[Exporter, ...] = get_args(Exporter)
DEFAULT_OPSET: dict[Exporter, int] = {"legacy": 17, "dynamo": 20}
"""Legacy: an opset that many files have and where Gelu is written out. Dynamo: the default of torch 2.13."""


@dataclass(frozen=True)
class Reference:
    """What is known about a network before it is built."""

    parameters: int
    macs: float
    """Multiply-accumulates of convolutions and matrix products at batch 1, in units of 1e6."""


REFERENCES = {
    "resnet50": Reference(25_557_032, 4089),
    "mobilenetv2": Reference(3_504_872, 300.8),
    "vgg19": Reference(143_667_240, 19632),
    "bert": Reference(109_482_240, 11174),
}


def export(
    name: str,
    exporter: Exporter,
    folder: Path | str | None = None,
    *,
    batch: int | None = 1,
    keep_bn: bool = False,
    opset: int | None = None,
) -> Path:
    """Return the ONNX file of the network `name`, exported into the cache unless it is there.

    Args:
        name: a key of `peers.networks.NETWORKS`.
        exporter: "legacy" or "dynamo".
        folder: the cache, see `peers.cache.cache_folder`.
        batch: the batch size, or None for a symbolic one called "batch".
        keep_bn: leave BatchNormalization nodes in the graph, which the exporters would fold.
        opset: the opset version, by default that of `DEFAULT_OPSET`.

    Raises:
        ValueError: the name or the exporter is not known.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}: choose from {', '.join(NETWORKS)}")
    if exporter not in EXPORTERS:
        raise ValueError(f"no exporter {exporter!r}: choose from {', '.join(EXPORTERS)}")
    opset = opset or DEFAULT_OPSET[exporter]
    stem = f"{name}-{exporter}{'-bn' if keep_bn else ''}-b{'N' if batch is None else batch}-opset{opset}"
    write = _export_legacy if exporter == "legacy" else _export_dynamo

    def build(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation and tracing remarks about torch's own code
            write(name, path, batch, keep_bn, opset)

    return cached(folder, stem, build)


def _example_tensors(name: str, batch: int | None) -> tuple[Tensor, ...]:
    import torch

    # torch.export takes a size of 1 for a constant, so a symbolic batch is shown as 2
    return tuple(torch.from_numpy(array) for array in example_inputs(name, batch or 2).values())


def _export_legacy(name: str, path: Path, batch: int | None, keep_bn: bool, opset: int) -> None:
    import torch

    found = NETWORKS[name]
    names = (*found.inputs, *found.outputs)
    training = torch.onnx.TrainingMode
    torch.onnx.export(
        weighted_network(name),
        _example_tensors(name, batch),
        path,
        dynamo=False,
        opset_version=opset,
        input_names=list(found.inputs),
        output_names=list(found.outputs),
        dynamic_axes={key: {0: "batch"} for key in names} if batch is None else None,
        # the folding pass runs in EVAL mode only; PRESERVE leaves the network in the eval mode it is in
        training=training.PRESERVE if keep_bn else training.EVAL,
    )


def _export_dynamo(name: str, path: Path, batch: int | None, keep_bn: bool, opset: int) -> None:
    import torch
    from onnxscript import optimizer

    found = NETWORKS[name]
    program = torch.onnx.export(
        weighted_network(name),
        _example_tensors(name, batch),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        input_names=list(found.inputs),
        output_names=list(found.outputs),
        dynamic_shapes=None if batch else tuple({0: torch.export.Dim("batch")} for _ in found.inputs),
        optimize=not keep_bn,
    )
    assert program is not None  # None is the answer of the legacy exporter
    if keep_bn:  # clean up without fusing; as it comes, each weight has an Expand and a CastLike behind it
        optimizer.inline(program.model)
        optimizer.fold_constants_ir(program.model)
        optimizer.remove_unused_nodes(program.model)
    program.save(path, external_data=False)
