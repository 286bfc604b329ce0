"""The sections of a plan about the merged model once it is there, both off by default: calibration, landscape."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mergeline.plan_data import Section


class ControlData(Section):
    """Unlabelled data of another domain, for a control of the calibration."""

    dataset: str
    split: str = "calibration"
    where: dict[str, str] = Field(default={}, description="keep the rows whose columns have these values")

    @property
    def place(self) -> str:
        """What it is, for people."""
        return " ".join([f"{self.dataset}/{self.split}", *self.where.values()])


class Calibrate(Section):
    """Closed-form calibration after the merge, on the unlabelled `calibration` data: distillation, not merging."""

    centre: bool = Field(
        default=True, description="subtract the mean output from the last bias; assumes balanced calibration data"
    )
    last_layer: Literal["none", "mean", "heads"] = Field(
        default="mean",
        description="refit the last layer to the mean of the task models' outputs, or to what their heads say",
    )
    layers: bool = Field(default=True, description="refit all other layers, one after the other")
    ridge: float = Field(
        default=0.01, gt=0, allow_inf_nan=False, description="pull towards the merged weights, per variance of inputs"
    )
    columns: int | None = Field(
        default=None, ge=1, description="about how many positions a layer is fitted on; null: all"
    )
    control_data: ControlData | None = Field(
        default=None, description="data of another domain; a row shows the same calibration on it, the result has none"
    )


class Landscape(Section):
    """The loss of every task between models: on the plane through two task models and the merged one, and on lines."""

    points: int = Field(default=15, ge=2, description="of the grid on the plane, per side; each row is a stage")
    margin: float = Field(
        default=0.25, ge=0, allow_inf_nan=False, description="beyond the models, as a share of how far they extend"
    )
    line_points: int = Field(default=11, ge=3, description="per line, both ends included")
    split: str = Field(default="validation", description="labelled data that the loss is taken on; it chooses nothing")
    through: list[str] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="two task models; default: the first, and the first of the last family (of one family: the last)",
    )
