"""The pre-flight of a plan whose tasks have heads of their own, which its base has not."""

import json

import datasets
import pytest
import torch
from safetensors.torch import save_file

import mergeline as ml
from mergeline.preflight.inspect import inspect_plan


@pytest.fixture
def plan_file(tmp_path):
    """Two models with heads of two and of three classes, and a base that is a body alone."""
    body = {"body.weight": torch.randn(4, 4)}
    save_file(body, tmp_path / "base.safetensors")
    checkpoints = [{"name": "base", "uri": str(tmp_path / "base.safetensors")}]
    for name, classes in (("two", 2), ("three", 3)):
        save_file(body | {"head.weight": torch.randn(classes, 4)}, tmp_path / f"{name}.safetensors")
        checkpoints.append({"name": name, "uri": str(tmp_path / f"{name}.safetensors"), "base": "base"})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list("abcde")))
    for split in ("calibration", "test"):
        table = datasets.Dataset.from_dict({"image": [], "label": []}, features=features)
        table.to_parquet(tmp_path / "data" / f"{split}.parquet")
    task = {"kind": "head", "head": "head", "dataset": "data"}
    plan = {
        "name": "heads",
        "output": str(tmp_path / "out"),
        "align": None,
        "architecture": {"factory": "torch.nn:Sequential"},
        "checkpoints": checkpoints,
        "datasets": {"data": {"path": str(tmp_path / "data")}},
        "calibration": {"dataset": "data"},
        "merge": {"method": "task_arithmetic"},
        "tasks": [{"name": name, "checkpoint": name, **task} for name in ("two", "three")],
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    return path


def test_a_base_without_a_head_is_no_fault(plan_file):
    found = inspect_plan(ml.load_plan(plan_file))
    assert found.faults == []
    assert list(found.files) == ["model.safetensors"]


def test_a_head_that_no_task_model_has_is_one(plan_file):
    [fault] = inspect_plan(ml.load_plan(plan_file, ["tasks[0].head=haed", "tasks[1].head=haed"])).faults
    assert "two: no tensor belongs to the head 'haed'; did you mean 'head'?" in fault


def test_a_body_that_differs_is_still_named(plan_file):
    save_file({"body.weight": torch.randn(5, 4)}, plan_file.parent / "base.safetensors")
    [fault] = inspect_plan(ml.load_plan(plan_file)).faults
    assert "body.weight" in fault


def test_where_only_the_base_is_here_nothing_is_said_of_heads(plan_file):
    away = [f"checkpoints[{i}].uri=http://127.0.0.1:9/{i}.safetensors" for i in (1, 2)]
    assert not [fault for fault in inspect_plan(ml.load_plan(plan_file, away)).faults if "head" in fault]
