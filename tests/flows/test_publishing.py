"""The published folder: what loads it, whose README it keeps, programs of the module and the reasons where none are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mergeline import export
from mergeline.models.build import build_model
from mergeline.plan import Plan
from mergeline.plan_file import PlanError, load_plan
from tasks.publishing import module_config
from tests.flows.runs import computed, plan_for, run

ZOO = Path("data/zoo")
SMALL = ["evaluation.compare=[]", "tracking.enabled=false", "export=[torch, onnx]"]


@pytest.fixture(scope="module")
def plan_file(project, tmp_path_factory):
    """Two models of one base and one task, the models in folders with licences of their own."""
    folder = tmp_path_factory.mktemp("models")
    plan = yaml.safe_load(Path("params.yaml").read_text())
    checkpoints = [entry for entry in plan["checkpoints"] if "base-a" in (entry["name"], entry.get("base"))]
    for entry, licence in zip(checkpoints, ("mit", "apache-2.0", "mit"), strict=True):
        place = folder / entry["name"]
        place.mkdir()
        shutil.copy(entry["uri"], place / "model.safetensors")
        (place / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        entry["uri"] = str(place / "model.safetensors")
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan | {"checkpoints": checkpoints, "tasks": plan["tasks"][:1]}))
    return path


@pytest.fixture(scope="module")
def lacking(project, plan_file):
    """A run where ONNX cannot be exported because a package is missing, into a folder with a README of its owner."""
    output = project / "published"
    output.mkdir()
    (output / "README.md").write_text("# My models\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(export.PACKAGES, "onnx", ("no_such_package",))
        return run(plan_for(output, *SMALL, path=plan_file)), output


@pytest.mark.flow
def test_what_cannot_be_exported_is_told_and_the_rest_is_there(lacking):
    _, output = lacking
    record = json.loads((output / "exports/exports.json").read_text())
    assert record["onnx"] == {"problem": "onnx: the package no_such_package is missing; pip install 'mergeline[onnx]'"}
    assert record["torch"]["input"] == ["batch", 1, 28, 28]
    assert {path.name for path in (output / "exports").iterdir()} == {"exports.json", "model.pt2"}
    assert "Not exported: onnx: the package no_such_package is missing" in (output / "MODEL_CARD.md").read_text()


@pytest.mark.flow
def test_the_folder_loads_as_its_config_says_and_the_program_does_the_same(lacking):
    _, output = lacking
    module = build_model(**json.loads((output / "config.json").read_text()))
    module.load_state_dict(load_file(output / "model.safetensors"))
    program = torch.export.load(output / "exports/model.pt2").module()
    images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(program(images), module(images))


@pytest.mark.flow
def test_the_lineage_lists_every_input_with_source_size_and_licence(lacking, plan_file):
    _, output = lacking
    inputs = {entry["name"]: entry for entry in json.loads((output / "lineage.json").read_text())["inputs"]}
    for spec in load_plan(plan_file).checkpoints:
        entry = inputs[spec.name]
        assert entry["licence"] == ("apache-2.0" if spec.name == "a-clean-02478" else "mit")
        assert (entry["source"], entry["bytes"]) == (spec.uri, Path(spec.uri).stat().st_size)
        assert entry["sha256"] == spec.sha256
    datasets = {entry["source"] for entry in inputs.values() if entry["kind"] != "checkpoint"}
    folder = "data/datasets/fashion_mnist"
    assert datasets == {
        f"{folder}/{name}" for name in ("calibration.parquet", "test.parquet", "prototypes.safetensors")
    }
    text = (output / "lineage.json").read_text()
    assert json.loads(text)["packages"]["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.flow
def test_a_readme_of_somebody_else_is_kept_and_our_own_is_written_again(lacking):
    _, output = lacking
    assert (output / "README.md").read_text() == "# My models\n"
    assert (output / "MODEL_CARD.md").is_file()


@pytest.mark.flow
def test_with_the_package_there_only_the_program_is_made(lacking, plan_file):
    _, output = lacking
    (output / "README.md").unlink()
    assert computed(run(plan_for(output, *SMALL, path=plan_file))) == 1
    assert "`exports/model.onnx` (onnx) takes [batch, 1, 28, 28]" in (output / "README.md").read_text()
    run(plan_for(output, *SMALL[:-1], path=plan_file))
    assert {path.name for path in (output / "exports").iterdir()} == {"exports.json"}
    assert "exports/model.onnx" not in (output / "README.md").read_text()


def test_a_plan_that_can_only_merge_has_nothing_to_export(tmp_path):
    checkpoints = [
        {"name": name, "uri": str(ZOO / f"{name}.safetensors")} for name in ("a-clean-02478", "a-clean-13569")
    ]
    path = tmp_path / "plan.yaml"
    plan = {"name": "alone", "checkpoints": checkpoints, "merge": {"method": "average"}, "align": None}
    path.write_text(yaml.safe_dump(plan | {"export": ["onnx", "onnx", "tflite"]}))
    with pytest.raises(PlanError) as error:
        load_plan(path)
    said = str(error.value)
    assert "export[2]: 'tflite' is not one of 'torch' or 'onnx'" in said
    assert "architecture: is missing; `export` makes a program of the module" in said
    assert "export: a kind is listed twice" in said


def test_a_model_of_timm_gets_the_config_that_timm_reads():
    kwargs = {"model_name": "resnet18", "num_classes": 10, "pretrained": False, "in_chans": 1}
    plan = Plan.model_validate(
        {
            "name": "timm",
            "architecture": {"factory": "timm:create_model", "kwargs": kwargs},
            "checkpoints": [{"name": "a", "uri": "a"}, {"name": "b", "uri": "b"}],
        }
    )
    assert module_config(plan) == {
        "architecture": "resnet18",
        "num_classes": 10,
        "model_args": {"in_chans": 1},
        "pretrained_cfg": {"num_classes": 10},
    }
