"""Tied weights: names that are one tensor, in memory, in torch files, as aliases of safetensors, in modules."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_file, save_model
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from mergeline.alignment.apply import AlignedReader
from mergeline.checkpoints.readers import MeanReader, Reader, TensorReader, open_checkpoint
from mergeline.checkpoints.ties import common_ties, tied_names, ties_by
from mergeline.checkpoints.writer import write_checkpoint
from mergeline.symmetry.derive import derive_symmetry


class Tied(nn.Module):
    """Embedding and decoder share their weight; the head of the tail has one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.decode = nn.Linear(4, 7)
        self.decode.weight = self.embed.weight
        self.tail = nn.Linear(7, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.tail(self.decode(self.embed(tokens)))


TIE = {"embed.weight": "decode.weight"}


def checkpoint(kind: str, folder: Path) -> Reader:
    module = Tied()
    if kind == "in memory":
        return open_checkpoint(module.state_dict())
    if kind == "save_model":
        save_model(module, str(folder / "model.safetensors"))
    elif kind == "sharded":
        state = module.state_dict()
        del state["decode.weight"]
        write_checkpoint(folder, state, max_shard_size=80, metadata={"decode.weight": "embed.weight"})
    else:
        torch.save(module.state_dict(), folder / f"model.{kind}")
    return open_checkpoint(folder)


@pytest.mark.parametrize("kind", ["in memory", "pt", "bin", "save_model", "sharded"])
def test_names_of_one_tensor_are_tied_and_all_listed(kind: str, tmp_path: Path) -> None:
    reader = checkpoint(kind, tmp_path)
    assert reader.names() == sorted(Tied().state_dict())
    assert reader.tied() == TIE
    assert torch.equal(reader.read("decode.weight"), reader.read("embed.weight"))
    assert torch.equal(reader.read_slice("decode.weight", 2, 5), reader.read("embed.weight")[2:5])
    assert reader.shape("decode.weight") == reader.shape("embed.weight") == (7, 4)
    assert reader.dtype("decode.weight") == torch.float32
    assert "decode.weight" in reader


@pytest.mark.parametrize("kind", ["in memory", "pt", "save_model", "sharded"])
def test_what_is_written_without_its_aliases_is_the_same_checkpoint(kind: str, tmp_path: Path) -> None:
    reader = checkpoint(kind, tmp_path)
    aliases = reader.aliases()
    stored = {name: reader[name] for name in reader if name not in aliases}
    write_checkpoint(tmp_path / "again.safetensors", stored, metadata=aliases)
    again = open_checkpoint(tmp_path / "again.safetensors")
    assert (again.names(), again.tied(), again.aliases()) == (reader.names(), reader.tied(), aliases)
    module = Tied()
    load_model(module, tmp_path / "again.safetensors")  # as the library that invented the aliases reads them
    assert torch.equal(module.decode.weight, reader["decode.weight"])


def test_in_memory_the_name_that_a_module_gives_first_is_kept() -> None:
    assert open_checkpoint(Tied().state_dict()).aliases() == {"decode.weight": "embed.weight"}


def test_equal_parts_and_other_views_of_memory_are_not_ties() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"a": whole, "b": whole[:2], "c": whole[1:], "d": whole.reshape(4, 3), "e": whole.clone(), "f": whole}
    state |= {"none": torch.empty(0), "nothing": torch.empty(0), "square": whole[:, :3], "turned": whole[:, :3].T}
    state |= {"bits": whole.view(torch.int32)}
    assert TensorReader(state).tied() == {"f": "a"}


def test_metadata_that_says_other_things_ties_nothing(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2), "v": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "pt", "w": "v"})
    reader = open_checkpoint(tmp_path)
    assert (reader.names(), reader.tied(), reader.aliases()) == (["v", "w"], {}, {})


def test_an_alias_alone_in_a_file_keeps_the_order_of_names(tmp_path: Path) -> None:
    save_file({"z": torch.ones(2)}, tmp_path / "model.safetensors", {"a": "z", "m": "z"})
    reader = open_checkpoint(tmp_path)
    assert reader.names() == ["a", "m", "z"]
    assert reader.tied() == {"m": "a", "z": "a"}
    assert reader.aliases() == {"a": "z", "m": "z"}


def test_views_are_tied_where_all_their_checkpoints_are() -> None:
    tied, loose = Tied().state_dict(), {name: tensor.clone() for name, tensor in Tied().state_dict().items()}
    for states, expected in [((tied, tied), TIE), ((tied, loose), {}), ((loose, tied), {})]:
        readers = [open_checkpoint(state) for state in states]
        assert MeanReader(readers).tied() == expected


def test_an_aligned_view_is_tied_where_it_moves_its_tensors_alike() -> None:
    module = Tied()
    symmetry = derive_symmetry(module, torch.tensor([[1, 2]]))
    view = AlignedReader(open_checkpoint(module.state_dict()), symmetry.random_alignment(), 0)
    assert view.tied() == TIE
    assert torch.equal(view["decode.weight"], view["embed.weight"])


def test_common_ties_are_those_of_every_partition() -> None:
    one, other = {"b": "a", "c": "a", "y": "x"}, {"c": "b", "y": "x"}
    assert common_ties([one, other]) == {"c": "b", "y": "x"}
    assert common_ties([one]) == one
    assert ties_by({}) == {}


def test_a_module_names_its_tied_parameters() -> None:
    assert tied_names(Tied()) == TIE
    assert tied_names(nn.Linear(2, 2)) == {}


def test_a_model_of_transformers_names_what_it_ties() -> None:
    bert = BertForMaskedLM(
        BertConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    assert tied_names(bert) == {
        "cls.predictions.decoder.bias": "cls.predictions.bias",
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    }


def test_ties_that_a_model_declares_count_before_they_are_made() -> None:
    class Declared(Tied):
        _tied_weights_keys = {"decode.weight": "embed.weight", "decode.bias": "embed.weight"}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.decode.weight = nn.Parameter(self.embed.weight.detach().clone())
            self.config = GPT2Config(tie_word_embeddings=True)

    module = Declared()
    assert tied_names(module) == TIE
    module.config.tie_word_embeddings = False
    assert tied_names(module) == {}


def test_vocabulary_matrices_stored_twice_are_tied_where_the_config_allows_it(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).tied() == {}
    config.save_pretrained(tmp_path)
    assert open_checkpoint(tmp_path).tied() == {"transformer.wte.weight": "lm_head.weight"}
    state["lm_head.weight"][3, 3] += 1
    save_file(state, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).tied() == {}
    state["lm_head.weight"][3, 3] = state["transformer.wte.weight"][3, 3]
    save_file(state, tmp_path / "model.safetensors")
    config.tie_word_embeddings = False
    config.save_pretrained(tmp_path)
    assert open_checkpoint(tmp_path).tied() == {}
