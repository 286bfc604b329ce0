"""Stages of the search for coefficients: the weighted task vectors of a keep ratio, and one candidate made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mergeline.comparison import result_row
from mergeline.plan import Align, Merge, Plan, Search
from mergeline.report.result import RowScores
from mergeline.search.space import Point, Space, own_point, plan_at
from tasks._env import state_directory
from tasks.architecture import ArchitectureSpec
from tasks.code_version import code_version
from tasks.domains import Domain
from tasks.evaluation import measure, read_heads
from tasks.locks import exclusive
from tasks.merge_inputs import MergeInputs
from tasks.merging import merge_statistics, merged_tensors
from tasks.policy import canonical, stage
from tasks.store import ArtifactRef, put_file, read_json

if TYPE_CHECKING:
    from mergeline.search.study import Study, Trial
    from tasks.job import Job


class Ground(BaseModel):
    """What candidates of one keep ratio and alignment share. weighted: None where it would be too large to keep.

    heads: task -> the model whose head answers it.
    """

    model_config = ConfigDict(frozen=True)

    inputs: MergeInputs
    coefficients: ArtifactRef
    weighted: ArtifactRef | None
    heads: dict[str, MergeInputs] = {}


def without_scales(merge: Merge) -> Merge:
    """The merge without what its weighted task vectors do not depend on."""
    return Merge.model_validate({k: v for k, v in merge.model_dump().items() if k not in ("scale", "scales")})


def fits(inputs: MergeInputs, gigabytes: float) -> bool:
    """Whether the weighted task vectors of these models may be kept."""
    from mergeline.search.weighted import weighted_bytes

    return weighted_bytes(inputs.open()[0]) <= gigabytes * 1e9


@stage("weigh-task-vectors")
def weigh_task_vectors(inputs: MergeInputs, coefficients: ArtifactRef, merge: Merge) -> ArtifactRef:
    """W = t s / sum(s): after it, a candidate costs one weighted sum. `merge` without scales (`without_scales`)."""
    import torch

    from mergeline.search.weighted import write_weighted

    models, bases = inputs.open()
    statistics: Any = read_json(coefficients)

    def write(path: Path) -> None:
        write_weighted(
            path,
            models,
            base=bases,
            statistics=statistics,
            copy_only=inputs.copy_only,
            onto=merge.onto,
            out_dtype=getattr(torch, merge.out_dtype) if merge.out_dtype else None,
            **merge.grouping,
            **merge.options,
        )

    return put_file(write, ".safetensors", "weighted task vectors")


@stage("try-candidate")
def try_candidate(
    ground: Ground,
    merge: Merge,
    architecture: ArchitectureSpec,
    domains: list[Domain],
    classes: list[int] | None,
    calibration_batch: int | None,
    batch_size: int,
) -> RowScores:
    """Merge with these coefficients, in memory, reset the normalisation on every domain, and measure."""
    for domain in domains:
        domain.prepare()
    from mergeline.checkpoints.readers import TensorReader
    from mergeline.search.weighted import candidate

    if ground.weighted is None:
        tensors = dict(merged_tensors(ground.inputs, ground.coefficients, merge))
    else:
        chosen = {name: value for name, value in merge.options.items() if name in ("scale", "scales")}
        tensors = candidate(ground.weighted.path, **chosen)
    module = architecture.load(TensorReader(tensors, source="candidate"), by_name=False)
    heads, named = read_heads(domains, ground.heads), {"name": "candidate", "label": "candidate"}
    return measure([module], domains, classes, calibration_batch, batch_size, heads=heads, **named)


class Candidates:
    """Merges and measures at the points of a search, on the workers of the flow.

    align: finds an alignment of the checkpoints with these options.
    """

    def __init__(
        self, job: Job, search: Search, checkpoints: dict[str, ArtifactRef], align: Callable[[Align], ArtifactRef]
    ) -> None:
        self.metric = search.metric
        self._job, self._search, self._checkpoints, self._align = job, search, checkpoints, align
        self._measuring = job.measuring(job.domains_on(search.split))
        self._grounds: dict[tuple[tuple[str, float], ...], Ground] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """What the plan itself comes to, and what measures it."""
        plan = self._job.plan
        return {"ground": self._ground({}), "merge": plan.merge, "align": plan.align} | self._measuring

    def scores(self, point: Point) -> RowScores:
        """What a point is worth; {} stands for the plan itself."""
        merge = plan_at(self._job.plan, point).merge
        return try_candidate.submit(self._ground(point), merge, **self._measuring).result()

    def _ground(self, point: Point) -> Ground:
        """That of a point: made when the first candidate of its keep ratio and balance needs it."""
        chosen: Point = {name: point[name] for name in ("balance", "keep_ratio") if name in point}
        key = tuple(chosen.items())
        if key not in self._grounds:
            self._grounds[key] = self._lay_ground(plan_at(self._job.plan, chosen))
        return self._grounds[key]

    def _lay_ground(self, plan: Plan) -> Ground:
        row = result_row(plan)
        alignment = self._align(plan.align) if plan.align and row.aligned else None
        inputs = self._job.merge_inputs(row, self._checkpoints, alignment)
        coefficients = merge_statistics.submit(**self._job.statistics(row, inputs)).result()
        weighted = None
        if fits(inputs, self._search.cache_gigabytes):
            weighted = weigh_task_vectors.submit(inputs, coefficients, without_scales(plan.merge)).result()
        heads = self._job.heads(self._checkpoints, alignment)
        return Ground(inputs=inputs, coefficients=coefficients, weighted=weighted, heads=heads)


def make_trial(study: Study, candidates: Candidates) -> Trial:
    """Try what the study proposes next; it is in the study when it is done."""
    proposal = study.propose()
    scores = candidates.scores(proposal.point)
    value = scores.by(candidates.metric).goodness
    return study.add(proposal, value, {"scores": scores.model_dump(mode="json")})


def trials_to_make(search: Search, space: Space) -> int:
    """How many trials there will be in all: a grid has no more than its points."""
    if search.method != "grid":
        return search.trials
    from mergeline.search.study import check_grid

    return min(search.trials, check_grid(space))


@contextmanager
def open_study(plan: Plan, search: Search, space: Space, own: dict[str, Any]) -> Iterator[Study]:
    """The study of a search, for this process alone: others that want it wait.

    own: what the plan itself came to (plain data, models and artifacts). With the settings of the search, less the
    number of trials, and the code that measures a candidate it is the identity of the study: where any of them changes,
    a new one begins.
    """
    from mergeline.search.study import Study

    fixed = search.model_dump(mode="json", exclude={"trials"}) | {"own": canonical(own)}
    identity = [fixed, code_version(__name__), code_version("mergeline.search.study")]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    name = f"{plan.name}-{digest[:16]}"
    folder = state_directory() / ".search"
    with exclusive(folder / f"{name}.lock"):
        with exclusive(folder / "first-use.lock"):  # two processes that make the file would race
            study = Study(
                folder / "studies.db",
                name,
                space,
                method=search.method,
                seed=search.seed,
                first=own_point(plan, space),
            )
        yield study
