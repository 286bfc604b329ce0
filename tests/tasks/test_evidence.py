"""What is measured of a model: in the unit order that it is merged in, on the examples of its tasks."""

import pytest
import torch
from safetensors.torch import load_file

from mergeline.alignment.apply import AlignedReader, apply_alignment
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.evidence.batches import labelled_batches, spread
from mergeline.models.build import build_model
from mergeline.plan_file import load_plan
from mergeline.symmetry.derive import derive_symmetry
from tasks.evidence import collect_fisher, collect_grams, collect_merged_grams, each
from tasks.job import Job
from tasks.merge_inputs import MergeInputs
from tasks.store import put_directory, take_file
from tests.flows.conftest import ROOT


@pytest.fixture
def measured(state, monkeypatch):
    """Arguments of a measurement of a shipped checkpoint as it is, and of the same in another unit order."""
    monkeypatch.chdir(ROOT)
    plan = load_plan("params.yaml", ["merge={method: fisher, evidence: {batches: 1}}", "calibration.batch_size=20"])
    job = Job(plan)
    module = build_model(plan.architecture.factory, plan.architecture.kwargs)
    alignment = derive_symmetry(module, (torch.zeros(2, 1, 28, 28),)).random_alignment(3)
    folder = put_directory(alignment.save, "alignment")
    model = take_file(ROOT / "data/zoo/b-half-12679.safetensors", "checkpoint", name="b")
    common = {
        "name": "b",
        "architecture": job.architecture,
        "tasks": [job._task_data(plan.tasks[2], "calibration")],
        "batches": 1,
        "batch_size": 20,
    }
    inputs = [MergeInputs(models=[model], bases=[], families=[0], alignment=chosen) for chosen in (None, folder)]
    return [{**common, "model": one} for one in inputs], alignment


def test_the_fisher_information_lies_in_the_order_of_the_aligned_units(measured):
    (plain, aligned), alignment = measured
    first, second = (load_file(collect_fisher.fn(**call).path) for call in (plain, aligned))
    moved = apply_alignment(first, alignment, 0)
    for name, tensor in second.items():
        torch.testing.assert_close(tensor, moved[name], rtol=1e-3, atol=1e-3 * float(moved[name].max()))
    assert any(not torch.equal(second[name], first[name]) for name in first)


def test_gram_matrices_lie_in_the_order_of_the_aligned_units(measured):
    (plain, aligned), alignment = measured
    first, second = (load_file(collect_grams.fn(**call).path) for call in (plain, aligned))
    (model,) = plain["model"].open()[0]
    weights = AlignedReader(open_checkpoint(dict(model)), alignment, 0)
    for name in first:  # outputs do not depend on the order of the inputs: W G W^T is the same
        if first[name].shape[0] == model.shape(name)[1] and len(model.shape(name)) == 2:
            outputs = [w @ g @ w.T for w, g in ((model.read(name), first[name]), (weights.read(name), second[name]))]
            torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
    assert any(not torch.allclose(first[name], second[name]) for name in first)


def test_gram_matrices_in_the_merged_model_lie_in_the_order_of_the_aligned_units(measured):
    (plain, aligned), alignment = measured
    shared = {key: plain[key] for key in ("architecture", "batches", "batch_size")}
    whole = {"names": ["b", "c"], "tasks": [plain["tasks"]] * 2, "own": True, "method": "regmean_plusplus"}
    options = {"options": {"alpha": 1.0}, "by_pattern": {"linear*": {"alpha": 0.5}}}

    def collected(call):
        twice = call["model"].model_copy(
            update={"models": call["model"].models * 2, "families": [0, 0]},
        )
        made = collect_merged_grams.fn(models=twice, **shared, **whole, **options)
        return [load_file(ref.path) for ref in each([made])]

    first, second = collected(plain), collected(aligned)
    (reader,) = plain["model"].open()[0]
    weights = AlignedReader(open_checkpoint(dict(reader)), alignment, 0)
    for name, matrix in first[0].items():
        assert torch.equal(matrix, first[1][name])  # both models are measured on the same pictures
        one, other = (w.read(name).flatten(1) for w in (reader, weights))
        outputs = [(w @ g @ w.T).trace() for w, g in ((one, matrix), (other, second[0][name]))]
        torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
    assert any(not torch.allclose(second[0][name], first[0][name]) for name in first[0])


def test_a_model_is_measured_on_pictures_of_any_class_or_of_its_own(measured):
    ((plain, _), _) = measured
    (task,) = plain["tasks"]
    assert len(task.unlabelled(None, 50, own=False)) == 6
    own = task.unlabelled(None, 50, own=True)
    assert len(torch.cat(own)) == len(torch.cat([labels for _, labels in task.labelled(None, 50)])) < 300
    first, second = (load_file(collect_grams.fn(**plain, own=own).path) for own in (False, True))
    assert any(not torch.allclose(second[name], first[name]) for name in first)


def test_a_task_is_measured_on_examples_of_its_classes_spread_over_all():
    images, labels = torch.arange(100.0)[:, None], torch.arange(10).repeat_interleave(10)  # sorted by class
    batches = labelled_batches(images, labels, [7, 2], 2, 5)
    assert [len(batch) for batch, _ in batches] == [5, 5]
    assert torch.cat([places for _, places in batches]).tolist() == [1] * 5 + [0] * 5
    assert torch.cat([batch for batch, _ in batches]).flatten().tolist() == [20, 22, 24, 26, 28, 70, 72, 74, 76, 78]
    assert len(spread(images, None, 5)) == 100


def test_the_mean_over_several_tasks():
    from mergeline.evidence.measuring import mean_of

    assert torch.equal(mean_of([{"a": torch.tensor([1.0])}, {"a": torch.tensor([2.0])}])["a"], torch.tensor([1.5]))
