"""A merge in ranges, on threads, on a Dask cluster and on Ray: the same bytes."""

from pathlib import Path

import pytest
import yaml

from mergeline.errors import InputError
from tasks.runners import task_runner
from tasks.store import store_directory
from tests.flows.runs import published, run, stage_names

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
    from tests.flows.runs import plan_for

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


@pytest.mark.parametrize("runner", ["threads", "dask", "ray"])
def test_ranges_give_the_same_bytes_on_every_runner(whole, plan_file, alone, runner):
    if runner != "threads":
        pytest.importorskip(f"prefect_{runner}", reason=f"pip install 'mergeline[{runner}]'")
    settings = (f"runner={runner}", "workers=2", "range_size=150KB")
    outcome = run_on(plan_file, alone / "out", *settings)
    assert stage_names(outcome).count("merge-range") == 3
    assert published(alone / "out") == whole
    assert not list(store_directory().glob("ranges/merge-*"))  # no draft is left
    assert not list(store_directory().glob("tmp/*/"))


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
