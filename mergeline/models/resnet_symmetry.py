"""The unit symmetry of the reference ResNet, read off its modules."""

from __future__ import annotations

from torch import nn

from mergeline.errors import InputError
from mergeline.symmetry.symmetry import CONSUMER, ELEMENTWISE, PRODUCER, Family, ParameterLayout, Site, Symmetry
from mergeline.symmetry.symmetry import parameter_layout as layout


def resnet_symmetry(module: nn.Module) -> Symmetry:
    """One family per residual stream (`stream1`..) and per block's hidden channels (`layer1.0.hidden`..).

    Where normalisation is by groups of channels, a family is split: whole groups, and the channels inside each.
    A stream is observed where it is read last (the final one before pooling), hidden channels at conv2 of the block.
    Raises InputError for a module that is not the reference ResNet.
    """
    builder = _Builder(module)
    if not hasattr(module, "conv1") or not hasattr(module, "linear"):
        raise InputError(f"{type(module).__name__} is not the reference ResNet; name its symmetry in the plan")
    builder.convolution("conv1", None, "stream1")
    builder.normalisation("bn1", "stream1")
    stream, number = "stream1", 1
    for stage, blocks in ((name, child) for name, child in module.named_children() if name.startswith("layer")):
        for index, block in enumerate(blocks.children()):
            name, source = f"{stage}.{index}", stream
            if list(block.get_submodule("shortcut").children()):
                builder.observe(f"{name}.shortcut.0", stream)
                number += 1
                stream = f"stream{number}"
                builder.convolution(f"{name}.shortcut.0", source, stream)
                builder.normalisation(f"{name}.shortcut.1", stream)
            builder.convolution(f"{name}.conv1", source, f"{name}.hidden")
            builder.normalisation(f"{name}.bn1", f"{name}.hidden")
            builder.observe(f"{name}.conv2", f"{name}.hidden")
            builder.convolution(f"{name}.conv2", f"{name}.hidden", stream)
            builder.normalisation(f"{name}.bn2", stream)
    builder.observe("avgpool", stream)
    builder.parameters["linear.weight"] = layout(
        [f"_{len(module.state_dict()['linear.bias'])}", builder.text(stream)], ["", CONSUMER]
    )
    return Symmetry(builder.families, builder.parameters, tuple(builder.sites))


class _Builder:
    """Collects families, parameter layouts and sites while the network is walked through."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.families: dict[str, Family] = {}
        self.parameters: dict[str, ParameterLayout] = {}
        self.sites: list[Site] = []

    def text(self, units: str) -> str:
        """Layout of an axis that holds these units."""
        return f"{units}.groups * {units}" if f"{units}.groups" in self.families else units

    def declare(self, units: str, size: int, groups: int) -> None:
        """Add a family of `size` units, in `groups` blocks where normalisation couples channels."""
        if units in self.families:
            return
        if groups > 1:
            self.families[f"{units}.groups"] = Family(f"{units}.groups", groups)
            self.families[units] = Family(units, size // groups, (f"{units}.groups",))
        else:
            self.families[units] = Family(units, size)

    def convolution(self, name: str, source: str | None, target: str) -> None:
        """A convolution that reads `source` (None: the picture) and writes `target`."""
        convolution = self.module.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        norm = self.module.get_submodule(self._normalisation_after(name))
        self.declare(target, convolution.out_channels, norm.num_groups if isinstance(norm, nn.GroupNorm) else 1)
        reads = f"_{convolution.in_channels}" if source is None else self.text(source)
        height, width = convolution.kernel_size
        self.parameters[f"{name}.weight"] = layout(
            [self.text(target), reads, f"_{height}", f"_{width}"], [PRODUCER, CONSUMER if source else "", "", ""]
        )

    def normalisation(self, name: str, units: str) -> None:
        """Scale, shift and running statistics of a normalisation over `units`."""
        for key, tensor in self.module.get_submodule(name).state_dict().items():
            if tensor.ndim == 1:
                self.parameters[f"{name}.{key}"] = layout([self.text(units)], [ELEMENTWISE])

    def observe(self, module: str, units: str) -> None:
        """The input channels of `module` show these units."""
        self.sites.append(Site(module, 1, units))

    def _normalisation_after(self, convolution: str) -> str:
        head, _, last = convolution.rpartition(".")
        last = {"conv1": "bn1", "conv2": "bn2", "0": "1"}[last]
        return f"{head}.{last}" if head else last
