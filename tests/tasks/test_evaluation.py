"""What a row of the table comes to: tasks with their metrics, tasks outside, models that put out nonsense."""

import inspect
import json
from pathlib import Path

import pytest
import torch

from mergeline.errors import InputError
from mergeline.plan_file import load_plan

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def job(state, monkeypatch):
    """The shipped plan with one task by F1, and one that no model was trained for."""
    from tasks.job import Job

    monkeypatch.chdir(ROOT)
    shipped = [task.model_dump() for task in load_plan("params.yaml").tasks[:2]]
    shipped[0]["metric"] = "f1"
    outside = {"name": "other", "dataset": "fashion", "split": "validation", "classes": [0, 9]}
    return Job(load_plan("params.yaml", [f"tasks={json.dumps([*shipped, outside])}"]))


def row_of(job, module, domains=None, calibration_batch=None):
    from tasks.evaluation import measure

    asked = job.measuring(job.domains if domains is None else domains)
    named = {"name": "base-a", "label": "base-a"}
    return measure([module], asked["domains"], asked["classes"], calibration_batch, 250, **named)


@pytest.fixture
def module(job):
    from mergeline.checkpoints.readers import open_checkpoint

    return job.architecture.load(open_checkpoint(ROOT / "data/zoo/base-a.safetensors"))


def test_a_task_outside_is_measured_and_counts_in_no_mean_no_joint_score_and_no_search(job, module):
    row = row_of(job, module)
    assert list(row.tasks) == ["clean-02478", "clean-13569"]
    assert list(row.outside) == ["other"]
    assert row.outside["other"].count > 0
    inside = row_of(job, module, job.domains[:1])
    assert (row.mean, row.joint, row.tasks) == (inside.mean, inside.joint, inside.tasks)
    assert [list(domain.tasks) for domain in job.domains_on("validation")] == [list(row.tasks)]


def test_each_task_is_measured_by_its_own_metric(job, module):
    f1, accuracy = row_of(job, module).tasks.values()
    questions = {name: asked.model_copy(update={"metric": "accuracy"}) for name, asked in job.domains[0].tasks.items()}
    again = row_of(job, module, [job.domains[0].model_copy(update={"tasks": questions})])
    assert again.tasks["clean-13569"] == accuracy
    assert again.tasks["clean-02478"] != f1


def test_models_answer_on_the_device_of_the_plan_and_all_else_is_computed_on_the_cpu(job, monkeypatch):
    from tasks.evaluation import evaluate
    from tasks.job import Job
    from tasks.store import take_file

    assert job.measuring(job.domains)["architecture"] == job.architecture
    other = Job(load_plan("params.yaml", ["evaluation.device=cuda:1"]))
    assert other.measuring(other.domains)["architecture"].device == "cuda:1"
    assert other.calibration_inputs["architecture"] == job.architecture, "its stages stay cached"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    base = take_file(ROOT / "data/zoo/base-a.safetensors", "checkpoint")
    asked = other.evaluation(other.rows["base-a"], {"base-a": base}, {})
    with pytest.raises(InputError, match=r"evaluation.device: there is no cuda:1 .PyTorch sees 1 CUDA device here.; "):
        inspect.unwrap(evaluate.fn)(**asked)


def test_outputs_that_are_not_finite_name_the_model_and_its_tasks(job, module):
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    message = r"base-a, measured on clean-02478, clean-13569: the outputs of the model are not finite for \d+ of"
    with pytest.raises(InputError, match=message):
        row_of(job, module)
    message = r"base-a, measured on clean-02478, clean-13569: normalisation reset: the statistics of \w+ are not finite"
    with pytest.raises(InputError, match=message):
        row_of(job, module, calibration_batch=100)
