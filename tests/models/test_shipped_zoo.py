"""The checkpoints in git are what their manifest says, and as good as it says."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergeline.evaluation.prototypes import load_prototypes
from mergeline.models.build import build_model
from mergeline.models.zoo import ZOO, own_accuracy, target_prototypes

DATA = Path(__file__).parents[2] / "data"
DATASET = DATA / "datasets/fashion_mnist"
MANIFEST: dict[str, dict[str, Any]] = {
    entry["name"]: entry for entry in json.loads((DATA / "zoo/manifest.json").read_text())["models"]
}


def test_the_manifest_lists_the_zoo_and_nothing_else_lies_there() -> None:
    assert list(MANIFEST) == [model.name for model in ZOO]
    assert {f.name for f in (DATA / "zoo").glob("*.safetensors")} == {entry["file"] for entry in MANIFEST.values()}


def test_the_zoo_is_small() -> None:
    assert sum(file.stat().st_size for file in (DATA / "zoo").iterdir()) < 9_000_000


@pytest.mark.parametrize("model", ZOO, ids=lambda model: model.name)
def test_a_shipped_checkpoint_is_the_one_of_the_manifest_and_as_accurate(model: Any) -> None:
    entry = MANIFEST[model.name]
    file = DATA / "zoo" / entry["file"]
    assert sha256(file.read_bytes()).hexdigest() == entry["sha256"]
    state = load_file(file)
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float32}
    module = build_model(**entry["architecture"])
    module.load_state_dict(state)
    prototypes = target_prototypes(load_prototypes(DATASET / "prototypes.safetensors").rows, entry["targets"])
    score = own_accuracy(module, model, prototypes, DATASET)
    assert score.count == entry["accuracy"]["count"]
    assert abs(score.value - entry["accuracy"]["value"]) < 2.5 / score.count  # other processors may flip a picture
    assert score.value > 0.85
    assert entry["base"] == model.base and entry["seed"] == model.seed
