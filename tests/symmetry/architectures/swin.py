"""Swin transformer as timm writes it: shifted windows, relative position tables, patch merging."""

import torch
from torch import Tensor, nn

from tests.symmetry.architectures.architecture import Architecture, images
from tests.symmetry.architectures.vision_transformers import Mlp


def to_windows(x: Tensor, side: int) -> Tensor:
    """[n, height, width, channels] -> [n * windows, side * side, channels]."""
    n, height, width, channels = x.shape
    x = x.view(n, height // side, side, width // side, side, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, side * side, channels)


def from_windows(windows: Tensor, side: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`."""
    channels = windows.shape[-1]
    x = windows.view(-1, height // side, width // side, side, side, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, channels)


def relative_positions(side: int) -> Tensor:
    """Row of the position table for each pair of pixels of a window: int64 [side^2, side^2]."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    pixels = torch.stack([rows, columns]).flatten(1)
    apart = pixels[:, :, None] - pixels[:, None, :] + side - 1
    return apart[0] * (2 * side - 1) + apart[1]


def shift_mask(resolution: int, side: int, shift: int) -> Tensor:
    """-100 between pixels that only the cyclic shift brought into one window: [windows, side^2, side^2]."""
    region = torch.zeros(1, resolution, resolution, 1)
    stripes = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in stripes for columns in stripes):
        region[:, rows, columns] = number
    labels = to_windows(region, side).squeeze(-1)
    return torch.where(labels[:, None] == labels[:, :, None], 0.0, -100.0)


class WindowAttention(nn.Module):
    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * side - 1) ** 2, heads))
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", relative_positions(side), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        n, pixels, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, pixels, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * self.width**-0.5) @ k.transpose(-2, -1)  # [n, heads, pixels, pixels]
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        scores = scores + bias.view(pixels, pixels, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            scores = scores.view(-1, len(mask), self.heads, pixels, pixels) + mask[None, :, None]
            scores = scores.view(-1, self.heads, pixels, pixels)
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, pixels, dim))


class SwinBlock(nn.Module):
    def __init__(self, dim: int, heads: int, resolution: int, side: int, shift: int) -> None:
        super().__init__()
        self.side, self.shift = side, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, side)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.attn_mask: Tensor | None
        self.register_buffer("attn_mask", shift_mask(resolution, side, shift) if shift else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = from_windows(self.attn(to_windows(y, self.side), self.attn_mask), self.side, height, width)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Four neighbours become one pixel of twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, dim = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class Swin(nn.Module):
    """Two stages of two blocks; the second block of the first stage has shifted windows."""

    def __init__(self, dim: int = 16, heads: tuple[int, int] = (2, 4), image: int = 32, side: int = 4) -> None:
        super().__init__()
        resolution = image // 4
        self.proj = nn.Conv2d(3, dim, 4, 4)
        self.patch_norm = nn.LayerNorm(dim)
        self.layers = nn.Sequential(
            SwinBlock(dim, heads[0], resolution, side, shift=0),
            SwinBlock(dim, heads[0], resolution, side, shift=side // 2),
            PatchMerging(dim),
            SwinBlock(2 * dim, heads[1], resolution // 2, side, shift=0),
            SwinBlock(2 * dim, heads[1], resolution // 2, side, shift=0),
        )
        self.norm = nn.LayerNorm(2 * dim)
        self.head = nn.Linear(2 * dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_norm(self.proj(x).permute(0, 2, 3, 1))
        return self.head(self.norm(self.layers(x)).mean((1, 2)))


ARCHITECTURES = {"swin_timm": Architecture(Swin, images(32))}
