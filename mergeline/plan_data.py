"""The sections of a plan that name data: data sets, what calibrates, and the tasks that measure."""

from __future__ import annotations

import re
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from mergeline.errors import nearest
from mergeline.evaluation.kinds import KINDS, is_function, metrics_of
from mergeline.evaluation.score import MetricName


class Section(BaseModel):
    """Unknown fields are errors, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _numbers(given: Any) -> Any:
    numbers = given if isinstance(given, list | tuple) else [given]
    plain = all(isinstance(n, int | float) and not isinstance(n, bool) and isfinite(n) for n in numbers)
    if len(numbers) not in (1, 3) or not plain:
        raise ValueError("expected a finite number, or a list of three: for red, green and blue")
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


PerChannel = Annotated[float | tuple[float, float, float], BeforeValidator(_numbers)]

OF_IMAGES = ("image_column", "resize", "crop", "mean", "std")


class Dataset(Section):
    """Splits of labelled images or texts, and the prototypes of the classes: a folder, or a repository of the Hub."""

    path: Path | None = Field(
        default=None,
        description="folder of splits: <split>.parquet, .arrow or .csv, or <split>/<class>/<image>",
    )
    hub: str | None = Field(
        default=None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="owner/name of a dataset repository of the Hugging Face Hub, in place of path",
    )
    revision: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{40}$",
        description="40 hexadecimal digits: commit of the repository, in full, as a branch may move",
    )
    image_column: str = "image"
    label_column: str = "label"
    resize: int | None = Field(
        default=None, gt=0, description="pictures get this many pixels on their shorter side (bicubic)"
    )
    crop: int | None = Field(default=None, gt=0, description="then the square of so many pixels in their middle")
    mean: PerChannel = Field(
        default=0.0, description="subtracted from pixels in 0..1; a number, or one each for red, green and blue"
    )
    std: PerChannel = Field(default=1.0, description="pixels are divided by it; a number, or three")
    text_column: str | None = Field(default=None, description="in place of images: the column that holds texts")
    tokenizer: Path | None = Field(
        default=None, description="what makes tokens of texts: a tokenizer.json, or the folder of a checkpoint with one"
    )
    target_column: str = Field(
        default="target", description="of seq2seq tasks: the column of the texts that are wanted"
    )
    max_length: int = Field(default=128, gt=0, description="tokens; longer texts are cut")
    prototypes: Path | None = Field(
        default=None,
        description="safetensors file with one embedding per class, for tasks that are judged against them",
    )

    @field_validator("std")
    @classmethod
    def _divides(cls, std: Any) -> Any:
        if min(std if isinstance(std, tuple) else [std]) <= 0:
            raise ValueError("pixels are divided by it: it must be more than 0")
        return std

    @model_validator(mode="after")
    def _lies_in_one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("name either a folder (path) or a repository of the Hub (hub)")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("a repository of the Hub (hub) needs the full commit (revision), and a folder has none")
        return self

    @model_validator(mode="after")
    def _holds_images_or_texts(self) -> Self:
        if (self.text_column is None) != (self.tokenizer is None):
            raise ValueError("texts (text_column) need a tokenizer, and images have none")
        fields = {name: type(self).model_fields[name].default for name in OF_IMAGES}
        pictured = [name for name, default in fields.items() if getattr(self, name) != default]
        if self.text_column is not None and pictured:
            raise ValueError(f"{pictured[0]} is about images, text_column about texts; leave one of them out")
        return self

    @property
    def place(self) -> str:
        """Where it lies, for people."""
        return str(self.path) if self.hub is None else f"hf://datasets/{self.hub}@{self.revision}"


class Calibration(Section):
    """Unlabelled inputs for activations and normalisation statistics."""

    dataset: str
    split: str = "calibration"
    where: dict[str, str] = Field(default={}, description="keep the rows whose columns have these values")
    batch_size: int = Field(default=100, gt=0)
    sample: int | None = Field(default=None, gt=0, description="so many of these rows, drawn at random; null: all")
    draw: int = Field(default=0, ge=0, description="which sample: all numbers have other rows, as far as they go")


class Task(Section):
    """What a task model was trained for, and the data that measures it."""

    name: str = Field(pattern=r"^[\w.-]+$", description="letters, digits, '.', '-' and '_'")
    checkpoint: str | None = Field(
        default=None,
        description="the task model that was trained for this task; null: none was (out of domain), so it is measured "
        "and shown apart, and counts in no mean",
    )
    kind: str = Field(
        default="prototypes",
        description="how a model answers: the nearest of the dataset's label prototypes; its own last layer (head); "
        "the next token (causal_lm, a module of transformers); text from text (seq2seq); or module:function",
    )
    head: str | None = Field(
        default=None,
        pattern=r"^\w+(\.\w+)*$",
        description="name of a part of the module, such as classifier (kind: head): it is not merged, but taken from "
        "the task's own checkpoint; null: the last layer is merged like everything else",
    )
    dataset: str
    split: str = "test"
    where: dict[str, str] = Field(default={}, description="keep the rows whose columns have these values")
    classes: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None,
        min_length=2,
        description="the answers that are possible in this classification; null: all that the head has",
    )
    max_new_tokens: int = Field(default=64, gt=0, description="kind seq2seq: how many tokens are generated at most")
    metric: MetricName = Field(
        default="accuracy",
        description="of classifications: share of right answers, mean recall or mean F1 of the classes; of other kinds "
        "the metric that fits them, which is their default",
    )

    @model_validator(mode="before")
    @classmethod
    def _measured_as_its_kind_is(cls, given: Any) -> Any:
        """Where no metric is named, it is the first that fits the kind."""
        if isinstance(given, dict) and "metric" not in given and (fitting := metrics_of(str(given.get("kind")))):
            return given | {"metric": fitting[0]}
        return given

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        if kind in KINDS or (is_function(kind) and re.fullmatch(r"[\w.]+:\w+", kind)):
            return kind
        raise ValueError(f"no such kind of task; write {', '.join(KINDS)}, or module:function{nearest(kind, KINDS)}")

    @property
    def domain(self) -> str:
        """Name of the slice of the dataset this task looks at."""
        return "-".join(self.where.values()) or self.dataset
