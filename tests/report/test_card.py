"""The model card: what the hub reads of it, whose work it names, and what it leaves to the reader."""

import pytest
import yaml
from huggingface_hub import ModelCard

from mergeline.comparison import RESULT
from mergeline.evaluation.score import Score
from mergeline.plan import BESIDE, Compare, Notify, Plan, Promotion, Registry, Search
from mergeline.plan_file import load_plan
from mergeline.report.card import CardFacts, model_card, plan_text
from mergeline.report.result import Comparison, RowScores

SCORES = RowScores(
    name=RESULT,
    label="aligned, PCB",
    tasks={"clean-02478": Score(0.6, 0.02, 500)},
    mean=Score(0.75, 0.01, 2000),
    joint=Score(0.4, 0.011, 2000),
)
MEASURED = Comparison(plan="two-teams", rows=[SCORES])
NOTHING = Comparison(plan="two-teams", rows=[])


@pytest.fixture(scope="module")
def plan():
    return load_plan("params.yaml")


def card_of(plan, comparison=NOTHING, *, files=("model.safetensors",), library="pytorch", exports=None, **licences):
    names = [spec.name for spec in plan.checkpoints]
    facts = CardFacts(
        digests={name: f"{i:064x}" for i, name in enumerate(names)},
        licences={name: licences.get(name.replace("-", "_"), licences.get("every", "unknown")) for name in names},
        files=files,
        library=library,
        code="c0de" * 16,
        packages={"torch": "2.13.0"},
        exports=exports or {},
    )
    return ModelCard(model_card(plan, comparison, facts))


def language_plan(*uris, base="hf://org/base@main"):
    models = [{"name": f"m{i}", "uri": uri, "base": "base"} for i, uri in enumerate(uris)]
    checkpoints = [{"name": "base", "uri": base}, *models]
    return Plan.model_validate(
        {"name": "llm", "checkpoints": checkpoints, "merge": {"method": "ties", "keep_ratio": 0.2}}
    )


def test_the_hub_reads_the_scores_and_the_tags(plan):
    card = card_of(plan, MEASURED)
    found = {(result.dataset_name, result.metric_value) for result in card.data.eval_results}
    assert found == {("clean-02478", 0.6), ("mean of tasks", 0.75), ("joint", 0.4)}
    assert card.data.tags == ["merge", "mergeline", "pcb"]
    assert "| **aligned, PCB** | **60.0 ± 2.0** | **75.0 ± 1.0** | **40.0 ± 1.1** |" in card.text


def test_parents_are_named_with_role_source_licence_and_digest(plan):
    text = card_of(plan, base_a="mit").text
    for i, spec in enumerate(plan.checkpoints):
        role = f"fine-tuned from {spec.base}" if spec.base else "base"
        licence = "mit" if spec.name == "base-a" else "unknown"
        assert f"| {spec.name} | {role} | `{spec.uri}` | {licence} | `{i:064x}` |" in text


def test_models_of_the_hub_are_its_base_models(plan):
    card = card_of(language_plan("hf://org/code@main", "https://user:word@host/chat.safetensors?sig=1"))
    assert card.data.base_model == ["org/base", "org/code"]
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert "`https://host/chat.safetensors`" in card.text
    assert card_of(plan).data.base_model is None


@pytest.mark.parametrize(
    ("licences", "field", "sentence"),
    [
        ({"every": "mit"}, "mit", "All parents are under `mit`"),
        ({}, None, "Unknown: no parent names its licence"),
        ({"every": "mit", "base_a": "unknown"}, None, "The parents name `mit`; base-a names none."),
        ({"every": "mit", "base_a": "gpl-3.0"}, None, "The parents name `gpl-3.0`, `mit`. Which licence"),
        ({"every": "other (llama3)"}, None, "All parents are under `other (llama3)`"),
    ],
)
def test_a_licence_is_passed_on_only_where_all_parents_have_it(plan, licences, field, sentence):
    card = card_of(plan, **licences)
    assert card.data.license == field
    assert sentence in card.text


def test_the_plan_of_the_card_is_the_plan_but_for_where_it_goes(plan):
    again = Plan.model_validate(yaml.safe_load(plan_text(plan)))
    assert again == plan
    moved = plan.model_copy(update={"output": plan.output / "elsewhere", "workers": 3})
    assert plan_text(moved) == plan_text(plan)
    assert plan_text(plan) in card_of(plan).text
    told = {"notify": Notify(on=["success"]), "registry": Registry(model="team"), "promotion": Promotion(floor=0.5)}
    varied = {"search": Search(trials=3), "compare": Compare(grid={"merge.keep_ratio": [0.1]})}
    beside = plan.model_copy(update=told | varied)
    assert set(told | varied) == BESIDE
    assert card_of(beside).text == card_of(plan).text
    alone = plan.model_copy(update={"align": None})
    assert Plan.model_validate(yaml.safe_load(plan_text(alone))).align is None


def test_how_to_load_it(plan):
    text = card_of(plan).text
    assert "from mergeline.models.resnet import resnet" in text
    assert "resnet(blocks=[1, 1, 1], width=16, outputs=384, stem_stride=2)" in text
    shards = ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    models = language_plan("hf://org/code", "hf://org/chat")
    assert "AutoModel.from_pretrained" in card_of(models, files=shards, library="transformers").text
    assert 'open_checkpoint("model.safetensors.index.json")' in card_of(models, files=shards).text
    assert "local-dir:" in card_of(plan, library="timm").text


def test_programs_and_those_that_could_not_be_made(plan):
    made = {"file": "model.pt2", "input": ["batch", 1, 28, 28], "checked": "within 1e-04"}
    text = card_of(plan, exports={"torch": made, "onnx": {"problem": "onnx: the package onnx is missing"}}).text
    assert "`exports/model.pt2` (torch) takes [batch, 1, 28, 28]; checked within 1e-04." in text
    assert "Not exported: onnx: the package onnx is missing." in text
