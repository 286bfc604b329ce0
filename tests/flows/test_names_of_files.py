"""A plan of models whose tensors transformers renames while loading: merged, measured, published as their files are."""

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mergeline.errors import InputError
from mergeline.plan_file import load_plan
from tests.flows.runs import run

pytestmark = pytest.mark.flow
NAMES = ("base", "one", "two")


@pytest.fixture(scope="module")
def plan_file(project, tmp_path_factory):
    """Two fine-tunings of one tiny ViT, and pictures of the 3 classes that all of them tell apart."""
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    module = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **shape))
    for name in NAMES:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        module.save_pretrained(folder / name)
    pictures = torch.randint(0, 256, (30, 8, 8, 3), dtype=torch.uint8).numpy()
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list("abc")))
    table = {"image": list(pictures), "label": [i % 3 for i in range(30)]}
    for split in ("calibration", "test"):
        datasets.Dataset.from_dict(table, features=features).to_parquet(folder / "data" / f"{split}.parquet")
    task = {"kind": "head", "head": "classifier", "dataset": "data", "classes": [0, 1, 2]}
    sections = {
        "name": "vit",
        "align": None,
        "output": str(folder / "out"),
        "architecture": {
            "factory": "mergeline.models.pretrained:image_classifier",
            "kwargs": {"folder": str(folder / "base")},
        },
        "checkpoints": [
            {"name": name, "uri": str(folder / name)} | ({} if name == "base" else {"base": "base"}) for name in NAMES
        ],
        "datasets": {"data": {"path": str(folder / "data")}},
        "calibration": {"dataset": "data"},
        "merge": {"method": "task_arithmetic", "scale": 0.5},
        "evaluation": {"compare": ["task_models"]},
        "tasks": [{"name": name, "checkpoint": name, **task} for name in NAMES[1:]],
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def test_a_merged_vit_is_measured_published_and_served(plan_file):
    import mlflow
    from transformers import AutoModelForImageClassification

    from mergeline.evaluation.datasets import load_images

    plan = load_plan(plan_file, ["registry.model=vit", "landscape={points: 2, line_points: 3, split: test}"])
    result = run(plan).comparison.result
    parents = {name: load_file(plan_file.parent / name / "model.safetensors") for name in NAMES}
    merged = load_file(plan.output / "model.safetensors")
    assert set(merged) == set(parents["base"])
    name = "vit.encoder.layer.0.attention.attention.query.weight"
    torch.testing.assert_close(merged[name], 0.5 * (parents["one"][name] + parents["two"][name]))
    own = AutoModelForImageClassification.from_pretrained(plan.output).eval()
    examples = load_images(plan_file.parent / "data", "test", mean=0.0, std=1.0)
    with torch.no_grad():
        logits = own(pixel_values=examples.inputs).logits
    share = float((logits.argmax(dim=1) == examples.labels).float().mean())
    assert result.tasks["one"].value == pytest.approx(share)
    served = mlflow.pyfunc.load_model("models:/vit/1")
    found = torch.from_numpy(served.predict(examples.inputs.numpy()))
    torch.testing.assert_close(found, logits)


def test_to_merge_it_by_what_is_measured_of_its_layers_is_refused(plan_file, tmp_path):
    overrides = ["merge={method: fisher}", "evaluation.compare=[]", f"output={tmp_path / 'out'}"]
    with pytest.raises(InputError, match=r"is 'vit\.\S+' in memory, as transformers renames"):
        run(load_plan(plan_file, overrides))
