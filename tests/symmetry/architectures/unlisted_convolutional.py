"""Convolutional and dense networks that no list of supported models has: nothing may depend on a name."""

import torch
from torch import Tensor, nn
from torch.nn.functional import glu, hardswish, linear, pixel_unshuffle, relu

from tests.symmetry.architectures.architecture import Architecture, images, vectors


def conv_norm(inputs: int, outputs: int, kernel: int = 3, groups: int = 1, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Two scales down and up again; what was kept on the way down is concatenated on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_norm(3, 6), conv_norm(6, 8)
        self.bottom = conv_norm(8, 12)
        self.up2, self.join2 = nn.ConvTranspose2d(12, 7, 2, 2), conv_norm(8 + 7, 9)
        self.up1, self.join1 = nn.Upsample(scale_factor=2, mode="bilinear"), conv_norm(6 + 9, 5)
        self.last = nn.Conv2d(5, 2, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = self.down2(self.pool(fine))
        y = self.bottom(self.pool(coarse))
        y = self.join2(torch.cat([coarse, self.up2(y)], dim=1))
        return self.last(self.join1(torch.cat([fine, self.up1(y)], dim=1)))


class DenseNet(nn.Module):
    """Every layer reads all earlier ones."""

    def __init__(self, stem: int = 8, growth: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1)
        self.layers = nn.ModuleList()
        for index in range(layers):
            inputs = stem + index * growth
            self.layers.append(
                nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, growth, 3, padding=1))
            )
        self.norm = nn.BatchNorm2d(stem + layers * growth)
        self.head = nn.Linear(stem + layers * growth, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return self.head(relu(self.norm(x)).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Widen, filter each channel alone, weigh the channels by their mean, narrow."""

    def __init__(self, width: int, hidden: int, squeezed: int) -> None:
        super().__init__()
        self.widen = conv_norm(width, hidden, kernel=1)
        self.depthwise = conv_norm(hidden, hidden, groups=hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, squeezed, 1), nn.Conv2d(squeezed, hidden, 1)
        self.narrow = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = hardswish(self.depthwise(self.widen(x)))
        y = y * torch.sigmoid(self.excite(relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.narrow(y)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8, stride=2)
        self.blocks = nn.Sequential(InvertedResidual(8, 16, 4), InvertedResidual(8, 20, 5))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class GatedConvolution(nn.Module):
    """Half of the channels gate the other half (GLU), on an image folded into channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(12, 2 * 7, 3, padding=1)
        self.second = nn.Conv2d(7, 2 * 6, 1)
        self.head = nn.Linear(6 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = glu(self.stem(pixel_unshuffle(x, 2)), dim=1)
        return self.head(glu(self.second(x), dim=1).flatten(1))


class LayerScaleBlocks(nn.Module):
    """ConvNeXt-like: depthwise convolution, LayerNorm in channels-last order, a learned scale per channel."""

    def __init__(self, width: int = 8, hidden: int = 14) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale = nn.Parameter(1e-6 * torch.ones(width))
        self.merge = nn.Conv2d(width, 10, 2, 2)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(torch.nn.functional.gelu(self.widen(y)))
        return self.head(self.merge(x + y.permute(0, 3, 1, 2)).amax((2, 3)))


class TiedAutoencoder(nn.Module):
    """The decoder's matrices are the encoder's, transposed."""

    def __init__(self, width: int = 20, hidden: int = 9, code: int = 5) -> None:
        super().__init__()
        self.outer, self.inner = nn.Linear(width, hidden), nn.Linear(hidden, code)
        self.bias_inner, self.bias_outer = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.inner(torch.tanh(self.outer(x))))
        hidden = torch.tanh(linear(code, self.inner.weight.t(), self.bias_inner))
        return linear(hidden, self.outer.weight.t(), self.bias_outer)


class SharedTrunk(nn.Module):
    """One layer object used three times in a row: its inputs and outputs are the same units."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.first(x))
        for _ in range(3):
            x = relu(self.shared(x))
        return self.last(x)


class UnrolledCells(nn.Module):
    """An LSTM cell, then a GRU cell, stepped by hand over a sequence."""

    def __init__(self, first: int = 6, second: int = 5) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.embed = nn.Linear(3, 4)
        self.lstm, self.gru = nn.LSTMCell(4, first), nn.GRUCell(first, second)
        self.head = nn.Linear(second, 2)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        h, c, g = x.new_zeros(n, self.first), x.new_zeros(n, self.first), x.new_zeros(n, self.second)
        for step in range(x.shape[1]):
            h, c = self.lstm(self.embed(x[:, step]), (h, c))
            g = self.gru(h, g)
        return self.head(g)


class Lstm(nn.Module):
    """The fused two-layer LSTM, both directions."""

    def __init__(self, hidden: int = 5) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.lstm = nn.LSTM(4, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0].mean(1))


ARCHITECTURES = {
    "unet": Architecture(UNet, images(8), sizes=(6, 8, 12, 7, 9, 5)),
    "densenet": Architecture(DenseNet, images(8), sizes=(8, 4, 4, 4)),
    "mobilenet": Architecture(MobileNet, images(8), sizes=(8, 16, 4, 20, 5)),
    "gated convolution": Architecture(GatedConvolution, images(8), sizes=(7, 6)),
    "layer scale": Architecture(LayerScaleBlocks, images(16), sizes=(8, 14, 10)),
    "tied autoencoder": Architecture(TiedAutoencoder, vectors(3, 20), sizes=(9, 5)),
    "shared trunk": Architecture(SharedTrunk, vectors(3, 5), sizes=(7,)),
    "unrolled cells": Architecture(UnrolledCells, vectors(2, 4, 3), sizes=(4, 6, 5)),
    "lstm": Architecture(Lstm, vectors(2, 4, 3), sizes=(4, 5, 5, 5, 5)),
}
