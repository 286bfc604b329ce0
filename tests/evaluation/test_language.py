"""Perplexity is that of the definition, whatever the batches, and what is no number is one sentence."""

from math import exp, log
from pathlib import Path

import pytest
import torch

from mergeline.errors import InputError
from mergeline.evaluation import language
from mergeline.evaluation.language import perplexity
from mergeline.evaluation.texts import tokenize
from mergeline.models.pretrained import causal_lm
from tests.texts import WORDS, write_gpt2, write_tokenizer

TEXTS = ["game of chess", "mail server", "shared library ships", "ships", "library of chess"]


@pytest.fixture
def tokens(tmp_path: Path) -> torch.Tensor:
    return tokenize(TEXTS, write_tokenizer(tmp_path / "tokenizer"))


@pytest.fixture
def module(tmp_path: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    return causal_lm(str(write_gpt2(tmp_path / "gpt2"))).eval()


def losses(module: torch.nn.Module, tokens: torch.Tensor) -> list[list[float]]:
    """Of each text the negative log-likelihood of every token after the first, one text at a time, without padding."""
    found = []
    for ids, mask in tokens:
        text = ids[: int(mask.sum())][None]
        with torch.no_grad():
            logp = module(input_ids=text).logits.double().log_softmax(2)
        found.append([-float(logp[0, i, text[0, i + 1]]) for i in range(text.shape[1] - 1)])
    return found


def test_it_is_exp_of_the_mean_loss_of_a_token(module: torch.nn.Module, tokens: torch.Tensor) -> None:
    by_text = losses(module, tokens)
    every = [loss for text in by_text for loss in text]
    score = perplexity([module], tokens, batch_size=2)
    mean = sum(every) / len(every)
    assert score.value == pytest.approx(exp(mean), rel=1e-5)
    assert (score.count, score.measure, score.lower_is_better) == (len(every), "perplexity", True)
    spread = sum((sum(text) - mean * len(text)) ** 2 for text in by_text)
    expected = exp(mean) * (spread * len(by_text) / (len(by_text) - 1)) ** 0.5 / len(every)
    assert score.standard_error == pytest.approx(expected, rel=1e-3)


def test_batches_change_nothing_but_rounding(
    module: torch.nn.Module, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = perplexity([module], tokens, batch_size=100)
    assert perplexity([module], tokens, batch_size=100) == whole
    assert perplexity([module], tokens, batch_size=1).value == pytest.approx(whole.value, rel=1e-5)
    monkeypatch.setattr(language, "LOGITS", 1)  # a vocabulary too large for two texts at a time
    assert perplexity([module], tokens, batch_size=100).value == pytest.approx(whole.value, rel=1e-5)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(
    module: torch.nn.Module, tokens: torch.Tensor
) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    score = perplexity([module], tokens)
    assert score.value == pytest.approx(len(WORDS))
    assert score.standard_error == pytest.approx(0, abs=1e-5)


def test_an_ensemble_has_the_mean_probabilities(module: torch.nn.Module, tokens: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = causal_lm(str(write_gpt2(tmp_path / "other"))).eval()
    pairs = [
        (one, two)
        for first, second in zip(losses(module, tokens), losses(other, tokens), strict=True)
        for one, two in zip(first, second, strict=True)
    ]
    mean = sum(-log((exp(-one) + exp(-two)) / 2) for one, two in pairs) / len(pairs)
    assert perplexity([module, other], tokens).value == pytest.approx(exp(mean), rel=1e-5)
    assert perplexity([module, module], tokens).value == pytest.approx(perplexity([module], tokens).value)


def test_what_is_no_number_is_one_sentence(module: torch.nn.Module, tokens: torch.Tensor) -> None:
    with pytest.raises(InputError, match="no text has two tokens"):
        perplexity([module], tokens[:, :, :1])
    with pytest.raises(InputError, match="a Linear is no causal language model of transformers"):
        perplexity([torch.nn.Linear(2, 2)], tokens)
    with pytest.raises(InputError, match="the tokenizer does not fit the model"):
        perplexity([module], tokens.where(tokens < 2, 999))
    with torch.no_grad():
        module.get_output_embeddings().weight.mul_(1e6)
    with pytest.raises(InputError, match=r"the mean loss of a token is .*: the perplexity is too large to be a number"):
        perplexity([module], tokens)
    with torch.no_grad():
        module.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(InputError, match="the loss of the model is not finite for 5 of 5 texts; its weights diverged"):
        perplexity([module], tokens)
