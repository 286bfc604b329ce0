"""Models for the configurations to name: tiny Llamas on the disk."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.mergekit.configurations import LAYERS, SHAPES


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Folders base, one, two, three beside the working directory, as Hugging Face writes them."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    found = {}
    for name in ("base", "one", "two", "three"):
        (tmp_path / name).mkdir()
        change = 0.0 if name == "base" else 0.3
        found[name] = {
            key: value + change * torch.randn(value.shape, generator=generator) for key, value in base.items()
        }
        save_file(found[name], tmp_path / name / "model.safetensors")
        config = {"model_type": "llama", "num_hidden_layers": LAYERS, "tie_word_embeddings": False}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return found
