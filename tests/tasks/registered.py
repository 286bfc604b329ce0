"""What the tests of the registry share: runs with scores and a checkpoint, registered as the main job does it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mergeline.evaluation.score import Score
from mergeline.plan_file import load_plan
from mergeline.report.result import Comparison, RowScores
from tasks.registry import DATA, ENDED, SHA256
from tasks.store import digest
from tasks.tracking import Registration, Tracker

ROOT = Path(__file__).resolve().parent.parent.parent
TASKS = ("clean-02478", "clean-13569", "half-12679", "half-03458")


def plan_of(model="digits", **promotion):
    return load_plan(
        ROOT / "params.yaml", [f"registry.model={model}", f"promotion={json.dumps({'standard_errors': 0} | promotion)}"]
    )


def comparison(*values, own=0.9):
    """The result of a run with these scores of the tasks of the shipped plan."""

    def row(name, scores):
        mean = Score(sum(scores) / len(scores), 0.01, 400)
        tasks = {task: Score(x, 0.01, 100) for task, x in zip(TASKS, scores, strict=False)}
        return RowScores(name=name, label=name, tasks=tasks, mean=mean, joint=mean)

    specialists = [row(f"{half}-{task}", [own] * 4) for half, task in zip("aabb", TASKS, strict=True)]
    return Comparison(plan="digits", rows=[*specialists, row("merged", values)])


def register(uri, folder, *values, number=0, data="data", model="digits", ended=None, weights=None):
    """Record a run with these scores; its weights are the number's, or the bytes given. Returns the run's id."""
    content = folder / f"run-{number}"
    (content / "model").mkdir(parents=True, exist_ok=True)
    (content / "comparison.json").write_text(comparison(*values).model_dump_json())
    weights_file = content / "model" / "model.safetensors"
    save_file({"w": torch.full((4,), float(number if weights is None else weights))}, weights_file)
    tags = {SHA256: digest(weights_file), DATA: data, ENDED: str(number if ended is None else ended)}
    return Tracker("digits", uri).record(
        f"run {number}",
        artifacts=[content / "comparison.json", content / "model"],
        registration=Registration(model=model, tags=tags),
    )
