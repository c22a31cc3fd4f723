"""A one-stage detector in the manner of YOLOv8 (nano): C2f, SPPF, a path aggregation neck, decoupled heads with DFL.

Concat, Split, Resize and reshaped heads in one graph; boxes are decoded inside it, as users export them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peers.architectures.layers import conv_bn

_CLASSES, _BINS = 80, 16


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return conv_bn(inputs, outputs, kernel, stride, activation=nn.SiLU)


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with a shortcut in the backbone."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2 = _conv(channels, channels, 3), _conv(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W)."""
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """Split in two, bottlenecks one after the other on the second half, and everything concatenated."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool = False) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1 = _conv(inputs, 2 * half, 1)
        self.cv2 = _conv((2 + depth) * half, outputs, 1)
        self.m = nn.ModuleList(Bottleneck(half, shortcut) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H, W)."""
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        y: Tensor = self.cv2(torch.cat(parts, 1))
        return y


class SPPF(nn.Module):
    """Three poolings one after the other, concatenated with their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = _conv(channels, channels // 2, 1), _conv(2 * channels, channels, 1)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W)."""
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(self.m(parts[-1]))
        y: Tensor = self.cv2(torch.cat(parts, 1))
        return y


class Detect(nn.Module):
    """Boxes and classes per scale; a box side is the mean of a distribution over 16 distances (Li et al. 2020)."""

    anchors: Tensor
    strides: Tensor
    bins: Tensor

    def __init__(self, widths: tuple[int, ...], image: int) -> None:
        super().__init__()
        hidden = max(16, widths[0] // 4, 4 * _BINS)
        classes = max(widths[0], min(_CLASSES, 100))
        self.boxes = nn.ModuleList(
            nn.Sequential(_conv(w, hidden, 3), _conv(hidden, hidden, 3), nn.Conv2d(hidden, 4 * _BINS, 1))
            for w in widths
        )
        self.classes = nn.ModuleList(
            nn.Sequential(_conv(w, classes, 3), _conv(classes, classes, 3), nn.Conv2d(classes, _CLASSES, 1))
            for w in widths
        )
        anchors, strides = [], []
        for stride in (8, 16, 32):
            centres = torch.arange(image // stride) + 0.5
            rows, columns = torch.meshgrid(centres, centres, indexing="ij")
            anchors.append(torch.stack((columns, rows)).view(2, -1))
            strides.append(torch.full((1, rows.numel()), float(stride)))
        self.register_buffer("anchors", torch.cat(anchors, 1), persistent=False)
        self.register_buffer("strides", torch.cat(strides, 1), persistent=False)
        self.register_buffer("bins", torch.arange(_BINS, dtype=torch.float32).view(1, _BINS, 1, 1), persistent=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map features of three scales to (N, 4 + classes, positions)."""
        count = features[0].shape[0]
        maps = [
            torch.cat((box(x), label(x)), 1).view(count, 4 * _BINS + _CLASSES, -1)
            for x, box, label in zip(features, self.boxes, self.classes, strict=True)
        ]
        box, label = torch.split(torch.cat(maps, 2), [4 * _BINS, _CLASSES], 1)
        positions = box.shape[2]
        weights = box.view(count, 4, _BINS, positions).transpose(2, 1).softmax(1)
        distances = (weights * self.bins).sum(1)
        low, high = distances.chunk(2, 1)
        first, second = self.anchors - low, self.anchors + high
        sides = torch.cat(((first + second) / 2, second - first), 1) * self.strides
        return torch.cat((sides, label.sigmoid()), 1)


class Detector(nn.Module):
    """Backbone, neck and head; input (N, 3, 160, 160)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, 3, 2), _conv(16, 32, 3, 2), C2f(32, 32, 1, True))
        self.stage3 = nn.Sequential(_conv(32, 64, 3, 2), C2f(64, 64, 2, True))
        self.stage4 = nn.Sequential(_conv(64, 128, 3, 2), C2f(128, 128, 2, True))
        self.stage5 = nn.Sequential(_conv(128, 256, 3, 2), C2f(256, 256, 1, True), SPPF(256))
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.top4, self.top3 = C2f(384, 128, 1), C2f(192, 64, 1)
        self.down3, self.out4 = _conv(64, 64, 3, 2), C2f(192, 128, 1)
        self.down4, self.out5 = _conv(128, 128, 3, 2), C2f(384, 256, 1)
        self.head = Detect((64, 128, 256), 160)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 160, 160) images to (N, 84, 525): four sides and 80 scores per position."""
        p3 = self.stage3(self.stem(x))
        p4 = self.stage4(p3)
        p5 = self.stage5(p4)
        top4 = self.top4(torch.cat((self.up(p5), p4), 1))
        top3 = self.top3(torch.cat((self.up(top4), p3), 1))
        out4 = self.out4(torch.cat((self.down3(top3), top4), 1))
        out5 = self.out5(torch.cat((self.down4(out4), p5), 1))
        boxes: Tensor = self.head([top3, out4, out5])
        return boxes
