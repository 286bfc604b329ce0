"""The shipped zoo: two bases, four specialists, and two independent models; who is trained on what, and how.

Two teams start from backbones of different seeds, which know four departments of clothes in both domains. Each team
has two specialists: team A for whole pictures, team B for cropped ones, and they split the ten classes differently.
The two ResNet-20s have no base in common: the setting of MuDSC.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import normalize

from mergeline.evaluation.datasets import LabelledExamples, load_images
from mergeline.evaluation.metrics import accuracy, predict_logits
from mergeline.evaluation.prototypes import load_prototypes, prototype_logits
from mergeline.evaluation.score import Score, mean_score
from mergeline.models.build import build_model
from mergeline.models.training import Recipe, reproducible, train

FACTORY = "mergeline.models.resnet:resnet"
SMALL = {"blocks": [1, 1, 1], "width": 16, "outputs": 384, "stem_stride": 2}
RESNET20 = {"blocks": [3, 3, 3], "width": 16, "outputs": 384}
DEPARTMENTS = ((0, 2, 4, 6), (1, 3), (5, 7, 9), (8,))  # tops, trousers and dresses, shoes, bags

BACKBONE = Recipe(16_000, epochs=6, learning_rate=0.1, weight_decay=2e-3, domains=("clean", "half"))
CLEAN = Recipe(8_000, epochs=2, learning_rate=0.012, weight_decay=5e-4)
CROPPED = Recipe(8_000, epochs=2, learning_rate=0.012, weight_decay=5e-4, domains=("half",))
ALONE = Recipe(10_000, epochs=8, learning_rate=0.1, weight_decay=5e-4)


@dataclass(frozen=True)
class ZooModel:
    """One checkpoint. targets: groups of classes told apart (a specialist's groups have one class each)."""

    name: str
    seed: int
    targets: tuple[tuple[int, ...], ...]
    recipe: Recipe
    base: str | None = None
    architecture: Mapping[str, Any] = field(default_factory=lambda: SMALL)


def _single(*classes: int) -> tuple[tuple[int, ...], ...]:
    return tuple((c,) for c in classes)


ZOO = (
    ZooModel("base-a", 0, DEPARTMENTS, BACKBONE),
    ZooModel("base-b", 1, DEPARTMENTS, BACKBONE),
    ZooModel("a-clean-02478", 2, _single(0, 2, 4, 7, 8), CLEAN, base="base-a"),
    ZooModel("a-clean-13569", 3, _single(1, 3, 5, 6, 9), CLEAN, base="base-a"),
    ZooModel("b-half-12679", 4, _single(1, 2, 6, 7, 9), CROPPED, base="base-b"),
    ZooModel("b-half-03458", 5, _single(0, 3, 4, 5, 8), CROPPED, base="base-b"),
    ZooModel("mudsc-02478", 6, _single(0, 2, 4, 7, 8), ALONE, architecture=RESNET20),
    ZooModel("mudsc-13569", 7, _single(1, 3, 5, 6, 9), ALONE, architecture=RESNET20),
    ZooModel("mudsc-12679", 8, _single(1, 2, 6, 7, 9), ALONE, architecture=RESNET20),
    ZooModel("mudsc-03458", 9, _single(0, 3, 4, 5, 8), ALONE, architecture=RESNET20),
    ZooModel("a-half-12679", 10, _single(1, 2, 6, 7, 9), CROPPED, base="base-a"),
    ZooModel("a-half-03458", 11, _single(0, 3, 4, 5, 8), CROPPED, base="base-a"),
)


def target_prototypes(prototypes: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """Class prototypes [c, d] -> [t, d]: a target's prototype is the mean of its classes', at unit length."""
    return normalize(torch.stack([prototypes[list(group)].mean(dim=0) for group in targets]), dim=1)


def select(
    pictures: LabelledExamples, targets: Sequence[Sequence[int]], limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """The first `limit` pictures of the targets' classes, and their labels as places in `targets`."""
    places = torch.full((len(pictures.class_names),), -1)
    for place, group in enumerate(targets):
        places[list(group)] = place
    rows = (places[pictures.labels] >= 0).nonzero()[:limit, 0]
    return pictures.inputs[rows], places[pictures.labels[rows]]


def train_checkpoint(model: ZooModel, *, dataset: Path, raw: Path, zoo: Path) -> dict[str, Any]:
    """Train one model and write `<zoo>/<name>.safetensors` (its base must lie there already).

    dataset: folder with test.parquet and prototypes.safetensors; raw: folder with train.parquet.
    Returns its entry of the manifest.
    """
    prototypes = target_prototypes(load_prototypes(dataset / "prototypes.safetensors").rows, model.targets)
    images, labels = select(_training_pictures(raw), model.targets, model.recipe.images)
    with reproducible(model.seed):
        module = build_model(FACTORY, model.architecture)
        if model.base is not None:
            module.load_state_dict(load_file(zoo / f"{model.base}.safetensors"))
        train(module, images, labels, prototypes, model.recipe, seed=model.seed)
        score = own_accuracy(module, model, prototypes, dataset)
    content = save(module.state_dict(), metadata={"format": "pt"})
    zoo.mkdir(parents=True, exist_ok=True)
    (zoo / f"{model.name}.safetensors").write_bytes(content)
    return {
        "name": model.name,
        "file": f"{model.name}.safetensors",
        "sha256": sha256(content).hexdigest(),
        "base": model.base,
        "architecture": {"factory": FACTORY, "kwargs": model.architecture},
        "seed": model.seed,
        "targets": model.targets,
        "classes": sorted(c for group in model.targets for c in group),
        "recipe": asdict(model.recipe),
        "accuracy": {"split": "test", **asdict(score)},
    }


def own_accuracy(module: nn.Module, model: ZooModel, prototypes: Tensor, dataset: Path) -> Score:
    """Test accuracy among the model's own targets, mean over its own domains."""
    scores = []
    for domain in model.recipe.domains:
        images, labels = select(load_images(dataset, "test", where={"domain": domain}), model.targets)
        scores.append(accuracy(prototype_logits(predict_logits(module, images), prototypes), labels))
    return mean_score(scores)


@cache
def _training_pictures(raw: Path) -> LabelledExamples:
    """Pixels in [0, 1]: they are normalised after they are augmented."""
    return load_images(raw, "train", mean=0.0, std=1.0)
