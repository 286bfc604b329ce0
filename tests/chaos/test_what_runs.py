"""One input of the main job is changed at a time: exactly the stages that depend on it run, all others are cached."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mergeline.plan_file import load_plan
from tasks.policy import records_directory
from tests.chaos.attempts import small_plan
from tests.flows.runs import published

pytestmark = pytest.mark.flow

MEASURED = {"reset-normalization": 1, "measure-normalization": 2, "evaluate": 1, "draw-chart": 1}
MERGED = {"merge": 1} | MEASURED
WEIGHED = {"merge-statistics": 1, "count-winners": 1} | MERGED
ALIGNED = {"solve-permutations": 1, "map-similarity": 1} | WEIGHED
RESPONSES = {"collect-activations": 1, "activation-similarity": 1}
CALIBRATED = {"represent-family": 2, "weight-similarity": 1} | RESPONSES | ALIGNED
EVERYTHING = {"download-checkpoint": 4, "prove-symmetry": 1} | CALIBRATED

FIELDS = {
    "name=another": {"draw-chart": 1},
    "workers=2": {},
    "range_size=200KB": {},
    "evaluation.batch_size=100": {"evaluate": 1},
    "tasks[0].classes=[0, 2, 4]": {"evaluate": 1, "draw-chart": 1},
    "merge.scale=0.9": MERGED,
    "merge.onto=first": MERGED,
    "merge.keep_ratio=0.2": WEIGHED,
    "align.balance=0.4": ALIGNED,
    "calibration.batch_size=50": CALIBRATED,
}
SOURCES = {  # where a stage makes the same again, what comes after it stays cached
    "mergeline.alignment.solve": {"solve-permutations": 1, "map-similarity": 1},
    "mergeline.balancing.pcb": {"merge-statistics": 1, "count-winners": 1, "merge": 1},
    "mergeline.report.chart": {"draw-chart": 1},
    "mergeline.checkpoints.readers": {stage: n for stage, n in EVERYTHING.items() if stage != "draw-chart"},
    "tasks.permutations": {"solve-permutations": 1, "map-similarity": 1},
    "tasks.policy": {},
    "flows.merge_and_evaluate": {},
}
CHECKPOINTS = {  # which one is changed, and how
    "another place": ("b-half-12679", False, {"download-checkpoint": 1}),
    "a task model": ("b-half-12679", True, {"download-checkpoint": 1} | WEIGHED),
    "a base": ("base-b", True, {"download-checkpoint": 1} | CALIBRATED | {"represent-family": 1}),
}
ARTIFACTS = {
    "merge": {"merge": 1},
    "solve-permutations": {"solve-permutations": 1},
    "collect-activations": {"collect-activations": 1},
    "draw-chart": {"draw-chart": 1},
}


def what_ran(merge, *overrides, **options):
    assert merge.run(*overrides, **options) == 0
    return dict(Counter(merge.computed()))


def test_at_first_everything_runs_then_nothing(unbroken):
    assert dict(Counter(unbroken.computed(0))) == EVERYTHING
    assert what_ran(unbroken) == {}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_the_plan(unbroken, field):
    assert what_ran(unbroken, field) == FIELDS[field]


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_of_the_library(unbroken, module):
    assert what_ran(unbroken, changed=[module]) == SOURCES[module]


@pytest.mark.parametrize("change", CHECKPOINTS)
def test_a_checkpoint(unbroken, tmp_path, change):
    name, altered, expected = CHECKPOINTS[change]
    plan = load_plan("params.yaml", small_plan())
    entries = [spec.model_dump(mode="json") for spec in plan.checkpoints]
    [entry] = [entry for entry in entries if entry["name"] == name]
    path = tmp_path / Path(entry["uri"]).name
    shutil.copyfile(entry["uri"], path)
    if altered:
        state = load_file(path)
        name = next(name for name, tensor in state.items() if tensor.ndim == 4)
        state[name] = state[name].roll(1, 0).contiguous()
        save_file(state, path)
    entry |= {"uri": str(path), "sha256": None}
    assert what_ran(unbroken, f"checkpoints={json.dumps(entries)}") == expected


def records_of(merge, stage, monkeypatch):
    monkeypatch.setenv("MERGELINE_STATE", str(merge.state))
    return list(records_directory().glob(f"{stage}-[0-9a-f]*"))


def artifact_of(merge, record):
    data = json.loads(json.loads(record.read_text())["result"])["data"]
    return merge.state / ".store" / data["sha256"][:2] / f"{data['sha256']}{data['suffix']}"


@pytest.mark.parametrize("damage", ["missing", "altered"])
@pytest.mark.parametrize("stage", ARTIFACTS)
def test_an_artifact(unbroken, monkeypatch, stage, damage):
    """All artifacts of a stage are damaged; the one that the run needs is made again, with the same bytes."""
    artifacts = {artifact_of(unbroken, record) for record in records_of(unbroken, stage, monkeypatch)}
    for artifact in filter(Path.exists, artifacts):
        target = min(artifact.iterdir()) if artifact.is_dir() else artifact
        content = target.read_bytes()
        target.unlink()
        if damage == "altered":
            target.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert what_ran(unbroken) == ARTIFACTS[stage]
    assert published(unbroken.output) == unbroken.expected


def test_a_record(unbroken, monkeypatch):
    for record in records_of(unbroken, "evaluate", monkeypatch):
        record.unlink()
    assert what_ran(unbroken) == {"evaluate": 1}


def test_fresh_ignores_the_cache_and_fills_it_again(unbroken):
    assert what_ran(unbroken, fresh=True) == EVERYTHING
    assert published(unbroken.output) == unbroken.expected
    assert what_ran(unbroken) == {}
