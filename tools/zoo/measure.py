"""Measure what the model card and the tables say about a network: size, work, accuracy and the spread of its scales."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zoo.data import Images


@dataclass(frozen=True)
class Accuracy:
    """Share of correct answers on `count` samples."""

    share: float
    count: int

    @property
    def standard_error(self) -> float:
        """Return sqrt(p (1 - p) / n)."""
        return math.sqrt(self.share * (1 - self.share) / self.count)

    def __str__(self) -> str:
        return f"{100 * self.share:.2f} ± {100 * self.standard_error:.2f} %"


@dataclass(frozen=True)
class Spread:
    """How uneven the channels of a network with BatchNormalization and ReLU6 are.

    `scales` is the ratio of the largest |scale| to the smallest within one BatchNormalization, at its widest layer;
    `clipping` and `dead` count the channels behind a ReLU6 that reach 6, and that are 0, on some and on all positions
    of all images; `unclipped` is the accuracy with ReLU in place of ReLU6.
    """

    scales: float
    channels: int
    clipping: int
    dead: int
    unclipped: Accuracy


def accuracy(logits: NDArray[np.float32], labels: Tensor) -> Accuracy:
    """Compare the largest of the logits (N, 10) with the labels (N,)."""
    correct = logits.argmax(axis=1) == labels.numpy()
    return Accuracy(float(correct.mean()), len(correct))


def parameter_count(network: nn.Module) -> int:
    """Count the trained numbers, without the running statistics of BatchNormalization."""
    return sum(parameter.numel() for parameter in network.parameters())


def mac_count(network: nn.Module, image: Tensor) -> int:
    """Count the multiply-accumulates of convolutions and matrix products for one image (1, C, H, W)."""
    # The counter knows attention only as its matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network(image)
    flops: int = counter.get_total_flops()
    return flops // 2


def measure_spread(network: nn.Module, data: Images) -> Spread | None:
    """Measure the spread of a plain sequence of layers on `data`; return None when it holds no ReLU6."""
    layers = list(network.children())
    if not any(isinstance(layer, nn.ReLU6) for layer in layers):
        return None
    scales, channels, clipping, dead = 1.0, 0, 0, 0
    x = data.images
    with torch.no_grad():
        for layer in layers:
            x = layer(x)
            if isinstance(layer, nn.BatchNorm2d):
                scale = layer.weight.abs()
                scales = max(scales, float(scale.max() / scale.min()))
            elif isinstance(layer, nn.ReLU6):
                channels += x.shape[1]
                clipping += int((x.amax(dim=(0, 2, 3)) >= 6).sum())
                dead += int((x.amax(dim=(0, 2, 3)) <= 0).sum())
        unclipped = nn.Sequential(*(nn.ReLU() if isinstance(layer, nn.ReLU6) else layer for layer in layers))
        logits = unclipped(data.images).numpy()
    return Spread(scales, channels, clipping, dead, accuracy(logits, data.labels))
