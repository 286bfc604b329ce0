"""Stage: the merged model as programs for other runtimes. What cannot be exported is told; the merge stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from pydantic import BaseModel, ConfigDict

from mergeline.errors import InputError
from tasks.architecture import ArchitectureSpec
from tasks.checkpoints import open_artifact
from tasks.inputs import DataSlice
from tasks.policy import stage
from tasks.store import ArtifactRef, put_file

CHECKED_ON = 32  # calibration inputs

_one_at_a_time = Lock()  # the exporters change switches of the whole process


class Exported(BaseModel):
    """A program of the merged model, or the one sentence why there is none.

    difference: the largest from the module's outputs, as a share of the largest output; that of ONNX Runtime depends on
    the processor.
    """

    model_config = ConfigDict(frozen=True)

    file: ArtifactRef | None = None
    input_shape: list[int] = []
    difference: float | None = None
    problem: str | None = None


@stage("export-model")
def export_model(
    kind: str, model: ArtifactRef, architecture: ArchitectureSpec, calibration: DataSlice, packages: dict[str, str]
) -> Exported:
    """Export, and run what was written on calibration inputs. packages: versions of the exporter's packages."""
    from mergeline.export import FILES, export_module

    found: list[float] = []
    with _alone():
        inputs = calibration.load().inputs[:CHECKED_ON]
        module = architecture.load(open_artifact(model), by_name=False)
        try:
            ref = put_file(
                lambda path: found.append(export_module(kind, module, inputs, path)),
                f".{FILES[kind].rpartition('.')[2]}",
                "program",
            )
        except InputError as fault:
            return Exported(problem=str(fault))
    return Exported(file=ref, input_shape=list(inputs.shape[1:]), difference=found[0])


@contextmanager
def _alone() -> Iterator[None]:
    """One export at a time. (A stage that named the lock itself could not be sent to the workers of a cluster.)"""
    with _one_at_a_time:
        yield


def exports_record(exports: dict[str, Exported]) -> dict[str, Any]:
    """What is published beside the programs; how far they are from the module is told to MLflow, see `Exported`."""
    from mergeline.export import FILES, TOLERANCE

    return {
        kind: {"problem": made.problem}
        if made.file is None
        else {
            "file": FILES[kind],
            "sha256": made.file.sha256,
            "input": ["batch", *made.input_shape],
            "checked": f"within {TOLERANCE:.0e} of the module's largest output on {CHECKED_ON} calibration inputs",
        }
        for kind, made in exports.items()
    }
