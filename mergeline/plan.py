"""The plan: what to merge and how. Its fields, each documented (`mergeline.plan_file` reads and checks them)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from mergeline.evaluation.kinds import is_classification, label_space, measures_of, share_labels
from mergeline.evaluation.score import Measure
from mergeline.plan_after import Calibrate, Landscape
from mergeline.plan_data import Calibration, Dataset, Section, Task
from mergeline.redaction import redact, redact_path

INITIAL = "initial"
"""In place of the name of a base: what an adapter is before training, which needs no checkpoint."""

BESIDE = frozenset({"notify", "registry", "promotion", "search", "compare"})
"""Fields of a plan about what is done beside its run, or with the result: told, registered, judged, varied."""

WITHOUT_EFFECT = BESIDE | {"output", "runner", "workers", "range_size", "download", "tracking"}
"""Fields of a plan that no byte of the merged model depends on: also how the work is done, and where to."""


class Architecture(Section):
    """How to build the module that all checkpoints are states of."""

    factory: str = Field(pattern=r"^[\w.]+:\w+$", description="module:function that returns the module")
    kwargs: dict[str, Any] = Field(default={}, description="keyword arguments of the factory")
    symmetry: str | None = Field(
        default=None,
        description="which units may change places: a YAML file or module:function(module); derived where not given",
    )


class Checkpoint(Section):
    """One checkpoint. A task model names the base it was trained from; a base names none."""

    name: str = Field(pattern=r"^[\w.-]+$", description="letters, digits, '.', '-' and '_'")
    uri: str = Field(
        min_length=1,
        description="file, folder or index of shards: a path, http(s)://, any fsspec URL, or "
        "hf://org/repo@revision/file; ${NAME} stands for an environment variable",
    )
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="64 hexadecimal digits: of the file, or of a folder that of what sha256sum prints for its files; "
        "verified before use",
    )
    base: str | None = Field(
        default=None,
        description="name of the checkpoint this one was fine-tuned from; 'initial': an adapter before its training",
    )

    @field_serializer("uri", when_used="json")
    def _without_secrets(self, uri: str) -> str:
        """What is written down of a plan: no password, also not one that stands in it."""
        return redact(uri)


class BalanceSearch(Section):
    """Values of the balance to try: the alignment whose merge scores best on labelled data is used."""

    balances: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], min_length=1
    )
    split: str = Field(default="calibration", description="data that scores; never the one that measures the result")
    metric: Literal["mean", "joint"] = Field(default="joint", description="mean over the tasks, or joint accuracy")


class Align(Section):
    """How models of different bases are brought into one unit order, or onto merged units."""

    space: Literal["dual", "weight", "activation"] = "dual"
    method: Literal["permute", "zip"] = Field(
        default="permute", description="permute the units, or merge the most alike of all models (zip)"
    )
    balance: float = Field(default=0.5, ge=0, le=1, description="share of weight space in the dual space")
    balance_search: BalanceSearch | None = Field(default=None, description="look for the balance instead")
    decay: float = Field(default=0.5, ge=0, le=1, description="zip: how much less alike merged units are to others")
    budget: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="zip: share of the merges that may be within one model"
    )
    found_on: Literal["bases", "task_models"] = "bases"
    sweeps: int = Field(default=100, ge=1)
    seed: int = Field(default=0, ge=0)


class Evidence(Section):
    """The data of its tasks that each model is measured on, by the methods that weigh models by data."""

    split: str = Field(default="calibration", description="never the one that measures the result")
    batches: int | None = Field(default=4, gt=0, description="of the calibration's batch size, per task; null: all")
    classes: Literal["any", "own"] | None = Field(
        default=None,
        description="what regmean and regmean_plusplus take: examples of any class, or of the task's own, whose labels "
        "are read; where not given, any for the first and own for the second",
    )


class Merge(BaseModel):
    """The merging method; its own options stand beside `method` (see docs or the method's signature)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str = "pcb"
    onto: Literal["mean", "first"] = Field(
        default="mean", description="where the merged task vector is added: mean of the bases, or the first"
    )
    out_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    max_shard_size: Annotated[ByteSize, Field(gt=0)] | None = Field(
        default=None, description="a larger model is written as several files of so many bytes (5GB)"
    )
    granularity: Literal["model", "layer", "tensor"] | None = Field(
        default=None,
        description="which tensors compete with each other, or are ranked together; the method's own where not given",
    )
    options_by_pattern: dict[str, dict[str, Any]] = Field(
        default={},
        description="options for the tensors whose names match ('*.mlp.*': {keep_ratio: 0.1}); the last wins",
    )
    vocabulary: Literal["refuse", "common"] = Field(
        default="refuse", description="vocabularies that differ: refuse them, or merge the rows that all models have"
    )
    evidence: Evidence = Evidence()

    @property
    def grouping(self) -> dict[str, Any]:
        """What the engine is told beside the options of the method; nothing where nothing was said."""
        named = {"granularity": self.granularity, "options_by_pattern": self.options_by_pattern}
        return {key: value for key, value in named.items() if value}

    @property
    def options(self) -> dict[str, Any]:
        """The options of the method itself."""
        return dict(self.model_extra or {})


ComparisonKind = Literal[
    "task_models",
    "task_models_reset",
    "bases",
    "ensemble",
    "average",
    "aligned_average",
    "unaligned",
    "teams",
    "calibration_controls",
]
CALIBRATION_CONTROLS: ComparisonKind = "calibration_controls"


class Evaluation(Section):
    """What stands beside the result, and how models are run."""

    batch_size: int = Field(default=250, gt=0)
    device: str = Field(
        default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda, or cuda:1: where models answer"
    )
    compare: list[ComparisonKind] = Field(default=list(get_args(ComparisonKind)))


class ScaleRange(Section):
    """Where a search looks for a lambda."""

    low: float = Field(ge=0, allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    step: float = Field(default=0.1, gt=0, allow_inf_nan=False, description="between the points of a grid")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be less than high {self.high}")
        return self


class Search(Section):
    """What `flows.search_coefficients` tries; the ranges are those of the paper of PCB-Merging, and of MuDSC."""

    method: Literal["cma", "tpe", "grid"] = "cma"
    over: list[Literal["scales", "scale", "keep_ratio", "balance"]] = Field(
        default=["scales"], min_length=1, description="what is searched: scales are the lambda of each task"
    )
    trials: int = Field(default=100, ge=1)
    seed: int = Field(default=0, ge=0)
    split: str = Field(default="validation", description="data that scores; never the one that measures the result")
    metric: Literal["mean", "joint"] = Field(default="joint", description="mean over the tasks, or joint accuracy")
    scales: ScaleRange = ScaleRange(low=0.8, high=1.3)
    scale: ScaleRange = ScaleRange(low=0.8, high=2.2)
    keep_ratio: list[Annotated[float, Field(gt=0, le=1)]] = Field(default=[0.05, 0.1, 0.2], min_length=1)
    balance: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], min_length=1
    )
    cache_gigabytes: float = Field(
        default=50.0, ge=0, description="larger weighted task vectors are not kept: each trial then merges the files"
    )

    @field_validator("scales", "scale", mode="before")
    @classmethod
    def _keep_what_is_not_named(cls, given: Any, field: ValidationInfo) -> Any:
        """A range of which one end is given has the other end of its default."""
        if not isinstance(given, dict):
            return given
        return cls.model_fields[field.field_name or ""].default.model_dump() | given


