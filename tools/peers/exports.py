"""The four reference networks, and their ONNX files from both of torch's exporters.

"legacy" is the TorchScript exporter (`dynamo=False`); it folds BatchNormalization into convolutions unless
told to keep it. "dynamo" is the exporter built on `torch.export`, with its own optimizer after it. The files
that users bring come from either, and they look quite different to a graph compiler.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from peers.cache import cached

if TYPE_CHECKING:
    from torch import Tensor, nn

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
    inputs: tuple[str, ...] = ("input",)
    outputs: tuple[str, ...] = ("output",)


_BERT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
REFERENCES = {
    "resnet50": Reference(25_557_032, 4089),
    "mobilenetv2": Reference(3_504_872, 300.8),
    "vgg19": Reference(143_667_240, 19632),
    "bert": Reference(109_482_240, 11174, _BERT_INPUTS, ("last_hidden_state", "pooler_output")),
}
TOKENS = 128


def network(name: str) -> nn.Module:
    """Return the network `name` as torch initializes it; under `torch.device("meta")` this costs nothing."""
    from peers import bert, convnets

    classes: dict[str, type[nn.Module]] = {
        "resnet50": convnets.ResNet50,
        "mobilenetv2": convnets.MobileNetV2,
        "vgg19": convnets.VGG19,
        "bert": bert.BertBase,
    }
    return classes[name]()


def weighted_network(name: str) -> nn.Module:
    """Return the network `name` with the random weights that its export carries, in eval mode."""
    import torch

    from peers.weights import randomize

    sample = example_inputs(name, batch=4, seed=1).values()
    return randomize(network(name), tuple(torch.from_numpy(array) for array in sample))


def example_inputs(name: str, batch: int = 1, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return inputs for the network `name` by name: images, or token ids with a mask of real lengths."""
    random = np.random.default_rng(seed)
    if name != "bert":
        return {"input": images(random, (batch, 3, 224, 224))}
    lengths = random.integers(TOKENS // 4, TOKENS + 1, size=(batch, 1))
    position = np.arange(TOKENS)
    tokens = random.integers(1, 30522, size=(batch, TOKENS))
    mask = (position < lengths).astype(np.int64)
    types = (position >= lengths // 2).astype(np.int64) * mask
    return dict(zip(_BERT_INPUTS, (tokens * mask, mask, types), strict=True))


def images(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return (N, C, H, W) float32 of about unit variance with large structure.

    White noise would not do: average pooling leaves almost nothing of it, and every image would get the same
    logits.
    """
    count, channels, height, width = shape
    coarse = random.standard_normal((count, channels, -(-height // 32), -(-width // 32)))
    patches = coarse.repeat(32, axis=2).repeat(32, axis=3)[:, :, :height, :width]
    return (0.9 * patches + 0.4 * random.standard_normal(shape)).astype(np.float32)


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
        name: a key of `REFERENCES`.
        exporter: "legacy" or "dynamo".
        folder: the cache, see `peers.cache.cache_folder`.
        batch: the batch size, or None for a symbolic one called "batch".
        keep_bn: leave BatchNormalization nodes in the graph, which the exporters would fold.
        opset: the opset version, by default that of `DEFAULT_OPSET`.

    Raises:
        ValueError: the name or the exporter is not known.
    """
    if name not in REFERENCES:
        raise ValueError(f"no network {name!r}: choose from {', '.join(REFERENCES)}")
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

    reference = REFERENCES[name]
    names = (*reference.inputs, *reference.outputs)
    training = torch.onnx.TrainingMode
    torch.onnx.export(
        weighted_network(name),
        _example_tensors(name, batch),
        path,
        dynamo=False,
        opset_version=opset,
        input_names=list(reference.inputs),
        output_names=list(reference.outputs),
        dynamic_axes={key: {0: "batch"} for key in names} if batch is None else None,
        # the folding pass runs in EVAL mode only; PRESERVE leaves the network in the eval mode it is in
        training=training.PRESERVE if keep_bn else training.EVAL,
    )


def _export_dynamo(name: str, path: Path, batch: int | None, keep_bn: bool, opset: int) -> None:
    import torch
    from onnxscript import optimizer

    reference = REFERENCES[name]
    program = torch.onnx.export(
        weighted_network(name),
        _example_tensors(name, batch),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        input_names=list(reference.inputs),
        output_names=list(reference.outputs),
        dynamic_shapes=None if batch else tuple({0: torch.export.Dim("batch")} for _ in reference.inputs),
        optimize=not keep_bn,
    )
    assert program is not None  # None is the answer of the legacy exporter
    if keep_bn:  # clean up without fusing; as it comes, each weight has an Expand and a CastLike behind it
        optimizer.inline(program.model)
        optimizer.fold_constants_ir(program.model)
        optimizer.remove_unused_nodes(program.model)
    program.save(path, external_data=False)
