"""The report that people look at: one HTML file with everything in it, without scripts and without requests.

Of equal results it has equal bytes. What a run took (`RunRecord`) is for the copy that is kept with the run alone.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mergeline.balancing.winners import Winners
from mergeline.comparison import RESULT
from mergeline.plan import Plan
from mergeline.redaction import redact
from mergeline.report.calibration import summary
from mergeline.report.card import plan_text
from mergeline.report.figures import Picture, coefficient_histogram, heat_map, objective_curve, task_bars
from mergeline.report.page import Facts
from mergeline.report.result import Comparison
from mergeline.report.similarity_maps import SimilarityMap
from mergeline.report.table import cells, header, own_lines, words_of
from mergeline.report.verdict import verdict

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class StageTiming:
    """What the task runs of a stage took; seconds are sums over those that were computed, of which the peak is, too."""

    stage: str
    runs: int
    cached: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_megabytes: float = 0.0


@dataclass(frozen=True)
class RunRecord:
    """What is true of one run and not of its result. facts: identity, commit, time, ... as they are to be shown."""

    facts: Mapping[str, str]
    timings: Sequence[StageTiming]


@dataclass(frozen=True)
class Findings:
    """What the page shows beside plan and scores.

    lineage: as published in lineage.json. maps, winners: none where nothing was aligned, or the method is not PCB.
    pictures: more of them, each with title, alternative text and caption. run: none in what is published.
    """

    facts: Facts
    lineage: Mapping[str, Any]
    maps: Sequence[SimilarityMap] = ()
    winners: Winners | None = None
    pictures: Sequence[Picture] = ()
    run: RunRecord | None = None


@dataclass(frozen=True)
class _Map:
    of: SimilarityMap
    before: str = field(repr=False)
    after: str = field(repr=False)


def draw(plan: Plan, comparison: Comparison, findings: Findings) -> dict[str, Picture]:
    """The pictures of the page by their places in it; they say nothing of the run."""
    models = [model.name for model in plan.task_models]
    objective, winners = findings.facts.objective, findings.winners
    pictures = {
        "tasks": task_bars(comparison) if comparison.rows else None,
        "objective": objective_curve(objective) if objective else None,
        "coefficients": coefficient_histogram(winners, models) if winners else None,
    }
    return {name: picture for name, picture in pictures.items() if picture}


def report_html(
    plan: Plan, comparison: Comparison, findings: Findings, drawn: Mapping[str, Picture] | None = None
) -> str:
    """The whole page. drawn: its pictures, where they are drawn already."""
    measured = bool(comparison.rows)
    models = [model.name for model in plan.task_models]
    winners = findings.winners
    drawn = draw(plan, comparison, findings) if drawn is None else drawn
    return _template().render(
        plan=plan,
        models=models,
        verdict=verdict(plan, comparison) if measured else None,
        result=comparison.result if measured else None,
        header=header(comparison) if measured else [],
        words=words_of(comparison) if measured else "",
        rows=[(row.name == RESULT, cells(row)) for row in comparison.rows],
        own=own_lines(comparison) if measured else [],
        drawn={name: _shown(name, picture) for name, picture in drawn.items()},
        maps=[_Map(found, _data(heat_map(found.before)), _data(heat_map(found.after))) for found in findings.maps],
        winners=_shares(winners, models) if winners else None,
        counted=winners,
        figures=[_shown(f"figure-{number}", picture) for number, picture in enumerate(findings.pictures)],
        calibration=summary(plan, comparison, findings.facts.calibration),
        plan_text=_compact(plan),
        facts=findings.facts,
        lineage=findings.lineage,
        run=findings.run,
    )


def _compact(plan: Plan) -> str:
    """The plan as YAML with short lists in one line."""
    fields = yaml.safe_load(plan_text(plan))
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_masked,  # before it is escaped: afterwards a secret with an & would not be known again
    )
    environment.filters |= {"percent": lambda share: f"{100 * share:.1f}", "count": lambda number: f"{number:,}"}
    return environment.get_template(TEMPLATE)


def _masked(value: Any) -> Any:
    return redact(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@dataclass(frozen=True)
class _Shown:
    """A picture in the page: our own as elements of it (they take its colours), others as an image on white."""

    picture: Picture
    inline: Markup | None
    source: str | None


def _shown(name: str, picture: Picture) -> _Shown:
    if picture.data.lstrip().startswith(b"<svg") and b"currentColor" in picture.data:
        return _Shown(picture, _inline(name, picture), None)
    return _Shown(picture, None, _data(picture.data))


def _inline(name: str, picture: Picture) -> Markup:
    """An SVG with names of its own, so that several fit into one page, and its alternative text."""
    text = picture.data.decode()
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    label = Markup('role="img" aria-label="{}"').format(redact(picture.alt))
    return Markup(re.sub(r"<svg\b", lambda _: f"<svg {label}", text, count=1))


def _data(content: bytes) -> str:
    """A data: address. ValueError for what is neither PNG nor SVG."""
    if content.startswith(b"\x89PNG"):
        kind = "image/png"
    elif b"<svg" in content[:2000]:
        kind = "image/svg+xml"
    else:
        raise ValueError("a picture of the report is neither PNG nor SVG")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _shares(winners: Winners, models: Sequence[str]) -> list[dict[str, Any]]:
    rows = zip(models, winners.kept, winners.won, strict=True)
    total = max(1, winners.parameters)
    return [
        {"model": name, "kept": kept, "kept_share": kept / total, "won": won, "won_share": won / total}
        for name, kept, won in rows
    ]
