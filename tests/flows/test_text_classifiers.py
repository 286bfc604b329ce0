"""Folders of transformers whose models classify texts, each with a head of its own."""

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mergeline.plan_file import load_plan
from tests.flows.runs import run
from tests.texts import WORDS, write_bert, write_texts, write_tokenizer

pytestmark = pytest.mark.flow


@pytest.fixture
def plan_file(project, tmp_path):
    """Two fine-tunings of one tiny BERT, with heads of 3 and of 2 classes of five, and the base with a head of 2."""
    from transformers import AutoConfig, BertForSequenceClassification

    torch.manual_seed(0)
    base = BertForSequenceClassification(AutoConfig.from_pretrained(write_bert(tmp_path / "base")))
    base.save_pretrained(tmp_path / "base")
    checkpoints = [{"name": "base", "uri": str(tmp_path / "base")}]
    for name, labels in (("three", 3), ("two", 2)):
        tuned = BertForSequenceClassification(AutoConfig.from_pretrained(tmp_path / "base", num_labels=labels))
        body = {key: tensor for key, tensor in base.state_dict().items() if not key.startswith("classifier.")}
        tuned.load_state_dict(body, strict=False)
        with torch.no_grad():
            for parameter in tuned.bert.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        tuned.save_pretrained(tmp_path / name)
        checkpoints.append({"name": name, "uri": str(tmp_path / name), "base": "base"})
    texts = [" ".join(WORDS[4 + (i + k) % 8] for k in range(1 + i % 4)) for i in range(40)]
    for split in ("calibration", "test"):
        write_texts(tmp_path / "data" / f"{split}.parquet", texts, [i % 5 for i in range(40)], list("abcde"))
    task = {"kind": "head", "head": "classifier", "dataset": "texts"}
    sections = {
        "name": "classifiers",
        "align": None,
        "output": str(tmp_path / "out"),
        "architecture": {
            "factory": "mergeline.models.pretrained:text_classifier",
            "kwargs": {"folder": str(tmp_path / "three")},
        },
        "checkpoints": checkpoints,
        "datasets": {
            "texts": {
                "path": str(tmp_path / "data"),
                "text_column": "text",
                "tokenizer": str(write_tokenizer(tmp_path / "base")),
            }
        },
        "calibration": {"dataset": "texts"},
        "merge": {"method": "task_arithmetic", "scale": 0.5},
        "evaluation": {"compare": ["task_models", "ensemble"]},
        "tasks": [
            {"name": "three", "checkpoint": "three", "classes": [0, 2, 4], **task},
            {"name": "two", "checkpoint": "two", "classes": [1, 3], **task},
        ],
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def share_right(folder, head, task, texts, tokenizer):
    """The share of right answers of the folder's model, opened by transformers, with another head where it is given."""
    from transformers import AutoModelForSequenceClassification

    from mergeline.evaluation.texts import tokenize

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    if head is not None:
        model.classifier = torch.nn.Linear(model.classifier.in_features, len(task.classes))
        model.load_state_dict(head, strict=False)
    labels = torch.tensor(texts["label"][:])
    with torch.no_grad():
        ids, mask = tokenize(texts["text"][:], tokenizer).unbind(dim=1)
        answers = torch.tensor(task.classes)[model(input_ids=ids, attention_mask=mask).logits.argmax(dim=1)]
    return float((answers == labels)[torch.isin(labels, torch.tensor(task.classes))].float().mean())


def test_a_shared_encoder_answers_every_task_with_its_own_head(plan_file):
    plan = load_plan(plan_file)
    result = run(plan).comparison.result
    texts = datasets.Dataset.from_parquet(str(plan.datasets["texts"].path / "test.parquet"))
    tokenizer = plan.datasets["texts"].tokenizer
    three, two = plan.tasks
    assert result.tasks["three"].value == pytest.approx(share_right(plan.output, None, three, texts, tokenizer))
    head = load_file(plan.output / "heads" / "two.safetensors")
    assert result.tasks["two"].value == pytest.approx(share_right(plan.output, head, two, texts, tokenizer))
    assert result.joint is None


def test_a_registered_classifier_needs_no_folder_of_its_parents(plan_file, tmp_path):
    import mlflow

    from mergeline.evaluation.texts import tokenize

    plan = load_plan(plan_file, ["registry.model=classifiers", "evaluation.compare=[]"])
    run(plan)
    tokens = tokenize(["game of chess", "ships"], plan.datasets["texts"].tokenizer)
    for name in ("base", "three", "two"):
        (tmp_path / name).rename(tmp_path / f"{name}-elsewhere")
    served = mlflow.pyfunc.load_model("models:/classifiers/1")
    assert served.predict(tokens.numpy()).shape == (2, 3)
    assert served.predict(tokens.numpy(), params={"task": "two"}).shape == (2, 2)
