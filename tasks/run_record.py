"""What is told about one run, as it is put down in the outbox and sent to MLflow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mergeline.redaction import redact

_PARAM_LENGTH = 6000  # a limit of MLflow


class DatasetUse(BaseModel):
    """Which data a run used, and for what (`context`: "calibration", "validation", "test")."""

    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str
    source: str = ""
    context: str = ""


class Registration(BaseModel):
    """A model that is registered with its run: the run's artifact `model`, a version with these tags."""

    model_config = ConfigDict(frozen=True)

    model: str
    tags: dict[str, str]


class RunRecord(BaseModel):
    """All that is told about one run; two records of one identity are of the same. Times are seconds since the epoch.

    phase: whether this is the `whole` run, or what `begun` it (it stays open), or what is known when it `ended` (which
    need not be the last time: it may be begun again, and have more to tell).
    part_of: the identity of the run that this one is part of, which must be in MLflow before.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    identity: str = ""
    experiment: str = ""
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    artifacts: list[Path] = []
    datasets: list[DatasetUse] = []
    tags: dict[str, str] = {}
    started: float = 0.0
    ended: float = 0.0
    registration: Registration | None = None
    phase: Literal["whole", "begun", "ended"] = "whole"
    part_of: str = ""

    @property
    def key(self) -> str:
        """Its name in the outbox: a record replaces another one only where it says all that the other one says."""
        return self.identity + {"whole": "", "begun": BEGUN, "ended": f".ended-{self.ended!r}"}[self.phase]


BEGUN = ".begun"  # what the names of the records that must be sent first end with


def metric_name(text: str) -> str:
    """The text with what MLflow does not allow in a name replaced."""
    return re.sub(r"[^\w\-. :/]", "_", text)


def flat_params(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as names with dots and texts that MLflow takes; secrets are masked."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from flat_params(value, f"{key}.")
        else:
            yield metric_name(key), redact(str(value))[:_PARAM_LENGTH]
