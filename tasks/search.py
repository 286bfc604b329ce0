"""Stages of the search for coefficients: the weighted task vectors of a keep ratio, and one candidate made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mergeline.plan import Merge, Plan, Search
from mergeline.report.result import RowScores
from tasks._env import state_directory
from tasks.architecture import ArchitectureSpec
from tasks.code_version import code_version
from tasks.evaluation import Domain, measure
from tasks.locks import exclusive
from tasks.merging import MergeInputs, merged_tensors
from tasks.policy import canonical, stage
from tasks.store import ArtifactRef, put_file, read_json

if TYPE_CHECKING:
    from mergeline.search.space import Space
    from mergeline.search.study import Study


class Ground(BaseModel):
    """What candidates of one keep ratio and alignment share. weighted: None where it would be too large to keep."""

    model_config = ConfigDict(frozen=True)

    inputs: MergeInputs
    coefficients: ArtifactRef
    weighted: ArtifactRef | None


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
    classes: list[int],
    calibration_batch: int,
    batch_size: int,
) -> RowScores:
    """Merge with these coefficients, in memory, reset the normalisation on every domain, and measure."""
    for domain in domains:
        domain.examples.load()
    from mergeline.checkpoints.readers import TensorReader
    from mergeline.search.weighted import candidate

    if ground.weighted is None:
        tensors = dict(merged_tensors(ground.inputs, ground.coefficients, merge))
    else:
        chosen = {name: value for name, value in merge.options.items() if name in ("scale", "scales")}
        tensors = candidate(ground.weighted.path, **chosen)
    module = architecture.load(TensorReader(tensors, source="candidate"))
    return measure([module], domains, classes, calibration_batch, batch_size, name="candidate", label="candidate")


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
    from mergeline.search.space import own_point
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
