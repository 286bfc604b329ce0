"""The main job with a landscape: measured in rows, published beside the model, in the report and in MLflow."""

import json

import pytest

from tasks.landscape import Anchor, measure_losses
from tasks.survey import Survey
from tests.flows.runs import computed, plan_for, run

THROUGH = ("a-clean-02478", "b-half-12679")
SMALL = ["evaluation.compare=[]", "merge={method: average}", "landscape={points: 3, line_points: 3}"]


@pytest.fixture(scope="module")
def surveyed(project):
    output = project / "published"
    return run(plan_for(output, *SMALL)), output


@pytest.fixture(scope="module")
def found(surveyed):
    return json.loads((surveyed[1] / "landscape/landscape.json").read_text())


@pytest.mark.flow
def test_every_task_is_measured_on_the_plane_and_on_the_lines(found):
    tasks = {"mean of the tasks", "clean-02478", "clean-13569", "half-12679", "half-03458"}
    assert set(found["losses"]) == tasks
    assert all(len(rows) == 3 and all(len(row) == 3 for row in rows) for rows in found["losses"].values())
    assert found["plane"]["anchors"] == [*THROUGH, "merged"]
    assert len(found["plane"]["models"]) == 5, "all task models are placed"
    assert [(line["start"], line["end"]) for line in found["lines"]] == [("base-a", "base-b"), THROUGH]
    for line in found["lines"]:
        assert [curve["state"] for curve in line["curves"]] == ["before", "after"]
        assert all(set(curve["barriers"]) == tasks for curve in line["curves"])
    assert (found["split"], found["of_result"]) == ("validation", False)


@pytest.mark.flow
def test_alignment_changes_no_end_of_a_line_and_the_plane_has_the_same_models(found):
    for line in found["lines"]:
        before, after = (curve["losses"] for curve in line["curves"])
        for task, losses in before.items():
            assert losses[0] == after[task][0]
            assert losses[-1] == pytest.approx(after[task][-1], abs=1e-4), "the same function in another unit order"
    ends = found["lines"][1]["curves"][1]["losses"]
    for place, name in ((0, THROUGH[0]), (-1, THROUGH[1])):
        assert found["models"][name] == {task: losses[place] for task, losses in ends.items()}


@pytest.mark.flow
def test_alignment_lowers_the_barrier_between_the_bases(found):
    before, after = (curve["barriers"]["mean of the tasks"]["height"] for curve in found["lines"][0]["curves"])
    assert after < before / 2


@pytest.mark.flow
def test_the_reports_show_it_and_say_which_data_it_is(surveyed):
    page, text = ((surveyed[1] / name).read_text() for name in ("report.html", "report.md"))
    assert "Loss on the plane through the models" in page
    assert "Loss on the split validation, which does not measure the result" in page
    assert "![loss between models](landscape/lines.png)" in text
    assert "| base-a to base-b | before alignment |" in text
    lineage = json.loads((surveyed[1] / "lineage.json").read_text())
    assert "data/datasets/fashion_mnist/validation.parquet" in {entry["source"] for entry in lineage["inputs"]}


@pytest.mark.flow
def test_mlflow_has_the_barriers_and_the_pictures(surveyed, found):
    from tasks.tracking import connect

    client, recorded = connect(), surveyed[0].recorded.mlflow_run
    height = found["lines"][0]["curves"][0]["barriers"]["mean of the tasks"]["height"]
    assert client.get_run(recorded).data.metrics["barrier/base-a to base-b/before"] == height
    assert {entry.path for entry in client.list_artifacts(recorded, "landscape")} == {
        f"landscape/{name}" for name in ("landscape.json", "lines.png", "plane.png")
    }


@pytest.mark.flow
def test_a_finer_line_measures_the_lines_alone(surveyed):
    outcome = run(plan_for(surveyed[1], *SMALL[:-1], "landscape={points: 3, line_points: 5}", "tracking.enabled=false"))
    assert computed(outcome) == 5, "four curves and the pictures"
    assert computed(run(plan_for(surveyed[1], *SMALL, "tracking.enabled=false"))) == 0


@pytest.mark.flow
def test_a_point_that_diverges_is_one_sentence_with_its_place(surveyed, project):
    from mergeline.errors import InputError
    from tasks.job import Job
    from tasks.store import put_file

    def broken(path):
        import torch
        from safetensors.torch import load_file, save_file

        state = load_file("data/zoo/base-a.safetensors")
        save_file(state | {"linear.weight": torch.full_like(state["linear.weight"], 3e38)}, path)

    plan = plan_for(project / "broken", *SMALL)
    job, ref = Job(plan), put_file(broken, ".safetensors", "checkpoint")
    checkpoints = {spec.name: ref for spec in plan.checkpoints}
    call = next(iter(Survey(job, plan.landscape, checkpoints, ref, None).lines.values()))
    anchors = [Anchor(name=name, model=ref) for name in ("start", "end")]
    with pytest.raises(InputError, match=r"landscape, at 2 start \+ -1 end: .* not finite .* landscape.margin"):
        measure_losses.fn(**call | {"anchors": anchors, "weights": [[2.0, -1.0]]})
