"""Plans whose tasks are no pictures beside label prototypes: heads of their own, language models, functions."""

import json
from math import log
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mergeline.plan_file import load_plan
from tests.flows.runs import run
from tests.texts import write_gpt2, write_tokenizer

pytestmark = pytest.mark.flow
TEXTS = ["game of chess", "mail server", "shared library ships", "ships", "library of chess", "server of mail"] * 3


def two_layers(classes: int) -> torch.nn.Module:
    """Pictures of 4 by 4 points to as many classes; the body is a layer, the head is another."""
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.ReLU())
    return torch.nn.Sequential(body, torch.nn.Linear(8, classes))


def count_of_rows(module, rows, batch_size):
    return [float(len(rows))] * len(rows)


def write_plan(folder: Path, **sections: object) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"align": None, "output": str(folder / "out"), **sections}))
    return path


@pytest.fixture(scope="module")
def with_heads(project, tmp_path_factory):
    """Two models of one body with heads of 2 and of 3 classes, and pictures of 5 classes."""
    folder = tmp_path_factory.mktemp("heads")
    torch.manual_seed(0)
    base = two_layers(2).state_dict()
    checkpoints = [{"name": "base", "uri": str(folder / "base.safetensors")}]
    save_file({name: tensor for name, tensor in base.items() if name.startswith("0.")}, folder / "base.safetensors")
    for name, classes in (("two", 2), ("three", 3)):
        state = two_layers(classes).state_dict() | {"0.1.weight": base["0.1.weight"] + 0.1 * torch.randn(8, 16)}
        save_file(state, folder / f"{name}.safetensors")
        checkpoints.append({"name": name, "uri": str(folder / f"{name}.safetensors"), "base": "base"})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list("abcde")))
    pictures = torch.randint(0, 256, (40, 4, 4), dtype=torch.uint8).numpy()
    table = datasets.Dataset.from_dict(
        {"image": list(pictures), "label": [i % 5 for i in range(40)]}, features=features
    )
    for split in ("calibration", "test"):
        table.to_parquet(folder / "data" / f"{split}.parquet")
    task = {"kind": "head", "dataset": "data"}
    return write_plan(
        folder,
        name="heads",
        architecture={"factory": f"{__name__}:two_layers", "kwargs": {"classes": 2}},
        checkpoints=checkpoints,
        datasets={"data": {"path": str(folder / "data")}},
        calibration={"dataset": "data"},
        merge={"method": "task_arithmetic", "scale": 1.0},
        tasks=[
            {"name": "two", "checkpoint": "two", "head": "1", "classes": [3, 0], **task},
            {"name": "three", "checkpoint": "three", "head": "1", "classes": [1, 2, 4], **task},
        ],
    )


def test_a_shared_body_is_merged_and_each_task_keeps_its_head(with_heads, tmp_path):
    from mergeline.evaluation.datasets import load_images

    plan = load_plan(with_heads, ["landscape={points: 2, line_points: 3, split: test}"])
    outcome = run(plan)
    merged = load_file(plan.output / "model.safetensors")
    models = {name: load_file(with_heads.parent / f"{name}.safetensors") for name in ("base", "two", "three")}
    body = models["two"]["0.1.weight"] + models["three"]["0.1.weight"] - models["base"]["0.1.weight"]
    torch.testing.assert_close(merged["0.1.weight"], body)
    assert torch.equal(merged["1.weight"], models["two"]["1.weight"]), "the head of the first, as it is"
    examples = load_images(with_heads.parent / "data", "test", mean=0.0, std=1.0)
    for task in plan.tasks:
        module = two_layers(len(task.classes))
        head = load_file(plan.output / "heads" / f"{task.name}.safetensors")
        assert all(torch.equal(tensor, models[task.name][name]) for name, tensor in head.items())
        module.load_state_dict(merged | head)
        answers = torch.tensor(task.classes)[module(examples.inputs).argmax(dim=1)]
        asked = torch.isin(examples.labels, torch.tensor(task.classes))
        share = float((answers == examples.labels)[asked].float().mean())
        assert outcome.comparison.result.tasks[task.name].value == pytest.approx(share)
    assert outcome.comparison.result.joint is None
    metrics = json.loads((plan.output / "metrics.json").read_text())
    assert "joint" not in metrics and set(metrics["tasks_change"]) == {"two", "three"}
    assert {row.name for row in outcome.comparison.rows} >= {"two", "three", "base", "ensemble", "average", "merged"}
    report = (plan.output / "report.html").read_text()
    assert "all classes at once" not in report
    found = read_landscape(plan.output)
    (curve,) = found["lines"][0]["curves"]
    rows = {row.name: row for row in outcome.comparison.rows}
    for task in ("two", "three"):
        ends = [rows[model].tasks[task].value for model in ("two", "three")]
        assert curve["accuracies"][task][::2] == pytest.approx(ends, abs=1e-6), "with the head of the task's own model"