class Download(Section):
    """Limits of checkpoint downloads."""

    max_gigabytes: float = Field(default=200.0, gt=0)


class Tracking(Section):
    """Where runs are recorded; the MLflow server is MLFLOW_TRACKING_URI, by default a file in the project."""

    enabled: bool = True
    experiment: str = "mergeline"


class Notify(Section):
    """Who is told how a run ended. The address is a secret: name it as ${NAME} or ${block:NAME}."""

    webhook: str | None = Field(
        default=None,
        min_length=1,
        description="URL that gets a JSON message; default: the environment variable MERGELINE_WEBHOOK",
    )
    on: list[Literal["failure", "success"]] = Field(default=["failure"], description="which ends are told")

    @field_serializer("webhook", when_used="json")
    def _without_secrets(self, webhook: str | None) -> str | None:
        return webhook and redact_path(webhook)


class Choose(Section):
    """Which data chooses among the cells of one merging method, so that the data of the result does not."""

    split: str = Field(default="validation", description="never the one that measures the result")


class Compare(Section):
    """What `flows.compare_methods` tries: every named cell with every combination of the values of the grid."""

    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default={}, description="field of the plan -> its values: {merge.keep_ratio: [0.1, 0.3]}"
    )
    cells: dict[Annotated[str, Field(min_length=1)], dict[str, Any]] = Field(
        default={}, description="name of a cell -> what it changes in the plan: {weight zip: {align: {space: weight}}}"
    )
    over: dict[Annotated[str, Field(min_length=1)], Annotated[list[dict[str, Any]], Field(min_length=1)]] = Field(
        default={},
        description="name -> repeats, each what it changes in the plan: every cell is tried in all of them, and its "
        "score is the mean: {4 of 6 models: [{checkpoints: [...], tasks: [...]}, ...]}",
    )
    choose: Choose | None = Field(default=None, description="mark the best cell of every merging method")
    metric: Literal["mean", "joint"] = Field(default="mean", description="what the cells are ranked by")


