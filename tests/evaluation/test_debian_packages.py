"""Text tasks from a package index, and the splits that are in the repository."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from mergeline.errors import InputError
from mergeline.evaluation import debian_packages
from mergeline.evaluation.debian_packages import (
    ALIKE,
    CLASS_NAMES,
    SIZES,
    TASKS,
    Package,
    as_dataset,
    choose_examples,
    prompts,
    read_index,
)
from mergeline.evaluation.near_duplicates import near_duplicates
from mergeline.evaluation.prototypes import load_prototypes

SHIPPED = Path(__file__).parents[2] / "data/datasets/debian_packages"

INDEX = """Package: zchess
Source: chess (1.2)
Description: a game of chess
Tag: role::program, uitoolkit::gtk,
 uitoolkit::qt, implemented-in::c++
Section: games

Package: chess-data
Source: chess
Description: pieces: wood and marble
 in full
Tag: role::app-data
Section: games

Package: libodd
Description: odd
Tag: role::TODO, implemented-in::brainf
Section: libs

Package: closed
Description: a game that is not free
Tag: role::program
Section: non-free/games

Package: zchess
Description: another version
Section: games
"""


def test_an_index_is_read_by_source_and_labels_are_those_that_are_unique() -> None:
    assert read_index(INDEX) == [
        Package("chess-data", "chess", "pieces: wood and marble in full", {"section": "games", "role": "app-data"}),
        Package(
            "zchess",
            "chess",
            "a game of chess",
            {"section": "games", "role": "program", "implemented-in": "c++"},
        ),
    ]


def made_up(count: int) -> list[Package]:
    """Packages in pairs of one source, whose descriptions are alike; every third source says what the next one says."""
    packages = []
    for i in range(count):
        topic = f"{i - i % 3} {(i - i % 3) * 7} about"
        labels = {"role": ("program", "plugin")[i % 2], "section": ("games", "net", "mail")[i % 3]}
        packages += [Package(f"p{i}-{part}", f"p{i}", f"{topic} {part}", labels) for part in ("x", "y")]
    return packages


def test_a_source_lies_in_one_split_and_counts_once_per_class() -> None:
    chosen = choose_examples(made_up(300))
    places: dict[str, set[str]] = {}
    for split, examples in chosen.items():
        for example in examples:
            places.setdefault(example.package.source, set()).add(split)
        counted = Counter((example.package.source, example.label) for example in examples)
        assert max(counted.values(), default=1) == 1
    assert all(len(splits) == 1 for splits in places.values())
    assert {split for splits in places.values() for split in splits} == set(SIZES)
    for i in range(0, 300, 3):  # three sources that say nearly the same
        assert len(places[f"p{i}"] | places[f"p{i + 1}"] | places[f"p{i + 2}"]) == 1


def test_classes_are_as_even_as_the_limit_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian_packages, "SHARES", {"test": 1.0})
    monkeypatch.setattr(debian_packages, "SIZES", {"test": 25})
    packages = [
        Package(f"p{i}", f"p{i}", f"words{i} of{i} its{i} own{i}", {"role": "plugin" if i < 5 else "program"})
        for i in range(60)
    ]
    test = choose_examples(packages)["test"]
    assert Counter(example.label for example in test) == {"role::plugin": 5, "role::program": 20}
    assert choose_examples(list(reversed(packages)))["test"] == test, "the order of the index does not matter"


def test_the_dataset_names_every_class_of_every_task() -> None:
    dataset = as_dataset(choose_examples(read_index(INDEX))["test"] or choose_examples(made_up(9))["test"])
    assert dataset.features["label"].names == list(CLASS_NAMES)
    assert all(name.startswith(task) for name, task in zip(named(dataset), dataset["task"][:], strict=True))


def named(dataset: Any) -> list[str]:
    return [CLASS_NAMES[label] for label in dataset["label"][:]]


def test_an_index_without_tags_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian_packages.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="apt-cache is not installed"):
        debian_packages.dump_index()


def test_a_saved_index_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: cannot be read .*No such file.*apt-cache dumpavail"):
        debian_packages.saved_index(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="binary: cannot be read"):
        debian_packages.saved_index(tmp_path / "binary")


# --- what is in the repository ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[dict[str, Any]]]:
    return {split: pyarrow.parquet.read_table(SHIPPED / f"{split}.parquet").to_pylist() for split in SIZES}


def test_every_task_has_enough_test_examples(shipped: dict[str, list[dict[str, Any]]]) -> None:
    counted = Counter(row["task"] for row in shipped["test"])
    assert set(counted) == set(TASKS) and min(counted.values()) >= 1500
    for split, rows in shipped.items():
        assert max(Counter(row["task"] for row in rows).values()) <= SIZES[split]
        assert all(CLASS_NAMES[row["label"]].startswith(f"{row['task']}::") for row in rows)


def test_no_source_and_no_near_duplicate_lies_in_two_splits(shipped: dict[str, list[dict[str, Any]]]) -> None:
    rows = [(split, row) for split, rows in shipped.items() for row in rows]
    splits: dict[str, set[str]] = {}
    for split, row in rows:
        splits.setdefault(row["source"], set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    pairs = list(near_duplicates([row["text"] for _, row in rows], ALIKE))
    assert pairs, "a package is an example of several tasks"
    for i, j in pairs:
        assert rows[i][0] == rows[j][0], (rows[i], rows[j])


def test_near_duplicates_within_a_split_are_of_different_classes(shipped: dict[str, list[dict[str, Any]]]) -> None:
    for rows in shipped.values():
        for i, j in near_duplicates([row["text"] for row in rows], ALIKE):
            assert rows[i]["label"] != rows[j]["label"], (rows[i], rows[j])


def test_the_shipped_prototypes_are_those_of_the_classes() -> None:
    prototypes = load_prototypes(SHIPPED / "prototypes.safetensors")
    assert prototypes.class_names == CLASS_NAMES and prototypes.rows.shape == (35, 384)
    assert prototypes.prompts == tuple(text for own in prompts() for text in own)
    assert (prototypes.rows @ prototypes.rows.T - torch.eye(35)).max() < 0.95


def test_the_data_set_is_small() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 1_000_000
