"""How well causal language models foretell texts: perplexity = exp(mean negative log-likelihood of a token)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp, log, sqrt

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mergeline.errors import InputError
from mergeline.evaluation.score import Score
from mergeline.evaluation.tokens import lengths, without_padding

LOGITS = 1 << 28  # entries of a batch's logits held at a time: a vocabulary may be large


def perplexity(modules: Sequence[nn.Module], tokens: Tensor, batch_size: int = 32) -> Score:
    """The perplexity of texts to a causal language model of transformers, or to the mean probabilities of several.

    tokens: [n, 2, length] int64, ids and attention mask, padded at the end. Every token after the first of its text is
    foretold from those before it; the score counts these. Standard error: texts, not tokens, are taken as independent
    (of the mean as of a ratio of sums, and of its exponential by the delta method).
    Raises InputError where no text has two tokens, a loss is not finite, or a module is no such model.
    """
    sums, counts = _losses(modules, tokens, batch_size)
    total = int(counts.sum())
    if not total:
        raise InputError("no text has two tokens, so there is nothing to foretell")
    mean = float(sums.sum()) / total
    if mean > log(torch.finfo(torch.float64).max):
        raise InputError(f"the mean loss of a token is {mean:.4g}: the perplexity is too large to be a number")
    texts = len(sums)
    spread = float(((sums - mean * counts) ** 2).sum())
    error = sqrt(spread * texts / max(1, texts - 1)) / total
    return Score(exp(mean), exp(mean) * error, total, "perplexity")


def _losses(modules: Sequence[nn.Module], tokens: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Of every text the summed negative log-likelihood, float64 [n], and how many tokens were foretold, int64 [n]."""
    counts = (lengths(tokens) - 1).clamp(min=0)
    sums = torch.zeros(len(tokens), dtype=torch.float64)
    with torch.no_grad():
        for rows in tqdm(list(_batches(modules, tokens, batch_size)), desc="texts", leave=False, disable=None):
            batch = without_padding(tokens[rows])
            found = torch.stack([_log_probabilities(module, batch) for module in modules])  # [models, b, length - 1]
            together = found.double().logsumexp(dim=0) - log(len(modules))
            sums[rows] = -torch.where(batch[:, 1, 1:].bool(), together, 0.0).sum(dim=1)
    bad = int((~sums.isfinite()).sum())
    if bad:
        raise InputError(
            f"the loss of the model is not finite for {bad} of {len(sums)} texts; its weights diverged, or the merge "
            "made them too large (a smaller scale may help)"
        )
    return sums, counts


def _batches(modules: Sequence[nn.Module], tokens: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Rows of texts of about one length, so that little is padded."""
    long = lengths(tokens)
    order = long.argsort(stable=True)
    order = order[long[order] > 1]
    vocabulary = max(int(getattr(getattr(module, "config", None), "vocab_size", 1) or 1) for module in modules)
    while len(order):
        longest = int(long[order[:batch_size]].max())
        size = max(1, min(batch_size, LOGITS // (longest * vocabulary)))
        yield order[:size]
        order = order[size:]


def _log_probabilities(module: nn.Module, batch: Tensor) -> Tensor:
    """log p of each token after the first, [b, length - 1] float32 on the CPU."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    ids, mask = batch.to(device).unbind(dim=1)
    try:
        logits = module(input_ids=ids, attention_mask=mask).logits
    except (TypeError, AttributeError) as error:
        raise InputError(
            f"a {type(module).__name__} is no causal language model of transformers (module(input_ids=..., "
            f"attention_mask=...).logits): {error}"
        ) from error
    except IndexError as error:  # of an embedding
        raise InputError(
            f"the tokenizer does not fit the model: it has tokens that the model has not ({error})"
        ) from error
    targets = ids[:, 1:]
    chosen = logits[:, :-1].float().gather(2, targets[:, :, None]).squeeze(2)
    return (chosen - logits[:, :-1].float().logsumexp(dim=2)).cpu()
