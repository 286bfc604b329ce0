"""Models of transformers whose tensors have other names in memory than in files are read as transformers reads them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mergeline.checkpoints.readers import TensorReader, open_checkpoint
from mergeline.errors import InputError
from mergeline.models.file_names import by_file_names
from mergeline.models.load import load_model

FACTORIES = "mergeline.models.pretrained"


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **shape))


def swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    shape = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
    return SwinForImageClassification(SwinConfig(image_size=8, patch_size=2, num_labels=3, **shape))


def gpt_neox(**changes: Any) -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    tokens = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 32}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**shape, **tokens, **changes))


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3}
    return MixtralForCausalLM(MixtralConfig(vocab_size=20, hidden_size=8, intermediate_size=16, **heads))


def saved(module: nn.Module, folder: Path) -> str:
    """A folder of the module, with no parameter at its initial value (biases 0 would hide one that is left out)."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    module.save_pretrained(folder)  # type: ignore[operator]
    return str(folder)


@pytest.mark.parametrize("make", [vit, swin])
def test_a_classifier_of_pictures_answers_as_transformers_own(make, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    folder = saved(make(), tmp_path)
    own = AutoModelForImageClassification.from_pretrained(folder).eval()
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.names()) != set(own.state_dict())
    module = load_model(f"{FACTORIES}:image_classifier", {"folder": folder}, checkpoint, by_name=False)
    pictures = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(module(pictures), own(pixel_values=pictures).logits)
    back = by_file_names(module.state_dict(), module, checkpoint)
    assert set(back) == set(checkpoint.names())
    assert all(torch.equal(back[name], checkpoint.read(name)) for name in back)


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_answers_as_transformers_own(tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = saved(gpt_neox(tie_word_embeddings=tied), tmp_path)
    own = AutoModelForCausalLM.from_pretrained(folder).eval()
    module = load_model(f"{FACTORIES}:causal_lm", {"folder": folder}, open_checkpoint(folder), by_name=False)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(module(input_ids=ids).logits, own(input_ids=ids).logits)


def test_what_does_not_fit_is_said_by_the_names_of_files(tmp_path: Path) -> None:
    folder = saved(vit(), tmp_path)
    name, state = "vit.encoder.layer.0.attention.attention.query.bias", dict(open_checkpoint(folder))
    wrong = {
        rf"tensor '{name}' of .* is missing": {key: tensor for key, tensor in state.items() if key != name},
        rf"tensor '{name}' has shape \[3\], .* makes \[8\]": state | {name: torch.zeros(3)},
        "tensor 'vit.other' has no place in": state | {"vit.other": torch.zeros(3)},
    }
    for sentence, tensors in wrong.items():
        with pytest.raises(InputError, match=sentence):
            load_model(f"{FACTORIES}:image_classifier", {"folder": folder}, TensorReader(tensors), by_name=False)


def test_a_caller_that_looks_for_names_is_refused_and_so_is_a_renamed_head(tmp_path: Path) -> None:
    folder = saved(gpt_neox(), tmp_path)
    asked = (f"{FACTORIES}:causal_lm", {"folder": folder}, open_checkpoint(folder))
    for options in ({}, {"heads": ["embed_out"], "by_name": False}):
        with pytest.raises(InputError, match=r"'embed_out.weight' is 'lm_head.weight' in memory, .* not be aligned"):
            load_model(*asked, **options)


def test_experts_that_are_joined_in_memory_are_refused(tmp_path: Path) -> None:
    folder = saved(mixtral(), tmp_path)
    with pytest.raises(
        InputError, match=r"experts\.0\.w[123]\.weight' is joined with others, or cut, .* not be measured"
    ):
        load_model(f"{FACTORIES}:causal_lm", {"folder": folder}, open_checkpoint(folder), by_name=False)