def test_a_registered_model_answers_every_task_with_its_own_head(with_heads, tmp_path):
    import mlflow

    plan = load_plan(with_heads, ["registry.model=heads", f"output={tmp_path / 'out'}", "evaluation.compare=[]"])
    run(plan)
    served = mlflow.pyfunc.load_model("models:/heads/1")
    inputs = torch.rand(3, 1, 4, 4)
    merged = load_file(plan.output / "model.safetensors")
    for task, classes in (("two", 2), ("three", 3)):
        module = two_layers(classes)
        module.load_state_dict(merged | load_file(plan.output / "heads" / f"{task}.safetensors"))
        found = torch.from_numpy(served.predict(inputs.numpy(), params={"task": task}))
        torch.testing.assert_close(found, module(inputs).detach())
    with pytest.raises(ValueError, match=r"there is no task 'four' \(known: three, two\)"):
        served.predict(inputs.numpy(), params={"task": "four"})


def in_another_order(state):
    """The same function with its hidden units in another order."""
    order = [3, 0, 6, 1, 7, 2, 5, 4]
    moved = {name: state[name][order] for name in ("0.1.weight", "0.1.bias")}
    return state | moved | {"1.weight": state["1.weight"][:, order].contiguous()}


def write_two_bases(folder: Path) -> Path:
    """A model of each of two bases, which are one network in two orders of units, with heads of their own. The labels
    are what the mean of both bodies says with either head."""
    torch.manual_seed(0)
    base = two_layers(2).state_dict()
    tuned = [
        two_layers(2).state_dict() | {"0.1.weight": base["0.1.weight"] + 0.05 * torch.randn(8, 16)} for _ in range(2)
    ]
    states = dict(zip(("a", "b"), (tuned[0], in_another_order(tuned[1])), strict=True))
    for name, state in (states | {"base-a": base, "base-b": in_another_order(base)}).items():
        save_file(state, folder / f"{name}.safetensors")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list("abcd")))
    pictures = torch.randint(0, 256, (60, 4, 4), dtype=torch.uint8)
    labels = [0] * 60
    for task, own in enumerate(tuned):
        module = two_layers(2)
        module.load_state_dict(
            own | {name: (tuned[0][name] + tuned[1][name]) / 2 for name in ("0.1.weight", "0.1.bias")}
        )
        labels[task::2] = (module(pictures[task::2] / 255.0).argmax(dim=1) + 2 * task).tolist()
    table = datasets.Dataset.from_dict({"image": list(pictures.numpy()), "label": labels}, features=features)
    for split in ("calibration", "test"):
        table.to_parquet(folder / "data" / f"{split}.parquet")
    task = {"kind": "head", "dataset": "data", "head": "1"}
    return write_plan(
        folder,
        name="two-bases",
        align={"space": "dual"},
        architecture={"factory": f"{__name__}:two_layers", "kwargs": {"classes": 2}},
        checkpoints=[
            {
                "name": name,
                "uri": str(folder / f"{name}.safetensors"),
                "base": f"base-{name}" if name in states else None,
            }
            for name in ("base-a", "base-b", "a", "b")
        ],
        datasets={"data": {"path": str(folder / "data")}},
        calibration={"dataset": "data"},
        merge={"method": "average"},
        evaluation={"compare": []},
        tasks=[
            {"name": "one", "checkpoint": "a", "classes": [0, 1], **task},
            {"name": "two", "checkpoint": "b", "classes": [2, 3], **task},
        ],
    )


