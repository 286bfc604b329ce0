"""The plan: what to merge and how. One YAML file, validated before a byte of a model is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mergeline.errors import InputError, nearest


class PlanError(InputError):
    """Everything that is wrong with a plan; `faults` lists one sentence each, with file and field."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(faults))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Architecture(_Section):
    """How to build the module that all checkpoints are states of."""

    factory: str = Field(pattern=r"^[\w.]+:\w+$", description="module:function that returns the module")
    kwargs: dict[str, Any] = Field(default={}, description="keyword arguments of the factory")
    symmetry: str | None = Field(
        default=None,
        description="which units may change places: a YAML file or module:function(module); derived where not given",
    )


class Checkpoint(_Section):
    """One checkpoint. A task model names the base it was trained from; a base names none."""

    name: str = Field(pattern=r"^[\w.-]+$")
    uri: str = Field(min_length=1, description="path, http(s)://, any fsspec URL, or hf://org/repo@revision/file")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="verified before the file is used")
    base: str | None = Field(default=None, description="name of the checkpoint this one was fine-tuned from")


class Dataset(_Section):
    """A folder of Parquet splits with images and labels, and the prototypes of the classes."""

    path: Path
    image_column: str = "image"
    label_column: str = "label"
    mean: float = Field(default=0.0, description="subtracted from pixels in 0..1")
    std: float = Field(default=1.0, gt=0, description="pixels are divided by it")
    prototypes: Path = Field(description="safetensors file with one embedding per class")


class Calibration(_Section):
    """Unlabelled inputs for activations and normalisation statistics."""

    dataset: str
    split: str = "calibration"
    where: dict[str, str] = Field(default={}, description="keep the rows whose columns have these values")
    batch_size: int = Field(default=100, gt=0)


class Align(_Section):
    """How models of different bases are brought into one unit order."""

    space: Literal["dual", "weight", "activation"] = "dual"
    method: Literal["permute"] = "permute"
    balance: float = Field(default=0.5, ge=0, le=1, description="share of weight space in the dual space")
    found_on: Literal["bases", "task_models"] = "bases"
    sweeps: int = Field(default=100, ge=1)
    seed: int = Field(default=0, ge=0)


class Merge(BaseModel):
    """The merging method; its own options stand beside `method` (see docs or the method's signature)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str = "pcb"
    onto: Literal["mean", "first"] = Field(
        default="mean", description="where the merged task vector is added: mean of the bases, or the first"
    )
    out_dtype: Literal["float32", "float16", "bfloat16"] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options of the method itself."""
        return dict(self.model_extra or {})


class Task(_Section):
    """What a task model was trained for, and the data that measures it."""

    name: str = Field(pattern=r"^[\w.-]+$")
    checkpoint: str = Field(description="the task model that was trained for this task")
    dataset: str
    split: str = "test"
    where: dict[str, str] = Field(default={}, description="keep the rows whose columns have these values")
    classes: list[int] = Field(min_length=2, description="the answers that are possible in this task")

    @property
    def domain(self) -> str:
        """Name of the slice of the dataset this task looks at."""
        return "-".join(self.where.values()) or self.dataset


class Evaluation(_Section):
    """What stands beside the result, and how models are run."""

    batch_size: int = Field(default=250, gt=0)
    compare: list[Literal["task_models", "bases", "ensemble", "average", "aligned_average", "unaligned", "teams"]] = [
        "task_models",
        "bases",
        "ensemble",
        "average",
        "aligned_average",
        "unaligned",
        "teams",
    ]


class Download(_Section):
    """Limits of checkpoint downloads."""

    max_gigabytes: float = Field(default=200.0, gt=0)


class Tracking(_Section):
    """Where runs are recorded; the MLflow server is MLFLOW_TRACKING_URI, by default a file in the project."""

    enabled: bool = True
    experiment: str = "mergeline"


