"""Task: copy what a run made to where people and DVC look for it. Never cached: it is done anew after every run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from pydantic import BaseModel, ConfigDict

from mergeline.plan import Plan
from mergeline.report.result import Comparison
from tasks.store import ArtifactRef, publish, put_file, read_json

if TYPE_CHECKING:
    from mergeline.report.page import Facts


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
def publish_run(plan: Plan, made: Made, comparison: Comparison) -> None:
    """Write the merged model, its normalisation per domain, alignment, coefficients, scores, lineage and report."""
    output = plan.output
    publish(made.model, output / "model.safetensors")
    for domain, ref in made.normalization.items():
        publish(ref, output / "normalization" / f"{domain}.safetensors")
    if made.alignment:
        publish(made.alignment, output / "alignment")
    else:
        _write_json(output / "alignment" / "alignment.json", {"models": 1, "values": {}, "history": []})
    _write_json(
        output / "coefficients" / "coefficients.json", read_json(made.coefficients) if made.coefficients else {}
    )
    _write_json(output / "comparison.json", comparison.model_dump(mode="json"))
    _write_json(output / "metrics.json", comparison.metrics())
    _write_json(output / "lineage.json", lineage(plan, made))
    _write_report(plan, made, comparison)


def lineage(plan: Plan, made: Made) -> dict[str, Any]:
    """What the result was made of: the plan and the digest of everything that went in and came out."""
    return {
        "plan": plan.model_dump(mode="json"),
        "checkpoints": {name: ref.sha256 for name, ref in made.checkpoints.items()},
        "datasets": {name: ref.sha256 for name, ref in made.datasets.items()},
        "alignment": made.alignment.sha256 if made.alignment else None,
        "coefficients": made.coefficients.sha256 if made.coefficients else None,
        "model": made.model.sha256,
        "normalization": {domain: ref.sha256 for domain, ref in made.normalization.items()},
    }


def _write_report(plan: Plan, made: Made, comparison: Comparison) -> None:
    from mergeline.report.chart import draw_chart
    from mergeline.report.page import report_page

    page = report_page(plan, comparison, facts(made), "chart.png")
    publish(put_file(lambda path: draw_chart(comparison, path), ".png", "chart"), plan.output / "chart.png")
    publish(put_file(lambda path: path.write_text(page), ".md", "report"), plan.output / "report.md")


def facts(made: Made) -> Facts:
    """What the report says about the stages."""
    from mergeline.report.page import Facts

    solved = json.loads((made.alignment.path / "alignment.json").read_text()) if made.alignment else {}
    return Facts(
        digests={name: ref.sha256 for name, ref in made.checkpoints.items()},
        objective=solved.get("history", []),
        matched=solved.get("values", {}),
        coefficients=read_json(made.coefficients) if made.coefficients else {},  # type: ignore[arg-type]
    )


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1) + "\n"
    publish(put_file(lambda draft: draft.write_text(text), ".json", "published"), path)
