"""Training is deterministic, leaves the caller's settings alone, and follows the recipe."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mergeline.evaluation.datasets import load_images
from mergeline.evaluation.fashion_mnist import MEAN, STD, Pictures, Split, make_splits
from mergeline.evaluation.prototypes import Prototypes, save_prototypes
from mergeline.models import training
from mergeline.models.resnet import resnet
from mergeline.models.training import Recipe, augment, learning_rates, reproducible, train
from mergeline.models.zoo import ZooModel, select, target_prototypes, train_checkpoint

RECIPE = Recipe(images=32, epochs=1, learning_rate=0.1, weight_decay=1e-3, domains=("clean", "half"), batch_size=16)
BASE = ZooModel("base", 0, ((0, 1, 2), (3,)), RECIPE, architecture={"width": 4, "outputs": 6, "stem_stride": 2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of noise: train.parquet, test.parquet and prototypes in one folder."""
    folder = tmp_path_factory.mktemp("noise")
    images = np.random.default_rng(0).integers(0, 256, (80, 28, 28), dtype=np.uint8)
    noise = Pictures(images, np.arange(80) % 10)
    made = make_splits(
        {"train": noise, "test": noise}, {"train": Split("train", 0, 80), "test": Split("test", 0, 80, 2)}
    )
    for name, split in made.items():
        split.to_parquet(folder / f"{name}.parquet")
    rows = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    save_prototypes(
        Prototypes(rows / rows.norm(dim=1, keepdim=True), ("c",) * 10, (), "noise"), folder / "prototypes.safetensors"
    )
    return folder


def train_in(zoo: Path, model: ZooModel, folder: Path) -> bytes:
    train_checkpoint(model, dataset=folder, raw=folder, zoo=zoo)
    return (zoo / f"{model.name}.safetensors").read_bytes()


def test_training_twice_gives_the_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    first = train_in(tmp_path / "a", BASE, folder)
    torch.rand(5)  # whatever the caller drew
    assert train_in(tmp_path / "b", BASE, folder) == first
    assert train_in(tmp_path / "c", replace(BASE, seed=1), folder) != first


def test_a_specialist_starts_from_its_base(folder: Path, tmp_path: Path) -> None:
    train_in(tmp_path, BASE, folder)
    for epochs, equal in ((0, True), (1, False)):
        special = replace(
            BASE, name="special", base="base", targets=((4,), (5,)), recipe=replace(RECIPE, epochs=epochs)
        )
        train_in(tmp_path, special, folder)
        base, trained = load_file(tmp_path / "base.safetensors"), load_file(tmp_path / "special.safetensors")
        assert all(torch.equal(base[name], trained[name]) for name in base) is equal


def test_the_manifest_tells_how_a_checkpoint_was_made_and_how_good_it_is(folder: Path, tmp_path: Path) -> None:
    entry = train_checkpoint(BASE, dataset=folder, raw=folder, zoo=tmp_path)
    assert (entry["name"], entry["file"], entry["base"], entry["classes"]) == (
        "base",
        "base.safetensors",
        None,
        [0, 1, 2, 3],
    )
    assert entry["architecture"]["kwargs"] == BASE.architecture and entry["recipe"]["weight_decay"] == 1e-3
    assert entry["accuracy"]["split"] == "test" and entry["accuracy"]["count"] == 16


def test_training_learns() -> None:
    labels = torch.arange(64) % 2
    images = labels.view(-1, 1, 1, 1) * torch.ones(64, 1, 28, 28)
    prototypes = torch.eye(2, 6)
    with reproducible(0):
        module = resnet(width=4, outputs=6, stem_stride=2)
        train(module, images, labels, prototypes, replace(RECIPE, epochs=4, domains=("clean",)), seed=0)
    assert torch.equal(module((images - MEAN) / STD)[:, :2].argmax(dim=1), labels)
    assert not module.training and all(p.is_contiguous() for p in module.parameters())


def test_the_faster_memory_format_trains_the_same_and_narrow_networks_do_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trained(width: int) -> torch.Tensor:
        with reproducible(0):
            module = resnet(width=width, outputs=6, stem_stride=2)
            images = torch.rand(16, 1, 28, 28)
            train(module, images, torch.arange(16) % 2, torch.eye(2, 6), RECIPE, seed=0)
        return torch.nn.utils.parameters_to_vector(module.parameters()).detach()

    fast, narrow = trained(16), trained(4)
    monkeypatch.setattr(training, "_channels_last_is_safe", lambda _: False)
    torch.testing.assert_close(trained(16), fast, atol=1e-4, rtol=1e-3)
    assert torch.equal(trained(4), narrow)


def test_the_callers_settings_and_random_numbers_are_not_touched() -> None:
    def settings() -> tuple[object, ...]:
        debugging = torch.utils.deterministic
        fill = debugging.fill_uninitialized_memory  # type: ignore[attr-defined]
        return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), fill

    before, state = settings(), torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError), reproducible(3):
        assert torch.are_deterministic_algorithms_enabled() and torch.initial_seed() == 3
        torch.rand(7)
        _ = 1 / 0
    assert settings() == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_learning_rate_rises_over_a_tenth_and_falls_linearly_towards_zero() -> None:
    rates = learning_rates(replace(RECIPE, learning_rate=1.8), 20)
    assert rates[:3] == pytest.approx([0.9, 1.8, 1.8])
    assert rates[3:] == pytest.approx([1.8 * (20 - step) / 18 for step in range(3, 20)])


def test_pictures_are_cropped_then_shifted_then_normalised() -> None:
    images = torch.ones(200, 1, 28, 28)
    seen = augment(images, replace(RECIPE, domains=("half",)), torch.Generator().manual_seed(0)) * STD + MEAN
    bright = (seen > 0.5).squeeze(1)
    assert set(seen.round(decimals=4).unique().tolist()) == {0.0, 1.0}
    assert set(bright.any(dim=2).sum(dim=1).tolist()) == {12, 13, 14}  # up: rows lost; down: black rows come in above
    assert set(bright.any(dim=1).sum(dim=1).tolist()) == {26, 27, 28}
    assert bright[:, 15].any() and not bright[:, 16:].any()
    assert torch.equal(images, torch.ones(200, 1, 28, 28))


def test_half_of_the_pictures_are_mirrored() -> None:
    images = torch.zeros(400, 1, 2, 2)
    images[:, :, :, 0] = 1
    seen = augment(images, replace(RECIPE, domains=("clean",), shift=0), torch.Generator().manual_seed(0))
    assert 150 < (seen[:, 0, 0, 0] < 0).sum() < 250


def test_each_batch_is_of_one_domain_and_all_domains_come() -> None:
    generator = torch.Generator().manual_seed(0)
    lower = [augment(torch.ones(2, 1, 28, 28), replace(RECIPE, shift=0), generator)[:, 0, 20, 9] for _ in range(20)]
    assert all(batch[0] == batch[1] for batch in lower)
    assert len({float(batch[0]) for batch in lower}) == 2


def test_targets_are_groups_of_classes(folder: Path) -> None:
    prototypes = target_prototypes(torch.eye(3), [(0, 2), (1,)])
    torch.testing.assert_close(prototypes, torch.tensor([[0.5**0.5, 0.0, 0.5**0.5], [0.0, 1.0, 0.0]]))
    pictures = load_images(folder, "train")
    images, places = select(pictures, [(0, 2), (1,)], limit=5)
    assert places.tolist() == [0, 1, 0, 0, 1]
    assert torch.equal(images, pictures.inputs[[0, 1, 2, 10, 11]])