def test_heads_of_another_base_follow_the_alignment_where_the_result_is_measured_and_where_it_is_chosen(
    project, tmp_path
):
    from flows.compare_methods import scores_on
    from tasks.runners import plan_flow

    plan = load_plan(write_two_bases(tmp_path))
    result = run(plan).comparison.result
    assert {task: score.value for task, score in result.tasks.items()} == {"one": 1.0, "two": 1.0}
    assert plan_flow("choose")(scores_on)(plan, "test").tasks == result.tasks


def read_landscape(output):
    return json.loads((output / "landscape" / "landscape.json").read_text())


@pytest.fixture(scope="module")
def language(project, tmp_path_factory):
    """Two tiny GPT-2 beside their base, and texts."""
    from transformers import AutoConfig, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("language")
    config = AutoConfig.from_pretrained(write_gpt2(folder / "config"))
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(folder / "base")
    write_tokenizer(folder / "base")
    checkpoints = [{"name": "base", "uri": str(folder / "base")}]
    for name in ("news", "code"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
        write_tokenizer(folder / name)
        checkpoints.append({"name": name, "uri": str(folder / name), "base": "base"})
    rows = {"text": TEXTS, "about": ["news", "code"] * 9}
    (folder / "data").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(folder / "data" / "test.parquet")
    task = {"kind": "causal_lm", "dataset": "texts"}
    return write_plan(
        folder,
        name="language",
        architecture={"factory": "mergeline.models.pretrained:causal_lm", "kwargs": {"folder": str(folder / "base")}},
        checkpoints=checkpoints,
        datasets={
            "texts": {"path": str(folder / "data"), "text_column": "text", "tokenizer": str(folder / "base")},
        },
        merge={"method": "ties", "keep_ratio": 0.5},
        tasks=[
            *({"name": name, "checkpoint": name, "where": {"about": name}, **task} for name in ("news", "code")),
            {"name": "counted", "checkpoint": None, "kind": f"{__name__}:count_of_rows", "dataset": "texts"},
        ],
    )


def test_language_models_are_measured_by_perplexity_and_lower_is_better(language):
    from transformers import AutoModelForCausalLM

    from mergeline.evaluation.language import perplexity
    from mergeline.evaluation.texts import tokenize

    plan = load_plan(language, ["landscape={points: 2, line_points: 3, split: test}"])
    outcome = run(plan)
    result, rows = outcome.comparison.result, {row.name: row for row in outcome.comparison.rows}
    module = AutoModelForCausalLM.from_pretrained(plan.output).eval()
    texts = [text for text, about in zip(TEXTS, ["news", "code"] * 9, strict=True) if about == "news"]
    expected = perplexity([module], tokenize(texts, language.parent / "base"))
    assert result.tasks["news"].value == pytest.approx(expected.value, rel=1e-5)
    assert result.mean.measure == "perplexity" and result.joint is None
    assert (result.outside["counted"].value, result.outside["counted"].measure) == (18.0, "score")
    assert set(rows) == {"news", "code", "base", "average", "merged"}, "a function's number has no ensemble"
    own, news = outcome.comparison.against_own["merged"].tasks["news"], rows["news"].tasks["news"].value
    assert own.change == pytest.approx(result.tasks["news"].value - news)
    assert own.normalised == pytest.approx(news / result.tasks["news"].value)
    saved = json.loads((plan.output / "comparison.json").read_text())
    assert saved["rows"][0]["mean"]["measure"] == "perplexity"
    for page in ("report.md", "report.html", "README.md"):
        text = (plan.output / page).read_text()
        assert "erplexity (lower is better)" in text, page
        assert "ccuracy" not in text, page
    assert not (plan.output / "normalization").exists()
    found = read_landscape(plan.output)
    for task in ("news", "code"):
        assert found["models"]["merged"][task] == pytest.approx(log(result.tasks[task].value), abs=1e-5)
    assert found["lines"][0]["curves"][0]["accuracies"] == {}
    assert "counted" not in found["losses"]
