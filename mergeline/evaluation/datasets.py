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

PerChannel = float | tuple[float, float, float]
"""One number for all channels, or one each for red, green and blue."""


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
    mean: PerChannel = MEAN,
    std: PerChannel = STD,
    resize: int | None = None,
    crop: int | None = None,
) -> LabelledExamples:
    """Read a Parquet file with an Image column and a ClassLabel column.

    where: keep the rows whose column has this value, such as {"domain": "half"}.
    mean, std: pixels in [0, 1] become (pixel - mean) / std; the defaults are Fashion-MNIST's. Three numbers are for
    red, green and blue, and grey pictures are read as colour then.
    resize: the shorter side gets this many pixels (bicubic, antialiased); crop: the square of so many in the middle.
    Sizes and places are rounded as by torchvision's Resize and CenterCrop.
    Raises InputError naming what is not there (column, value), what is, and the nearest name.
    """
    table = read_rows(file, where, (image_column, label_column))
    if not isinstance(table.features[image_column], datasets.Image):
        raise InputError(f"{file}: column {image_column!r} is not of type Image.")
    labels, class_names = read_labels(table, label_column, file)
    # bytes and Pillow: half the time of decoding through the library
    encoded = table.cast_column(image_column, datasets.Image(decode=False))[image_column][:]
    framing = _Framing(resize, crop, colour=isinstance(mean, tuple) or isinstance(std, tuple))
    named = ((image["bytes"], f"{file}, picture {i}") for i, image in enumerate(encoded))
    pixels = _stack((_decode(content, name, framing) for content, name in named), str(file))
    images = torch.from_numpy(pixels).float().div_(255).sub_(_by_channel(mean)).div_(_by_channel(std))
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
        if value is None:
            raise InputError(f"{file}: row {i} of column {column!r} has no label.")
        if not 0 <= value < len(labels.names):
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


def _by_channel(numbers: PerChannel) -> Tensor:
    return torch.tensor(numbers).reshape(-1, 1, 1)


@dataclass(frozen=True)
class _Framing:
    """Which part of a picture is looked at, and at which size. colour: grey pictures are read as RGB, too."""

    resize: int | None
    crop: int | None
    colour: bool

    def of(self, image: Image.Image, name: str) -> Image.Image:
        if image.mode != "L" or self.colour:
            image = image.convert("RGB")
        if self.resize is not None:
            shorter = min(image.size)
            width, height = (int(self.resize * side / shorter) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        if self.crop is None:
            return image
        if min(image.size) < self.crop:
            width, height = image.size
            raise InputError(
                f"{name}: has {width} x {height} pixels, too few for a square of {self.crop}; set resize to "
                f"{self.crop} or more, or crop to less"
            )
        left, top = (round((side - self.crop) / 2) for side in image.size)
        return image.crop((left, top, left + self.crop, top + self.crop))


def _decode(content: bytes, name: str, framing: _Framing) -> np.ndarray:
    """[c, h, w] uint8; grey pictures have one channel, all others are read as RGB."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(framing.of(image, name))
    except (UnidentifiedImageError, OSError, TypeError) as error:
        raise InputError(f"{name}: cannot be decoded: {error}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _some(shapes: Sequence[tuple[int, ...]], shown: int = 3) -> str:
    more = f" and {len(shapes) - shown} more" if len(shapes) > shown else ""
    return ", ".join(map(str, shapes[:shown])) + more


def _stack(pictures: Iterable[np.ndarray], source: str) -> np.ndarray:
    pictures = list(pictures)
    shapes = sorted({picture.shape for picture in pictures})
    if len(shapes) > 1:
        raise InputError(
            f"{source}: the pictures differ in shape (channels, height, width): {_some(shapes)}; set resize and crop, "
            "and a mean for each of the three channels where some of them are grey"
        )
    return np.stack(pictures)
