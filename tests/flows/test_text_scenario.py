"""Fine-tunings of a text encoder through the main job: tokenised, weighed by data, merged, evaluated, published."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mergeline.evaluation.metrics import accuracy, predict_logits
from mergeline.evaluation.prototypes import Prototypes, load_prototypes, prototype_logits, save_prototypes
from mergeline.evaluation.texts import read_texts
from mergeline.models.text_encoder import sentence_bert
from mergeline.plan_file import load_plan
from tests.flows.runs import run
from tests.texts import WORDS, write_texts, write_tokenizer

pytestmark = pytest.mark.flow
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
NAMES = ("kind::game", "kind::mail", "part::server", "part::library")
TEXTS = {"kind": ["a game of chess", "mail", "chess", "mail of ships"], "part": ["server", "shared library", "of", "x"]}


@pytest.fixture(scope="module")
def plan_of_texts(project, tmp_path_factory):
    """A base of random weights, two models a step away from it, a data set of two tasks, a plan."""
    folder = tmp_path_factory.mktemp("texts")
    torch.manual_seed(0)
    base = sentence_bert(vocab_size=len(WORDS), max_position_embeddings=16, **SHAPE).state_dict()
    save_file(base, folder / "base.safetensors")
    for task in TEXTS:
        moved = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in base.items()}
        save_file(moved, folder / f"{task}.safetensors")
    write_tokenizer(folder)
    for split in ("test", "calibration"):
        texts, tasks = [text for own in TEXTS.values() for text in own], ["kind"] * 4 + ["part"] * 4
        write_texts(folder / "data" / f"{split}.parquet", texts, [0, 1, 0, 1, 2, 3, 2, 3], NAMES, task=tasks)
    rows = torch.nn.functional.normalize(torch.randn(4, 16), dim=1)
    save_prototypes(Prototypes(rows, NAMES, NAMES, "random"), folder / "data" / "prototypes.safetensors")
    places = {"path": "data", "tokenizer": "tokenizer.json", "prototypes": "data/prototypes.safetensors"}
    dataset = {field: str(folder / place) for field, place in places.items()} | {"text_column": "text", "max_length": 5}
    plan = {
        "name": "texts",
        "architecture": {
            "factory": "mergeline.models.text_encoder:sentence_bert",
            "kwargs": {"vocab_size": len(WORDS), "max_position_embeddings": 16, **SHAPE},
        },
        "checkpoints": [{"name": "base", "uri": str(folder / "base.safetensors")}]
        + [{"name": task, "base": "base", "uri": str(folder / f"{task}.safetensors")} for task in TEXTS],
        "datasets": {"words": dataset},
        "calibration": {"dataset": "words", "batch_size": 2},
        "tasks": [
            {"name": task, "checkpoint": task, "dataset": "words", "where": {"task": task}, "classes": classes}
            for task, classes in (("kind", [0, 1]), ("part", [2, 3]))
        ],
        "evaluation": {"batch_size": 3, "compare": ["task_models", "average"]},
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path


def test_text_models_are_merged_and_measured_on_their_tasks(plan_of_texts, project):
    output, folder = project / "texts", plan_of_texts.parent
    method = "merge={method: regmean, evidence: {batches: 1}}"
    outcome = run(load_plan(plan_of_texts, [f"output={output}", method]))
    assert {row.name for row in outcome.comparison.rows} == {"kind", "part", "average", "merged"}

    merged = sentence_bert(vocab_size=len(WORDS), max_position_embeddings=16, **SHAPE).eval()
    merged.load_state_dict(load_file(output / "model.safetensors"))
    rows = load_prototypes(folder / "data" / "prototypes.safetensors").rows
    (result,) = [row for row in outcome.comparison.rows if row.name == "merged"]
    for task, classes in (("kind", [0, 1]), ("part", [2, 3])):
        reading = {"where": {"task": task}, "tokenizer": folder, "max_length": 5}
        examples = read_texts(folder / "data" / "test.parquet", **reading)
        logits = prototype_logits(predict_logits(merged, examples.inputs), rows)
        assert result.tasks[task] == accuracy(logits, examples.labels, classes)
    lineage = json.loads((output / "lineage.json").read_text())
    assert str(folder / "tokenizer.json") in json.dumps(lineage), "the tokenizer is an input"


def test_a_plan_of_texts_names_the_tokenizer_that_is_not_there(plan_of_texts):
    from mergeline.plan_file import PlanError

    with pytest.raises(PlanError, match=r"datasets.words.tokenizer: the file 'no.json' does not exist"):
        load_plan(plan_of_texts, ["datasets.words.tokenizer=no.json"])
