"""Stages: the base of the text zoo, and its fine-tunings. Unlike the image zoo it is not shipped, so it is cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mergeline.models.text_zoo import TextModel
from tasks.policy import stage
from tasks.store import ArtifactRef, put_file, take_file


class Trained(BaseModel):
    """A checkpoint, and its entry of the manifest."""

    model_config = ConfigDict(frozen=True)

    file: ArtifactRef
    entry: dict[str, Any]


class Material(BaseModel):
    """What models are trained from: splits, prototypes and tokenizer, in the content store."""

    model_config = ConfigDict(frozen=True)

    train: ArtifactRef
    test: ArtifactRef
    prototypes: ArtifactRef
    tokenizer: ArtifactRef


def take_material(dataset: Path) -> Material:
    """Bring a data set and the tokenizer of MiniLM into the store. InputError where one of them is missing."""
    from mergeline.errors import InputError
    from mergeline.models.minilm import minilm_folder

    files = {name: dataset / f"{name}.parquet" for name in ("train", "test")}
    files |= {"prototypes": dataset / "prototypes.safetensors", "tokenizer": minilm_folder() / "tokenizer.json"}
    for file in files.values():
        if not file.is_file():
            raise InputError(f"{file}: not there; make it with: python -m flows.prepare_text")
    return Material(**{name: take_file(file, name) for name, file in files.items()})


@stage("take-minilm")
def take_minilm(version: str) -> ArtifactRef:
    """The published weights as a checkpoint of the module. version: of the package that has them."""
    from safetensors.torch import save_file

    from mergeline.models.minilm import load_minilm

    state = load_minilm().state_dict()
    return put_file(lambda path: save_file(state, path, metadata={"format": "pt"}), ".safetensors", "checkpoint")


@stage("train-text-model")
def train_text_model(model: TextModel, material: Material, base: ArtifactRef) -> Trained:
    """Fine-tune the base for one task."""
    from mergeline.models.text_zoo import train_text_model

    found: dict[str, Any] = {}

    def write(path: Path) -> None:
        files = {name: getattr(material, name).path for name in Material.model_fields}
        found.update(train_text_model(model, base=base.path, output=path, **files))

    file = put_file(write, ".safetensors", "checkpoint", name=model.task)
    return Trained(file=file, entry=found | {"file": f"{model.task}.safetensors", "sha256": file.sha256})
