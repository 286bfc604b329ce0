"""How often an encoder-decoder model of transformers writes exactly the text that is wanted, by greedy generation."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mergeline.errors import InputError
from mergeline.evaluation.score import Score
from mergeline.evaluation.texts import open_tokenizer
from mergeline.evaluation.tokens import batches_by_length


def exact_match(
    module: nn.Module,
    tokens: Tensor,
    targets: Sequence[str],
    tokenizer: Path,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> Score:
    """The share of texts that the module writes exactly as wanted; blanks at the ends and their number do not count.

    tokens: inputs [n, 2, length] int64, ids and attention mask. targets: n texts. tokenizer: tokenizer.json, which
    makes texts of what is generated, special tokens left out. Standard error: that of a share.
    Raises InputError where a logit is not finite, or the module is no encoder-decoder model.
    """
    written = generate(module, tokens, tokenizer, max_new_tokens=max_new_tokens, batch_size=batch_size)
    right = sum(one.split() == wanted.split() for one, wanted in zip(written, targets, strict=True))
    share = right / len(targets)
    return Score(share, sqrt(share * (1 - share) / len(targets)), len(targets))


def generate(
    module: nn.Module, tokens: Tensor, tokenizer: Path, *, max_new_tokens: int = 64, batch_size: int = 32
) -> list[str]:
    """The texts that the module writes for inputs [n, 2, length], greedily: the most probable token at every step.

    Raises InputError where a logit is not finite, or the module is no encoder-decoder model.
    """
    generating: Any = getattr(module, "generate", None)
    if generating is None or not getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        raise InputError(f"a {type(module).__name__} is no encoder-decoder model of transformers that generates text")
    encoder = open_tokenizer(tokenizer)
    device = next(module.parameters()).device
    batches, places = batches_by_length(tokens, batch_size)
    written: list[str] = []
    with torch.no_grad():
        for batch in tqdm(batches, desc="texts", leave=False, disable=None):
            ids, mask = batch.to(device).unbind(dim=1)
            found = generating(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                logits_processor=[_refuse_other_than_finite],
            )
            written += encoder.decode_batch(found.cpu().tolist(), skip_special_tokens=True)
    return [written[place] for place in places.tolist()]


def _refuse_other_than_finite(ids: Tensor, logits: Tensor) -> Tensor:
    """What generation asks at every step: NaN would be taken for the most probable token."""
    if not logits.isfinite().all():
        raise InputError(
            "the model's logits are not finite; its weights diverged, or the merge made them too large (a smaller "
            "scale may help)"
        )
    return logits
