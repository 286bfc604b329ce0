"""Runs of the main job that are killed and run again, and what must hold after every one: `make chaos`."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from mergeline.plan_file import load_plan
from tasks.tracking import Tracker
from tests.flows.runs import published

ROOT = Path(__file__).resolve().parent.parent.parent
KILLED = -signal.SIGKILL


def small_plan() -> list[str]:
    """Every stage of the main job, one after the other: a task model of each of two bases, merged in three ranges."""
    plan = load_plan(ROOT / "params.yaml")
    names = ("base-a", "base-b", "a-clean-02478", "b-half-12679")
    checkpoints = [spec.model_dump(mode="json") for spec in plan.checkpoints if spec.name in names]
    tasks = [task.model_dump(mode="json") for task in plan.tasks if task.checkpoint in names]
    fields = {"checkpoints": checkpoints, "tasks": tasks, "evaluation.compare": [], "align.found_on": "bases"}
    return [*(f"{name}={json.dumps(value)}" for name, value in fields.items()), "range_size=150KB", "workers=1"]


@dataclass(frozen=True)
class Event:
    """A line of the log of a run."""

    stage: str
    what: str
    about: str


class Kitchen:
    """The process that forks a child for every run (`killed_flow.py`)."""

    def __init__(self, folder: Path, api_url: str, home: Path) -> None:
        settings = {"PREFECT_API_URL": api_url, "MERGELINE_STATE": str(folder), "PREFECT_HOME": str(home)}
        self.mlflow = f"sqlite:///{folder / 'mlflow.db'}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.killed_flow"],
            cwd=ROOT,
            env=os.environ | settings | {"MLFLOW_TRACKING_URI": self.mlflow},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None and self._process.stdin is not None
        self._ask, self._answers = self._process.stdin, self._process.stdout
        assert self._answers.readline() == "ready\n"
        Tracker("none", self.mlflow).parts("none", "none")  # makes the database, which takes seconds

    def run(self, *requests: dict[str, Any]) -> list[int]:
        """Run these at the same time; their exit codes."""
        self._ask.write(json.dumps(requests) + "\n")
        self._ask.flush()
        return list(json.loads(self._answers.readline()))

    def close(self) -> None:
        """End it."""
        self._ask.close()
        self._process.wait()


@dataclass
class Merge:
    """One state, one output, and the attempts made there."""

    kitchen: Kitchen
    folder: Path
    overrides: list[str]
    attempts: list[list[Event]] = field(default_factory=list)

    @property
    def output(self) -> Path:
        """Where the result is published."""
        return self.folder / "out"

    @property
    def state(self) -> Path:
        """The state of this merge alone."""
        return self.folder / "state"

    def request(self, *more: str, **options: Any) -> dict[str, Any]:
        """What the kitchen is asked for; options: kill, after, fresh, changed (see `killed_flow.py`)."""
        self.state.mkdir(parents=True, exist_ok=True)
        own = [f"output={self.output}", f"tracking.experiment={self.folder.name}"]
        return {
            "state": str(self.state),
            "mlflow": self.kitchen.mlflow,
            "overrides": [*self.overrides, *own, *more],
            "log": str(self.folder / f"{len(self.attempts)}-{random.getrandbits(32):08x}.log"),
        } | options

    def run(self, *more: str, **options: Any) -> int:
        """One attempt; its exit code."""
        return self.run_together([self.request(*more, **options)])[0]

    def run_together(self, requests: list[dict[str, Any]]) -> list[int]:
        """Attempts at the same time."""
        codes = self.kitchen.run(*requests)
        for request, code in zip(requests, codes, strict=True):
            lines = Path(request["log"]).read_text().splitlines() if Path(request["log"]).exists() else []
            self.attempts.append([Event(*line.split("\t", 2)) for line in lines if line.count("\t") >= 2])
            if code not in (0, KILLED):
                raise AssertionError(Path(request["log"] + ".out").read_text())
        return codes

    def computed(self, attempt: int = -1) -> list[str]:
        """The stages that an attempt computed, by name."""
        return sorted(event.stage for event in self.attempts[attempt] if event.what == "computes")

    def repeated(self) -> list[str]:
        """Keys of stages that were computed again after they had been finished: there must be none."""
        finished: set[str] = set()
        again = []
        for attempt in self.attempts:
            computed = set()
            for event in attempt:
                if event.what == "computes":
                    again += [event.about] if event.about in finished else []
                    computed.add(event.about)
                elif event.what == "free" and event.about in computed:
                    finished.add(event.about)
        return again

    def recorded_runs(self) -> list[Any]:
        """The runs that MLflow has of this merge."""
        client = MlflowClient(self.kitchen.mlflow)
        experiment = client.get_experiment_by_name(self.folder.name)
        return list(client.search_runs([experiment.experiment_id])) if experiment else []

    @cached_property
    def expected(self) -> dict[str, bytes]:
        """What an unbroken run publishes, given to `check_visible`."""
        return published(self.output)


def check_visible(merge: Merge, *known: dict[str, bytes]) -> None:
    """Nothing partial can be seen: published files are those of one of the known results, artifacts are whole."""
    for name, content in published(merge.output).items() if merge.output.exists() else ():
        if not any(part.startswith(".") for part in Path(name).parts):
            assert any(content == result.get(name) for result in known), f"{name} is none of the known versions"
    from tasks.store import digest

    for path in (merge.state / ".store").glob("[0-9a-f][0-9a-f]/*"):
        assert digest(path) == path.name.partition(".")[0], f"{path} is not what its name says"


def check_end(merge: Merge, expected: dict[str, bytes]) -> None:
    """After the last attempt all is there, once."""
    assert published(merge.output) == expected, "other bytes than those of an unbroken run (or leftovers)"
    assert merge.repeated() == [], "finished stages were computed again"
    done = sum(any("/unfinished/" in event.about and event.what == "os.remove" for event in a) for a in merge.attempts)
    runs = merge.recorded_runs()
    assert Counter(run.info.status for run in runs) == {"FINISHED": done}, "a run is recorded half, twice or not at all"
    assert not list((merge.state / ".mlflow" / "pending").glob("*/[!.]*")), "records are left in the outbox"


def kill_points(events: list[Event]) -> dict[str, list[int]]:
    """Per stage, the numbers of the events that an unbroken run has in it."""
    counts = Counter(event.stage for event in events)
    return {stage: list(range(1, count + 1)) for stage, count in counts.items()}


def chaos(kills: int, seed: int, folder: Path, api_url: str) -> None:
    """Chains of killed attempts: at random events and at random times. A chain ends when an attempt survives."""
    chance = random.Random(seed)
    kitchen = Kitchen(folder, api_url, folder / ".prefect")
    unbroken = Merge(kitchen, folder / "unbroken", small_plan())
    assert unbroken.run() == 0
    points, killed, chains = kill_points(unbroken.attempts[0]), 0, 0
    while killed < kills:
        chains += 1
        merge = Merge(kitchen, folder / f"chain-{chains}", [*small_plan(), "workers=4"])
        for _ in range(chance.randint(1, 8)):
            stage = chance.choice([*points])
            by_event = chance.random() < 0.6
            point = (stage, chance.choice(points[stage])) if by_event else None
            code = merge.run(kill=point, after=None if by_event else chance.uniform(0.05, 6))
            killed += code == KILLED
            check_visible(merge, unbroken.expected)
        assert merge.run() == 0
        check_visible(merge, unbroken.expected)
        check_end(merge, unbroken.expected)
        print(f"chain {chains}: {killed} of {kills} kills, all well", flush=True)
    kitchen.close()


def main() -> None:
    """Against a Prefect server of its own, in a temporary folder that is kept where something fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.attempts", description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    import tests.prefect_fixtures  # noqa: F401

    folder = Path(tempfile.mkdtemp(prefix="mergeline-chaos-"))
    print(f"seed {options.seed}, in {folder}", flush=True)
    with prefect_test_harness(server_startup_timeout=None):
        chaos(options.kills, options.seed, folder, str(PREFECT_API_URL.value()))


if __name__ == "__main__":
    main()
