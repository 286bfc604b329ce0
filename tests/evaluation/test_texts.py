"""Labelled texts become token ids and masks, and faults name the file."""

from pathlib import Path

import pytest
import torch

from mergeline.errors import InputError
from mergeline.evaluation.texts import read_texts, tokenize
from mergeline.evaluation.tokens import attention_mask
from tests.texts import write_texts, write_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


def test_texts_are_padded_to_the_longest_and_the_mask_says_where(tokenizer: Path) -> None:
    tokens = tokenize(["game of chess", "mail", ""], tokenizer)
    assert tokens.dtype == torch.int64
    assert tokens[:, 0].tolist() == [[2, 4, 5, 6, 3], [2, 7, 3, 0, 0], [2, 3, 0, 0, 0]]
    assert attention_mask(tokens).int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert torch.equal(tokenize(["game of chess", "mail", ""], tokenizer.parent), tokens), "a folder that has one"


def test_long_texts_are_cut_and_keep_their_ends(tokenizer: Path) -> None:
    assert tokenize(["game of chess"] * 2, tokenizer, 4)[0, 0].tolist() == [2, 4, 5, 3]


def test_rows_labels_and_names_are_read(tokenizer: Path, tmp_path: Path) -> None:
    file = write_texts(tmp_path / "test.parquet", ["chess", "mail", "of"], [0, 1, 1], ["game", "net"], task=list("aba"))
    read = read_texts(file, tokenizer=tokenizer, where={"task": "a"})
    assert read.inputs[:, 0].tolist() == [[2, 6, 3], [2, 5, 3]]
    assert (read.labels.tolist(), read.class_names, len(read)) == ([0, 1], ("game", "net"), 2)


def test_what_is_wrong_is_named(tokenizer: Path, tmp_path: Path) -> None:
    file = write_texts(tmp_path / "test.parquet", ["chess", None], [0, 1], ["game", "net"])
    with pytest.raises(InputError, match=r"test.parquet: row 1 of column 'text' is no text but None"):
        read_texts(file, tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"test.parquet: row 0 of column 'label' is no text but 0"):
        read_texts(file, tokenizer=tokenizer, text_column="label")
    with pytest.raises(InputError, match=r"'txt' is not a column of .*; did you mean 'text'"):
        read_texts(file, tokenizer=tokenizer, text_column="txt")
    with pytest.raises(InputError, match=r"the file '.*none/tokenizer.json' does not exist; name a tokenizer.json"):
        (tmp_path / "none").mkdir()
        tokenize(["chess"], tmp_path / "none")
    (tmp_path / "none" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"none/tokenizer.json: not a tokenizer of the tokenizers library"):
        tokenize(["chess"], tmp_path / "none")
