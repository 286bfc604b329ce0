"""Reading labelled images: pixels, filters, and errors that say what would be right."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mergeline.errors import InputError
from mergeline.evaluation.datasets import LabelledExamples, load_images, sample_rows

FEATURES = datasets.Features(
    image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]), domain=datasets.Value("string")
)


def png(pixels: np.ndarray, mode: str = "L") -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder: Path, images: list[dict[str, object]], features: datasets.Features = FEATURES) -> Path:
    columns = {"image": images, "label": [0, 1, 1][: len(images)], "domain": ["clean", "half", "half"][: len(images)]}
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "test.parquet")
    return folder


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Three pictures of 2 x 3 pixels, with the values 0 to 17."""
    return write(tmp_path / "animals", [png(p) for p in np.arange(18, dtype=np.uint8).reshape(3, 2, 3)])


def test_pixels_are_scaled_then_normalised(animals: Path) -> None:
    read = load_images(animals, "test", mean=0.5, std=0.25)
    expected = (torch.arange(18).view(3, 1, 2, 3) / 255 - 0.5) / 0.25
    torch.testing.assert_close(read.inputs, expected)
    assert read.labels.tolist() == [0, 1, 1] and read.labels.dtype == torch.int64
    assert read.class_names == ("cat", "dog") and len(read) == 3


def test_black_is_normalised_as_fashion_mnists_by_default(tmp_path: Path) -> None:
    folder = write(tmp_path / "black", [png(np.zeros((2, 2), np.uint8))])
    torch.testing.assert_close(load_images(folder, "test").inputs.unique(), torch.tensor([-0.2860 / 0.3530]))


def test_where_keeps_the_rows_with_that_value(animals: Path) -> None:
    half = load_images(animals, "test", where={"domain": "half"}, mean=0.0, std=1.0)
    torch.testing.assert_close(half.inputs, torch.arange(6, 18).view(2, 1, 2, 3) / 255)
    assert half.labels.tolist() == [1, 1]


def test_colour_pictures_have_three_channels(tmp_path: Path) -> None:
    folder = write(tmp_path / "colour", [png(np.full((2, 2, 3), (255, 0, 51), np.uint8), "RGB")])
    pixels = load_images(folder, "test", mean=0.0, std=1.0).inputs
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


def test_a_wrong_path_split_column_or_value_is_named_with_the_nearest_right_one(animals: Path) -> None:
    for path, split, where, message in (
        (
            animals.parent / "animal",
            "test",
            None,
            r"'animal' is not a folder in .* \(animals\); did you mean 'animals'",
        ),
        (animals.parent / "a" / "b", "test", None, r"'b' is not a folder in .*a \(there is none\)"),
        (animals, "tset", None, r"'tset' is not a split of .*animals \(test\); did you mean 'test'"),
        (animals, "test", {"domian": "half"}, r"'domian' is not a column of .*test.parquet .*did you mean 'domain'"),
        (animals, "test", {"domain": "hlaf"}, r"'hlaf' is not a value of column 'domain'.*clean, half.*'half'"),
        (animals, "test", {"domain": "clean", "label": "1"}, r"'1' is not a value of column 'label' in .* \(0\)"),
    ):
        with pytest.raises(InputError, match=message):
            load_images(path, split, where=where)
    with pytest.raises(InputError, match=r"'picture' is not a column of .* \(image, label, domain\)"):
        load_images(animals, "test", image_column="picture")


def test_columns_of_another_type_are_refused(animals: Path) -> None:
    with pytest.raises(InputError, match="'domain' is not of type ClassLabel"):
        load_images(animals, "test", label_column="domain")
    with pytest.raises(InputError, match="'label' is not of type Image"):
        load_images(animals, "test", image_column="label")


def test_broken_pictures_and_files_are_named(tmp_path: Path) -> None:
    good = png(np.zeros((2, 2), np.uint8))
    with pytest.raises(InputError, match=r"test.parquet, picture 1: cannot be decoded"):
        load_images(write(tmp_path / "a", [good, {"bytes": b"no picture", "path": None}]), "test")
    with pytest.raises(InputError, match=r"differ in shape .*\(1, 2, 2\), \(1, 3, 2\)"):
        load_images(write(tmp_path / "b", [good, png(np.zeros((3, 2), np.uint8))]), "test")
    (tmp_path / "a" / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"test.parquet: not a Parquet file"):
        load_images(tmp_path / "a", "test")


