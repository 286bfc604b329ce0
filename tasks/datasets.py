"""Stage: the shipped data sets and label prototypes, from what they are made of. Nothing is cached."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prefect import task

if TYPE_CHECKING:
    from mergeline.evaluation.fashion_mnist import Split


@task
def write_splits(
    source: Literal["auto", "hub", "idx"],
    idx_folder: Path,
    revision: str,
    output: Path,
    raw: Path,
    splits: Mapping[str, "Split"] | None,
) -> list[Path]:
    """One Parquet file per split: the training pictures go to `raw`, which git ignores, all others to `output`."""
    from mergeline.evaluation import fashion_mnist

    pictures = fashion_mnist.read_pictures(source, folder=idx_folder, revision=revision)
    files = []
    for name, split in fashion_mnist.make_splits(pictures, splits or fashion_mnist.SPLITS).items():
        files.append((raw if name == "train" else output) / f"{name}.parquet")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        split.to_parquet(files[-1])
    return files


@task
def write_prototypes(output: Path) -> Path:
    """The class names' embeddings."""
    from mergeline.evaluation.fashion_mnist import CLASS_NAMES
    from mergeline.evaluation.prototypes import encode_class_names, save_prototypes

    file = output / "prototypes.safetensors"
    save_prototypes(encode_class_names(CLASS_NAMES), file)
    return file


@task
def write_package_splits(index: Path | None, output: Path) -> list[Path]:
    """One Parquet file per split of the packages in a saved index, or in that of this machine."""
    from mergeline.evaluation import debian_packages

    packages = debian_packages.read_index(debian_packages.saved_index(index) if index else debian_packages.dump_index())
    files = []
    output.mkdir(parents=True, exist_ok=True)
    for name, examples in debian_packages.choose_examples(packages).items():
        files.append(output / f"{name}.parquet")
        debian_packages.as_dataset(examples).to_parquet(files[-1])
    return files


@task
def write_package_prototypes(output: Path) -> Path:
    """The embeddings of the names of all tasks' classes."""
    from mergeline.evaluation.debian_packages import CLASS_NAMES, prompts
    from mergeline.evaluation.prototypes import encode_prompts, save_prototypes

    file = output / "prototypes.safetensors"
    save_prototypes(encode_prompts(CLASS_NAMES, prompts()), file)
    return file
