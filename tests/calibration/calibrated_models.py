"""Tiny models of every kind of layer that a calibration refits, pairs of them, and `calibrated` with fixed options."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu

from mergeline.alignment.alignment import Alignment
from mergeline.alignment.apply import apply_alignment
from mergeline.alignment.fold import Zip
from mergeline.calibration.calibrate import Calibrated, calibrate_and_record
from mergeline.models.resnet import resnet
from mergeline.symmetry.derive import derive_symmetry


class Gated(nn.Module):
    """Attention with a packed projection, a gated MLP without biases, LayerNorm, residual streams."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.gate, self.up = nn.Linear(width, 12, bias=False), nn.Linear(width, 12, bias=False)
        self.down = nn.Linear(12, width, bias=False)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[n, words, 6] -> [n, 5]."""
        x = self.embed(x)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = self.norm2(x)
        x = x + self.down(silu(self.gate(y)) * self.up(y))
        return self.head(x.mean(dim=1))


class Separable(nn.Module):
    """Grouped and depthwise convolutions, BatchNorm behind and in front of layers, in-place activations, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding="same")
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.behind = nn.BatchNorm2d(8)
        self.pointwise = nn.Conv2d(8, 12, 1)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.2)
        self.linear = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, 8, 8] -> [n, 5]."""
        x = self.act(self.norm(self.act(self.stem(x))))
        x = self.act(self.behind(self.depthwise(self.act(self.grouped(x)))))
        return self.linear(self.drop(self.act(self.pointwise(x))).mean(dim=(2, 3)))


class Crossed(nn.Module):
    """Attention to other words, whose packed projection is split before it is used: in two parts, and in three."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.embed, self.other, self.third = nn.Linear(6, width), nn.Linear(6, width), nn.Linear(6, width)
        self.two = nn.MultiheadAttention(width, heads, batch_first=True)
        self.three = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[n, words, 6] -> [n, 5]."""
        y, other, third = self.embed(x), self.other(x), self.third(x)
        y = y + self.two(y, other, other, need_weights=False)[0]
        y = y + self.three(y, other, third, need_weights=False)[0]
        return self.head(y.mean(dim=1))


class Mixing(nn.Module):
    """Layers over words and layers over channels: there a value has units on an axis that no layer writes at once."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, width), nn.LayerNorm(width)
        self.words, self.back = nn.Linear(3, 5), nn.Linear(5, 3)
        self.up, self.down = nn.Linear(width, 12), nn.Linear(12, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[n, words, 6] -> [n, 5]."""
        x = self.embed(x)
        x = x + self.back(silu(self.words(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.down(silu(self.up(x)))
        return self.head(x.mean(dim=1))


class Branches(nn.Module):
    """Sums of what cannot be one map: convolutions with a bare BatchNorm, and a layer over places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 6, 3, padding=1)
        self.wide = nn.Conv1d(6, 6, 3, padding=1, groups=6, bias=False)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.full, self.conv, self.places = nn.Conv1d(6, 6, 1), nn.Conv1d(6, 6, 3, padding=1), nn.Linear(6, 6)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, 6] -> [n, 5]."""
        x = relu(self.stem(x))
        x = relu(self.norm1(self.wide(x)) + self.norm2(x))
        x = relu(self.full(x) + self.norm3(x))
        return self.linear(relu(self.conv(x) + self.places(x)).mean(dim=2))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (lambda: resnet(blocks=(1, 2, 1), width=4, outputs=5), (1, 8, 8)),
    "separable": (Separable, (1, 8, 8)),
    "gated": (Gated, (3, 6)),
    "crossed": (Crossed, (3, 6)),
    "mixing": (Mixing, (3, 6)),
    "branches": (Branches, (1, 6)),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A model whose normalisation and biases are not those of a fresh one."""
    torch.manual_seed(seed)
    module = MODELS[name][0]().eval()
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.3 * torch.randn_like(tensor))
    return module


def batches(name: str, *sizes: int, seed: int = 1) -> list[Tensor]:
    """Inputs of a model."""
    shape = MODELS[name][1]
    return list(torch.randn(sum(sizes), *shape, generator=torch.Generator().manual_seed(seed)).split(sizes))


def twins(name: str) -> tuple[nn.Module, nn.Module, Alignment]:
    """A model, the same in another unit order, and the alignment that brings the second back."""
    module = build(name)
    symmetry = derive_symmetry(module, batches(name, 2)[0])
    alignment = Alignment(symmetry, (symmetry.identity(), *symmetry.random_alignment(3).permutations))
    other = deepcopy(module)
    other.load_state_dict(apply_alignment(module.state_dict(), alignment.inverse(), 1))
    return module, other, alignment


def zipped_twins(name: str) -> tuple[nn.Module, nn.Module, Alignment]:
    """The same with zips: each unit of the first with that unit of the second, the others' outer units in order."""
    module, other, alignment = twins(name)
    symmetry, moves = alignment.symmetry, alignment.permutations[1]
    outer = {over for family in symmetry.families.values() for over in family.over}
    stay = symmetry.identity()
    zips = {
        family: Zip(torch.stack([stay[family], moves[family].argsort(dim=-1)]), size)
        for family, size in symmetry.sizes.items()
        if family not in outer
    }
    second = {family: stay[family] if family in zips else move for family, move in moves.items()}
    return module, other, Alignment(symmetry, (stay, second), zips=zips)


def disturbed(module: nn.Module, share: float = 0.2) -> nn.Module:
    """A copy with noise on all its parameters."""
    copy, generator = deepcopy(module), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in copy.parameters():
            spread = tensor.std() if tensor.numel() > 1 else tensor.abs()
            tensor.add_(share * spread * torch.randn(tensor.shape, generator=generator))
    return copy


def difference(first: nn.Module, second: nn.Module, inputs: Tensor) -> float:
    """Largest difference of the outputs, as a share of the largest output."""
    with torch.no_grad():
        one, other = first(inputs), second(inputs)
    return float((one - other).abs().max() / one.abs().max())


OPTIONS: dict[str, Any] = {"centre": False, "last_layer": "mean", "layers": True, "ridge": 1e-2, "columns": None}


def calibrated(
    merged: nn.Module, modules: list[nn.Module], alignment: Alignment | None, data: Any, **options: Any
) -> Calibrated:
    """With the options of the laws, but for those given."""
    return calibrate_and_record(merged, modules, alignment, data, **OPTIONS | options)
