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


def write_gpt2(folder: Path) -> Path:
    """config.json of a tiny GPT-2 for these words."""
    from transformers import GPT2Config

    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    GPT2Config(vocab_size=len(WORDS), bos_token_id=2, eos_token_id=3, pad_token_id=0, **shape).save_pretrained(folder)
    return folder


def write_bert(folder: Path, labels: int = 2) -> Path:
    """config.json of a tiny BERT that tells classes of these words apart."""
    from transformers import BertConfig

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, num_labels=labels, **shape).save_pretrained(folder)
    return folder


def write_t5(folder: Path) -> Path:
    """config.json of a tiny T5 for these words."""
    from transformers import T5Config

    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 3}
    T5Config(vocab_size=len(WORDS), **tokens, **shape).save_pretrained(folder)
    return folder
