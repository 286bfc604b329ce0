"""Which files of a folder are its checkpoint: the weights, the shards of an index, and what goes along with them."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from mergeline.errors import InputError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
INDEX = ".safetensors.index.json"
INDEXES = (INDEX, ".bin.index.json")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

# The first that is there is the checkpoint; safetensors before pickles, as from_pretrained does.
WEIGHTS = (
    *ADAPTER_WEIGHTS,
    "model.safetensors",
    f"*{INDEX}",
    "*.safetensors",
    "pytorch_model.bin",
    "*.bin.index.json",
    "*.bin",
    "*.pt",
    "*.pth",
)
TRAINER = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*")  # of a run, not of its model

# What `from_pretrained` reads beside the weights: configuration, tokenizer, preprocessing, and the model's own code,
# which only a user who trusts it runs (trust_remote_code).
COMPANIONS = (
    "config.json",
    "generation_config.json",
    ADAPTER_CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "configuration_*.py",
    "modeling_*.py",
    "tokenization_*.py",
    "processing_*.py",
    "image_processing_*.py",
)


def is_index(name: str) -> bool:
    """Whether a file name is that of the index of a sharded checkpoint."""
    return name.endswith(INDEXES)


def choose_weights(names: Collection[str], folder: str) -> str:
    """The file of a folder to open: the weights, or the index of their shards. InputError for none or several."""
    names = [name for name in names if not _matches(name, TRAINER)]
    for pattern in WEIGHTS:
        found = sorted(name for name in names if fnmatchcase(name, pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"{folder}: holds {len(found)} {pattern} files; name the one to open")
    raise InputError(
        f"{folder}: holds no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file or index; name a checkpoint file"
    )


def output_name(source: Path) -> str:
    """What the merge of checkpoints like `source`, a file or a folder, is to be called for others to find it."""
    names = [path.name for path in source.iterdir()] if source.is_dir() else [source.name]
    return ADAPTER_WEIGHTS[0] if set(ADAPTER_WEIGHTS) & set(names) else "model.safetensors"


def shard_size(file: str, max_shard_size: int | None) -> int | None:
    """The most bytes of a file of that name: PEFT reads an adapter from one file only."""
    return None if file in ADAPTER_WEIGHTS else max_shard_size


def companions(names: Iterable[str]) -> list[str]:
    """Those of the names that go along with weights, sorted."""
    return sorted(name for name in names if _matches(name, COMPANIONS))


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name of its shard. InputError for what is no index, or points out of its folder."""
    try:
        places = json.loads(index.read_text())["weight_map"]
        whole = bool(places) and all(isinstance(file, str) for file in places.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError(
            f"{index}: is not the index of a sharded checkpoint (it has no 'weight_map'); download it again"
        )
    for file in places.values():
        if Path(file).name != file:  # an index from elsewhere must not point out of its folder
            raise InputError(
                f"{index}: names the shard '{file}'; shards lie in the folder of the index, without a path"
            )
    return places


def checkpoint_files(path: Path) -> dict[str, Path]:
    """The files that make up a local checkpoint, by name: of a folder, or of an index in it, weights and companions.

    InputError where there is none, or a shard is missing.
    """
    folder = path if path.is_dir() else path.parent
    names = [file.name for file in folder.iterdir() if file.is_file()]
    chosen = choose_weights(names, str(folder)) if path.is_dir() else path.name
    shards = set(weight_map(folder / chosen).values()) if is_index(chosen) else set()
    if missing := sorted(shards - set(names)):
        raise InputError(f"{folder / chosen}: the shard {missing[0]} is missing; download it into {folder}")
    return {name: folder / name for name in sorted({chosen, *shards, *companions(names)})}


def digest_of_files(digests: Mapping[str, str]) -> str:
    """The digest of many files: that of their lines "sha256  name" in the order of names, as sha256sum prints them."""
    return hashlib.sha256("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()).hexdigest()


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
