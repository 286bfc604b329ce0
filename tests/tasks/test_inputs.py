"""Splits brought into the content store, whatever kind of source they come from."""

import numpy as np
import pytest
from PIL import Image

from mergeline.plan import Dataset
from tasks.inputs import take_slice
from tests.texts import write_texts, write_tokenizer


def test_an_image_folder_is_converted_once_and_again_where_a_file_changed(state, tmp_path):
    for i, name in enumerate(("cat", "dog")):
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        Image.fromarray(np.full((2, 2), i, np.uint8)).save(tmp_path / "data" / "test" / name / "0.png")
    dataset = Dataset(path=tmp_path / "data", prototypes="prototypes.safetensors")
    taken = take_slice(dataset, "test", {})
    assert taken.load().labels.tolist() == [0, 1]
    assert take_slice(dataset, "test", {}).file == taken.file
    (tmp_path / "data" / "test" / "dog" / "0.png").rename(tmp_path / "data" / "test" / "cat" / "1.png")
    changed = take_slice(dataset, "test", {})
    assert changed.load().labels.tolist() == [0, 0]
    assert changed.file.sha256 != taken.file.sha256


def test_texts_are_tokens_and_the_tokenizer_is_part_of_the_slice(state, tmp_path):
    tokenizer = write_tokenizer(tmp_path / "base")
    write_texts(tmp_path / "data" / "test.parquet", ["chess", "game of chess"], [0, 1], ["a", "b"])
    dataset = Dataset(path=tmp_path / "data", prototypes="p", text_column="text", tokenizer=tokenizer, max_length=4)
    taken = take_slice(dataset, "test", {})
    assert taken.has_texts and taken.load().inputs[:, 0].tolist() == [[2, 6, 3, 0], [2, 4, 5, 3]]
    tokenizer.write_text(tokenizer.read_text().replace("chess", "chest"))
    changed = take_slice(dataset, "test", {})
    assert changed != taken and changed.load().inputs[0, 0].tolist() == [2, 1, 3, 0]


def test_a_slice_of_pictures_is_framed_and_scaled_as_the_plan_says(state, tmp_path):
    (tmp_path / "data" / "test" / "cat").mkdir(parents=True)
    for i, size in enumerate([(12, 9), (6, 6)]):
        Image.new("RGB", size, (51, 102, 153)).save(tmp_path / "data" / "test" / "cat" / f"{i}.png")
    dataset = Dataset(path=tmp_path / "data", resize=4, crop=3, mean=[0.2, 0.2, 0.2], std=[1, 1, 2])
    inputs = take_slice(dataset, "test", {}).load().inputs
    assert inputs.shape == (2, 3, 3, 3)
    assert inputs[1, :, 1, 1].tolist() == pytest.approx([0.0, 0.2, 0.2], abs=1e-6)
