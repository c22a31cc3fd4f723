"""MobileNetV3, EfficientNet-B0 and ShuffleNetV2: depthwise convolutions, squeeze-and-excitation, shuffled channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peers.architectures.layers import Classifier, Expansion, SqueezeExcitation, conv_bn

_V3_BLOCKS = (
    # kernel, hidden, outputs, squeeze-and-excitation, Hardswish, stride
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


class MobileNetV3(Classifier):
    """Howard et al. 2019, "Searching for MobileNetV3", table 2 (small)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [conv_bn(3, 16, 3, 2, activation=nn.Hardswish)]
        channels = 16
        for kernel, hidden, outputs, squeezes, hard, stride in _V3_BLOCKS:
            squeezed = -(-hidden // 32) * 8  # a quarter, in whole eighths
            scaled = SqueezeExcitation(hidden, squeezed, nn.ReLU, nn.Hardsigmoid) if squeezes else None
            activation = nn.Hardswish if hard else nn.ReLU
            layers.append(Expansion(channels, hidden, outputs, kernel, stride, activation, scaled))
            channels = outputs
        layers.append(conv_bn(channels, 576, 1, activation=nn.Hardswish))
        head = (nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, 1000))
        super().__init__(nn.Sequential(*layers), nn.Sequential(*head))


_EFFICIENT_STAGES = (
    # expansion, kernel, stride, outputs, blocks
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class EfficientNet(Classifier):
    """Tan and Le 2019, "EfficientNet", table 1 (B0)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [conv_bn(3, 32, 3, 2, activation=nn.SiLU)]
        channels = 32
        for expansion, kernel, stride, outputs, blocks in _EFFICIENT_STAGES:
            for index in range(blocks):
                hidden = channels * expansion
                scaled = SqueezeExcitation(hidden, channels // 4, nn.SiLU, nn.Sigmoid)
                step = stride if index == 0 else 1
                layers.append(Expansion(channels, hidden, outputs, kernel, step, nn.SiLU, scaled))
                channels = outputs
        layers.append(conv_bn(channels, 1280, 1, activation=nn.SiLU))
        super().__init__(nn.Sequential(*layers), nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000)))


def _shuffled(x: Tensor) -> Tensor:
    """Mix the channels of the two halves of x (N, C, H, W)."""
    count, channels, height, width = x.size()
    return x.view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(count, channels, height, width)


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half go through three convolutions; with a stride both go through some."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        entering = inputs if stride > 1 else half
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1.extend(conv_bn(inputs, inputs, 3, stride, groups=inputs))
            self.branch1.extend(conv_bn(inputs, half, 1, activation=nn.ReLU))
        self.branch2 = nn.Sequential(
            *conv_bn(entering, half, 1, activation=nn.ReLU),
            *conv_bn(half, half, 3, stride, groups=half),
            *conv_bn(half, half, 1, activation=nn.ReLU),
        )
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        if self.stride > 1:
            return _shuffled(torch.cat((self.branch1(x), self.branch2(x)), dim=1))
        passed, changed = x.chunk(2, dim=1)
        return _shuffled(torch.cat((passed, self.branch2(changed)), dim=1))


class ShuffleNetV2(Classifier):
    """Ma et al. 2018, "ShuffleNet V2", table 5 (1x)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [conv_bn(3, 24, 3, 2, activation=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
        channels = 24
        for outputs, units in ((116, 4), (232, 8), (464, 4)):
            layers += [ShuffleUnit(channels if i == 0 else outputs, outputs, 2 if i == 0 else 1) for i in range(units)]
            channels = outputs
        layers.append(conv_bn(channels, 1024, 1, activation=nn.ReLU))
        super().__init__(nn.Sequential(*layers), nn.Linear(1024, 1000))
