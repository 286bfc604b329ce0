"""Where the splits of a dataset lie: Parquet, Arrow and CSV files, folders of images, a repository of the Hub.

Whatever they are, a split is read as Parquet with the features that the `datasets` library writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet

from mergeline.errors import InputError, nearest

SUFFIXES = (".parquet", ".arrow", ".csv")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
IMAGE_FOLDER_COLUMNS = ("image", "label")
TOKENIZER = "tokenizer.json"


def splits_of(folder: Path) -> dict[str, Path]:
    """The splits of a dataset's folder by name: `<split>.parquet`, `.arrow`, `.csv`, or `<split>/<class>/<image>`.

    Where a split is there in several ways, the first kind in this order counts.
    """
    found = {path.stem: path for suffix in reversed(SUFFIXES) for path in sorted(folder.glob(f"*{suffix}"))}
    folders = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and _images(path)}
    return dict(sorted((folders | found).items()))


def split_of(folder: Path, split: str) -> Path:
    """Where a split lies. Raises InputError naming the splits that are there."""
    splits = splits_of(folder)
    if split not in splits:
        raise InputError(f"'{split}' is not a split of {folder} ({', '.join(splits)}){nearest(split, splits)}")
    return splits[split]


def columns_of(source: Path) -> list[str]:
    """Names of the columns of a split. Raises OSError or ArrowException where it is none of its kind."""
    if source.is_dir():
        return list(IMAGE_FOLDER_COLUMNS)
    return pyarrow.parquet.read_schema(source).names if source.suffix == ".parquet" else _table(source).column_names


def values_of(source: Path, column: str) -> list[str]:
    """The different values of a column of a file, as text."""
    parquet = source.suffix == ".parquet"
    table = pyarrow.parquet.read_table(source, columns=[column]) if parquet else _table(source)
    return sorted({str(value) for value in table[column].to_pylist()})


def rows_of(source: Path, where: Mapping[str, str]) -> int:
    """How many rows of a file have these values in these columns. Raises KeyError where there is no such column."""
    parquet = source.suffix == ".parquet"
    table = pyarrow.parquet.read_table(source, columns=list(where)) if parquet and where else _table(source)
    columns = [[str(found) == str(value) for found in table[column].to_pylist()] for column, value in where.items()]
    return sum(map(all, zip(*columns, strict=True))) if columns else table.num_rows


def tokenizer_file(place: Path) -> Path:
    """`tokenizer.json`: the file itself, or the one in a folder, as checkpoints have it. InputError where it is not."""
    file = place / TOKENIZER if place.is_dir() else place
    if not file.is_file():
        raise InputError(f"the file '{file}' does not exist; name a {TOKENIZER}, or a folder that has one")
    return file


def write_parquet(source: Path, target: Path, label_column: str) -> None:
    """Write a split as Parquet. Labels without names get those that all splits of their folder have, in order.

    Raises InputError where the source cannot be read.
    """
    import datasets

    if source.is_dir():
        _save(_from_images(source), target)
        return
    try:
        table = datasets.Dataset(_table(source))
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        raise InputError(f"{source}: not a file of the kind {source.suffix}: {error}") from error
    if label_column in table.column_names and not isinstance(table.features[label_column], datasets.ClassLabel):
        table = _named(table, source, label_column)
    _save(table, target)


def _save(table: Any, target: Path) -> None:
    """As Parquet, without the library's progress bar: it writes to logs, too."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        table.to_parquet(target)
    finally:
        if shown:
            datasets.enable_progress_bars()


def download_split(repository: str, revision: str, split: str, target: Path, label_column: str) -> None:
    """Write a split of a dataset repository of the Hub, at one commit, as Parquet.

    Address, token, cache and offline mode are huggingface_hub's (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE); no
    code of the repository runs. Raises InputError where the revision or the split is not to be had.
    """
    import datasets
    from huggingface_hub import snapshot_download

    place = f"hub dataset {repository}@{revision[:12]}"
    try:
        folder = snapshot_download(repository, repo_type="dataset", revision=revision)
    except (OSError, ValueError) as error:  # what huggingface_hub raises are kinds of these
        raise InputError(f"{place}: cannot be downloaded: {error}") from error
    with TemporaryDirectory(prefix="mergeline-") as aside:
        try:
            table = datasets.load_dataset(folder, split=split, cache_dir=aside)
        except Exception as error:  # the library raises many kinds, each about this repository
            raise InputError(f"{place}: split '{split}' cannot be read: {error}") from error
        features = table.features.get(label_column)
        if features is not None and not isinstance(features, datasets.ClassLabel):
            table = table.class_encode_column(label_column)
        _save(table, target)


def fingerprint(source: Path) -> tuple[Any, ...]:
    """What changes when a split, or one beside it that names the classes too, does: paths, sizes and times."""
    files = (path for path in sorted(source.parent.rglob("*")) if path.is_file())
    return tuple((str(path), status.st_size, status.st_mtime_ns) for path in files for status in [path.stat()])


def _images(folder: Path) -> list[Path]:
    """The images of a split by class: <split>/<class>/<image>."""
    return sorted(path for path in folder.glob("*/*") if path.suffix.lower() in IMAGES)


def _from_images(source: Path) -> Any:
    import datasets

    siblings = [path for path in source.parent.iterdir() if path.is_dir()]
    names = sorted({image.parent.name for folder in siblings for image in _images(folder)})
    images = _images(source)
    columns = {
        "image": [{"bytes": image.read_bytes(), "path": None} for image in images],
        "label": [names.index(image.parent.name) for image in images],
    }
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    return datasets.Dataset.from_dict(columns, features=features)


def _named(table: Any, source: Path, label_column: str) -> Any:
    """The labels as places among their different values in all files beside this one; integers keep their order."""
    import datasets

    beside = [path for path in splits_of(source.parent).values() if path.is_file()]
    tables = [_table(path) for path in beside if path.suffix == source.suffix]
    values = {
        value for other in tables if label_column in other.column_names for value in other[label_column].to_pylist()
    }
    if None in values:
        raise InputError(f"{source}: column {label_column!r} has rows without a label")
    names = [str(value) for value in _in_order(sorted(values, key=str))]
    labels = [names.index(str(value)) for value in table[label_column][:]]
    others = table.remove_columns(label_column)
    return others.add_column(label_column, labels).cast_column(label_column, datasets.ClassLabel(names=names))


def _in_order(values: Sequence[Any]) -> list[Any]:
    return sorted(values) if all(isinstance(value, int) for value in values) else list(values)


def _table(source: Path) -> pyarrow.Table:
    if source.suffix == ".csv":
        return pyarrow.csv.read_csv(source)
    if source.suffix == ".parquet":
        return pyarrow.parquet.read_table(source)
    try:
        return pyarrow.ipc.open_stream(source.read_bytes()).read_all()  # as `datasets` writes them
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(source.read_bytes()).read_all()  # as Feather does
