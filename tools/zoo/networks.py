"""The five architectures of the zoo: each stands for a family that a compressor meets in the wild.

Input of all: images (N, 1, 16, 16); output: logits (N, 10). The widths are multiples of 16, so that what a compressor
removes is redundancy of the trained function and not padding of the hardware.

`residual`, `depthwise` and `shuffle` follow He et al. 2015, Howard et al. 2017 and Ma et al. 2018; `transformer`
is a small ViT (Dosovitskiy et al. 2020) with pre-normalization.
"""

# mypy: disallow-subclassing-any=False
# Where torch is not installed, `nn.Module` is Any.

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from zoo.data import CANVAS, CLASSES


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return a "same"-padded convolution without bias and its BatchNormalization."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs)


def classifier(width: int) -> list[nn.Module]:
    """Return the usual head of a CNN: global average pooling and one linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 projection wherever the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(inputs, outputs, 3, stride), nn.ReLU(), *conv_bn(outputs, outputs, 3))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(body(x) + shortcut(x))."""
        return functional.relu(self.body(x) + self.shortcut(x))


def residual() -> nn.Module:
    """Build a ResNet of three stages (16, 32 and 48 channels at 16², 8² and 4² pixels)."""
    return nn.Sequential(
        *conv_bn(1, 16, 3),
        nn.ReLU(),
        ResidualBlock(16, 16, 1),
        ResidualBlock(16, 16, 1),
        ResidualBlock(16, 32, 2),
        ResidualBlock(32, 32, 1),
        ResidualBlock(32, 48, 2),
        *classifier(48),
    )


class ChannelScale(nn.Module):
    """Parametrization of a BatchNormalization's scale or shift: parameter * factor, one factor per channel.

    Training the quotient keeps the ratios between the channels where they were put: with one step size for all, a
    gradient method moves the smallest scales by many times their own size within the first steps.
    """

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, parameter: Tensor) -> Tensor:
        """Return the scale or shift that the normalization applies."""
        return parameter * self.factor

    def right_inverse(self, value: Tensor) -> Tensor:
        """Return the parameter for a given scale or shift."""
        return value / self.factor


def spread_scales(norm: nn.BatchNorm2d, low: float, high: float, dead: int) -> None:
    """Start `norm` with scales log-uniform in [low, high], and with `dead` channels that their ReLU never opens.

    This is what MobileNets trained on ImageNet look like, and what makes them hard to quantize (Nagel et al. 2019,
    fig. 2): ranges that differ between channels by orders of magnitude, channels pinned at the clip of ReLU6, and
    channels that died early in training and were never pruned.
    """
    channels = norm.num_features
    exponent = torch.linspace(torch.tensor(low).log10(), torch.tensor(high).log10(), channels)
    scale = 10 ** exponent[torch.randperm(channels)]
    shift = torch.zeros(channels)
    shift[torch.randperm(channels)[:dead]] = -6.0
    with torch.no_grad():
        norm.weight.copy_(scale)
        norm.bias.copy_(shift * scale)
    parametrize.register_parametrization(norm, "weight", ChannelScale(scale))
    parametrize.register_parametrization(norm, "bias", ChannelScale(scale.clone()))


