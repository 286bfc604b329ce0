"""Tensor names: which layer each belongs to, and names to try where the checkpoint is not here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STEMS = ("layers", "layer", "h", "blocks", "block")  # what models call the list of their layers; llama's first
INPUTS = ("embed_tokens", "wte", "wpe", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
OUTSIDE = ("lm_head", "embed", "wte", "wpe", "model.norm")  # filters that mean no tensor of a layer


@dataclass(frozen=True)
class Names:
    """Names of tensors. real: those of a checkpoint; else made up, one for each case that the filters tell apart."""

    all: Sequence[str]
    stem: str
    real: bool

    def layer(self, name: str) -> int | None:
        """The layer of a tensor, None outside the layers."""
        found = re.search(rf"(?:^|\.){re.escape(self.stem)}\.(\d+)\.", name)
        return int(found[1]) if found else None

    def is_input(self, name: str) -> bool:
        """Whether it comes before the first layer, as far as its name tells."""
        return self.layer(name) is None and any(part in name for part in INPUTS)


def names_of(checkpoint: Iterable[str]) -> Names:
    """The names of a checkpoint; its layers are what most numbered names begin with."""
    found = sorted(checkpoint)
    stems = Counter(match[1] for name in found if (match := re.search(r"(?:^|\.)([^.]+)\.\d+\.", name)))
    stem = max(stems, key=lambda word: (stems[word], word in STEMS), default=STEMS[0])
    return Names(found, stem, True)


def names_like(layers: int | None, filters: Sequence[str]) -> Names:
    """Names as llama's: an input, layers, an output, each with every filter that may be part of it."""
    made = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    for filter_ in filters:
        if not any(word in filter_ for word in INPUTS):
            made.append(f"{filter_}.weight")
        else:
            made.append(f"model.{filter_}.weight")
    for layer in range(layers or 0):
        inside = [text for text in filters if not any(text.startswith(word) for word in OUTSIDE)]
        made += [f"model.layers.{layer}.{part}" for part in ["weight", *(f"{text}.weight" for text in inside)]]
    return Names(list(dict.fromkeys(made)), STEMS[0], False)
