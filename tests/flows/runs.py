"""What the tests of flows share: plans with overrides, the stages of a run, what it published."""

from flows.merge_and_evaluate import merge_and_evaluate
from mergeline.plan_file import load_plan


def plan_for(output, *overrides, path="params.yaml"):
    return load_plan(path, [f"output={output}", *overrides])


def run(plan):
    return merge_and_evaluate(plan)


def all_task_runs(flow_run):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        return client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])), limit=200)


def stage_names(outcome):
    """The stage of each task run of a flow run."""
    names = [run.name for run in all_task_runs(outcome.recorded.flow_run)]
    return sorted(name.rpartition("-")[0] if name.rpartition("-")[2].isalnum() else name for name in names)


def published(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lineage.json"  # names the output folder
    }


def computed(outcome):
    """How many stages a run did not take from the cache."""
    return outcome.stages.total - outcome.stages.cached
