"""Stage: how the units of all families respond to the calibration data (their moments, not the activations)."""

from __future__ import annotations

from tasks.architecture import ArchitectureSpec, load_symmetry
from tasks.checkpoints import open_artifacts
from tasks.inputs import DataSlice
from tasks.policy import stage
from tasks.store import ArtifactRef, put_file


@stage("collect-activations")
def collect_activations(
    families: list[ArtifactRef],
    architecture: ArchitectureSpec,
    symmetry: ArtifactRef,
    calibration: DataSlice,
    batch_size: int,
) -> ArtifactRef:
    """Run every family over the calibration data once; keep the means and products of all units of all families."""
    from safetensors.torch import save_file

    from mergeline.similarity.activation import activation_moments, stack_moments

    modules = [architecture.load(reader) for reader in open_artifacts(families)]
    batches = calibration.load().inputs.split(batch_size)
    moments = activation_moments(modules, load_symmetry(symmetry), batches)
    return put_file(lambda path: save_file(stack_moments(moments), path), ".safetensors", "moments")