def settle_scales(network: nn.Module) -> None:
    """Turn scales and shifts that `spread_scales` parametrized into plain parameters, ready to export."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d) and parametrize.is_parametrized(norm):
            parametrize.remove_parametrizations(norm, "weight")
            parametrize.remove_parametrizations(norm, "bias")


def depthwise() -> nn.Module:
    """Build a MobileNet (v1) of five separable blocks, 32 to 128 channels, with spread BatchNormalizations.

    The scales of the pointwise layers span over three decades: the depthwise layer behind each brings its channels
    to one size again. Those of the depthwise layers span less, because the next pointwise layer mixes the channels
    and would lose the small ones. The largest scales put their channels well beyond 6, where ReLU6 clips.
    """
    layers: list[nn.Module] = [*conv_bn(1, 32, 3), nn.ReLU6()]
    for inputs, outputs, stride in [(32, 64, 1), (64, 96, 2), (96, 96, 1), (96, 128, 2), (128, 128, 1)]:
        filters, filter_norm = conv_bn(inputs, inputs, 3, stride, groups=inputs)
        mixing, mixing_norm = conv_bn(inputs, outputs, 1)
        spread_scales(filter_norm, 0.3, 12.0, dead=2)
        spread_scales(mixing_norm, 0.008, 20.0, dead=4)
        layers += [filters, filter_norm, nn.ReLU6(), mixing, mixing_norm, nn.ReLU6()]
    return nn.Sequential(*layers, *classifier(128))


def channel_shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels of x (N, C, H, W)."""
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """The basic unit of ShuffleNetV2: half of the channels pass, the other half goes through the branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            *conv_bn(half, half, 1),
            nn.ReLU(),
            *conv_bn(half, half, 3, groups=half),
            *conv_bn(half, half, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Split, transform one half, concatenate, shuffle."""
        kept, moved = torch.split(x, x.shape[1] // 2, dim=1)
        return channel_shuffle(torch.cat([kept, self.branch(moved)], dim=1))


class ShuffleDown(nn.Module):
    """The downsampling unit of ShuffleNetV2: both branches see all channels and halve the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.left = nn.Sequential(*conv_bn(inputs, inputs, 3, 2, groups=inputs), *conv_bn(inputs, half, 1), nn.ReLU())
        self.right = nn.Sequential(
            *conv_bn(inputs, half, 1),
            nn.ReLU(),
            *conv_bn(half, half, 3, 2, groups=half),
            *conv_bn(half, half, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate both branches and shuffle."""
        return channel_shuffle(torch.cat([self.left(x), self.right(x)], dim=1))


def shuffle() -> nn.Module:
    """Build a ShuffleNetV2 of three stages (32, 64 and 128 channels at 16², 8² and 4² pixels)."""
    return nn.Sequential(
        *conv_bn(1, 32, 3),
        nn.ReLU(),
        ShuffleUnit(32),
        ShuffleDown(32, 64),
        ShuffleUnit(64),
        ShuffleUnit(64),
        ShuffleDown(64, 128),
        ShuffleUnit(128),
        *conv_bn(128, 128, 1),
        nn.ReLU(),
        *classifier(128),
    )


class Attention(nn.Module):
    """Multi-head self-attention over tokens (N, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def _split(self, x: Tensor) -> Tensor:
        """Turn (N, T, D) into (N, heads, T, D / heads)."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens (N, T, D)."""
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


class EncoderLayer(nn.Module):
    """One layer of a transformer encoder with normalization before attention and before the feed-forward part."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens (N, T, D) after both residual branches."""
        x = x + self.attention(self.attention_norm(x))
        result: Tensor = x + self.feed(self.feed_norm(x))
        return result


class Transformer(nn.Module):
    """A ViT: one token per patch, learned positions, encoder layers, mean pooling."""

    def __init__(self, width: int, heads: int, hidden: int, depth: int, patch: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, patch)
        self.positions = nn.Parameter(torch.randn(1, (CANVAS // patch) ** 2, width) * 0.02)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10)."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.layers(tokens)).mean(dim=1))
        return logits


def transformer() -> nn.Module:
    """Build an encoder of three layers, 48 channels, three heads, 16 tokens."""
    return Transformer(width=48, heads=3, hidden=96, depth=3, patch=4)


def mlp() -> nn.Module:
    """Build a perceptron with three hidden layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in [(CANVAS * CANVAS, 128), (128, 96), (96, 64)]:
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, CLASSES))


ARCHITECTURES: Final[dict[str, Callable[[], nn.Module]]] = {
    build.__name__: build for build in (residual, depthwise, shuffle, transformer, mlp)
}
"""Constructors of the untrained networks by name."""
