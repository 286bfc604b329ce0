"""Modules of transformers, built from a folder's config.json: factories for the architecture of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mergeline.errors import InputError
from mergeline.threads import one_import


def causal_lm(folder: str, **changes: Any) -> nn.Module:
    """A causal language model (`AutoModelForCausalLM`) of the configuration in a folder, with random weights.

    changes: fields of the configuration to set otherwise. Raises InputError where there is no such configuration.
    """
    return _build("AutoModelForCausalLM", folder, changes)


def seq2seq(folder: str, **changes: Any) -> nn.Module:
    """An encoder-decoder model (`AutoModelForSeq2SeqLM`); arguments and errors as of `causal_lm`."""
    return _build("AutoModelForSeq2SeqLM", folder, changes)


def text_classifier(folder: str, **changes: Any) -> nn.Module:
    """A classifier of texts (`AutoModelForSequenceClassification`) that is called as tasks call it: with token ids and
    attention masks [n, 2, length] int64, giving logits [n, labels]; arguments and errors as of `causal_lm`."""
    module = _build("AutoModelForSequenceClassification", folder, {"attn_implementation": "eager"} | changes)
    kind = type(module)

    def forward(self: nn.Module, inputs: Tensor) -> Tensor:
        ids, mask = inputs.unbind(dim=1)
        return kind.forward(self, input_ids=ids, attention_mask=mask).logits

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})  # the names of its tensors stay
    return module


def _build(kind: str, folder: str, changes: dict[str, Any]) -> nn.Module:
    try:
        with one_import:
            import transformers
    except ImportError as error:
        raise InputError("language models need the package transformers: pip install 'mergeline[text]'") from error
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"{folder}: there is no config.json of transformers in this folder")
    try:
        with one_import:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **changes)
            module: nn.Module = getattr(transformers, kind).from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: no configuration for {kind}: {' '.join(str(error).split())[:300]}") from error
    return module.float()
