"""Pages for the tests of the HTML report: a comparison, and what a run found."""

from mergeline.balancing.winners import BINS, Winners
from mergeline.comparison import RESULT
from mergeline.evaluation.score import Score
from mergeline.plan_file import load_plan
from mergeline.report.html import Findings, RunRecord, StageTiming
from mergeline.report.page import Facts
from mergeline.report.result import Comparison, RowScores
from mergeline.report.similarity_maps import SimilarityMap

RUN = RunRecord({"commit": "c0ffee", "flow run": "f-1"}, [StageTiming("merge", 3, 1, 2.5, 2.25, 310.0)])


def plan(*overrides):
    return load_plan("params.yaml", overrides)


def row(name, mean, label=None, error=0.01):
    tasks = {task.name: Score(mean, error, 500) for task in plan().tasks}
    return RowScores(
        name=name, label=label or name, tasks=tasks, mean=Score(mean, error, 2000), joint=Score(mean, error, 2000)
    )


def comparison(result=0.7, models=0.9, **others):
    rows = [row(task.checkpoint, models) for task in plan().tasks] if models is not None else []
    rows += [row(name.replace("_", "-"), value) for name, value in others.items()]
    rows.append(row(RESULT, result, "aligned, PCB"))
    return Comparison(plan="two-teams", rows=rows, specialists=plan().specialists)


def lineage(**fields):
    known = {
        "inputs": [{"kind": "checkpoint", "name": "base-a", "source": "data/zoo/base-a.safetensors", "sha256": "71a2"}],
        "files": {"model.safetensors": "beef"},
        "code": "c0de",
        "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
    }
    return known | fields


def findings(*, aligned=True, competed=True, **fields):
    facts = Facts({}, [0.4, 0.45] if aligned else [], {"stream": 0.45, "conv1": 0.5} if aligned else {}, {})
    table = [[0.1, 0.9, -0.2], [0.8, 0.0, 0.3], [0.2, 0.1, 0.7]]
    maps = [SimilarityMap(group="stream", units=3, matched=0.8, before=table, after=table[1:] + table[:1])]
    counts = (5,) * BINS
    winners = Winners(
        parameters=1000, kept=(100,) * 4, won=(80, 70, 60, 50), histogram=(counts,) * 4, contested=140, unclaimed=740
    )
    given = {"maps": maps if aligned else [], "winners": winners if competed else None, "lineage": lineage()}
    return Findings(facts=facts, **(given | fields))
