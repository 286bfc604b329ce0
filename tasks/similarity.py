"""Stages: how alike the units of the families are, in activation space and in weight space."""

from __future__ import annotations

import warnings

from tasks.architecture import load_symmetry
from tasks.checkpoints import open_artifacts
from tasks.policy import stage
from tasks.store import ArtifactRef, put_file


@stage("activation-similarity")
def activation_similarity(activations: ArtifactRef, families: int) -> ArtifactRef:
    """Correlation of all units of all families, per group. Too few samples are logged as a warning."""
    from prefect.logging import get_run_logger
    from safetensors.torch import load_file, save_file

    from mergeline.similarity.activation import correlations, unstack_moments

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        similarity = correlations(unstack_moments(load_file(activations.path)), families)
    for warning in caught:
        get_run_logger().warning("%s", warning.message)
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
