"""Fashion-MNIST (Xiao et al. 2017) in the two domains of the shipped scenario: whole and cropped pictures."""

import gzip
import io
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
from PIL import Image

from mergeline.errors import InputError

Source = Literal["auto", "hub", "idx"]

CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FEATURES = datasets.Features(
    image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASS_NAMES)), domain=datasets.Value("string")
)
HUB_NAME = "zalando-datasets/fashion_mnist"
IDX_PREFIX = {"train": "train", "test": "t10k"}
HALF = 14  # rows of a picture that the domain "half" shows
MEAN, STD = 0.2860, 0.3530  # of the training pictures' pixels in [0, 1]


@dataclass(frozen=True)
class Pictures:
    """images: [n, 28, 28] uint8; labels: [n] integers 0..9. The order is that of the published files."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Split:
    """Which pictures of a published part make a split: of the rows first..last-1, `each` of every class and domain.

    With each = None, all rows, as whole pictures.
    """

    part: Literal["train", "test"]
    first: int
    last: int
    each: int | None = None


SPLITS: Mapping[str, Split] = {
    "train": Split("train", 0, 50_000),
    "validation": Split("train", 50_000, 58_000, each=40),
    "calibration": Split("train", 58_000, 60_000, each=30),
    "test": Split("test", 0, 10_000, each=100),
}


def read_pictures(source: Source, *, folder: Path, revision: str) -> dict[str, Pictures]:
    """Both published parts, {"train", "test"}, from the Hugging Face hub or from the IDX files of Debian's package.

    source: "hub" (at this revision), "idx" (files in this folder), or "auto": the hub where it is reachable, else the
    files. Pixels and order are the same.
    Raises InputError where neither can be read.
    """
    if source == "idx":
        return _read_idx(folder)
    try:
        return _read_hub(revision)
    except OSError as error:  # no connection, or no such data set or revision
        if source == "auto" and folder.is_dir():
            return _read_idx(folder)
        raise InputError(
            f"Fashion-MNIST: cannot load {HUB_NAME} (revision {revision}) from the hub, and there are no IDX files in "
            f"{folder}. Without a network: apt-get install dataset-fashion-mnist ({error})"
        ) from error


def _read_hub(revision: str) -> dict[str, Pictures]:
    published = datasets.load_dataset(HUB_NAME, revision=revision).with_format("numpy")
    return {part: Pictures(np.stack(published[part]["image"][:]), published[part]["label"][:]) for part in IDX_PREFIX}


def _read_idx(folder: Path) -> dict[str, Pictures]:
    parts = {}
    for part, prefix in IDX_PREFIX.items():
        images = _read_idx_array(folder / f"{prefix}-images-idx3-ubyte.gz", dimensions=3)
        parts[part] = Pictures(images, _read_idx_array(folder / f"{prefix}-labels-idx1-ubyte.gz", dimensions=1))
    return parts


def _read_idx_array(path: Path, dimensions: int) -> np.ndarray:
    """IDX: two zero bytes, the type (8 = uint8), the number of dimensions, each size as big-endian uint32, the data."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot read it ({error}); apt-get install dataset-fashion-mnist") from error
    header = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[i : i + 4]) for i in range(4, header, 4))
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != header + math.prod(shape):
        raise InputError(f"{path}: not a complete IDX file of {dimensions}-dimensional uint8 data.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def make_splits(parts: Mapping[str, Pictures], splits: Mapping[str, Split] = SPLITS) -> dict[str, datasets.Dataset]:
    """The data sets of the scenario (columns image, label, domain), clean rows before half, published order within.

    The pictures of the domains are distinct: of every class, `clean` takes the first and `half` the next ones.
    Raises InputError where a part has too few pictures of a class.
    """
    return {name: _make_split(name, parts[split.part], split) for name, split in splits.items()}


def _make_split(name: str, pictures: Pictures, split: Split) -> datasets.Dataset:
    labels = pictures.labels[split.first : split.last]
    if split.each is None:
        rows = {"clean": split.first + np.arange(len(labels))}
    else:
        of_class = [split.first + np.flatnonzero(labels == c) for c in range(len(CLASS_NAMES))]
        if min(map(len, of_class)) < 2 * split.each:
            raise InputError(f"Fashion-MNIST: the split {name!r} needs {2 * split.each} pictures of every class.")
        rows = {
            "clean": np.sort(np.concatenate([c[: split.each] for c in of_class])),
            "half": np.sort(np.concatenate([c[split.each : 2 * split.each] for c in of_class])),
        }
    columns: dict[str, list] = {"image": [], "label": [], "domain": []}
    for domain, chosen in rows.items():
        shown = pictures.images[chosen]  # fancy indexing copies
        if domain == "half":
            shown[:, HALF:] = 0
        columns["image"] += [{"bytes": _png(image), "path": None} for image in shown]
        columns["label"] += pictures.labels[chosen].tolist()
        columns["domain"] += [domain] * len(chosen)
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return buffer.getvalue()
