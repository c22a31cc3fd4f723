"""ViT, Swin and ConvNeXt, small: a class token, windows that are shifted and merged, convolutions among dense layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """Dense to four times the width, Gelu, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (..., width)."""
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class Attention(nn.Module):
    """Self-attention with queries, keys and values from one dense layer, and a bias or mask where one is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend within x (N, T, C); `bias` is added to the scores (N, heads, T, T)."""
        count, tokens, width = x.shape
        parts = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        y = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        projected: Tensor = self.proj(y.transpose(1, 2).reshape(count, tokens, width))
        return projected


class EncoderLayer(nn.Module):
    """Attention and dense layers, a LayerNorm before each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, T, width)."""
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2021, "An image is worth 16x16 words": 4 layers of width 192 with 3 heads."""

    def __init__(self) -> None:
        super().__init__()
        width, patches = 192, (112 // 16) ** 2
        self.patch_embed = nn.Conv2d(3, width, 16, stride=16)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, patches + 1, width))
        self.blocks = nn.Sequential(*(EncoderLayer(width, 3) for _ in range(4)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 100)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 112, 112) images to (N, 100) logits."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits


class WindowBlock(nn.Module):
    """A layer that attends within windows of 4 x 4 positions, which every second layer shifts by 2."""

    index: Tensor
    mask: Tensor | None

    def __init__(self, width: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        self.side, self.shift, self.window = side, shift, 4
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)
        self.heads = heads
        self.table = nn.Parameter(0.02 * torch.randn((2 * self.window - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(*[torch.arange(self.window)] * 2, indexing="ij")).flatten(1)
        steps = places[:, :, None] - places[:, None, :] + self.window - 1
        self.register_buffer("index", steps[0] * (2 * self.window - 1) + steps[1], persistent=False)
        self.register_buffer("mask", self._mask() if shift else None, persistent=False)

    def _mask(self) -> Tensor:
        """(windows, 1, T, T): large negative where two positions came from different sides of the image."""
        regions = torch.zeros(1, self.side, self.side, 1)
        cuts = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for number, (rows, columns) in enumerate((a, b) for a in cuts for b in cuts):
            regions[:, rows, columns] = number
        of_window = self._windows(regions).squeeze(-1)
        return -100.0 * (of_window[:, None, :, None] != of_window[:, None, None, :]).float()

    def _windows(self, x: Tensor) -> Tensor:
        """Map (N, side, side, C) to (N * windows, 16, C)."""
        window, across = self.window, self.side // self.window
        x = x.view(-1, across, window, across, window, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, window * window, x.shape[-1])

    def _image(self, x: Tensor) -> Tensor:
        """The way back from windows."""
        window, across = self.window, self.side // self.window
        x = x.view(-1, across, across, window, window, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, self.side, self.side, x.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, side, side, width)."""
        tokens = self.window**2
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        bias = self.table[self.index.view(-1)].view(tokens, tokens, self.heads).permute(2, 0, 1).unsqueeze(0)
        if self.mask is not None:
            bias = (bias + self.mask).repeat(x.shape[0], 1, 1, 1)
        y = self._image(self.attn(self._windows(y), bias))
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        z: Tensor = x + self.mlp(self.norm2(x))
        return z


class PatchMerging(nn.Module):
    """Four neighbours concatenated, normalized, and projected to twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, H, W, width) to (N, H / 2, W / 2, 2 * width)."""
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        y: Tensor = self.reduction(self.norm(torch.cat(parts, -1)))
        return y


class Swin(nn.Module):
    """Liu et al. 2021, "Swin transformer": two layers at each of three widths, windows of 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        width, side = 48, 16
        self.patch_embed, self.norm = nn.Conv2d(3, width, 4, stride=4), nn.LayerNorm(width)
        layers: list[nn.Module] = []
        for stage in range(3):
            if stage:
                layers.append(PatchMerging(width))
                width, side = 2 * width, side // 2
            layers += [WindowBlock(width, width // 24, side, shift if side > 4 else 0) for shift in (0, 2)]
        self.layers = nn.Sequential(*layers)
        self.final, self.head = nn.LayerNorm(width), nn.Linear(width, 100)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 64, 64) images to (N, 100) logits."""
        x = self.norm(self.patch_embed(x).permute(0, 2, 3, 1))
        logits: Tensor = self.head(self.final(self.layers(x)).mean(dim=(1, 2)))
        return logits


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        y: Tensor = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm, dense layers over channels, a learned scale, and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.mlp = nn.LayerNorm(width, eps=1e-6), Mlp(width)
        self.gamma = nn.Parameter(0.5 + 0.1 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, width, H, W)."""
        y: Tensor = self.gamma * self.mlp(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Liu et al. 2022, "A ConvNet for the 2020s": 2-2-4 blocks of widths 48, 96 and 192."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 48, 4, stride=4), ChannelNorm(48)]
        for stage, (width, depth) in enumerate(((48, 2), (96, 2), (192, 4))):
            if stage:
                layers += [ChannelNorm(width // 2), nn.Conv2d(width // 2, width, 2, stride=2)]
            layers += [ConvNeXtBlock(width) for _ in range(depth)]
        self.features = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(192), nn.Linear(192, 100)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 96, 96) images to (N, 100) logits."""
        logits: Tensor = self.head(self.norm(self.features(x).mean([-2, -1])))
        return logits
