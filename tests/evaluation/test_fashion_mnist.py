"""The scenario's data: read from hub or files, cut into splits, shipped as small Parquet files."""

import gzip
import struct
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from mergeline.errors import InputError
from mergeline.evaluation.fashion_mnist import CLASS_NAMES, FEATURES, SPLITS, Split, make_splits, read_pictures

SHIPPED = Path(__file__).parents[2] / "data/datasets/fashion_mnist"


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """40 training and 40 test pictures, four of each class, no two alike."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for prefix, seed in (("train", 0), ("t10k", 1)):
        images = np.random.default_rng(seed).integers(1, 256, (40, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(40, dtype=np.uint8) % 10)
    return folder


def offline(*_: Any, **__: Any) -> None:
    raise ConnectionError("no network")


def test_idx_files_are_read_as_they_were_written(idx_folder: Path) -> None:
    parts = read_pictures("idx", folder=idx_folder, revision="unused")
    assert parts["train"].images.shape == (40, 28, 28)
    assert np.array_equal(parts["test"].images[3], np.random.default_rng(1).integers(1, 256, (40, 28, 28), np.uint8)[3])
    assert parts["test"].labels.tolist() == [i % 10 for i in range(40)]


def test_the_hub_is_asked_first_and_at_the_wanted_revision(idx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.arange(28 * 28, dtype=np.uint8).reshape(1, 28, 28)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASS_NAMES)))
    part = datasets.Dataset.from_dict({"image": list(picture), "label": [7]}, features=features)
    asked = []

    def load_dataset(name: str, revision: str) -> datasets.DatasetDict:
        asked.append((name, revision))
        return datasets.DatasetDict(train=part, test=part)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    parts = read_pictures("auto", folder=idx_folder, revision="abc")
    assert asked == [("zalando-datasets/fashion_mnist", "abc")]
    assert np.array_equal(parts["train"].images, picture) and parts["test"].labels.tolist() == [7]


def test_without_a_network_the_files_are_read(idx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert len(read_pictures("auto", folder=idx_folder, revision="main")["train"].labels) == 40


def test_without_network_and_files_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", offline)
    for source in ("auto", "hub"):
        with pytest.raises(InputError, match=r"apt-get install dataset-fashion-mnist .*no network"):
            read_pictures(source, folder=tmp_path / "none", revision="main")
    with pytest.raises(InputError, match=r"train-images.*apt-get install dataset-fashion-mnist"):
        read_pictures("idx", folder=tmp_path / "none", revision="main")


def test_damaged_idx_files_are_named(idx_folder: Path) -> None:
    labels = idx_folder / "t10k-labels-idx1-ubyte.gz"
    whole = gzip.decompress(labels.read_bytes())
    for content in (whole[:-1], whole + b"x", b"\0\0\x0d" + whole[3:], whole[:6]):
        labels.write_bytes(gzip.compress(content))
        with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte.gz: not a complete IDX file"):
            read_pictures("idx", folder=idx_folder, revision="")
    labels.write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte.gz: cannot read it"):
        read_pictures("idx", folder=idx_folder, revision="")


def test_domains_take_different_pictures_of_every_class_in_published_order(idx_folder: Path) -> None:
    parts = read_pictures("idx", folder=idx_folder, revision="")
    made = make_splits(parts, {"test": Split("test", 10, 40, each=1), "train": Split("train", 5, 25)})
    test = made["test"].with_format("numpy")
    assert test["domain"][:].tolist() == ["clean"] * 10 + ["half"] * 10
    assert test["label"][:].tolist() == [*range(10), *range(10)]
    images = test["image"][:]
    assert np.array_equal(images[:10], parts["test"].images[10:20])
    assert np.array_equal(images[10:, :14], parts["test"].images[20:30, :14]) and not images[10:, 14:].any()
    assert np.array_equal(made["train"].with_format("numpy")["image"][:], parts["train"].images[5:25])


def test_too_few_pictures_of_a_class_are_refused(idx_folder: Path) -> None:
    parts = read_pictures("idx", folder=idx_folder, revision="")
    with pytest.raises(InputError, match="'calibration' needs 4 pictures of every class"):
        make_splits(parts, {"calibration": Split("train", 10, 40, each=2)})


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> datasets.DatasetDict:
    return datasets.load_dataset(str(SHIPPED), cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize(("split", "each"), [("calibration", 30), ("validation", 40), ("test", 100)])
def test_a_shipped_split_has_its_features_and_every_class_alike(
    split: str, each: int, shipped: datasets.DatasetDict
) -> None:
    table = shipped[split]
    assert table.features == FEATURES and SPLITS[split].each == each
    pairs = list(zip(table["label"], table["domain"], strict=True))
    assert {pairs.count((label, domain)) for label in range(10) for domain in ("clean", "half")} == {each}
    assert len(pairs) == 20 * each


def test_no_shipped_picture_occurs_twice_and_thumbnails_show_the_upper_half(shipped: datasets.DatasetDict) -> None:
    upper = [
        (np.asarray(row["image"])[:14].tobytes(), np.asarray(row["image"])[14:].any(), row["domain"])
        for split in shipped.values()
        for row in split
    ]
    assert not any(lower for _, lower, domain in upper if domain == "half")
    assert sum(lower for _, lower, domain in upper if domain == "clean") > 0.9 * len(upper) / 2
    assert len({pixels for pixels, _, _ in upper}) > 0.99 * len(upper)  # a few pictures are black in their upper half


def test_the_shipped_files_are_small_and_their_licence_is_told() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 2_500_000
    assert "license: mit" in (SHIPPED / "README.md").read_text().split("---")[1]
    assert "Zalando SE" in (SHIPPED / "LICENSE").read_text()
