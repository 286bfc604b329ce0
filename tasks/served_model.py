"""The code of a registered model. MLflow copies this file into the model and runs it on loading ("models from code").

It stands alone: a server that loads a model needs torch, safetensors and what the architecture's factory needs, whose
project's sources lie in the model too. Weights are safetensors; nothing here is pickled.
"""

from __future__ import annotations

import hashlib
import json
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from safetensors.torch import load_file


class MergedModel(PythonModel):
    """Images, or whatever the module takes, in; its outputs out.

    The parameter `domain` names the domain whose normalisation statistics the module has; "" (the default) stands for
    those of all calibration data together. Where tasks have heads of their own, the parameter `task` names the one that
    answers; "" stands for that of the first task model.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Read how to build the module; it is built when it is first asked for."""
        self._folder = Path(context.artifacts["merged"])
        self._about = json.loads((self._folder / "served.json").read_text(encoding="utf-8"))
        self._modules: dict[tuple[str, str], torch.nn.Module] = {}
        self._mutex = threading.Lock()

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """The module's outputs for a batch of inputs. ValueError for a domain or task that the model does not have."""
        asked = params or {}
        module = self.module(asked.get("domain", ""), asked.get("task", ""))
        with torch.inference_mode():
            return module(torch.from_numpy(np.ascontiguousarray(model_input))).numpy()

    @property
    def domains(self) -> list[str]:
        """The domains that the model has normalisation statistics of."""
        return list(self._about["domains"])

    @property
    def tasks(self) -> list[str]:
        """The tasks that have a head of their own."""
        return list(self._about["tasks"])

    def module(self, domain: str = "", task: str = "") -> torch.nn.Module:
        """The torch module in eval mode, with the statistics of a domain and the head of a task; the same object for
        every call."""
        for kind, name, known in (("domain", domain, self.domains), ("task", task, self.tasks)):
            if name and name not in known:
                raise ValueError(f"there is no {kind} '{name}' (known: {', '.join(known) or 'none'})")
        with self._mutex:
            if (domain, task) not in self._modules:
                self._modules[domain, task] = self._build(domain, task)
            return self._modules[domain, task]

    def _build(self, domain: str, task: str) -> torch.nn.Module:
        module_name, _, function = self._about["factory"].partition(":")
        kwargs = self._about["kwargs"] | ({"folder": str(self._folder)} if self._about.get("has_configuration") else {})
        module: torch.nn.Module = getattr(import_module(module_name), function)(**kwargs)
        weights = self._weights()
        names = _names_in_memory(module, weights)
        module.load_state_dict({names.get(name, name): tensor for name, tensor in weights.items()})
        if domain:
            statistics = load_file(self._folder / "normalization" / f"{domain}.safetensors")
            module.load_state_dict({names.get(name, name): tensor for name, tensor in statistics.items()}, strict=False)
        if task:
            _replace(module, load_file(self._folder / "heads" / f"{task}.safetensors"))
        return module.eval()

    def _weights(self) -> dict[str, torch.Tensor]:
        weights: dict[str, torch.Tensor] = {}
        for name, file in self._about["weights"].items():
            weights |= load_file(self._find(name, file))
        return weights

    def _find(self, name: str, file: dict[str, Any]) -> Path:
        """A file of weights: in the model, or, where it was too large to be copied, where it was written."""
        if file["copied"]:
            return self._folder / name
        for place in file["places"]:
            if Path(place).is_file() and _sha256(Path(place)) == file["sha256"]:
                return Path(place)
        places = " or ".join(file["places"])
        raise FileNotFoundError(f"{name} was too large to be copied into MLflow; it must lie, unaltered, in {places}")


def _names_in_memory(module: Any, weights: dict[str, torch.Tensor]) -> dict[str, str]:
    """Name in files -> in memory where transformers renames tensors while loading; else nothing.

    Not mergeline's own (`models.file_names`): where a model is served, that is not installed.
    """
    own = module.state_dict()
    if not set(weights) - set(own):
        return {}
    from transformers.core_model_loading import revert_weight_conversion

    memory = {id(tensor): name for name, tensor in own.items()}
    return {name: memory[id(tensor)] for name, tensor in revert_weight_conversion(module, own).items()}


def _replace(module: torch.nn.Module, head: dict[str, torch.Tensor]) -> None:
    """Put the tensors of a head into a module; they may have another shape, which load_state_dict refuses."""
    for name, tensor in head.items():
        owner, _, leaf = name.rpartition(".")
        part = module.get_submodule(owner)
        is_parameter = leaf in dict(part.named_parameters(recurse=False))
        setattr(part, leaf, torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


set_model(MergedModel())
