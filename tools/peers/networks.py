"""The networks that exports are made of: where each is written, and what goes in and comes out.

Four have the size of their papers (`peers.exports.REFERENCES` has the published figures). The others hold the same kinds
of blocks in less: they are there for their structure.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

_BERT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_BERT_OUTPUTS = ("last_hidden_state", "pooler_output")


@dataclass(frozen=True)
class Network:
    """An architecture and its signature.

    Attributes:
        module: in `peers.architectures`.
        cls: its class there, built without arguments.
        side: height and width of the images that it reads; tokens of a network that reads tokens.
        vocabulary: number of tokens there are; 0 for a network that reads images.
        inputs: names of the inputs.
        outputs: names of the outputs.
    """

    module: str
    cls: str
    side: int = 224
    vocabulary: int = 0
    inputs: tuple[str, ...] = ("input",)
    outputs: tuple[str, ...] = ("output",)


NETWORKS = {
    "resnet50": Network("convnets", "ResNet50"),
    "mobilenetv2": Network("convnets", "MobileNetV2"),
    "vgg19": Network("convnets", "VGG19"),
    "bert": Network("bert", "Bert", 128, 30522, _BERT_INPUTS, _BERT_OUTPUTS),
    "mobilenetv3": Network("mobile", "MobileNetV3", 128),
    "efficientnet": Network("mobile", "EfficientNet", 128),
    "shufflenetv2": Network("mobile", "ShuffleNetV2", 128),
    "densenet": Network("branched", "DenseNet", 128),
    "unet": Network("branched", "UNet", 64),
    "cbam": Network("branched", "AttentiveResNet", 96),
    "yolo": Network("detector", "Detector", 160),
    "vit": Network("transformers", "VisionTransformer", 112),
    "swin": Network("transformers", "Swin", 64),
    "convnext": Network("transformers", "ConvNeXt", 96),
    "bert-small": Network("bert", "SmallBert", 64, 2000, _BERT_INPUTS, _BERT_OUTPUTS),
}


def network(name: str) -> nn.Module:
    """Return the network `name` as torch initializes it; under `torch.device("meta")` this costs nothing."""
    found = NETWORKS[name]
    module: nn.Module = getattr(importlib.import_module(f"peers.architectures.{found.module}"), found.cls)()
    return module


def weighted_network(name: str) -> nn.Module:
    """Return the network `name` with the random weights that its export carries, in eval mode."""
    import torch

    from peers.weights import SEED, randomize

    sample = example_inputs(name, batch=4, seed=1).values()
    with torch.random.fork_rng():
        torch.manual_seed(SEED)  # parameters that are nobody's weight, such as a class token
        return randomize(network(name), tuple(torch.from_numpy(array) for array in sample))


def example_inputs(name: str, batch: int = 1, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return inputs for the network `name` by name: images, or token ids with a mask of real lengths."""
    random = np.random.default_rng(seed)
    found = NETWORKS[name]
    if not found.vocabulary:
        return {"input": images(random, (batch, 3, found.side, found.side))}
    lengths = random.integers(found.side // 4, found.side + 1, size=(batch, 1))
    position = np.arange(found.side)
    tokens = random.integers(1, found.vocabulary, size=(batch, found.side))
    mask = (position < lengths).astype(np.int64)
    types = (position >= lengths // 2).astype(np.int64) * mask
    return dict(zip(found.inputs, (tokens * mask, mask, types), strict=True))


def images(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return (N, C, H, W) float32 of about unit variance with large structure.

    White noise would not do: average pooling leaves almost nothing of it, and every image would get the same
    logits.
    """
    count, channels, height, width = shape
    coarse = random.standard_normal((count, channels, -(-height // 32), -(-width // 32)))
    patches = coarse.repeat(32, axis=2).repeat(32, axis=3)[:, :, :height, :width]
    return (0.9 * patches + 0.4 * random.standard_normal(shape)).astype(np.float32)
