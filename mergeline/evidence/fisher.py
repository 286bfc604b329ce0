"""The diagonal of the Fisher information: how much a model's predictions depend on each parameter."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mergeline.errors import InputError
from mergeline.evidence.measuring import evaluation_mode, names_of, on_device
from mergeline.merging.random_masks import uniforms

Labels = Literal["given", "sampled", "expected"]


def fisher_diagonal(
    module: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    *,
    labels: Labels = "given",
    logits: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Mean over examples of the squared gradients of the log-likelihood (Matena and Raffel 2022).

    module: a classifier; run in eval mode, example by example, and left as it was. batches: (inputs, labels [b] of
    integers), inputs a tensor [b, ...] or a mapping of named ones; how they are cut does not matter.
    labels: "given" (the empirical Fisher); "sampled": one label per example drawn from the model's own predictions, by
    `seed` and the example's place; "expected": all classes, weighted by their predicted probability (the Fisher itself,
    a backward pass per class). logits: outputs of the module -> [b, classes]; None: they are that already.
    Returns float32 by parameter name, sums in float64; floating buffers are 0. InputError where there is no example, a
    label is no class, or a result is not finite.
    """
    if labels not in ("given", "sampled", "expected"):
        raise InputError(f"Fisher information: labels must be 'given', 'sampled' or 'expected', not {labels!r}.")
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in module.named_parameters()}
    sums = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}
    count = 0
    with evaluation_mode(module), torch.enable_grad():
        for inputs, label in _examples(batches):
            positional, named = on_device(inputs, module)
            outputs = functional_call(module, parameters, positional, named)
            row = (outputs if logits is None else logits(outputs)).reshape(-1).double().log_softmax(0)
            weighted = list(_labels(row.detach(), label, labels, seed, count))
            for index, (chosen, share) in enumerate(weighted):
                last = index == len(weighted) - 1
                gradients = torch.autograd.grad(
                    row[chosen], list(parameters.values()), retain_graph=not last, allow_unused=True
                )
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    if gradient is not None:
                        total += gradient.double().square_().mul_(share)
            count += 1
    if not count:
        raise InputError("Fisher information: there are no examples.")
    return _all_names(module, {name: (total / count).float() for name, total in sums.items()})


def _examples(batches: Iterable[tuple[Any, Tensor]]) -> Iterator[tuple[Any, int]]:
    """Inputs of one example, still with a batch axis of length 1, and its label."""
    for inputs, labels in batches:
        for index, label in enumerate(labels.tolist()):
            one = slice(index, index + 1)
            if isinstance(inputs, Mapping):
                yield (
                    {name: value[one] if isinstance(value, Tensor) else value for name, value in inputs.items()},
                    label,
                )
            else:
                yield inputs[one], label


def _labels(row: Tensor, label: int, labels: Labels, seed: int, index: int) -> Iterator[tuple[int, float]]:
    """(class, weight) of one example, given its log-probabilities [classes]."""
    if labels == "given":
        if not 0 <= label < len(row):
            raise InputError(f"Fisher information: label {label} of example {index} is none of {len(row)} classes.")
        yield label, 1.0
    elif labels == "sampled":
        drawn = float(uniforms(seed, "labels", 0, index, 1)[0])
        yield min(int((row.exp().cumsum(0) <= drawn).sum()), len(row) - 1), 1.0
    else:
        yield from enumerate(row.exp().tolist())


def _all_names(module: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor for each floating tensor of the state dict: tied parameters by all their names, buffers 0."""
    everywhere = {name: found[names[0]] for names in names_of(module).values() for name in names}
    result = {}
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            result[name] = everywhere[name].clone() if name in everywhere else torch.zeros_like(tensor).float()
            if not result[name].isfinite().all():
                raise InputError(f"Fisher information: that of {name!r} is not finite; check the weights and inputs.")
    return result
