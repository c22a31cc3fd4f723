"""DenseNet, U-Net and a residual network with CBAM: channels that meet again far from where they were made."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peers.architectures.layers import Classifier, conv_bn


class DenseLayer(nn.Module):
    """BatchNormalization, Relu, 1x1, and the same with 3x3; the result is appended to what came in."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, inputs + growth, H, W)."""
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class DenseNet(Classifier):
    """Huang et al. 2017, "Densely connected convolutional networks" (BC), smaller: 6-8-8 layers of growth 24."""

    def __init__(self) -> None:
        growth, channels = 24, 48
        layers: list[nn.Module] = [conv_bn(3, channels, 7, 2, activation=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
        for stage, depth in enumerate((6, 8, 8)):
            if stage:
                halved = channels // 2
                layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, halved, 1, bias=False)]
                layers.append(nn.AvgPool2d(2, 2))
                channels = halved
            layers += [DenseLayer(channels + growth * index, growth) for index in range(depth)]
            channels += growth * depth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        super().__init__(nn.Sequential(*layers), nn.Linear(channels, 1000))


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *conv_bn(inputs, outputs, 3, activation=nn.ReLU), *conv_bn(outputs, outputs, 3, activation=nn.ReLU)
    )


class UNet(nn.Module):
    """Ronneberger et al. 2015, "U-Net", with BatchNormalization and padding, from 32 to 256 channels, 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 64, 128, 256)
        self.down = nn.ModuleList(_double(a, b) for a, b in zip((3, *widths), widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.merge = nn.ModuleList(_double(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(widths[0], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) images to (N, 4, H, W) logits; H and W are multiples of 8."""
        kept: list[Tensor] = []
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else self.pool(x))
            kept.append(x)
        for up, merge, skipped in zip(self.up, self.merge, reversed(kept[:-1]), strict=True):
            x = merge(torch.cat([skipped, up(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits


class ChannelAttention(nn.Module):
    """A factor per channel from the mean and the largest value, through two dense layers that both share."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            nn.Conv2d(channels, channels // 8, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // 8, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to factors (N, C, 1, 1)."""
        mean = self.shared(nn.functional.adaptive_avg_pool2d(x, 1))
        return torch.sigmoid(mean + self.shared(nn.functional.adaptive_max_pool2d(x, 1)))


class SpatialAttention(nn.Module):
    """A factor per position from the mean and the largest value over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to factors (N, 1, H, W)."""
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return torch.sigmoid(self.conv(pooled))


class AttentiveBlock(nn.Module):
    """Two 3x3 convolutions, both attentions, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, outputs, 3, stride, activation=nn.ReLU)
        self.conv2 = conv_bn(outputs, outputs, 3)
        self.channels, self.positions = ChannelAttention(outputs), SpatialAttention()
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.conv2(self.conv1(x))
        y = y * self.channels(y)
        y = y * self.positions(y)
        return torch.relu(y + self.shortcut(x))


class AttentiveResNet(Classifier):
    """Woo et al. 2018, "CBAM: convolutional block attention module", in a residual network of 8 blocks."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [conv_bn(3, 32, 3, 2, activation=nn.ReLU)]
        channels = 32
        for outputs, stride in ((32, 1), (64, 2), (128, 2), (256, 2)):
            layers += [AttentiveBlock(channels, outputs, stride), AttentiveBlock(outputs, outputs, 1)]
            channels = outputs
        super().__init__(nn.Sequential(*layers), nn.Linear(channels, 100))
