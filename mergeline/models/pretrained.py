"""Modules of transformers, built from a folder's config.json: factories for the architecture of a plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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

    def logits(own: Callable[..., Any], inputs: Tensor) -> Tensor:
        ids, mask = inputs.unbind(dim=1)
        return own(input_ids=ids, attention_mask=mask).logits

    return _called_by(logits, module)


def image_classifier(folder: str, **changes: Any) -> nn.Module:
    """A classifier of pictures (`AutoModelForImageClassification`) that is called as tasks call it: with pictures
    [n, channels, height, width] float32, giving logits [n, labels]; arguments and errors as of `causal_lm`."""
    module = _build("AutoModelForImageClassification", folder, changes)
    return _called_by(lambda own, inputs: own(pixel_values=inputs).logits, module)


def _called_by(logits: Callable[[Callable[..., Any], Tensor], Tensor], module: nn.Module) -> nn.Module:
    """The module, called with one tensor; logits: its own forward and the tensor -> what it answers.

    The names of its tensors stay, and transformers takes it for the class of its own that it is (`__module__`).
    """
    kind = type(module)

    def forward(self: nn.Module, inputs: Tensor) -> Tensor:
        return logits(partial(kind.forward, self), inputs)

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
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
