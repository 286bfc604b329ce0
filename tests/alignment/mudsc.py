"""Reads one case of the authors' MuDSC results: models, calibration batches, and what their program made of them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from mergeline.models.resnet import resnet
from tests.derived import symmetry_of


class Case:
    """One case of the `mudsc` set whose architecture is the reference ResNet."""

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
        self.symmetry = symmetry_of(self.modules[0])
        self.node_of = {self._group(node): key for key, node in self.manifest["nodes"].items()}

    def module(self, state) -> torch.nn.Module:
        arch = self.manifest["arch"]
        group_norm = arch["norm"] != "batchnorm"
        norm = {"norm": "group", "groups": self.groups()} if group_norm else {}
        module = resnet(
            blocks=tuple(arch["blocks"]),
            widths=tuple(arch["widths"]),
            outputs=arch["classes"],
            in_channels=3,
            shortcut_kernel=3,
            **norm,
        )
        module.load_state_dict({**module.state_dict(), **state})
        return module.eval()

    def groups(self) -> int:
        return max(node["groups"] for node in self.manifest["nodes"].values())

    def _group(self, node) -> str:
        """Our group that holds the first tensor of a node of theirs."""
        first = node["weights"][0]
        return next(
            name
            for name, group in self.symmetry.groups.items()
            if any((axis.param, axis.dim) == (first["param"], first["axis"]) for axis in group.axes)
        )

    def orders(self) -> list[list[str]]:
        names = {int(node): group for group, node in self.node_of.items()}
        node_order = self.manifest["node_order"]
        return [[names[node_order[i]] for i in sweep] for sweep in self.manifest["sweep_orders_random_state_0"]]

    def mode(self, name: str):
        entry = self.manifest["modes"][name]
        return entry, load_file(self.folder / entry["file"])
