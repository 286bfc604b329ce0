"""Exact match counts what greedy generation writes, text for text."""

from pathlib import Path

import pytest
import torch

from mergeline.errors import InputError
from mergeline.evaluation.generation import exact_match, generate
from mergeline.evaluation.texts import tokenize
from mergeline.models.pretrained import causal_lm, seq2seq
from tests.texts import write_gpt2, write_t5, write_tokenizer

TEXTS = ["game of chess", "mail server", "shared library ships", "ships"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def module(tmp_path: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    return seq2seq(str(write_t5(tmp_path / "t5"))).eval()


def step_by_step(module: torch.nn.Module, tokens: torch.Tensor, steps: int) -> list[int]:
    """Greedy generation by hand, one text without padding."""
    ids = tokens[0, : int(tokens[1].sum())][None]
    written = [module.config.decoder_start_token_id]
    for _ in range(steps):
        with torch.no_grad():
            logits = module(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits
        written.append(int(logits[0, -1].argmax()))
        if written[-1] == module.config.eos_token_id:
            break
    return written


def test_it_is_greedy_and_batches_change_nothing(module: torch.nn.Module, tokenizer: Path) -> None:
    from tokenizers import Tokenizer

    tokens = tokenize(TEXTS, tokenizer)
    reader = Tokenizer.from_file(str(tokenizer))
    expected = [reader.decode(step_by_step(module, text, 5)) for text in tokens]
    for batch_size in (1, 3, 100):
        assert generate(module, tokens, tokenizer, max_new_tokens=5, batch_size=batch_size) == expected


def test_the_share_of_texts_written_as_wanted(module: torch.nn.Module, tokenizer: Path) -> None:
    tokens = tokenize(TEXTS, tokenizer)
    written = generate(module, tokens, tokenizer, max_new_tokens=5)
    wanted = [f"  {written[0]} ", written[1], "something else", written[3]]
    score = exact_match(module, tokens, wanted, tokenizer, max_new_tokens=5, batch_size=2)
    assert (score.value, score.count, score.measure) == (0.75, 4, "share")
    assert score.standard_error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)


def test_what_cannot_be_generated_is_one_sentence(module: torch.nn.Module, tokenizer: Path, tmp_path: Path) -> None:
    tokens = tokenize(TEXTS, tokenizer)
    with pytest.raises(InputError, match="a GPT2LMHeadModel is no encoder-decoder model of transformers"):
        generate(causal_lm(str(write_gpt2(tmp_path / "gpt2"))), tokens, tokenizer)
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="the model's logits are not finite; its weights diverged"):
        generate(module, tokens, tokenizer)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no config\.json of transformers in this folder"):
        seq2seq(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "no-such"}')
    with pytest.raises(InputError, match="no configuration for AutoModelForCausalLM"):
        causal_lm(str(tmp_path))
