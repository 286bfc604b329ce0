"""Modules of transformers as the factories of a plan build them."""

from pathlib import Path

import pytest
import torch

from mergeline.errors import InputError
from mergeline.evaluation.metrics import predict_logits
from mergeline.evaluation.texts import tokenize
from mergeline.models.pretrained import causal_lm, text_classifier
from tests.texts import write_bert, write_gpt2, write_tokenizer

TEXTS = ["game of chess", "mail server", "shared library ships", "ships"]


@pytest.mark.parametrize("write", [write_bert, write_gpt2])
def test_a_classifier_of_texts_is_the_library_s_own_called_with_one_tensor(write, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder, tokens = str(write(tmp_path / "model")), tokenize(TEXTS, write_tokenizer(tmp_path / "tokenizer"))
    torch.manual_seed(0)
    module = text_classifier(folder, num_labels=3).eval()
    module.save_pretrained(tmp_path / "saved")  # type: ignore[operator]
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert set(own.state_dict()) == set(module.state_dict())
    with torch.no_grad():
        ids, mask = tokens.unbind(dim=1)
        expected = own(input_ids=ids, attention_mask=mask).logits
    assert expected.shape == (4, 3)
    torch.testing.assert_close(predict_logits(module, tokens, batch_size=3), expected)


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path}: there is no config.json"):
        causal_lm(str(tmp_path))
