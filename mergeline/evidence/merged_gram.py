"""Gram matrices of the inputs that layers have in the merged model, for RegMean++ (arXiv 2508.03121).

A layer's matrices need all layers before it merged, so layers are measured one after the other, in the order in which
they run: the data of every task run through the partly merged model up to the layer, which is then merged, too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mergeline.calibration.normalization import BATCH_NORMS
from mergeline.errors import InputError
from mergeline.evidence.gram import GramSums, observed, refuse_infinite, weighted_layers
from mergeline.evidence.measuring import evaluation_mode, inputs_of, names_of, run
from mergeline.merging.engine import merge
from mergeline.merging.regmean import regression_mean


def merged_gram_matrices(
    module: nn.Module,
    models: Sequence[Mapping[str, Tensor]],
    batches: Sequence[Sequence[Any]],
    *,
    alpha: float | Callable[[str], float] = 0.9,
    attended: Callable[[Any], Tensor] | None = None,
) -> list[dict[str, Tensor]]:
    """For each task model, as `gram_matrices` has it: X^T X / rows of X for the weight of every Linear and Conv2d.

    X are the inputs of a layer where the data of the task run through the merged model: the weights before it are those
    of `regmean_plusplus`, all else (biases, norms, grouped convolutions) is averaged. A weight that is used several
    times sees the rows of all uses, itself still averaged.
    module: of the architecture; left as it was. BatchNorm layers normalise each batch by itself, as where their
    statistics are reset: those of the task models, averaged, are not the merged model's. models: state dicts or
    readers, in one unit order. batches: of each model, gone through once per layer. alpha: of `regmean_plusplus`, or
    by name. attended: as `gram_matrices` has it. Memory holds one merged model and one layer's weights and matrices of
    all models beside what is returned.
    InputError where a model has no batch or a result is not finite.
    """
    if len(batches) != len(models) or not all(batches):
        raise InputError("Gram matrices: there are no batches of some of the models to measure them on.")
    merged = deepcopy(module).requires_grad_(False)
    merged.load_state_dict(dict(merge(models, method="average")))
    names, found = names_of(merged), [dict[str, Tensor]() for _ in models]
    with evaluation_mode(merged), batch_statistics(merged), torch.no_grad():
        uses = _uses(merged, batches)
        for weight, (layers, count) in tqdm(uses.items(), desc="layers", unit="layer", disable=None):
            grams = torch.stack([_measure(merged, layers, own, attended, last=count == 1) for own in batches])
            name = names[weight][0]
            refuse_infinite(name, grams)
            own = torch.stack([model[name].detach().float() for model in models])
            strength = alpha(name) if callable(alpha) else alpha
            layers[0].weight.copy_(regression_mean(name, own, grams, strength))  # type: ignore[operator]
            for index, matrix in enumerate(grams):
                found[index] |= dict.fromkeys(names[weight], matrix)
    return [dict(sorted(one.items())) for one in found]


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm layers normalise each batch by itself, and remember nothing of it."""
    norms = [layer for layer in module.modules() if isinstance(layer, BATCH_NORMS)]
    before = [(norm.training, norm.momentum) for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (training, momentum) in zip(norms, before, strict=True):
            norm.training, norm.momentum = training, momentum


def _uses(module: nn.Module, batches: Iterable[Iterable[Any]]) -> dict[int, tuple[list[nn.Module], int]]:
    """id of each weight -> its layers and how often a batch uses it at most, in the order of first use."""
    layers: dict[int, list[nn.Module]] = {}
    for layer in weighted_layers(module):
        layers.setdefault(id(layer.weight), []).append(layer)
    most: dict[int, int] = {}
    for batch in (batch for own in batches for batch in own):
        counts: dict[int, int] = {}

        def count(layer: nn.Module, _: Tensor, counts: dict[int, int] = counts) -> None:
            counts[id(layer.weight)] = counts.get(id(layer.weight), 0) + 1

        with observed(weighted_layers(module), count):
            run(module, batch)
        most |= {weight: max(times, most.get(weight, 0)) for weight, times in counts.items()}
    return {weight: (layers[weight], times) for weight, times in most.items()}


class _Measured(Exception):  # noqa: N818
    """Ends a run: whatever comes after the layer need not be computed."""


def _measure(
    module: nn.Module,
    layers: Sequence[nn.Module],
    batches: Iterable[Any],
    attended: Callable[[Any], Tensor] | None,
    *,
    last: bool,
) -> Tensor:
    """X^T X / rows of X of one weight, [in, in] float32. last: whether nothing more is to see once it was used."""
    sums = GramSums()

    def add(layer: nn.Module, inputs: Tensor) -> None:
        sums.add(layer, inputs)
        if last:
            raise _Measured

    with observed(layers, add):
        for batch in batches:
            sums.mask = attended(inputs_of(batch)) if attended else None
            try:
                run(module, batch)
            except _Measured:
                continue
    for matrix in sums.means().values():
        return matrix.cpu()
    inputs = layers[0].weight[0].numel()  # type: ignore[index]
    return torch.zeros(inputs, inputs)  # the data of other models reach it, and say all
