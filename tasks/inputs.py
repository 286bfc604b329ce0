"""Data that stages look at: one slice of one split, by the content of its file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from mergeline.errors import InputError
from tasks._env import state_directory
from tasks.store import ArtifactRef, put_file, take_file

if TYPE_CHECKING:
    import datasets
    from torch import Tensor

    from mergeline.evaluation.datasets import LabelledExamples
    from mergeline.plan import Dataset


class Images(BaseModel):
    """How a column of images is read: framed by resize and crop, then (pixel in 0..1 - mean) / std."""

    model_config = ConfigDict(frozen=True)

    column: str
    mean: float | tuple[float, float, float]
    std: float | tuple[float, float, float]
    resize: int | None = None
    crop: int | None = None


class Texts(BaseModel):
    """How a column of texts is read: as tokens of a tokenizer, at most max_length."""

    model_config = ConfigDict(frozen=True)

    column: str
    tokenizer: ArtifactRef
    max_length: int


class DataSlice(BaseModel):
    """The rows of a Parquet file whose columns have the values of `where`, and how inputs are made of them.

    sample, draw: only so many of these rows, and which (`mergeline.evaluation.datasets.sample_rows`).
    """

    model_config = ConfigDict(frozen=True)

    file: ArtifactRef
    where: dict[str, str]
    label_column: str
    inputs: Images | Texts
    sample: int | None = None
    draw: int = 0

    @property
    def has_texts(self) -> bool:
        """Whether inputs are token ids and attention masks."""
        return isinstance(self.inputs, Texts)

    def load(self) -> LabelledExamples:
        """Decode the inputs; several stages that look at the same slice decode it once."""
        import_first()
        rows = (self.file.path, tuple(self.where.items()), self.label_column)
        with _decoding, sources_named(self.file, *self._tokenizers):
            if isinstance(self.inputs, Texts):
                texts = self.inputs
                found = _load_texts(*rows, texts.column, texts.tokenizer.path, texts.max_length)
            else:
                found = _load_images(*rows, self.inputs)
            if self.sample is None:
                return found
            from mergeline.evaluation.datasets import sample_rows

            return sample_rows(found, self.sample, self.draw)

    def rows(self) -> datasets.Dataset:
        """The rows as they lie in the file, with all columns."""
        with _decoding, sources_named(self.file):
            from mergeline.evaluation.datasets import read_rows

            return read_rows(self.file.path, self.where, ())

    def texts(self, column: str) -> list[str]:
        """The texts of a column."""
        with _decoding, sources_named(self.file):
            from mergeline.evaluation.datasets import read_rows
            from mergeline.evaluation.texts import texts_of

            return texts_of(read_rows(self.file.path, self.where, (column,)), column, self.file.path)

    @property
    def tokenizer(self) -> ArtifactRef:
        """What makes tokens of its texts. Raises InputError where it has none."""
        if not isinstance(self.inputs, Texts):
            raise InputError(f"{self.file.metadata.get('name')}: is no data set of texts (text_column, tokenizer)")
        return self.inputs.tokenizer

    def tokens(self) -> Tensor:
        """Token ids and attention masks of its texts, [n, 2, length]; no labels are looked at."""
        tokenizer = self.tokenizer
        assert isinstance(self.inputs, Texts)
        with sources_named(self.file, tokenizer):
            return _tokens(
                self.file.path, tuple(self.where.items()), self.inputs.column, tokenizer.path, self.inputs.max_length
            )

    @property
    def _tokenizers(self) -> list[ArtifactRef]:
        return [self.inputs.tokenizer] if isinstance(self.inputs, Texts) else []


@contextmanager
def sources_named(*refs: ArtifactRef) -> Iterator[None]:
    """Let an InputError in the block speak of the files that the user named, not of their copies in the store."""
    try:
        yield
    except InputError as fault:
        said = str(fault)
        for ref in refs:
            said = said.replace(str(ref.path), str(ref.metadata.get("source", ref.path)))
        raise InputError(said) from fault


def take_slice(
    dataset: Dataset, split: str, where: dict[str, str], sample: int | None = None, draw: int = 0
) -> DataSlice:
    """Bring a split into the content store."""
    return DataSlice(
        file=_take_split(dataset, split),
        where=where,
        label_column=dataset.label_column,
        inputs=_read_as(dataset),
        sample=sample,
        draw=draw,
    )


def _read_as(dataset: Dataset) -> Images | Texts:
    from mergeline.evaluation.sources import tokenizer_file

    if dataset.text_column is None or dataset.tokenizer is None:
        return Images(
            column=dataset.image_column,
            mean=dataset.mean,
            std=dataset.std,
            resize=dataset.resize,
            crop=dataset.crop,
        )
    file = tokenizer_file(dataset.tokenizer)
    tokenizer = take_file(file, "tokenizer", name=str(file), source=str(file))
    return Texts(column=dataset.text_column, tokenizer=tokenizer, max_length=dataset.max_length)


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


def take_prototypes(dataset: Dataset) -> ArtifactRef | None:
    """Bring the prototypes of a dataset's classes into the content store, where it has some."""
    if dataset.prototypes is None:
        return None
    return take_file(dataset.prototypes, "prototypes", source=str(dataset.prototypes))


def read_prototypes(ref: ArtifactRef) -> Tensor:
    """The prototypes [c, d] of the classes. Raises InputError where the file holds none."""
    from mergeline.evaluation.prototypes import load_prototypes

    with sources_named(ref):
        return load_prototypes(ref.path).rows


def import_first() -> None:
    """Import what reads and measures, before a stage does anything else that imports much.

    The big libraries look at each other, and fail where they find one half imported by another thread.
    """
    with _decoding:
        import mergeline.evaluation.metrics  # noqa: F401


_decoding = Lock()


@lru_cache(maxsize=16)
def _load_images(file: Path, where: tuple[tuple[str, str], ...], label_column: str, images: Images) -> LabelledExamples:
    from mergeline.evaluation.datasets import read_images

    framing = images.model_dump(exclude={"column"})
    return read_images(file, where=dict(where), image_column=images.column, label_column=label_column, **framing)


@lru_cache(maxsize=16)
def _load_texts(
    file: Path, where: tuple[tuple[str, str], ...], label_column: str, column: str, tokenizer: Path, max_length: int
) -> LabelledExamples:
    from mergeline.evaluation.texts import read_texts

    columns = {"text_column": column, "label_column": label_column}
    return read_texts(file, where=dict(where), tokenizer=tokenizer, max_length=max_length, **columns)


@lru_cache(maxsize=16)
def _tokens(file: Path, where: tuple[tuple[str, str], ...], column: str, tokenizer: Path, max_length: int) -> Tensor:
    with _decoding:
        from mergeline.evaluation.datasets import read_rows
        from mergeline.evaluation.texts import texts_of, tokenize

        return tokenize(texts_of(read_rows(file, dict(where), (column,)), column, file), tokenizer, max_length)
