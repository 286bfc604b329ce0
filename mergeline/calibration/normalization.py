"""Normalisation reset: BatchNorm statistics measured anew on calibration data, as in REPAIR (Jordan et al. 2023).

Averaging weights shrinks the variance of activations, so the running statistics of a merged model are not the mean of
its parents'. Measuring them anew is the one step after a merge that needs data, though no labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.evidence.measuring import run

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


Batch = Tensor | Sequence[Any] | Mapping[str, Any]
"""Inputs of a module: one, the first of several (labels follow), or named ones."""


def reset_normalization(module: nn.Module, batches: Iterable[Batch]) -> nn.Module:
    """A copy of the module in eval mode whose running statistics are the mean over batches of the batches' own.

    batches: inputs, tuples whose first item is the input, or mappings of named inputs; each batch counts the same,
    whatever its size. They go to the module's device. Only BatchNorm layers with running statistics measure;
    everything else (dropout too) stays in eval mode. LayerNorm and GroupNorm keep no statistics: a model without
    BatchNorm is copied and no batch is read.
    Raises InputError where there is no batch, inputs do not fit the module, or a layer's statistics are not finite
    afterwards.
    """
    copy = deepcopy(module).eval()
    norms = {n: m for n, m in copy.named_modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats}
    if not norms:
        return copy
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's cumulative average
        norm.train()
    if _run(copy, batches) == 0:
        raise InputError("normalisation reset: there are no batches to measure statistics on.")
    for name, norm in norms.items():
        norm.momentum = momenta[name]
        if not all(buffer.isfinite().all() for buffer in norm.buffers()):
            raise InputError(f"normalisation reset: the statistics of {name} are not finite; check weights and inputs.")
    return copy.eval()


def normalization_statistics(module: nn.Module) -> dict[str, Tensor]:
    """The running statistics in the module's state dict, by name; empty for a model without BatchNorm."""
    return {
        name: tensor
        for prefix, norm in module.named_modules()
        if isinstance(norm, BATCH_NORMS)
        for name, tensor in norm.state_dict(prefix=f"{prefix}." if prefix else "").items()
        if name.rpartition(".")[2] in dict(norm.named_buffers())
    }


def _run(module: nn.Module, batches: Iterable[Batch]) -> int:
    """Feed every batch through the module; how many there were."""
    count = 0
    with torch.no_grad():
        for batch in batches:
            run(module, batch)
            count += 1
    return count
