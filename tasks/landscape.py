"""Stages: the loss of every task between models, on a plane and along lines. Each row of the grid is one stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mergeline.errors import InputError
from mergeline.landscape.landscape import LossLandscape, Points, State
from mergeline.landscape.plane import Plane
from tasks.architecture import ArchitectureSpec
from tasks.checkpoints import open_artifact
from tasks.domains import Answers, Domain, Heads
from tasks.evaluation import read_heads
from tasks.merge_inputs import MergeInputs
from tasks.normalization import calibrated
from tasks.policy import stage
from tasks.store import ArtifactRef, put_directory

if TYPE_CHECKING:
    from torch import nn

    from mergeline.checkpoints.readers import Reader

DOCUMENT = "landscape.json"
PICTURES = {"plane": "plane.png", "lines": "lines.png"}


class Anchor(BaseModel):
    """A model that points lie between; an alignment brings it, as one of a family, into the common unit order."""

    model_config = ConfigDict(frozen=True)

    name: str
    model: ArtifactRef
    family: int = 0
    alignment: ArtifactRef | None = None

    def open(self) -> Reader:
        """Its reader; messages call it by its name."""
        reader = open_artifact(self.model)
        if self.alignment is not None:
            from mergeline.alignment.alignment import Alignment
            from mergeline.alignment.apply import AlignedReader

            reader = AlignedReader(reader, Alignment.load(self.alignment.path), self.family)
        reader.source = self.name
        return reader


class MeasuredLine(BaseModel):
    """The points of a line in each state."""

    model_config = ConfigDict(frozen=True)

    start: str
    end: str
    shares: list[float]
    measured: dict[State, Points]


@stage("lay-plane")
def lay_plane(
    models: list[Anchor], spare: list[Anchor], architecture: ArchitectureSpec, points: int, margin: float
) -> Plane:
    """The plane through the first two models and the first of the others that is not on their line, and its grid.

    spare: models that are used, and shown, only where the others do not span a plane. All parameters count; what is
    measured anew at every point (normalisation statistics) does not.
    """
    from mergeline.landscape.distances import inner_products
    from mergeline.landscape.plane import lay_plane as lay
    from mergeline.models.file_names import by_file_names

    anchors = [*models, *spare]
    readers = _open(anchors, architecture)
    module = architecture.load(readers[0], by_name=False)
    names = list(by_file_names(dict(module.named_parameters()), module, readers[0]))
    return lay(
        [anchor.name for anchor in anchors],
        inner_products(readers, names),
        shown=len(models),
        points=points,
        margin=margin,
    )


@stage("measure-losses")
def measure_losses(
    anchors: list[Anchor],
    weights: list[list[float]],
    architecture: ArchitectureSpec,
    domains: list[Domain],
    calibration_batch: int | None,
    batch_size: int,
    heads: dict[str, MergeInputs],
) -> Points:
    """Loss and accuracy of every task at some affine combinations of the anchors: one list of weights per point.

    Every point has its normalisation statistics measured anew on the calibration data of each domain. heads: task ->
    the model whose head answers it, for tasks that have one of their own; only classifications have an accuracy.
    """
    from tqdm import tqdm

    for domain in domains:
        domain.prepare()  # first: it imports what the stages that run beside this one import too
    from mergeline.landscape.interpolation import AffineReader

    readers, own = _open(anchors, architecture), read_heads(domains, heads)
    losses: dict[str, list[float]] = {}
    accuracies: dict[str, list[float]] = {}
    for shares in tqdm(weights, desc=f"{'points':<12}", unit="point", disable=None, leave=False):
        point = AffineReader(readers, shares)
        try:
            module = architecture.load(point, by_name=False)
            for domain in domains:
                _measure(module, domain, calibration_batch, batch_size, own, losses, accuracies)
        except InputError as fault:
            beyond = "; a smaller landscape.margin may help" if min(shares) < 0 or max(shares) > 1 else ""
            raise InputError(f"landscape, at {point.source}: {fault}{beyond}") from fault
    return Points(losses=losses, accuracies=accuracies)


def _open(anchors: list[Anchor], architecture: ArchitectureSpec) -> list[Reader]:
    """Readers of the anchors, all with the heads of the first: those are no part of a way between models."""
    from mergeline.checkpoints.heads import with_one_head

    return with_one_head([anchor.open() for anchor in anchors], architecture.heads)


def _measure(
    module: nn.Module,
    domain: Domain,
    calibration_batch: int | None,
    batch_size: int,
    heads: Heads,
    losses: dict[str, list[float]],
    accuracies: dict[str, list[float]],
) -> None:
    """Add a point to the losses and accuracies of the tasks of a domain."""
    if calibration_batch is not None and domain.calibration is not None:
        module = calibrated(module, domain.calibration, calibration_batch)
    answers = Answers([module], domain, batch_size, heads)
    for task in domain.tasks:
        losses.setdefault(task, []).append(answers.loss(task))
        share = answers.accuracy(task)
        if share is not None:
            accuracies.setdefault(task, []).append(share)


@stage("draw-landscape")
def draw_landscape(
    plane: Plane,
    rows: list[Points],
    anchors: Points | None,
    lines: list[MeasuredLine],
    split: str,
    of_result: bool,
    reset: bool,
) -> ArtifactRef:
    """A folder with everything as JSON, and pictures of the plane and of the lines."""
    from mergeline.landscape.landscape import landscape_of, line_of
    from mergeline.report.landscape import draw_lines, draw_plane

    found = landscape_of(
        plane,
        rows,
        anchors,
        [line_of(line.start, line.end, line.shares, line.measured) for line in lines],
        split=split,
        of_result=of_result,
        reset=reset,
    )

    def write(folder: Path) -> None:
        (folder / DOCUMENT).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if not plane.problem:
            (folder / PICTURES["plane"]).write_bytes(draw_plane(found))
        if lines:
            (folder / PICTURES["lines"]).write_bytes(draw_lines(found))

    return put_directory(write, "landscape")


def read_landscape(ref: ArtifactRef) -> LossLandscape:
    """What `draw_landscape` stored."""
    return LossLandscape.model_validate_json((ref.path / DOCUMENT).read_text(encoding="utf-8"))


def landscape_pictures(ref: ArtifactRef) -> list[Any]:
    """The pictures for the report, with titles, alternative texts and captions."""
    from mergeline.report.landscape import pictures_of

    drawn = {name: (ref.path / file).read_bytes() for name, file in PICTURES.items() if (ref.path / file).is_file()}
    return pictures_of(read_landscape(ref), drawn)


def landscape_markdown(ref: ArtifactRef, folder: str) -> str:
    """The section of report.md; folder: where the pictures lie beside it."""
    from mergeline.report.landscape import landscape_section

    alternative = {"plane": "loss on the plane through the models", "lines": "loss between models"}
    there = {alternative[name]: f"{folder}/{file}" for name, file in PICTURES.items() if (ref.path / file).is_file()}
    return landscape_section(read_landscape(ref), there)
