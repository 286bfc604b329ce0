"""Task: copy what a run made to where people and DVC look for it (anew after every run)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task
from pydantic import BaseModel, ConfigDict

from mergeline.plan import Plan
from mergeline.report.page import Facts, report_page
from mergeline.report.result import Comparison
from tasks._env import state_directory
from tasks.locks import exclusive
from tasks.permutations import BALANCE_SEARCH
from tasks.store import ArtifactRef, file_digests, publish, publish_files, put_directory, put_file, read_json

MODEL, CHART = "model.safetensors", "chart.png"


class Made(BaseModel):
    """The artifacts of a run that are published; `normalization` has the merged model once per domain."""

    model_config = ConfigDict(frozen=True)

    checkpoints: dict[str, ArtifactRef]
    datasets: dict[str, ArtifactRef]
    alignment: ArtifactRef | None
    coefficients: ArtifactRef | None
    model: ArtifactRef
    normalization: dict[str, ArtifactRef]


@task(name="publish")
def publish_run(plan: Plan, made: Made, comparison: Comparison, chart: ArtifactRef | None) -> None:
    """Write the merged model, its normalisation per domain, alignment, coefficients, scores, lineage and report.

    What an earlier run published and this one does not have is removed: it would be taken for a part of the result.
    """
    names = [path.name for path in published_files(plan.output, made, comparison)]
    with _one_publisher(plan.output, set(file_digests(made.model, MODEL)), keep=names):
        _publish(plan, made, comparison, chart)


def _publish(plan: Plan, made: Made, comparison: Comparison, chart: ArtifactRef | None) -> None:
    output = plan.output
    if made.model.path.is_dir():
        publish_files(made.model, output)
    else:
        publish(made.model, output / MODEL)
    if made.normalization:
        publish(put_directory(partial(_gather, made.normalization), "normalization"), output / "normalization")
    unaligned = {"aligned": False, "why": "all task models share one unit order, or the plan says align: null"}
    alignment = made.alignment or put_directory(
        lambda folder: (folder / "alignment.json").write_text(json.dumps(unaligned) + "\n"), "no alignment"
    )
    publish(alignment, output / "alignment")
    _write_json(
        output / "coefficients" / "coefficients.json", read_json(made.coefficients) if made.coefficients else {}
    )
    _write_json(output / "comparison.json", comparison.model_dump(mode="json"))
    _write_json(output / "metrics.json", comparison.metrics())
    _write_json(output / "lineage.json", lineage(plan, made))
    if chart:
        publish(chart, output / CHART)
    _write_text(output / "report.md", report_page(plan, comparison, facts(made), CHART))


def published_files(output: Path, made: Made, comparison: Comparison) -> list[Path]:
    """What `publish_run` writes, and nothing else that may lie in the folder."""
    beside = published_beside(normalization=bool(made.normalization), chart=bool(comparison.rows))
    return [output / name for name in [*file_digests(made.model, MODEL), *beside]]


def published_beside(*, normalization: bool, chart: bool) -> list[str]:
    """What is published beside the files of the model, folders with a slash at the end."""
    names = ["alignment/", "coefficients/"] + ["normalization/"] * normalization + [CHART] * chart
    return [*names, "comparison.json", "metrics.json", "lineage.json", "report.md"]


@contextmanager
def _one_publisher(output: Path, files: set[str], keep: list[str]) -> Iterator[None]:
    """Nobody else publishes into the folder meanwhile; what an earlier run, or one that was killed, left is removed.

    files: those of the model. keep: the names of all that is published.
    """
    key = hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:16]
    begun = state_directory() / ".prefect" / "publishing" / key  # which files of models the folder may have
    with exclusive(begun.with_suffix(".lock")):
        older = _listed(output / "lineage.json") | _listed(begun)
        _write_aside(begun, {"files": sorted(older | files)})
        _remove_older(output, older, keep)
        yield
        begun.unlink()


def _write_aside(path: Path, value: Any) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(value))
    draft.replace(path)


def _listed(file: Path) -> set[str]:
    """The files of the model that lies in a folder, by its lineage; none where that is not there, or not ours."""
    try:
        return set(json.loads(file.read_text()).get("files", [MODEL]))
    except (OSError, ValueError, AttributeError, TypeError):
        return set()


def _remove_older(output: Path, older: set[str], keep: list[str]) -> None:
    """Remove the files of an older model, and what measured it."""
    if not older:
        return
    for name in {*older, CHART} - set(keep):
        (output / Path(name).name).unlink(missing_ok=True)
    if "normalization" not in keep:
        shutil.rmtree(output / "normalization", ignore_errors=True)


def _gather(statistics: dict[str, ArtifactRef], folder: Path) -> None:
    for domain, ref in statistics.items():
        shutil.copyfile(ref.path, folder / f"{domain}.safetensors")


def lineage(plan: Plan, made: Made) -> dict[str, Any]:
    """What the result was made of: the plan and the digest of everything that went in and came out."""
    return {
        "plan": plan.model_dump(mode="json"),
        "checkpoints": {name: ref.sha256 for name, ref in made.checkpoints.items()},
        "datasets": {name: ref.sha256 for name, ref in made.datasets.items()},
        "alignment": made.alignment.sha256 if made.alignment else None,
        "coefficients": made.coefficients.sha256 if made.coefficients else None,
        "model": made.model.sha256,
        "files": file_digests(made.model, MODEL),
        "normalization": {domain: ref.sha256 for domain, ref in made.normalization.items()},
    }


def facts(made: Made) -> Facts:
    """What the report says about the stages."""
    solved = json.loads((made.alignment.path / "alignment.json").read_text()) if made.alignment else {}
    return Facts(
        digests={name: ref.sha256 for name, ref in made.checkpoints.items()},
        objective=solved.get("history", []),
        matched=solved.get("values", {}),
        balances=_balances(made.alignment) if made.alignment else {},
        coefficients=read_json(made.coefficients) if made.coefficients else {},  # type: ignore[arg-type]
    )


def _balances(alignment: ArtifactRef) -> dict[str, Any]:
    """What a search for the balance tried and chose, or {}."""
    record = alignment.path / BALANCE_SEARCH
    return json.loads(record.read_text()) if record.is_file() else {}


def _write_json(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value, indent=1) + "\n")


def _write_text(path: Path, text: str) -> None:
    publish(put_file(lambda draft: draft.write_text(text), path.suffix, "published"), path)
