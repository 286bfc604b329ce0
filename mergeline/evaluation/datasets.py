"""Labelled examples from local Parquet files, as the `datasets` library writes them; images (texts: texts.py)."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mergeline.errors import InputError, nearest
from mergeline.evaluation.fashion_mnist import MEAN, STD


@dataclass(frozen=True)
class LabelledExamples:
    """inputs: what a module is called with, one row per example; labels: [n] int64, places in class_names.

    Images are [n, c, h, w] float32, normalised; texts [n, 2, length] int64, token ids and attention mask.
    """

    inputs: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def load_images(path: str | Path, split: str, **options: Any) -> LabelledExamples:
    """`read_images` of `<path>/<split>.parquet`. Raises InputError that names the split that exists and is nearest."""
    return read_images(parquet_split(path, split), **options)


def parquet_split(path: str | Path, split: str) -> Path:
    """`<path>/<split>.parquet`. Raises InputError that names the folder or split that exists and is nearest."""
    path = Path(path)
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        _require(path.name, siblings, f"folder in {path.parent}")
    _require(split, sorted(p.stem for p in path.glob("*.parquet")), f"split of {path}")
    return path / f"{split}.parquet"


def read_images(
    file: Path,
    *,
    where: Mapping[str, str] | None = None,
    image_column: str = "image",
    label_column: str = "label",
    mean: float = MEAN,
    std: float = STD,
) -> LabelledExamples:
    """Read a Parquet file with an Image column and a ClassLabel column.

    where: keep the rows whose column has this value, such as {"domain": "half"}.
    mean, std: pixels in [0, 1] become (pixel - mean) / std; the defaults are Fashion-MNIST's.
    Raises InputError naming what is not there (column, value), what is, and the nearest name.
    """
    table = read_rows(file, where, (image_column, label_column))
    if not isinstance(table.features[image_column], datasets.Image):
        raise InputError(f"{file}: column {image_column!r} is not of type Image.")
    labels, class_names = read_labels(table, label_column, file)
    # bytes and Pillow: half the time of decoding through the library
    encoded = table.cast_column(image_column, datasets.Image(decode=False))[image_column][:]
    pixels = _stack((_decode(image["bytes"], f"{file}, picture {i}") for i, image in enumerate(encoded)), str(file))
    images = torch.from_numpy(pixels).float().div_(255).sub_(mean).div_(std)
    return LabelledExamples(images, labels, class_names)


def read_rows(file: Path, where: Mapping[str, str] | None, columns: Sequence[str]) -> datasets.Dataset:
    """The rows of a Parquet file whose columns have the values of `where`; it must have `columns`, too.

    Raises InputError naming what is not there (column, value), what is, and the nearest name; or that no row is left.
    """
    try:
        # the table itself: `load_dataset` would leave a second copy in the user's cache
        table = datasets.Dataset(pyarrow.parquet.read_table(file))
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{file}: not a Parquet file: {error}") from error
    for column in (*columns, *(where or {})):
        _require(column, table.column_names, f"column of {file}")
    for column, value in (where or {}).items():
        values = table[column][:]
        _require(value, sorted(set(map(str, values))), f"value of column {column!r} in {file}")
        table = table.select([i for i, v in enumerate(values) if str(v) == value])
    if not len(table):
        raise InputError(f"{file}: no rows{f' where {dict(where)}' if where else ''}.")
    return table


def read_labels(table: datasets.Dataset, column: str, file: Path) -> tuple[Tensor, tuple[str, ...]]:
    """The labels [n] int64 of a ClassLabel column, and the names of the classes.

    Raises InputError where the column is of another type, or a row has no label or one outside the classes.
    """
    labels = table.features[column]
    if not isinstance(labels, datasets.ClassLabel):
        raise InputError(f"{file}: column {column!r} is not of type ClassLabel, so the classes have no names.")
    values = table[column][:]
    for i, value in enumerate(values):
        if value is None or not 0 <= value < len(labels.names):
            raise InputError(
                f"{file}: row {i} of column {column!r} has the label {value}, outside the range of the "
                f"{len(labels.names)} classes (0 to {len(labels.names) - 1})."
            )
    return torch.tensor(values), tuple(labels.names)


def sample_rows(examples: LabelledExamples, count: int, draw: int = 0) -> LabelledExamples:
    """`count` of the examples, in their order: part number `draw` of one shuffled order, so that draws share none.

    Raises InputError where there are not so many examples.
    """
    if count * (draw + 1) > len(examples):
        raise InputError(
            f"calibration.sample: sample {draw} of {count} rows each needs {count * (draw + 1)} rows, and there are "
            f"{len(examples)}; draw fewer, or a lower number"
        )
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    rows = order[count * draw : count * (draw + 1)].sort().values
    return LabelledExamples(examples.inputs[rows], examples.labels[rows], examples.class_names)


def _require(name: str, existing: Iterable[str], what: str) -> None:
    existing = list(existing)
    if name not in existing:
        known = ", ".join(existing) or "there is none"
        raise InputError(f"{name!r} is not a {what} ({known}){nearest(name, existing)}")


def _decode(content: bytes, name: str) -> np.ndarray:
    """[c, h, w] uint8; grey pictures have one channel, all others are read as RGB."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (UnidentifiedImageError, OSError, TypeError) as error:
        raise InputError(f"{name}: cannot be decoded: {error}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _stack(pictures: Iterable[np.ndarray], source: str) -> np.ndarray:
    pictures = list(pictures)
    shapes = sorted({picture.shape for picture in pictures})
    if len(shapes) > 1:
        raise InputError(f"{source}: the pictures differ in shape (channels, height, width): {shapes}.")
    return np.stack(pictures)
