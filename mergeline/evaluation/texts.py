"""Labelled texts as token ids: one tensor for ids and attention mask, so that it is cut into batches as images are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mergeline.errors import InputError
from mergeline.evaluation.datasets import LabelledExamples, read_labels, read_rows
from mergeline.evaluation.sources import tokenizer_file

if TYPE_CHECKING:
    import datasets
    from tokenizers import Tokenizer


def read_texts(
    file: Path,
    *,
    tokenizer: Path,
    where: Mapping[str, str] | None = None,
    text_column: str = "text",
    label_column: str = "label",
    max_length: int = 128,
) -> LabelledExamples:
    """Read a Parquet file with a column of texts and a ClassLabel column.

    tokenizer: a `tokenizer.json`, or the folder of a checkpoint that has one. where: keep the rows whose column has
    this value. inputs: [n, 2, length] int64 as of `tokenize`.
    Raises InputError naming what is not there (column, value), what is, and the nearest name; or a row without text.
    """
    table = read_rows(file, where, (text_column, label_column))
    texts = texts_of(table, text_column, file)
    labels, class_names = read_labels(table, label_column, file)
    return LabelledExamples(tokenize(texts, tokenizer, max_length), labels, class_names)


def texts_of(table: datasets.Dataset, column: str, file: Path) -> list[str]:
    """The texts of a column. Raises InputError naming the row that is none."""
    texts = table[column][:]
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{file}: row {i} of column {column!r} is no text but {text!r}.")
    return list(texts)


def tokenize(texts: Sequence[str], tokenizer: Path, max_length: int = 128) -> Tensor:
    """Token ids and attention mask of every text, [n, 2, length] int64.

    Texts of more than max_length tokens are cut; shorter ones than the longest are padded at the end, with mask 0.
    Raises InputError where the package `tokenizers` is missing, or the file is none of its.
    """
    encoder = open_tokenizer(tokenizer)
    padding = encoder.padding or {}
    token = str(padding.get("pad_token", "[PAD]"))
    pad = int(padding.get("pad_id", encoder.token_to_id(token) or 0))
    encoder.enable_padding(pad_id=pad, pad_token=token)
    encoder.enable_truncation(max_length)
    encoded = encoder.encode_batch(list(texts))
    return torch.tensor([[one.ids, one.attention_mask] for one in encoded])


def open_tokenizer(place: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, or of a folder with one. Raises InputError as `tokenize` does."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InputError("texts need the package tokenizers: pip install 'mergeline[text]'") from error
    file = tokenizer_file(place)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more special
        raise InputError(f"{file}: not a tokenizer of the tokenizers library: {error}") from error
