"""Splits of every kind of source come to the same Parquet file; what is not there is named."""

from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.feather
import pytest
import torch
from PIL import Image

from mergeline.errors import InputError
from mergeline.evaluation.datasets import read_images
from mergeline.evaluation.sources import columns_of, download_split, split_of, splits_of, values_of, write_parquet

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits of images in folders by class; `train` has a class that `test` lacks."""
    for split, names in (("train", ("bird", "cat", "dog")), ("test", ("cat", "dog"))):
        for i, name in enumerate(names):
            image = tmp_path / "animals" / split / name / "0.png"
            image.parent.mkdir(parents=True)
            Image.fromarray(np.full((2, 2), 50 * i, np.uint8)).save(image)
    return tmp_path / "animals"


def converted(source: Path) -> Path:
    target = source.parent.parent / f"{source.stem}-of-{source.suffix[1:] or 'folder'}.parquet"
    write_parquet(source, target, "label")
    return target


def test_an_image_folder_has_the_classes_of_all_splits(folder: Path) -> None:
    assert list(splits_of(folder)) == ["test", "train"]
    read = read_images(converted(split_of(folder, "test")), mean=0.0, std=1.0)
    assert read.class_names == ("bird", "cat", "dog")
    assert read.labels.tolist() == [1, 2]
    torch.testing.assert_close(read.inputs[1], torch.full((1, 2, 2), 50 / 255))
    assert columns_of(folder / "test") == ["image", "label"]


def test_nothing_is_written_to_a_log_that_nobody_watches(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    write_parquet(folder / "test", tmp_path / "test.parquet", "label")
    assert capfd.readouterr().err == ""
    assert datasets.is_progress_bar_enabled(), "what its user set stays"


def test_arrow_files_of_both_formats_are_what_parquet_is(folder: Path) -> None:
    parquet = converted(split_of(folder, "test"))
    expected = read_images(parquet)
    table = pyarrow.parquet.read_table(parquet)
    other = folder.parent / "arrow"
    other.mkdir()
    with pyarrow.ipc.new_stream(other / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    pyarrow.feather.write_feather(table, other / "file.arrow", compression="uncompressed")
    for source in splits_of(other).values():
        read = read_images(converted(source))
        assert read.class_names == expected.class_names
        assert torch.equal(read.inputs, expected.inputs) and torch.equal(read.labels, expected.labels)


def test_labels_of_csv_files_are_places_among_the_values_of_all_splits(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.csv").write_text("text,label,grade\na,bad,10\nb,good,9\nc,awful,2\n")
    (data / "test.csv").write_text("text,label,grade\nd,good,10\n")
    read = datasets.Dataset.from_parquet(str(converted(data / "test.csv")), cache_dir=str(tmp_path / "cache"))
    assert read.features["label"].names == ["awful", "bad", "good"]
    assert read["label"][:] == [2]
    target = tmp_path / "grades.parquet"
    write_parquet(data / "test.csv", target, "grade")
    read = datasets.Dataset.from_parquet(str(target), cache_dir=str(tmp_path / "cache"))
    assert read.features["grade"].names == ["2", "9", "10"]
    assert values_of(data / "train.csv", "grade") == ["10", "2", "9"]


def test_a_split_that_is_not_there_and_a_file_of_another_kind_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"'tset' is not a split of .*animals \(test, train\); did you mean 'test'"):
        split_of(folder, "tset")
    (folder / "odd.arrow").write_bytes(b"no arrow file")
    with pytest.raises(InputError, match=r"odd.arrow: not a file of the kind .arrow"):
        converted(folder / "odd.arrow")


def test_a_hub_dataset_is_read_at_its_commit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository" / "data"
    repository.mkdir(parents=True)
    converted(split_of(folder, "test")).rename(repository / "test-00000-of-00001.parquet")
    asked = []

    def snapshot(name: str, **options: str) -> str:
        asked.append((name, options))
        return str(repository.parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    target = tmp_path / "split.parquet"
    download_split("org/animals", REVISION, "test", target, "label")
    assert asked == [("org/animals", {"repo_type": "dataset", "revision": REVISION})]
    assert read_images(target).class_names == ("bird", "cat", "dog")
    with pytest.raises(InputError, match=r"org/animals@0123456789ab: split 'tset' cannot be read: .*tset"):
        download_split("org/animals", REVISION, "tset", target, "label")


def test_a_hub_dataset_that_is_out_of_reach_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"hub dataset org/animals@0123456789ab: cannot be downloaded"):
        download_split("org/animals", REVISION, "test", tmp_path / "split.parquet", "label")
