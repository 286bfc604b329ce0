"""Stages: how alike the units of the families are, in activation space and in weight space."""

from __future__ import annotations

from tasks.architecture import load_symmetry
from tasks.checkpoints import open_artifacts
from tasks.policy import stage
from tasks.store import ArtifactRef, put_file


@stage("activation-similarity")
def activation_similarity(activations: ArtifactRef) -> ArtifactRef:
    """Correlation of all units of all families, per group."""
    from safetensors.torch import load_file, save_file

    from mergeline.similarity.activation import unstack_moments

    moments = unstack_moments(load_file(activations.path))
    similarity = {group: entry.correlation() for group, entry in moments.items()}
    return put_file(lambda path: save_file(similarity, path), ".safetensors", "similarity", space="activation")


@stage("weight-similarity")
def weight_similarity(families: list[ArtifactRef], symmetry: ArtifactRef) -> ArtifactRef:
    """Correlation of all units of all families, per group, all groups in their own order.

    It depends on how the neighbouring groups are aligned: the sweeps start from it and update it.
    """
    from safetensors.torch import save_file

    from mergeline.similarity.weight import weight_similarity as correlate

    similarity = correlate(open_artifacts(families), load_symmetry(symmetry))
    return put_file(lambda path: save_file(similarity, path), ".safetensors", "similarity", space="weight")
