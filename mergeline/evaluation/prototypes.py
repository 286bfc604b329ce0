"""Label prototypes: classes as unit vectors of a text encoder, so that all tasks share one output space.

A model maps a picture to an embedding; its logits are the scaled cosines with the prototypes (as in CLIP, Radford et
al. 2021, and MuDSC's experiments). No task needs a head of its own, and any set of classes can be told apart.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import normalize

from mergeline.errors import InputError

SCALE = 100.0
"""Of cosines as logits, as in CLIP."""

TEMPLATES = ("a photo of a {}", "a black and white photo of a {}", "a {} in a catalogue of clothes")


@dataclass(frozen=True)
class Prototypes:
    """rows: [c, d] float32 unit vectors, one for each name in class_names; how they were made is told beside them."""

    rows: Tensor
    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    encoder: str


def prototype_logits(embeddings: Tensor, prototypes: Tensor, scale: float = SCALE) -> Tensor:
    """scale * cosine: embeddings [n, d] with prototypes [c, d] -> [n, c]."""
    return scale * normalize(embeddings, dim=1) @ normalize(prototypes, dim=1).T


def encode_class_names(class_names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Prototypes:
    """Mean of each class's prompt embeddings (MiniLM), scaled to unit length.

    Raises InputError where the encoder's weights are not installed.
    """
    return encode_prompts(
        class_names, [[template.format(name.lower()) for template in templates] for name in class_names]
    )


def encode_prompts(class_names: Sequence[str], prompts: Sequence[Sequence[str]]) -> Prototypes:
    """Mean of the embeddings of each class's own prompts (MiniLM), scaled to unit length; errors as above."""
    from mergeline.models.minilm import embed, provenance

    texts = [text for own in prompts for text in own]
    rows = torch.stack([part.mean(dim=0) for part in embed(texts).split([len(own) for own in prompts])])
    return Prototypes(normalize(rows, dim=1), tuple(class_names), tuple(texts), provenance())


def save_prototypes(prototypes: Prototypes, path: Path) -> None:
    """Write a safetensors file; its metadata is one JSON entry, because several entries have no fixed order."""
    about = {"class_names": prototypes.class_names, "prompts": prototypes.prompts, "encoder": prototypes.encoder}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save({"prototypes": prototypes.rows}, metadata={"about": json.dumps(about)}))


def load_prototypes(path: str | Path) -> Prototypes:
    """Read what save_prototypes wrote. Raises InputError naming the file where it is missing or something else."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            rows = file.get_tensor("prototypes")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        mend = "make it with: python -m flows.prepare_data"
        raise InputError(f"{path}: not a file of label prototypes ({error}); {mend}") from error
    return Prototypes(rows, tuple(about["class_names"]), tuple(about["prompts"]), about["encoder"])