def test_an_empty_split_and_a_label_outside_the_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test.parquet: no rows"):
        load_images(write(tmp_path / "empty", []), "test")
    one_class = datasets.Features(FEATURES | {"label": datasets.ClassLabel(names=["cat"])})
    folder = write(tmp_path / "labels", [png(np.zeros((2, 2), np.uint8))] * 2)
    table = pyarrow.parquet.read_table(folder / "test.parquet")
    pyarrow.parquet.write_table(table.replace_schema_metadata(one_class.arrow_schema.metadata), folder / "test.parquet")
    with pytest.raises(InputError, match=r"row 1 of column 'label' has the label 1, outside the range of the 1 class"):
        load_images(folder, "test")


@given(rows=st.integers(1, 30), count=st.integers(1, 30))
def test_draws_share_no_row_keep_the_order_and_are_the_same_again(rows: int, count: int) -> None:
    pictures = LabelledExamples(torch.arange(rows).view(rows, 1, 1, 1).float(), torch.arange(rows), ("a",))
    draws = [sample_rows(pictures, count, draw).labels.tolist() for draw in range(rows // count)]
    assert all(len(draw) == count and draw == sorted(draw) for draw in draws)
    assert len({row for draw in draws for row in draw}) == count * len(draws)
    assert draws == [sample_rows(pictures, count, draw).inputs.flatten().tolist() for draw in range(len(draws))]
    with pytest.raises(InputError, match=f"and there are {rows}"):
        sample_rows(pictures, count, len(draws))


def gradient(width: int, height: int) -> np.ndarray:
    """Grey grows from left to right."""
    return np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))


def test_pictures_of_any_size_are_brought_to_one(tmp_path: Path) -> None:
    """The shorter side is resized, as wide as it was high; the square is cut from the middle."""
    folder = write(tmp_path / "sizes", [png(gradient(80, 40)), png(gradient(30, 90)), png(gradient(20, 20))])
    read = load_images(folder, "test", mean=0.0, std=1.0, resize=20, crop=10)
    assert read.inputs.shape == (3, 1, 10, 10)
    left, right = read.inputs[:, 0, 5, 0], read.inputs[:, 0, 5, -1]
    spans = (right - left).tolist()  # 9 of 40, of 20 and of 20 steps
    assert spans == pytest.approx([9 / 40, 9 / 20, 9 / 20], abs=0.03)
    assert ((left + right) / 2).tolist() == pytest.approx([0.5, 0.5, 0.5], abs=0.02)


def test_the_middle_is_that_of_torchvision(tmp_path: Path) -> None:
    """CenterCrop: an odd rest is rounded to even (7 x 6 pixels less 4: 1.5 is 2, 1 is 1)."""
    pixels = np.arange(42, dtype=np.uint8).reshape(6, 7)
    read = load_images(write(tmp_path / "middle", [png(pixels)]), "test", mean=0.0, std=1 / 255, crop=4)
    torch.testing.assert_close(read.inputs[0, 0], torch.from_numpy(pixels[1:5, 2:6]).float())


def test_three_numbers_are_for_red_green_and_blue_of_grey_pictures_too(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "colours",
        [png(np.full((2, 2), 51, np.uint8)), png(np.full((2, 2, 3), [51, 102, 153], np.uint8), "RGB")],
    )
    read = load_images(folder, "test", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 0.5))
    torch.testing.assert_close(read.inputs[:, :, 0, 0], torch.tensor([[0.1, 0.0, -0.2], [0.1, 0.1, 0.6]]))
    assert load_images(folder, "test", mean=0.0, std=(1.0, 1.0, 1.0)).inputs.shape == (2, 3, 2, 2)


def test_a_picture_that_is_too_small_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "small", [png(gradient(30, 30)), png(gradient(9, 30))])
    with pytest.raises(InputError, match=r"picture 1: has 9 x 30 pixels, too few for a square of 10; set resize to 10"):
        load_images(folder, "test", crop=10)
