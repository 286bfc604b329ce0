"""The text zoo: fine-tunings of MiniLM, one for each task of the Debian packages; what it is trained on, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from mergeline.evaluation.debian_packages import CLASS_NAMES, TASKS
from mergeline.evaluation.metrics import accuracy, places_among, predict_logits
from mergeline.evaluation.prototypes import load_prototypes, prototype_logits
from mergeline.evaluation.texts import read_texts
from mergeline.evaluation.tokens import without_padding
from mergeline.models.build import build_model
from mergeline.models.training import learning_rates, reproducible

FACTORY = "mergeline.models.text_encoder:sentence_bert"
MAX_LENGTH = 20
"""Tokens of a description that are looked at; one in a hundred has more."""


class TextRecipe(BaseModel):
    """AdamW; the learning rate rises over the first tenth of the steps and then falls linearly to 0.

    scale: of the cosines with the prototypes, in the softmax.
    """

    model_config = ConfigDict(frozen=True)

    epochs: int = 2
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    batch_size: int = 32
    warmup: float = 0.1
    scale: float = 20.0


class TextModel(BaseModel):
    """One checkpoint. kwargs: of the architecture, which are those of the base."""

    model_config = ConfigDict(frozen=True)

    task: str
    seed: int
    recipe: TextRecipe = TextRecipe()
    kwargs: dict[str, Any] = {}


TEXT_ZOO = tuple(TextModel(task=task, seed=seed) for seed, task in enumerate(TASKS))


def classes_of(task: str) -> list[int]:
    """The classes of a task, as rows of the prototypes."""
    return [i for i, name in enumerate(CLASS_NAMES) if name.startswith(f"{task}::")]


def fine_tune(
    module: nn.Module, inputs: Tensor, labels: Tensor, prototypes: Tensor, recipe: TextRecipe, *, seed: int
) -> None:
    """Cross-entropy over the prototypes; trains the module in place and leaves it in eval mode.

    inputs: [n, 2, length] int64, batches of which are cut to their longest text; labels: [n] rows of prototypes;
    prototypes: [t, d].
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(inputs) // recipe.batch_size)
    rates = iter(learning_rates(recipe, steps))
    module.train()
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(recipe.batch_size):
            optimizer.param_groups[0]["lr"] = next(rates)
            logits = prototype_logits(module(without_padding(inputs[rows])), prototypes, recipe.scale)
            optimizer.zero_grad()
            functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
    module.eval()


def train_text_model(
    model: TextModel, *, train: Path, test: Path, prototypes: Path, tokenizer: Path, base: Path, output: Path
) -> dict[str, Any]:
    """Fine-tune the base for one task, and write it to `output`; returns how, and how good it is on the test split."""
    classes = classes_of(model.task)
    reading: dict[str, Any] = {"where": {"task": model.task}, "tokenizer": tokenizer, "max_length": MAX_LENGTH}
    examples, measured = read_texts(train, **reading), read_texts(test, **reading)
    rows = load_prototypes(prototypes).rows
    places = places_among(classes, len(rows))
    with reproducible(model.seed):
        module = build_model(FACTORY, model.kwargs)
        module.load_state_dict(load_file(base))
        fine_tune(module, examples.inputs, places[examples.labels], rows[classes], model.recipe, seed=model.seed)
        score = accuracy(prototype_logits(predict_logits(module, measured.inputs), rows), measured.labels, classes)
    output.write_bytes(save(module.state_dict(), metadata={"format": "pt"}))
    return model.model_dump() | {"accuracy": score.value, "standard_error": score.standard_error}
