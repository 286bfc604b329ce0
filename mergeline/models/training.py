"""Training of small image models on label prototypes: on the CPU, the same weights every time on the same machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format

from mergeline.evaluation.fashion_mnist import HALF, MEAN, STD
from mergeline.evaluation.prototypes import prototype_logits


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum; the learning rate rises over the first tenth of the steps and then falls linearly to 0.

    images: the first so many pictures of the wanted classes. domains: each batch is of one of them, at random.
    shift: pictures move by up to so many pixels each way, and are mirrored half of the time.
    """

    images: int
    epochs: int
    learning_rate: float
    weight_decay: float
    domains: tuple[str, ...] = ("clean",)
    batch_size: int = 128
    momentum: float = 0.9
    warmup: float = 0.1
    shift: int = 2


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Deterministic algorithms, one thread (sums in one order) and this seed; the caller's settings come back after."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    debugging: Any = torch.utils.deterministic
    fill = debugging.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        debugging.fill_uninitialized_memory = False  # takes a seventh of the time
        try:
            yield
        finally:
            debugging.fill_uninitialized_memory = fill
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)


def train(module: nn.Module, images: Tensor, labels: Tensor, prototypes: Tensor, recipe: Recipe, *, seed: int) -> None:
    """Cross-entropy over the prototypes; trains the module in place and leaves it in eval mode.

    images: [n, 1, h, w] float32 in [0, 1]; labels: [n] rows of prototypes; prototypes: [t, d].
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(images) // recipe.batch_size)
    rates = iter(learning_rates(recipe, steps))
    module.train()
    if _channels_last_is_safe(module):
        convert_conv2d_weight_memory_format(module, torch.channels_last)  # a quarter faster
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(images), generator=generator).split(recipe.batch_size):
            optimizer.param_groups[0]["lr"] = next(rates)
            logits = prototype_logits(module(augment(images[rows], recipe, generator)), prototypes)
            optimizer.zero_grad()
            functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
    convert_conv2d_weight_memory_format(module.eval(), torch.contiguous_format)


def _channels_last_is_safe(module: nn.Module) -> bool:
    """oneDNN 3.12 writes past its buffer in strided 1x1 convolutions of less than a vector of channels (its #6035)."""
    convolutions = (part for part in module.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1))
    return all(convolution.in_channels % 16 == 0 for convolution in convolutions)


class Schedule(Protocol):
    """What a learning rate follows: its peak, and the share of the steps before it."""

    @property
    def learning_rate(self) -> float: ...  # noqa: D102

    @property
    def warmup(self) -> float: ...  # noqa: D102


def learning_rates(recipe: Schedule, steps: int) -> list[float]:
    """The learning rate of each step: up to the peak within `warmup` of the steps, then down towards 0."""
    rising = max(1, round(recipe.warmup * steps))
    falling = max(1, steps - rising)
    return [recipe.learning_rate * min((step + 1) / rising, (steps - step) / falling) for step in range(steps)]


def augment(images: Tensor, recipe: Recipe, generator: Generator) -> Tensor:
    """One batch [b, 1, h, w] in [0, 1], as its domain shows it, shifted, mirrored and normalised."""
    n, _, height, width = images.shape
    domain = recipe.domains[int(torch.randint(len(recipe.domains), (), generator=generator))]
    if domain == "half":
        images = images.clone()
        images[:, :, HALF:] = 0
    s = recipe.shift
    windows = (
        functional.pad(images, (s, s, s, s)).unfold(2, height, 1).unfold(3, width, 1)
    )  # [b, 1, 2s+1, 2s+1, h, w], a view
    down, right = torch.randint(2 * s + 1, (2, n), generator=generator)
    images = windows[torch.arange(n), :, down, right]
    mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    return (torch.where(mirrored, images.flip(3), images) - MEAN) / STD
