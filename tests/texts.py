"""A tokenizer of a few words and labelled texts, written where a test wants them."""

from collections.abc import Sequence
from pathlib import Path

import datasets

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "game", "of", "chess", "mail", "server", "shared", "library", "ships")


def write_tokenizer(folder: Path) -> Path:
    """`tokenizer.json` of whole words; like published ones, it says to pad to a fixed length."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=64, pad_id=0, pad_token="[PAD]")
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def write_texts(
    file: Path, texts: Sequence[object], labels: Sequence[int], names: Sequence[str], **columns: Sequence[str]
) -> Path:
    """A Parquet file with the columns text, label, and others of strings."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
        | {name: datasets.Value("string") for name in columns}
    )
    rows = {"text": list(texts), "label": list(labels)} | {name: list(values) for name, values in columns.items()}
    file.parent.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    return file
