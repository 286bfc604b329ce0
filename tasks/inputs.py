"""Data that stages look at: one slice of one split, by the content of its file."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from tasks._env import state_directory
from tasks.store import ArtifactRef, put_file, take_file

if TYPE_CHECKING:
    from mergeline.evaluation.datasets import LabelledImages
    from mergeline.plan import Dataset


class DataSlice(BaseModel):
    """The rows of a Parquet file whose columns have the values of `where`, and how pictures are read from them.

    sample, draw: only so many of these rows, and which (`mergeline.evaluation.datasets.sample_rows`).
    """

    model_config = ConfigDict(frozen=True)

    file: ArtifactRef
    where: dict[str, str]
    image_column: str
    label_column: str
    mean: float
    std: float
    sample: int | None = None
    draw: int = 0

    def load(self) -> LabelledImages:
        """Decode the pictures; several stages that look at the same slice decode it once.

        The first call also imports what reads and measures, before any stage does: the big libraries look at each
        other, and fail where they find one half imported by another thread.
        """
        columns = (self.image_column, self.label_column)
        with _decoding:
            import mergeline.evaluation.metrics  # noqa: F401

            found = _load(self.file.path, tuple(self.where.items()), *columns, self.mean, self.std)
            if self.sample is None:
                return found
            from mergeline.evaluation.datasets import sample_rows

            return sample_rows(found, self.sample, self.draw)


def take_slice(
    dataset: Dataset, split: str, where: dict[str, str], sample: int | None = None, draw: int = 0
) -> DataSlice:
    """Bring a split into the content store."""
    return DataSlice(
        file=_take_split(dataset, split),
        where=where,
        image_column=dataset.image_column,
        label_column=dataset.label_column,
        mean=dataset.mean,
        std=dataset.std,
        sample=sample,
        draw=draw,
    )


def _take_split(dataset: Dataset, split: str) -> ArtifactRef:
    """A split as Parquet: the file itself, or what other kinds of sources come to."""
    from mergeline.evaluation.sources import fingerprint, split_of

    name = f"{dataset.place}/{split}"
    if dataset.path is None:
        return _download(dataset.hub or "", dataset.revision or "", split, dataset.label_column, str(state_directory()))
    source = split_of(dataset.path, split)
    if source.suffix == ".parquet":
        return take_file(source, "dataset", name=name, source=str(source))
    return _convert(source, name, dataset.label_column, fingerprint(source), str(state_directory()))


@lru_cache(maxsize=64)
def _convert(source: Path, name: str, label_column: str, fingerprint: object, state: str) -> ArtifactRef:
    """A job asks for a split several times; it is converted once, as long as its files stay as they are."""
    from mergeline.evaluation.sources import write_parquet

    write = partial(write_parquet, source, label_column=label_column)
    return put_file(write, ".parquet", "dataset", name=name, source=str(source))


@lru_cache(maxsize=64)
def _download(hub: str, revision: str, split: str, label_column: str, state: str) -> ArtifactRef:
    from mergeline.evaluation.sources import download_split

    place = f"hf://datasets/{hub}@{revision}"
    write = partial(download_split, hub, revision, split, label_column=label_column)
    return put_file(write, ".parquet", "dataset", name=f"{place}/{split}", source=place)


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
