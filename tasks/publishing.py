"""Task: copy what a run made to where people and DVC look for it (anew after every run)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from pydantic import BaseModel, ConfigDict

from mergeline.comparison import UNCALIBRATED
from mergeline.plan import Plan
from mergeline.redaction import redact
from mergeline.report.card import MARK, CardFacts, model_card
from mergeline.report.page import Facts, report_page
from mergeline.report.result import Comparison
from tasks._env import state_directory
from tasks.exporting import Exported, exports_record
from tasks.heads import is_head
from tasks.landscape import DOCUMENT, landscape_markdown, landscape_pictures
from tasks.lineage import lineage
from tasks.locks import exclusive
from tasks.permutations import BALANCE_SEARCH
from tasks.store import ArtifactRef, file_digests, publish, publish_files, put_directory, put_file, read_json

if TYPE_CHECKING:
    from mergeline.report.figures import Picture
    from mergeline.report.html import Findings, RunRecord

MODEL, CHART, CONFIG, CARD = "model.safetensors", "chart.png", "config.json", "README.md"
REPORT, CALIBRATION = "report.html", "calibration.json"
LANDSCAPE, HEADS = "landscape", "heads"
OTHER_CARD = "MODEL_CARD.md"
"""Where the model card goes in a folder whose README.md somebody else wrote."""


class Made(BaseModel):
    """The artifacts of a run that are published; `normalization` has the merged model once per domain, `heads` those of
    the tasks that have one of their own, `findings` what the report alone shows: "maps" of similarities, "winners" of
    the competition. uncalibrated, calibration: the model before its calibration and the record of that, where the plan
    calibrates.
    """

    model_config = ConfigDict(frozen=True)

    checkpoints: dict[str, ArtifactRef]
    datasets: dict[str, ArtifactRef]
    alignment: ArtifactRef | None
    coefficients: ArtifactRef | None
    model: ArtifactRef
    normalization: dict[str, ArtifactRef]
    heads: dict[str, ArtifactRef] = {}
    uncalibrated: ArtifactRef | None = None
    calibration: ArtifactRef | None = None
    exports: dict[str, Exported] = {}
    findings: dict[str, ArtifactRef] = {}
    landscape: ArtifactRef | None = None


@task(name="publish")
def publish_run(plan: Plan, made: Made, comparison: Comparison, chart: ArtifactRef | None) -> Report:
    """Write the merged model, its normalisation per domain, alignment, coefficients, scores, lineage, report and card.

    What an earlier run published and this one does not have is removed: it would be taken for a part of the result.
    Returns what the report is made of.
    """
    names = [path.name for path in published_files(plan, made, comparison)]
    with _one_publisher(plan.output, set(file_digests(made.model, MODEL)), keep=names):
        return _publish(plan, made, comparison, chart)


def _publish(plan: Plan, made: Made, comparison: Comparison, chart: ArtifactRef | None) -> Report:
    output = plan.output
    if made.model.path.is_dir():
        publish_files(made.model, output)
    else:
        publish(made.model, output / MODEL)
    if made.normalization:
        publish(put_directory(partial(_gather, made.normalization), "normalization"), output / "normalization")
    if made.heads:
        publish(put_directory(partial(_gather, made.heads), "heads"), output / HEADS)
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
    files = file_digests(made.model, MODEL)
    config = module_config(plan)
    if config and CONFIG not in files:
        _write_json(output / CONFIG, config)
    exports = exports_record(made.exports)
    if plan.architecture:
        publish(put_directory(partial(_gather_programs, made.exports, exports), "exports"), output / "exports")
    if made.uncalibrated and made.calibration:
        publish(put_directory(partial(_gather_model, made.uncalibrated), "uncalibrated"), output / UNCALIBRATED)
        _write_json(output / CALIBRATION, read_json(made.calibration))
    known = lineage(plan, made, MODEL)
    _write_json(output / "lineage.json", known)
    if chart:
        publish(chart, output / CHART)
    if made.landscape:
        publish(made.landscape, output / LANDSCAPE)
    more = [landscape_markdown(made.landscape, LANDSCAPE)] if made.landscape else []
    _write_text(output / "report.md", report_page(plan, comparison, facts(made), CHART, more))
    report = Report.of(plan, made, comparison, known)
    _write_text(output / REPORT, report.html(plan, comparison))
    card = CardFacts(
        digests=known["checkpoints"],
        licences={entry["name"]: entry["licence"] for entry in known["inputs"] if entry["kind"] == "checkpoint"},
        files=list(files),
        library=_library(made.model.path, config),
        code=known["code"],
        packages=known["packages"],
        exports=exports,
    )
    _write_text(card_path(output), model_card(plan, comparison, card))
    return report


def published_files(plan: Plan, made: Made, comparison: Comparison) -> list[Path]:
    """What `publish_run` writes, and nothing else that may lie in the folder."""
    output, beside = plan.output, published_beside(plan, measured=bool(comparison.rows))
    names = [*file_digests(made.model, MODEL), *beside]
    return [card_path(output) if name == CARD else output / name for name in dict.fromkeys(names)]


def published_beside(plan: Plan, *, measured: bool) -> list[str]:
    """What is published beside the files of the model, folders with a slash at the end."""
    names = ["alignment/", "coefficients/"] + [CHART] * measured
    names += ["normalization/"] if measured and plan.calibration else []
    names += [f"{HEADS}/"] if measured and plan.heads else []
    names += [CONFIG, "exports/"] if plan.architecture else []
    names += [f"{LANDSCAPE}/"] if plan.landscape else []
    names += [f"{UNCALIBRATED}/", CALIBRATION] if plan.calibrate else []
    return [*names, "comparison.json", "metrics.json", "lineage.json", "report.md", REPORT, CARD]


def card_path(output: Path) -> Path:
    """Where the model card goes: README.md, unless one lies there that is not ours."""
    readme = output / CARD
    ours = not readme.is_file() or MARK in readme.read_text(encoding="utf-8", errors="replace")
    return readme if ours else output / OTHER_CARD


def module_config(plan: Plan) -> dict[str, Any]:
    """config.json of a model that is no Hugging Face folder: what timm reads, or our factory and its arguments."""
    if plan.architecture is None:
        return {}
    factory, arguments = plan.architecture.factory, dict(plan.architecture.kwargs)
    if factory.partition(".")[0].partition(":")[0] == "timm" and factory.endswith(":create_model"):
        name, classes = arguments.pop("model_name", None), arguments.pop("num_classes", None)
        known = {} if classes is None else {"num_classes": classes}
        arguments = {key: value for key, value in arguments.items() if not key.startswith("pretrained")}
        return {"architecture": name, **known, "model_args": arguments, "pretrained_cfg": known}
    return {"factory": factory, "kwargs": arguments}


def _library(model: Path, config: Mapping[str, Any]) -> str:
    """What loads the published folder: told by the configuration that came with the model, or by ours."""
    from mergeline.checkpoints.huggingface import read_config

    if (model / "adapter_config.json").is_file():
        return "peft"
    config = read_config(model / CONFIG) if (model / CONFIG).is_file() else config
    return "transformers" if "model_type" in config else "timm" if "architecture" in config else "pytorch"


def _gather_programs(exports: dict[str, Exported], record: dict[str, Any], folder: Path) -> None:
    for kind, made in exports.items():
        if made.file:
            shutil.copyfile(made.file.path, folder / record[kind]["file"])
    (folder / "exports.json").write_text(json.dumps(record, indent=1) + "\n")


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
    files, folders = left_behind(output)
    if older:
        files, folders = (
            {*older, CHART, CONFIG, CALIBRATION},
            folders | {"normalization", HEADS, "exports", UNCALIBRATED},
        )
    for name in files - set(keep):
        (output / Path(name).name).unlink(missing_ok=True)
    for name in folders - set(keep):
        shutil.rmtree(output / name, ignore_errors=True)


def left_behind(output: Path) -> tuple[set[str], set[str]]:
    """Files and folders of an earlier run that not every plan has, so that they are no outs of dvc.yaml: DVC leaves
    them where it removes all else, lineage.json too. What is not ours is not among them."""
    files: set[str] = set()
    folders = {LANDSCAPE} if (output / LANDSCAPE / DOCUMENT).is_file() else set()
    heads = list((output / HEADS).glob("*"))
    if heads and all(map(is_head, heads)):
        folders.add(HEADS)
    with suppress(OSError, ValueError, AttributeError):
        if {"images", "layers", "kept"} <= json.loads((output / CALIBRATION).read_text()).keys():
            files.add(CALIBRATION)
            folders.add(UNCALIBRATED)
    return files, folders


def _gather_model(model: ArtifactRef, folder: Path) -> None:
    if model.path.is_dir():
        shutil.copytree(model.path, folder, dirs_exist_ok=True)
    else:
        shutil.copyfile(model.path, folder / MODEL)


def _gather(statistics: dict[str, ArtifactRef], folder: Path) -> None:
    for domain, ref in statistics.items():
        shutil.copyfile(ref.path, folder / f"{domain}.safetensors")


def facts(made: Made) -> Facts:
    """What the report says about the stages."""
    solved = json.loads((made.alignment.path / "alignment.json").read_text()) if made.alignment else {}
    return Facts(
        digests={name: ref.sha256 for name, ref in made.checkpoints.items()},
        objective=solved.get("history", []),
        matched=solved.get("values", {}),
        balances=_balances(made.alignment) if made.alignment else {},
        calibration=read_json(made.calibration) if made.calibration else {},  # type: ignore[arg-type]
        coefficients=read_json(made.coefficients) if made.coefficients else {},  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class Report:
    """What the page that people look at is made of: the copy kept with the run has the same and more."""

    findings: Findings
    drawn: Mapping[str, Picture]

    @classmethod
    def of(cls, plan: Plan, made: Made, comparison: Comparison, known: Mapping[str, Any]) -> Report:
        """Gather what the stages found, and draw it. known: the lineage."""
        from mergeline.balancing.winners import Winners
        from mergeline.report.html import Findings, draw
        from mergeline.report.similarity_maps import SimilarityMap

        found: dict[str, Any] = {name: read_json(ref) for name, ref in made.findings.items()}
        findings = Findings(
            facts=facts(made),
            lineage=known,
            maps=[SimilarityMap.model_validate(values) for values in found.get("maps", [])],
            winners=Winners.model_validate(found["winners"]) if "winners" in found else None,
            pictures=landscape_pictures(made.landscape) if made.landscape else [],
        )
        return cls(findings, draw(plan, comparison, findings))

    def html(self, plan: Plan, comparison: Comparison, run: RunRecord | None = None) -> str:
        """The page. run: what the copy kept with the run says beside the result."""
        from mergeline.report.html import report_html

        return report_html(plan, comparison, replace(self.findings, run=run), self.drawn)


def _balances(alignment: ArtifactRef) -> dict[str, Any]:
    """What a search for the balance tried and chose, or {}."""
    record = alignment.path / BALANCE_SEARCH
    return json.loads(record.read_text()) if record.is_file() else {}


def _write_json(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value, indent=1) + "\n")


def _write_text(path: Path, text: str) -> None:
    publish(put_file(lambda draft: draft.write_text(redact(text)), path.suffix, "published"), path)
