"""Reads one case of the authors' MuDSC results: models, calibration batches, and what their program made of them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from mergeline.models.resnet import resnet
from mergeline.symmetry.derive import derive_symmetry
from tests.derived import symmetry_of
from tests.symmetry.architectures.vision_transformers import VisionTransformer


class Case:
    """One case of the `mudsc` set: the reference ResNet, or a ViT."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text())
        inputs = load_file(folder / "inputs.safetensors")
        self.common = load_file(folder / "common.safetensors")
        self.states = [
            {name[2:]: tensor for name, tensor in inputs.items() if name.startswith(f"{letter}/")}
            for letter in "ABC"[: self.manifest["models"]]
        ]
        self.batches = list(inputs["calib"].float().split(self.manifest["calib_batches"]))
        self.modules = [self.module(state) for state in self.states]
        self.symmetry = self._symmetry()
        self.node_of = {self._group(node): key for key, node in self.manifest["nodes"].items()}

    def module(self, state) -> torch.nn.Module:
        arch = self.manifest["arch"]
        if arch["type"] == "vit":
            return self._vit(state)
        group_norm = arch["norm"] != "batchnorm"
        norm = {"norm": "group", "groups": self.groups()} if group_norm else {}
        module = resnet(
            blocks=tuple(arch["blocks"]),
            widths=tuple(len(state[f"layer{stage}.0.conv1.weight"]) for stage in (1, 2, 3)),  # zip may change them
            outputs=arch["classes"],
            in_channels=3,
            shortcut_kernel=3,
            **norm,
        )
        module.load_state_dict({**module.state_dict(), **state})
        return module.eval()

    def _symmetry(self):
        if self.manifest["arch"]["type"] != "vit":
            return symmetry_of(self.modules[0])
        return derive_symmetry(self.modules[0], self.batches[0][:2])

    def _vit(self, state) -> torch.nn.Module:
        arch = self.manifest["arch"]
        sizes = [arch[key] for key in ("dim", "depth", "heads", "mlp_hidden", "img", "patch", "classes")]
        module = VisionTransformer(*sizes, norm_before=arch["norm_pre"], fused=False)
        module.load_state_dict(state)
        return module.eval()

    def groups(self) -> int:
        return max(node["groups"] for node in self.manifest["nodes"].values())

    def _group(self, node) -> str:
        """Our group that holds the first tensor of a node of theirs; queries, keys and values are thirds of one."""
        first = node["weights"][0]
        param, third = first["param"], first["param"][-2:]
        fused = third in ("_q", "_k", "_v") and first["axis"] == 0
        return next(
            name
            for name, group in self.symmetry.groups.items()
            if any(
                (axis.param, axis.dim) == (param[:-2] if fused else param, first["axis"])
                and (not fused or axis.span.start // group.size == "qkv".index(third[1]))
                for axis in group.axes
            )
        )

    def orders(self) -> list[list[str]]:
        names = {int(node): group for group, node in self.node_of.items()}
        node_order = self.manifest["node_order"]
        return [[names[node_order[i]] for i in sweep] for sweep in self.manifest["sweep_orders_random_state_0"]]

    def modes(self, name: str):
        """What they recorded for a mode, with each of its settings: (entry of the manifest, tensors)."""
        for key, entry in self.manifest["modes"].items():
            if key.split("@")[0] == name:
                yield entry, load_file(self.folder / entry["file"])
