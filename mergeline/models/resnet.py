"""The reference model: a CIFAR-style residual network (He et al. 2016, section 4.2) of any depth and width."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import relu

from mergeline.errors import InputError

Normalization = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)); the shortcut is a convolution where the shape changes."""

    def __init__(
        self, inputs: int, width: int, stride: int, shortcut_kernel: int, normalization: Normalization
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = normalization(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = normalization(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            project = nn.Conv2d(inputs, width, shortcut_kernel, stride, padding=shortcut_kernel // 2, bias=False)
            self.shortcut = nn.Sequential(project, normalization(width))

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, width, h / stride, w / stride], rounded up."""
        inner = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(inner + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, three layers of basic blocks (strides 1, 2, 2), global average pooling, one linear layer."""

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        outputs: int,
        stem_stride: int,
        shortcut_kernel: int,
        in_channels: int,
        normalization: Normalization,
    ) -> None:
        super().__init__()

        def layer(inputs: int, width: int, count: int, stride: int) -> nn.Sequential:
            first = BasicBlock(inputs, width, stride, shortcut_kernel, normalization)
            rest = [BasicBlock(width, width, 1, shortcut_kernel, normalization) for _ in range(count - 1)]
            return nn.Sequential(first, *rest)

        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = normalization(widths[0])
        self.layer1 = layer(widths[0], widths[0], blocks[0], stride=1)
        self.layer2 = layer(widths[0], widths[1], blocks[1], stride=2)
        self.layer3 = layer(widths[1], widths[2], blocks[2], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[2], outputs)

    def forward(self, images: Tensor) -> Tensor:
        """[n, in_channels, h, w] float -> [n, outputs]."""
        x = relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))


def resnet(
    *,
    blocks: Sequence[int] = (1, 1, 1),
    width: int = 16,
    outputs: int = 384,
    stem_stride: int = 1,
    shortcut_kernel: int = 1,
    norm: Literal["batch", "group"] = "batch",
    groups: int = 8,
    in_channels: int = 1,
    widths: Sequence[int] | None = None,
) -> ResNet:
    """Build the network with PyTorch's default initialisation: the same under the same `torch.manual_seed`.

    blocks: how many basic blocks each of the three layers has; (3, 3, 3) is ResNet-20.
    widths: channels of the three layers; (width, 2 width, 4 width) where not given.
    stem_stride: 2 halves the image at once, for speed. shortcut_kernel: 1, or 3 as in MuDSC's networks (odd).
    norm: BatchNorm, or GroupNorm with `groups` groups.
    Raises InputError where the sizes do not describe a network.
    """
    widths = (width, 2 * width, 4 * width) if widths is None else widths
    if len(blocks) != 3 or len(widths) != 3 or min(*blocks, *widths) < 1:
        raise InputError(f"resnet: blocks and widths are three positive numbers each, not {blocks} and {widths}.")
    if shortcut_kernel % 2 == 0:
        raise InputError(f"resnet: shortcut_kernel must be odd to keep the image's size, not {shortcut_kernel}.")
    if norm not in ("batch", "group"):
        raise InputError(f"resnet: norm is 'batch' or 'group', not {norm!r}.")
    if norm == "group" and any(w % groups for w in widths):
        raise InputError(f"resnet: the widths {tuple(widths)} do not divide into {groups} groups; set `groups`.")

    def normalization(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(groups, channels)

    return ResNet(blocks, widths, outputs, stem_stride, shortcut_kernel, in_channels, normalization)
