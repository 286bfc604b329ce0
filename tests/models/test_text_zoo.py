"""The text zoo on an encoder of a few units: fine-tuning learns, is the same every time, and starts from the base."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeline.evaluation.debian_packages import CLASS_NAMES, TASKS
from mergeline.evaluation.prototypes import Prototypes, save_prototypes
from mergeline.models.text_encoder import sentence_bert
from mergeline.models.text_zoo import TEXT_ZOO, TextModel, TextRecipe, classes_of, train_text_model
from tests.texts import WORDS, write_texts, write_tokenizer

SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
RECIPE = TextRecipe(epochs=20, learning_rate=0.01, batch_size=8)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Games and mail as two sections, a base of random weights, prototypes."""
    texts = ["game of chess", "chess", "of ships", "mail server", "mail", "server of mail"]
    labels = [CLASS_NAMES.index("section::games")] * 3 + [CLASS_NAMES.index("section::mail")] * 3
    torch.manual_seed(0)
    save_file(sentence_bert(**SHAPE).state_dict(), tmp_path / "base.safetensors")
    rows = torch.nn.functional.normalize(torch.randn(len(CLASS_NAMES), 16), dim=1)
    save_prototypes(Prototypes(rows, CLASS_NAMES, CLASS_NAMES, "random"), tmp_path / "prototypes.safetensors")
    return {
        "train": write_texts(tmp_path / "train.parquet", texts, labels, CLASS_NAMES, task=["section"] * 6),
        "test": write_texts(tmp_path / "test.parquet", texts, labels, CLASS_NAMES, task=["section"] * 6),
        "prototypes": tmp_path / "prototypes.safetensors",
        "tokenizer": write_tokenizer(tmp_path),
        "base": tmp_path / "base.safetensors",
    }


def trained(files: dict[str, Path], output: Path, **changes: Any) -> dict[str, Any]:
    model = TextModel(task="section", seed=1, recipe=RECIPE, kwargs=SHAPE).model_copy(update=changes)
    return train_text_model(model, output=output, **files)


def test_fine_tuning_learns_and_the_entry_says_how(files: dict[str, Path], tmp_path: Path) -> None:
    entry = trained(files, tmp_path / "out.safetensors")
    assert entry["accuracy"] == 1.0 and entry["recipe"]["learning_rate"] == 0.01
    assert trained(files, tmp_path / "none", recipe=TextRecipe(epochs=0))["accuracy"] < 1.0
    base, none = load_file(files["base"]), load_file(tmp_path / "none")
    assert all(torch.equal(base[name], none[name]) for name in base)


def test_training_twice_gives_the_same_bytes_and_another_seed_others(files: dict[str, Path], tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 2, "batch_size": 2})
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trained(files, tmp_path / name, recipe=recipe, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_the_zoo_has_a_model_of_every_task_and_the_plan_its_classes() -> None:
    import yaml

    assert [model.task for model in TEXT_ZOO] == list(TASKS)
    root = Path(__file__).parents[2]
    for name in ("text", "text_table"):
        tasks = yaml.safe_load((root / "params" / f"{name}.yaml").read_text())["tasks"]
        assert {task["name"]: task["classes"] for task in tasks} == {task: classes_of(task) for task in TASKS}
