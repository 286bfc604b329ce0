"""Tensor names: which layer each belongs to, and those of a Llama where the checkpoint is not here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

STEMS = ("layers", "layer", "h", "blocks", "block")  # what models call the list of their layers; llama's first
INPUTS = ("embed_tokens", "wte", "wpe", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
LLAMA_LAYER = (
    *("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


@dataclass(frozen=True)
class Names:
    """Names of tensors. real: those of a checkpoint; else those of a Llama. tied: other name -> one of them."""

    all: Sequence[str]
    stem: str
    real: bool
    tied: Mapping[str, str] = field(default_factory=dict)

    def layer(self, name: str) -> int | None:
        """The layer of a tensor, None outside the layers."""
        found = re.search(rf"(?:^|\.){re.escape(self.stem)}\.(\d+)\.", name)
        return int(found[1]) if found else None

    def is_input(self, name: str) -> bool:
        """Whether it comes before the first layer, as far as its name tells."""
        return self.layer(name) is None and any(part in name for part in INPUTS)


def names_of(checkpoint: Iterable[str], tied: Mapping[str, str]) -> Names:
    """The names of a checkpoint and those that are tied to them; its layers are what most numbered names begin with."""
    found = sorted(checkpoint)
    stems = Counter(match[1] for name in found if (match := re.search(r"(?:^|\.)([^.]+)\.\d+\.", name)))
    stem = max(stems, key=lambda word: (stems[word], word in STEMS), default=STEMS[0])
    return Names(found, stem, True, tied)


def names_of_llama(layers: int) -> Names:
    """The names of a Llama of so many layers, for models that are not here."""
    inside = [f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in LLAMA_LAYER]
    return Names(["model.embed_tokens.weight", *inside, "model.norm.weight", "lm_head.weight"], STEMS[0], False)
