"""Blocks that several of the convolutional architectures share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activation: type[nn.Module] | None = None
) -> nn.Sequential:
    """Convolution with "same" padding, BatchNormalization, and an activation where one is given."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([] if activation is None else [activation()]))


class SqueezeExcitation(nn.Module):
    """Hu et al. 2018, "Squeeze-and-excitation networks": a factor per channel from the means of all channels."""

    def __init__(self, channels: int, squeezed: int, activation: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of x (N, C, H, W)."""
        y: Tensor = x * self.gate(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return y


class Expansion(nn.Module):
    """The inverted residual of mobile networks: 1x1 up, depthwise, squeeze-and-excitation, linear 1x1 down."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        excitation: SqueezeExcitation | None,
    ) -> None:
        super().__init__()
        up = [conv_bn(inputs, hidden, 1, activation=activation)] if hidden != inputs else []
        depthwise = conv_bn(hidden, hidden, kernel, stride, groups=hidden, activation=activation)
        scaled = [] if excitation is None else [excitation]
        self.block = nn.Sequential(*up, depthwise, *scaled, conv_bn(hidden, outputs, 1))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.block(x)
        return x + y if self.shortcut else y


class Classifier(nn.Module):
    """Features, global average, dense layers."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) images to (N, classes) logits."""
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits
