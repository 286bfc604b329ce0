"""Multilayer perceptron, VGG and residual networks, named as their authors name them."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from tests.symmetry.architectures.architecture import Architecture, images, vectors

Normalization = Callable[[int], nn.Module]


def group_norm(groups: int) -> Normalization:
    return lambda channels: nn.GroupNorm(groups, channels)


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def vgg(widths: Sequence[int | None], side: int, batch_norm: bool, outputs: int = 10) -> nn.Sequential:
    """Convolutions of these widths (None: halve the image), then three linear layers on what is left of the image."""
    features: list[nn.Module] = []
    channels = 3
    for width in widths:
        if width is None:
            features.append(nn.MaxPool2d(2))
            side //= 2
            continue
        features.append(nn.Conv2d(channels, width, 3, padding=1))
        if batch_norm:
            features.append(nn.BatchNorm2d(width))
        features.append(nn.ReLU(inplace=True))
        channels = width
    classifier = [nn.Linear(channels * side * side, 40), nn.ReLU(), nn.Dropout()]
    classifier += [nn.Linear(40, 36), nn.ReLU(), nn.Linear(36, outputs)]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(side), nn.Flatten(), *classifier)


class PadShortcut(nn.Module):
    """Every second pixel, and zeros for the channels that are new (option A of He et al. 2016)."""

    def __init__(self, new: int) -> None:
        super().__init__()
        self.before, self.after = new // 2, new - new // 2

    def forward(self, x: Tensor) -> Tensor:
        return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, norm: Normalization, shortcut: int | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = norm(width)
        self.shortcut = nn.Sequential()
        if stride == 1 and inputs == width:
            return
        if shortcut is None:
            self.shortcut = nn.Sequential(PadShortcut(width - inputs))
        else:
            project = nn.Conv2d(inputs, width, shortcut, stride, shortcut // 2, bias=False)
            self.shortcut = nn.Sequential(project, norm(width))

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class BasicResNet(nn.Module):
    """CIFAR-style residual network. `shortcut`: kernel of the projection, or None to pad with zeros."""

    def __init__(
        self,
        blocks: Sequence[int] = (3, 3, 3),
        widths: Sequence[int] = (16, 32, 64),
        outputs: int = 10,
        norm: Normalization = nn.BatchNorm2d,
        shortcut: int | None = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = norm(widths[0])
        inputs = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            layers = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                layers.append(BasicBlock(inputs, width, stride, norm, shortcut))
                inputs = width
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.stages = [f"layer{stage}" for stage in range(1, len(blocks) + 1)]
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.linear(self.avgpool(x).flatten(1))


class Bottleneck(nn.Module):
    """1x1 down, 3x3 (in `groups` groups), 1x1 up to four times the planes."""

    def __init__(self, inputs: int, planes: int, stride: int, groups: int) -> None:
        super().__init__()
        width = planes * groups
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != 4 * planes:
            project = nn.Conv2d(inputs, 4 * planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(4 * planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class BottleneckResNet(nn.Module):
    """ResNet-50 in small; with `groups` > 1, ResNeXt."""

    def __init__(self, blocks: Sequence[int] = (2, 2, 1, 1), planes: int = 8, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, planes, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        layers: list[nn.Module] = []
        inputs = planes
        for stage, count in enumerate(blocks):
            for index in range(count):
                stride = 2 if stage and index == 0 else 1
                layers.append(Bottleneck(inputs, planes * 2**stage, stride, groups))
                inputs = 4 * planes * 2**stage
        self.layers = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(relu(self.bn1(self.conv1(x)), inplace=True))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


ARCHITECTURES = {
    "mlp": Architecture(lambda: mlp(20, 32, 24, 28, 10), vectors(3, 20)),
    "vgg_bn": Architecture(lambda: vgg((16, None, 24, None, 32, 32, None), 16, batch_norm=True), images(16)),
    "vgg_flat1": Architecture(lambda: vgg((16, None, 24, None, 32, None, 32, None), 16, batch_norm=False), images(16)),
    "resnet20_bn": Architecture(BasicResNet, images(16)),
    "resnet20_optA": Architecture(lambda: BasicResNet(shortcut=None), images(16)),
    "resnet20_gn": Architecture(lambda: BasicResNet(norm=group_norm(8)), images(16)),
    "resnet50": Architecture(BottleneckResNet, images(64)),
    "resnext": Architecture(lambda: BottleneckResNet(groups=4), images(64)),
}
