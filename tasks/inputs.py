"""Data that stages look at: one slice of one split, by the content of its file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from tasks.store import ArtifactRef, take_file

if TYPE_CHECKING:
    from mergeline.evaluation.datasets import LabelledImages
    from mergeline.plan import Dataset


class DataSlice(BaseModel):
    """The rows of a Parquet file whose columns have the values of `where`, and how pictures are read from them."""

    model_config = ConfigDict(frozen=True)

    file: ArtifactRef
    where: dict[str, str]
    image_column: str
    label_column: str
    mean: float
    std: float

    def load(self) -> LabelledImages:
        """Decode the pictures; several stages that look at the same slice decode it once.

        The first call also imports what reads and measures, before any stage does: the big libraries look at each
        other, and fail where they find one half imported by another thread.
        """
        columns = (self.image_column, self.label_column)
        with _decoding:
            import mergeline.evaluation.metrics  # noqa: F401

            return _load(self.file.path, tuple(self.where.items()), *columns, self.mean, self.std)


def take_slice(dataset: Dataset, split: str, where: dict[str, str]) -> DataSlice:
    """Bring a split into the content store."""
    path = dataset.path / f"{split}.parquet"
    return DataSlice(
        file=take_file(path, "dataset", name=f"{dataset.path}/{split}", source=str(path)),
        where=where,
        image_column=dataset.image_column,
        label_column=dataset.label_column,
        mean=dataset.mean,
        std=dataset.std,
    )


def take_prototypes(dataset: Dataset) -> ArtifactRef:
    """Bring the prototypes of a dataset's classes into the content store."""
    return take_file(dataset.prototypes, "prototypes", source=str(dataset.prototypes))


_decoding = Lock()


@lru_cache(maxsize=16)
def _load(
    file: Path, where: tuple[tuple[str, str], ...], image_column: str, label_column: str, mean: float, std: float
) -> LabelledImages:
    from mergeline.evaluation.datasets import read_images

    return read_images(
        file, where=dict(where), image_column=image_column, label_column=label_column, mean=mean, std=std
    )
