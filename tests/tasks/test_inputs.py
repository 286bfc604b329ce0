"""Splits brought into the content store, whatever kind of source they come from."""

import numpy as np
from PIL import Image

from mergeline.plan import Dataset
from tasks.inputs import take_slice


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
