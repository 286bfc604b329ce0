"""Stage: the head of a task, in the unit order of the merged model, to be published beside it."""

from __future__ import annotations

from pathlib import Path

from tasks.merge_inputs import MergeInputs
from tasks.policy import stage
from tasks.store import ArtifactRef, put_file

METADATA = {"mergeline": "head of a task"}


@stage("take-head")
def take_head(model: MergeInputs, head: str) -> ArtifactRef:
    """The tensors of a head as the evaluation puts them into the merged model."""
    from safetensors.torch import save_file

    from mergeline.checkpoints.heads import head_tensors

    tensors = {name: tensor.contiguous() for name, tensor in head_tensors(model.open()[0][0], head).items()}
    return put_file(lambda path: save_file(tensors, path, METADATA), ".safetensors", "head")


def is_head(file: Path) -> bool:
    """Whether a file is what `take_head` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            return opened.metadata() == METADATA
    except (OSError, SafetensorError):
        return False