class Registry(Section):
    """Where the merged model is registered in MLflow, as a version with the alias `candidate`."""

    model: str = Field(
        pattern=r"^\w[\w .-]*$",
        max_length=250,
        description="name of the registered model, of letters, digits, blanks, '.', '-' and '_'; made where missing",
    )


class Promotion(Section):
    """What a registered model must be before the alias `champion` moves to it (`flows.promote`). Scores are in [0, 1].

    A floor is a number that a score must reach. Where two measurements are compared, a difference counts only beyond
    `standard_errors` standard errors of the difference.
    """

    floor: Annotated[float, Field(ge=0, le=1)] | dict[str, Annotated[float, Field(ge=0, le=1)]] | None = Field(
        default=None, description="least accuracy of every task, or of those that are named"
    )
    max_drop: float | None = Field(
        default=None, ge=0, le=1, description="how much less accurate a task may be than its own model is"
    )
    champion: Literal["not_worse", "better"] | None = Field(
        default="not_worse", description="beside the model that is the champion now; null: whatever that one is"
    )
    score: Literal["mean", "joint"] = Field(
        default="mean", description="what is compared with the champion: mean over the tasks, or joint accuracy"
    )
    standard_errors: float = Field(
        default=2.0, ge=0, allow_inf_nan=False, description="beyond so many a difference is not chance; 0: any counts"
    )


class Plan(Section):
    """One run: checkpoints, architecture, alignment, merge, evaluation, tracking.

    Checkpoints alone are merged and published; what has tasks is evaluated, for which it needs an architecture and
    calibration data.
    """

    name: str = Field(pattern=r"^[\w.-]+$", description="letters, digits, '.', '-' and '_'")
    output: Path = Field(default=Path("data/merged"), description="folder the result is published into")
    architecture: Architecture | None = None
    checkpoints: list[Checkpoint] = Field(min_length=2)
    datasets: dict[str, Dataset] = Field(default={})
    calibration: Calibration | None = None
    align: Align | None = Align()
    merge: Merge = Merge()
    calibrate: Calibrate | None = None
    tasks: list[Task] = Field(default=[])
    evaluation: Evaluation = Evaluation()
    landscape: Landscape | None = None
    runner: Literal["threads", "dask", "ray"] = Field(
        default="threads",
        description="what the stages run on: threads, or a cluster (of this machine, or the one that "
        "DASK_SCHEDULER_ADDRESS or RAY_ADDRESS names and that sees the project's state under the same path)",
    )
    workers: int | None = Field(default=None, gt=0, description="how many; null: as many as there are processors")
    range_size: Annotated[ByteSize, Field(gt=0)] = Field(
        default=ByteSize(256 << 20), description="a larger merge is shared out in ranges of so many bytes"
    )
    download: Download = Download()
    tracking: Tracking = Tracking()
    export: list[Literal["torch", "onnx"]] = Field(
        default=[], description="programs of the merged module to publish: torch.export (.pt2), ONNX"
    )
    notify: Notify = Notify()
    registry: Registry | None = None
    promotion: Promotion | None = None
    search: Search | None = None
    compare: Compare | None = None

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
    def specialists(self) -> dict[str, str]:
        """Task -> the task model that was trained for it; tasks outside are not among them."""
        return {task.name: task.checkpoint for task in self.tasks if task.checkpoint is not None}

    def family_of(self, checkpoint: Checkpoint) -> int:
        """Which of the families a task model, or a base, belongs to."""
        names = self.families
        return names.index(checkpoint.name if checkpoint.name in names else checkpoint.base or checkpoint.name)

    @property
    def heads(self) -> list[str]:
        """The parts of the module that are not merged, because tasks take them from their own checkpoints."""
        return sorted({task.head for task in self.tasks if task.head is not None})

    @property
    def measure(self) -> Measure:
        """What the mean over the tasks is a mean of; the plan was checked to have one."""
        return next(iter(measures_of(task.metric for task in self.tasks if task.checkpoint is not None)), "share")

    @property
    def joint_tasks(self) -> list[Task]:
        """The classifications whose classes joint accuracy tells apart; none where they have no label space in common.

        Tasks outside and tasks of other kinds are not among them.
        """
        asked = [task for task in self.tasks if task.checkpoint is not None and is_classification(task.kind)]
        spaces = [
            label_space(task.kind, task.head, task.dataset, str(self.datasets[task.dataset].prototypes))
            for task in asked
        ]
        return asked if share_labels(spaces) else []

    @property
    def from_start(self) -> bool:
        """Whether the checkpoints are adapters whose base is what they were before training."""
        return any(checkpoint.base == INITIAL for checkpoint in self.checkpoints)

    @property
    def families(self) -> list[str]:
        """Names of the families of one unit order: a base, or a task model without one; the reference first."""
        return list(dict.fromkeys(model.base or model.name for model in self.task_models))
