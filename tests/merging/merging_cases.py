"""Models, bases, evidence and options for any registered method, from what it declares."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from mergeline.merging import registry
from mergeline.merging.engine import merge, method_statistics
from mergeline.merging.merged import MergedTensors

StateDict = dict[str, Tensor]

SHAPES: dict[str, tuple[int, ...]] = {
    **{"conv.weight": (6, 3, 3, 3), "bn.weight": (6,), "bn.running_mean": (6,), "fc.weight": (10, 24)},
    **{
        "fc.bias": (10,),
        "temperature": (),
        "nothing": (0, 4),
        "layers.0.up.weight": (5, 8),
        "layers.1.up.weight": (5, 8),
    },
}


def state_dict(seed: int, near: StateDict | None = None) -> StateDict:
    """A small network with everything that occurs: matrices, vectors, a scalar, an empty tensor, buffers, integers."""
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    state = noise if near is None else {name: near[name] + 0.1 * noise[name] for name in SHAPES}
    return state | {"bn.num_batches_tracked": torch.tensor(seed), "fc.mask": torch.tensor([seed % 2 == 0, True])}


BASES = [state_dict(0), state_dict(1)]
MODELS = [state_dict(seed, near=BASES[seed % 2]) for seed in (10, 11, 12, 13)]
FAMILIES = [BASES[seed % 2] for seed in (10, 11, 12, 13)]


def number_of_models(method: str) -> int:
    """Four, or as many as the method takes."""
    least, most = registry.get(method).models
    return max(least, min(4, most or 4))


def evidence_of(method: str, models: Sequence[StateDict]) -> list[StateDict] | None:
    """Fisher: a positive number per parameter. Gram: X^T X of some inputs, for every weight with inputs but one."""
    kind = registry.get(method).evidence
    if kind is None:
        return None
    makers: dict[str, Callable[[Tensor, torch.Generator], Tensor | None]] = {
        "fisher": _fisher,
        "gram": _gram,
        "merged_gram": _gram,
    }
    found = []
    for index, model in enumerate(models):
        generator = torch.Generator().manual_seed(1000 + index)
        made = {name: makers[kind](tensor, generator) for name, tensor in sorted(model.items())}
        found.append(
            {name: tensor for name, tensor in made.items() if tensor is not None and name != "layers.1.up.weight"}
        )
        if kind == "fisher":
            found[-1] = {name: tensor for name, tensor in made.items() if tensor is not None}
    return found


def _fisher(tensor: Tensor, generator: torch.Generator) -> Tensor | None:
    return torch.rand(tensor.shape, generator=generator) + 0.1 if tensor.is_floating_point() else None


def _gram(tensor: Tensor, generator: torch.Generator) -> Tensor | None:
    if tensor.dim() < 2 or not tensor.numel() or not tensor.is_floating_point():
        return None
    inputs = torch.randn(4 * prod(tensor.shape[1:]), prod(tensor.shape[1:]), generator=generator)
    return inputs.T @ inputs / len(inputs)


def arguments(method: str, models: Sequence[StateDict], base: Any = None, **options: Any) -> dict[str, Any]:
    """Keywords of `merge`: the base where it is needed, evidence, and the declared examples of required options."""
    entry = registry.get(method)
    required = {name for name, option in entry.options.items() if option.default is registry.REQUIRED}
    assert required <= set(entry.examples), f"declare examples={{...}} for the options {required} of {method!r}"
    given: dict[str, Any] = {"method": method, **{name: entry.examples[name] for name in required}, **options}
    if entry.needs_base:
        given["base"] = base
    if entry.evidence and "evidence" not in given:
        given["evidence"] = evidence_of(method, models)
    return given


def stream(method: str, models: Sequence[StateDict] = MODELS, base: Any = None, **options: Any) -> MergedTensors:
    """`merge` of as many of the models as the method takes; `base` is dropped for methods that need none."""
    count = number_of_models(method) if models is MODELS else len(models)
    base = FAMILIES[:count] if base is None else base
    return merge(models[:count], **arguments(method, models[:count], base, **options))


def run(method: str, models: Sequence[StateDict] = MODELS, base: Any = None, **options: Any) -> StateDict:
    """The merged state dict."""
    return dict(stream(method, models, base, **options))


def statistics_of(method: str, models: Sequence[StateDict] = MODELS, base: Any = None, **options: Any) -> Any:
    """What `method_statistics` gives for the same arguments."""
    count = number_of_models(method) if models is MODELS else len(models)
    given = arguments(method, models[:count], FAMILIES[:count] if base is None else base, **options)
    given.pop("evidence", None)
    return method_statistics(models[:count], **given)


def assert_same(left: StateDict, right: StateDict) -> None:
    """Bit for bit."""
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name
