"""Splits brought into the content store, whatever kind of source they come from."""

import numpy as np
import pytest
from PIL import Image

from mergeline.errors import InputError
from mergeline.plan import Dataset
from tasks.inputs import read_prototypes, take_prototypes, take_slice
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


def test_what_is_wrong_with_a_file_is_said_of_the_users_not_of_the_copy_in_the_store(state, tmp_path):
    tokenizer = write_tokenizer(tmp_path / "base")
    folder, here = tmp_path / "data", f"^{tmp_path / 'data' / 'test.parquet'}: "
    write_texts(folder / "test.parquet", ["chess", None], [0, None], ["a", "b"])
    images = Dataset(path=folder)
    texts = Dataset(path=folder, text_column="text", tokenizer=tokenizer)
    with pytest.raises(InputError, match=f"{here}row 1 of column 'text' is no text"):
        take_slice(texts, "test", {}).load()
    with pytest.raises(InputError, match=f"{here}row 1 of column 'text' is no text"):
        take_slice(texts, "test", {}).tokens()
    with pytest.raises(InputError, match=f"{here}row 1 of column 'text' is no text"):
        take_slice(texts, "test", {}).texts("text")
    with pytest.raises(InputError, match=f"'image' is not a column of {folder / 'test.parquet'}"):
        take_slice(images, "test", {}).load()
    with pytest.raises(InputError, match=f"value of column 'text' in {folder / 'test.parquet'}"):
        take_slice(images, "test", {"text": "draughts"}).rows()
    write_texts(folder / "test.parquet", ["chess", "mail"], [0, None], ["a", "b"])
    with pytest.raises(InputError, match=f"{here}row 1 of column 'label' has no label"):
        take_slice(texts, "test", {}).load()
    tokenizer.write_text("nothing")
    with pytest.raises(InputError, match=f"^{tokenizer}: not a tokenizer"):
        take_slice(texts, "test", {}).tokens()
    (tmp_path / "prototypes.safetensors").write_text("nothing")
    wrong = take_prototypes(Dataset(path=folder, prototypes=tmp_path / "prototypes.safetensors"))
    with pytest.raises(InputError, match=f"^{tmp_path / 'prototypes.safetensors'}: not a file of label prototypes"):
        read_prototypes(wrong)
