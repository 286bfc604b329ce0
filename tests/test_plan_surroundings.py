"""What a plan says about data that lies there: splits without rows, folders of pictures."""

import datasets
import numpy as np
from PIL import Image

from mergeline.plan_surroundings import column_faults

CLEAN = {"name": "tops", "where": {"domain": "clean"}}


def faults(file, task, **dataset):
    return list(column_faults("tasks[0]", task, dataset, "clothes", file))


def test_a_split_without_rows_is_called_so(tmp_path):
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]), domain=datasets.Value("string")
    )
    file = tmp_path / "test.parquet"
    datasets.Dataset.from_dict({"image": [], "label": [], "domain": []}, features=features).to_parquet(file)
    assert faults(file, CLEAN) == [f"tasks[0].split: {file} has no rows"]


def test_rows_of_a_folder_of_pictures_may_be_chosen_by_their_class(tmp_path):
    (tmp_path / "test" / "cat").mkdir(parents=True)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "test" / "cat" / "0.png")
    assert faults(tmp_path / "test", {"name": "cats", "where": {"label": "0"}}) == []
    [fault] = faults(tmp_path / "test", CLEAN)
    assert fault.startswith(f"tasks[0].where: {tmp_path / 'test'} has no column 'domain'")
