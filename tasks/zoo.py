"""Stage: train one checkpoint of the zoo."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

if TYPE_CHECKING:
    from mergeline.models.zoo import ZooModel


@task(task_run_name="train-{model.name}")
def train_checkpoint(model: "ZooModel", dataset: Path, raw: Path, zoo: Path) -> dict[str, Any]:
    """Write the checkpoint, return its entry of the manifest."""
    from mergeline.models.zoo import train_checkpoint

    return train_checkpoint(model, dataset=dataset, raw=raw, zoo=zoo)
