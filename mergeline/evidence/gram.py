"""Gram matrices of the inputs of linear layers and convolutions, for RegMean (arXiv 2212.09849)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mergeline.errors import InputError
from mergeline.evidence.measuring import evaluation_mode, inputs_of, names_of, run
from mergeline.similarity.correlation import gram

ENTRIES = 1 << 22  # of a layer's unfolded inputs, held at a time


def gram_matrices(
    module: nn.Module, batches: Iterable[Any], *, attended: Callable[[Any], Tensor] | None = None
) -> dict[str, Tensor]:
    """X^T X / rows of X for the weight of every Linear and Conv2d that the batches reach, by the weight's name.

    module: run in eval mode and left as it was. batches: inputs, tuples whose first item is the input, or mappings of
    named inputs. A row of X is one input vector of a linear layer; of a convolution, one patch [in * k * k] in the
    order of the flattened weight. Grouped convolutions are left out: their weight is no one matrix. A weight that is
    used several times sees the rows of all uses. Products are float32, their sums float64; the result is float32.
    attended: inputs -> which positions count, [b, length] bool: the padding of texts is no input. Layers whose input is
    not of that shape is read whole. InputError where there is no batch or a result is not finite.
    """
    sums, seen = GramSums(), False
    with evaluation_mode(module), torch.no_grad(), observed(weighted_layers(module), sums.add):
        for batch in batches:
            sums.mask = attended(inputs_of(batch)) if attended else None
            run(module, batch)
            seen = True
    if not seen:
        raise InputError("Gram matrices: there are no batches to measure them on.")
    names = names_of(module)
    found = {name: matrix for weight, matrix in sums.means().items() for name in names[weight]}
    for name, matrix in found.items():
        refuse_infinite(name, matrix)
    return dict(sorted(found.items()))


class GramSums:
    """Sums of X^T X [in, in] in float64 and numbers of rows, by the id of the weight.

    mask: which positions of the batch that runs count, [b, length] bool; None: all. It speaks of inputs of that shape.
    """

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}

    def add(self, layer: nn.Module, inputs: Tensor) -> None:
        """One use of a layer."""
        weight = id(layer.weight)
        if self.mask is not None and inputs.dim() == 3 and inputs.shape[:2] == self.mask.shape:
            inputs = inputs[self.mask]
        for rows in _rows(layer, inputs):  # [in, rows]
            products = gram(rows).double()
            self._sums[weight] = self._sums[weight].add_(products) if weight in self._sums else products
            self._counts[weight] = self._counts.get(weight, 0) + rows.shape[1]

    def means(self) -> dict[int, Tensor]:
        """X^T X / rows of X, float32, in the order in which the weights were first used."""
        return {weight: (total / self._counts[weight]).float() for weight, total in self._sums.items()}


@contextmanager
def observed(layers: Iterable[nn.Module], observe: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """Inside, `observe` is told of every use of the layers, before it, with the layer and its input."""

    def hook(layer: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        observe(layer, positional[0] if positional else named["input"])

    hooks = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def weighted_layers(module: nn.Module) -> list[nn.Module]:
    """The layers whose weight is one matrix: linear ones, and convolutions that are not grouped."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d) and _groups(layer) == 1]


def refuse_infinite(name: str, matrix: Tensor) -> None:
    """InputError where a Gram matrix is not finite."""
    if not matrix.isfinite().all():
        raise InputError(f"Gram matrices: that of {name!r} is not finite; check the weights and inputs.")


def _groups(layer: nn.Module) -> int:
    return getattr(layer, "groups", 1)


def _rows(layer: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    """The vectors that a layer multiplies its weight with, as columns [in, rows] float32, a bounded number at once."""
    if isinstance(layer, nn.Linear):
        for part in inputs.reshape(-1, layer.in_features).split(max(1, ENTRIES // layer.in_features)):
            yield part.float().T
        return
    assert isinstance(layer, nn.Conv2d)
    images = inputs if inputs.dim() == 4 else inputs[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padding = layer._reversed_padding_repeated_twice  # as functional.pad takes it, "same" worked out
    kernel, size = layer.kernel_size, images[:1].numel() * layer.kernel_size[0] * layer.kernel_size[1]
    for part in images.split(max(1, ENTRIES // max(1, size))):
        padded = functional.pad(part.float(), padding, mode=mode)
        patches = functional.unfold(padded, kernel, dilation=layer.dilation, stride=layer.stride)  # [b, in * k * k, l]
        yield patches.transpose(0, 1).flatten(1)