class Plan(_Section):
    """One run: checkpoints, architecture, alignment, merge, evaluation, tracking."""

    name: str = Field(pattern=r"^[\w.-]+$")
    output: Path = Field(default=Path("data/merged"), description="folder the result is published into")
    architecture: Architecture
    checkpoints: list[Checkpoint] = Field(min_length=2)
    datasets: dict[str, Dataset]
    calibration: Calibration
    align: Align | None = Align()
    merge: Merge = Merge()
    tasks: list[Task] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()
    download: Download = Download()
    tracking: Tracking = Tracking()

    @property
    def bases(self) -> list[Checkpoint]:
        """Checkpoints that others were fine-tuned from, in order."""
        named = {checkpoint.base for checkpoint in self.checkpoints}
        return [checkpoint for checkpoint in self.checkpoints if checkpoint.name in named]

    @property
    def task_models(self) -> list[Checkpoint]:
        """Checkpoints to merge: those that are no bases."""
        bases = {base.name for base in self.bases}
        return [checkpoint for checkpoint in self.checkpoints if checkpoint.name not in bases]

    @property
    def families(self) -> list[str]:
        """Names of the families of one unit order: a base, or a task model without one; the reference first."""
        return list(dict.fromkeys(model.base or model.name for model in self.task_models))


def load_plan(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a plan and apply overrides such as `merge.keep_ratio=0.2` or `checkpoints[0].uri=other.safetensors`.

    Raises PlanError with every fault at once; each names the file and the field, and how to mend it.
    """
    from mergeline.plan_checks import reference_faults

    path = Path(path)
    if not path.is_file():
        raise PlanError([f"{path} is missing; name the plan with --params FILE"])
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as fault:
        raise PlanError([f"{path}: not valid YAML: {' '.join(str(fault).split())}"]) from fault
    if not isinstance(raw, dict):
        raise PlanError([f"{path}: a plan is a mapping of sections (checkpoints, architecture, merge, ...)"])
    faults = [wrong for override in overrides if (wrong := _override(raw, override))]
    plan = None
    try:
        plan = Plan.model_validate(raw)
    except ValidationError as error:
        faults += [f"{path}: {_sentence(details)}" for details in error.errors()]
    faults += [f"{path}: {fault}" for fault in reference_faults(raw)]
    if faults or plan is None:
        raise PlanError(faults)
    return plan


def _override(raw: dict[str, Any], override: str) -> str | None:
    """Set one value in the raw plan; return what is wrong with the override, if anything."""
    field, equals, text = override.partition("=")
    keys = [key for key in re.split(r"[.\[\]]+", field) if key]
    if not equals or not keys:
        return f"--set {override}: write it as section.field=value"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return f"--set {override}: '{text}' is not a YAML value"
    place: Any = raw
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        if isinstance(place, list):
            if not key.isdigit() or int(key) >= len(place):
                return f"--set {override}: '{key}' is not one of the {len(place)} items"
            index: Any = int(key)
        elif isinstance(place, dict):
            index = key
        else:
            return f"--set {override}: '{key}' lies under a plain value"
        if following is None:
            place[index] = value
        elif isinstance(place, dict) and place.get(index) is None:
            place[index] = {}
        place = place[index]
    return None


def _sentence(fault: Any) -> str:
    """One pydantic error as field, value and cure."""
    place = ""
    for part in fault["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    match fault["type"]:
        case "extra_forbidden":
            section = _section_at(fault["loc"][:-1])
            return f"{place}: unknown key{nearest(str(fault['loc'][-1]), section.model_fields if section else ())}"
        case "missing":
            return f"{place}: is missing"
        case "literal_error":
            hint = nearest(str(fault["input"]), re.findall(r"'([^']+)'", fault["ctx"]["expected"]))
            return f"{place}: '{fault['input']}' is not one of {fault['ctx']['expected']}{hint}"
        case _:
            return f"{place}: {fault['msg']} (found {fault['input']!r})"


def _section_at(location: Sequence[str | int]) -> type[BaseModel] | None:
    """The model class at a place in the plan, to suggest its keys."""
    section: Any = Plan
    for part in location:
        if isinstance(part, int):
            continue
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            continue
        section = next((c for c in _classes(field.annotation) if issubclass(c, BaseModel)), section)
    return section


def _classes(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _classes(argument)
