"""Names of a module's tensors in its files, where transformers gives them others in memory (ViT, Swin, GPT-NeoX)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from mergeline.checkpoints.readers import Reader
from mergeline.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def names_in_memory(module: nn.Module, checkpoint: Reader) -> dict[str, str]:
    """Name in the files -> name in the module's state dict, of every tensor of the module.

    The same where the checkpoint has the names in memory, and for every module that is none of transformers. Else
    they are those that transformers' `save_pretrained` writes, by its own conversion; no tensor is copied.
    Raises InputError where the checkpoint has names of files of which several are one tensor in memory.
    """
    own = module.state_dict()
    given = set(checkpoint.names()) - set(own)
    if not given or not any(kind.__module__.startswith("transformers.") for kind in type(module).__mro__):
        return {name: name for name in own}
    from transformers.core_model_loading import revert_weight_conversion

    shells = {name: tensor.to("meta") for name, tensor in own.items()}  # what is joined or cut then takes no memory
    memory = {id(shell): name for name, shell in shells.items()}
    stored = revert_weight_conversion(cast("PreTrainedModel", module), shells)
    if not given & set(stored):
        return {name: name for name in own}
    changed = [name for name, tensor in stored.items() if id(tensor) not in memory]
    if changed or len(stored) < len(own):
        raise InputError(
            f"{checkpoint.source}: tensor '{(changed or sorted(given))[0]}' is joined with others, or cut, when "
            f"transformers loads a {type(module).__name__}; such a model can be merged, but not be measured: leave out "
            "its tasks"
        )
    return {name: memory[id(tensor)] for name, tensor in stored.items()}


def by_file_names(tensors: Mapping[str, Tensor], module: nn.Module, checkpoint: Reader) -> dict[str, Tensor]:
    """Tensors of a module, keyed by their names in memory, under those that the checkpoint's files have."""
    files = {other: name for name, other in names_in_memory(module, checkpoint).items()}
    return {files[name]: tensor for name, tensor in tensors.items()}
