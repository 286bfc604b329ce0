"""A merge in ranges, on threads, on a Dask cluster and on Ray: the same bytes."""

import logging
from pathlib import Path

import cloudpickle
import pytest
import yaml

from flows.merge_and_evaluate import merge_and_evaluate
from flows.search_coefficients import search_coefficients
from mergeline.errors import InputError
from tasks.runners import task_runner
from tasks.store import store_directory
from tests.flows.runs import plan_for, published, run, stage_names

pytestmark = pytest.mark.flow
ZOO = Path("data/zoo")
MERGE = {"method": "ties", "keep_ratio": 0.2, "options_by_pattern": {"layer2*": {"keep_ratio": 0.5}}}


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory):
    names = ("a-clean-02478", "a-clean-13569")
    entries = [{"name": name, "base": "base-a", "uri": str(ZOO / f"{name}.safetensors")} for name in names]
    base = {"name": "base-a", "uri": str(ZOO / "base-a.safetensors")}
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    raw = {"name": "ranges", "checkpoints": [base, *entries], "merge": MERGE, "tracking": {"enabled": False}}
    path.write_text(yaml.safe_dump(raw))
    return path


def run_on(plan_file, output, *overrides):
    return run(plan_for(output, *overrides, path=plan_file))


@pytest.fixture(scope="module")
def whole(project, plan_file):
    """The result of one range on threads."""
    outcome = run_on(plan_file, project / "whole")
    assert "merge-range" not in stage_names(outcome)
    return published(project / "whole")


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """State of this test's own: nothing comes from the cache."""
    monkeypatch.setenv("MERGELINE_STATE", str(tmp_path))
    return tmp_path


def check_ranges(plan_file, folder, whole, runner):
    """Three ranges on two workers give the bytes of one, and no draft is left."""
    outcome = run_on(plan_file, folder / "out", f"runner={runner}", "workers=2", "range_size=150KB")
    assert stage_names(outcome).count("merge-range") == 3
    assert published(folder / "out") == whole
    assert not list(store_directory().glob("ranges/merge-*"))
    assert not list(store_directory().glob("tmp/*/"))


@pytest.mark.parametrize("runner", ["threads", "ray"])
def test_ranges_give_the_same_bytes(whole, plan_file, alone, runner):
    if runner == "ray":
        pytest.importorskip("prefect_ray", reason="pip install 'mergeline[ray]'")
    check_ranges(plan_file, alone, whole, runner)
    if runner == "ray":  # no lines of its own on the terminal
        assert not logging.getLogger("ray").isEnabledFor(logging.WARNING)


DYING = """
import os, signal
from pathlib import Path
from mergeline.merging import work

whole = vars(work).setdefault("whole", work.write_part)  # this file may be loaded twice

def write_part(layout, merged, part):
    whole(layout, merged, part[: len(part) // 2])
    try:
        Path(os.environ["MERGELINE_STATE"], "killed").touch(exist_ok=False)
    except FileExistsError:
        return whole(layout, merged, part)
    os.kill(os.getpid(), signal.SIGKILL)

work.write_part = write_part
"""


def test_ranges_give_the_same_bytes_on_a_cluster_that_loses_a_worker(whole, plan_file, alone):
    """One of two Dask workers is killed within a range; what it had not finished is computed again."""
    dask = pytest.importorskip("dask", reason="pip install 'mergeline[dask]'")
    pytest.importorskip("prefect_dask", reason="pip install 'mergeline[dask]'")
    (alone / "dying.py").write_text(DYING)
    with dask.config.set({"distributed.worker.preload": [str(alone / "dying.py")]}):
        check_ranges(plan_file, alone, whole, "dask")
    assert (alone / "killed").exists()


def test_a_merge_that_is_at_hand_needs_no_ranges(whole, project, plan_file):
    outcome = run_on(plan_file, project / "again", "range_size=150KB")
    assert "merge-range" not in stage_names(outcome)
    assert outcome.stages.cached == outcome.stages.total
    assert published(project / "again") == whole


def test_shards_are_filled_in_ranges(whole, project, plan_file, alone):
    one = run_on(plan_file, alone / "one", "merge.max_shard_size=100KB")
    assert "merge-range" not in stage_names(one)
    three = run_on(plan_file, alone / "three", "merge.max_shard_size=100KB", "range_size=200KB", "name=other")
    assert three.stages.cached == three.stages.total
    fresh = alone / "fresh"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGELINE_STATE", str(fresh))
        three = run_on(plan_file, alone / "three", "merge.max_shard_size=100KB", "range_size=200KB", "name=other")
    assert stage_names(three).count("merge-range") == 3
    weights = [{k: v for k, v in published(alone / n).items() if k.startswith("model")} for n in ("one", "three")]
    assert weights[0] == weights[1]
    assert len(weights[0]) > 4


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("tasks.runners.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"runner: dask needs the package prefect_dask: pip install 'mergeline\[dask"):
        task_runner("dask", 2)


@pytest.mark.parametrize("flow", [merge_and_evaluate, search_coefficients])
def test_a_flow_can_be_sent_to_the_workers_of_a_cluster(flow):
    assert cloudpickle.dumps(flow)


def test_calling_a_flow_asks_for_the_workers_of_its_plan(plan_file, alone, monkeypatch):
    monkeypatch.setattr("tasks.runners.find_spec", lambda name: None)
    plan = plan_for(alone / "out", "runner=ray", path=plan_file)
    for start in (lambda: merge_and_evaluate(plan), lambda: search_coefficients(plan, alone)):
        with pytest.raises(InputError, match="runner: ray needs the package prefect_ray"):
            start()
