"""A function of the user that judges a task: where it changes, that is news, other code, and another measurement."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mergeline.plan import Plan
from mergeline.plan_file import load_plan
from tasks import code_version
from tasks.changes import look_for_news, remembered
from tests.tasks.test_changes import ROOT, succeed


@pytest.fixture
def judged(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Plan]]:
    """The shipped plan with a task that a function of the user judges, whose text may be changed."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(tmp_path)
    tasks = [task.model_dump(mode="json") for task in load_plan("params.yaml").tasks[:2]]
    tasks.append({"name": "own", "checkpoint": None, "kind": "own_judge:score", "dataset": "fashion"})

    def written(text: str) -> Plan:
        (tmp_path / "own_judge.py").write_text(text)
        for known in (code_version.code_version, code_version._read, code_version._file, code_version._top_level):
            known.cache_clear()  # as in another process
        return load_plan("params.yaml", [f"output={tmp_path / 'out'}", f"tasks={json.dumps(tasks)}"])

    yield written
    written("")


def test_the_function_that_judges_a_task_counts(judged: Callable[[str], Plan]) -> None:
    remembered(succeed, judged("def score(module, rows, batch_size): return [1.0]"))
    assert not look_for_news(judged("def score(module, rows, batch_size): return [1.0]  # the same"))
    changed = judged("def score(module, rows, batch_size): return [0.0]")
    assert look_for_news(changed).changed == ["the function of task own"]


def test_a_result_and_its_scores_are_of_that_function(judged: Callable[[str], Plan]) -> None:
    from tasks.job import Job
    from tasks.lineage import code_digest
    from tasks.publishing import Made
    from tasks.registered_model import data_digest

    def digests(text: str) -> tuple[str, str]:
        plan = judged(text)
        data = (job := Job(plan)).datasets
        nothing = {"alignment": None, "coefficients": None, "normalization": {}}
        made = Made(checkpoints={}, datasets=data, model=next(iter(job.datasets.values())), **nothing)
        return code_digest(plan), data_digest(plan, made)

    one, other = digests("def score(): return 1"), digests("def score(): return 2")
    assert one == digests("def score(): return 1")
    assert one[0] != other[0], "a run made again tells that the code is another one"
    assert one[1] != other[1], "a candidate is not compared with a champion that was judged otherwise"
