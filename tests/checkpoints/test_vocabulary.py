"""Models whose vocabularies differ in rows."""

import pytest
import torch

import mergeline as ml
from mergeline.checkpoints.readers import Reader, open_checkpoint
from mergeline.checkpoints.vocabulary import (
    common_rows,
    refuse_unlike_vocabularies,
    smallest_vocabulary,
    vocabulary_rows,
)
from mergeline.errors import InputError


def model(rows: int, hidden: int = 4, **more: torch.Tensor) -> Reader:
    state = {
        "model.embed_tokens.weight": torch.arange(float(rows * hidden)).reshape(rows, hidden),
        "model.layer.weight": torch.ones(hidden, hidden),
        "head.scale": torch.arange(float(rows)),
        "lm_head.weight": torch.full((rows, hidden), float(rows)),
    }
    return open_checkpoint(state | more)


def test_the_tensors_that_differ_in_rows_are_found_with_their_rows() -> None:
    assert vocabulary_rows([model(10), model(12), model(10)]) == {
        "head.scale": (10, 12, 10),
        "lm_head.weight": (10, 12, 10),
        "model.embed_tokens.weight": (10, 12, 10),
    }
    assert vocabulary_rows([model(10), model(10)]) == {}


def test_other_differences_in_shape_are_no_vocabulary() -> None:
    one, other = model(10, head=torch.ones(5, 4)), model(12, head=torch.ones(6, 4))
    assert "head" not in vocabulary_rows([one, other])
    assert "lm_head.weight" not in vocabulary_rows([model(10), model(12, 6)])
    assert vocabulary_rows([one, other], ["head"]) == {"head": (5, 6)}


def test_a_difference_is_told_with_tensors_rows_and_a_way_on() -> None:
    one, other = model(10), model(12)
    one.source, other.source = "first", "second"
    with pytest.raises(InputError) as caught:
        refuse_unlike_vocabularies([one, other])
    assert "tensor 'lm_head.weight' has rows: 10 in first, 12 in second" in str(caught.value)
    assert "write vocabulary: common" in str(caught.value)
    refuse_unlike_vocabularies([one, one])


def test_common_rows_are_cut_and_nothing_else() -> None:
    short, long = model(10), model(12)
    views = common_rows([short, long, long])
    assert views[0] is short
    assert views[1] is views[2]
    cut = views[1]
    assert cut.names() == long.names()
    for name in ("model.embed_tokens.weight", "head.scale", "lm_head.weight"):
        assert cut.shape(name) == short.shape(name) == tuple(cut[name].shape)
        assert torch.equal(cut[name], long[name][:10])
        assert torch.equal(cut.read_slice(name, 8, 12), long[name][8:10])
    assert torch.equal(cut["model.layer.weight"], long["model.layer.weight"])


def test_models_merge_on_their_common_rows() -> None:
    merged = dict(ml.merge(common_rows([model(10), model(12)]), method="average"))
    assert torch.equal(merged["lm_head.weight"], torch.full((10, 4), 11.0))
    assert torch.equal(merged["model.embed_tokens.weight"], model(10)["model.embed_tokens.weight"])


def test_the_smallest_vocabulary_is_named_with_its_rows() -> None:
    assert smallest_vocabulary([model(12), model(10), model(10)]) == (1, 10)
    assert smallest_vocabulary([model(12), model(12)]) is None


def test_cut_tensors_stay_tied() -> None:
    def tied(rows: int) -> Reader:
        weight = torch.ones(rows, 4)
        return open_checkpoint({"wte.weight": weight, "lm_head.weight": weight})

    assert common_rows([tied(5), tied(6)])[1].tied() == {"wte.weight": "lm_head.weight"}
