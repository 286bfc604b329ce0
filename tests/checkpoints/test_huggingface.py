"""Hugging Face directories: merged and loaded again by transformers, which mergeline itself never imports."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

import mergeline as ml
from mergeline.checkpoints.files import output_name
from mergeline.checkpoints.huggingface import carry_companions, companion_sizes
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.checkpoints.vocabulary import common_rows, smallest_vocabulary
from mergeline.errors import InputError

TOKENS = torch.tensor([[1, 5, 9, 3, 0, 17]])


def llama(tied: bool = True, rows: int = 32) -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, num_key_value_heads=1, tie_word_embeddings=tied, **sizes))


def gpt2() -> PreTrainedModel:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, bos_token_id=0, eos_token_id=0, **sizes))


def bert() -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForMaskedLM(BertConfig(vocab_size=32, **sizes))


def save_pretrained(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """A directory with weights, configs and the files of a tokenizer."""
    model.save_pretrained(folder, **options)
    words = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "the": 5, "cat": 6}
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    config = {"tokenizer_class": "BertTokenizer", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("# of the source")
    return folder


def mean_of(models: list[PreTrainedModel]) -> PreTrainedModel:
    """The average made by hand, parameter by parameter, in a model of the same class."""
    result = type(models[0])(models[0].config).eval()
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            total = sum(model.get_parameter(name).double() for model in models)
            parameter.copy_(total / len(models))
    return result


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize(
    ("build", "loads"),
    [
        (llama, AutoModelForCausalLM),
        (lambda: llama(tied=False), AutoModelForCausalLM),
        (gpt2, AutoModelForCausalLM),
        (bert, AutoModelForMaskedLM),
    ],
    ids=["tied llama", "llama", "gpt2", "bert"],
)
def test_a_merge_of_directories_loads_and_computes_the_average(
    tmp_path: Path, build: Callable[[], PreTrainedModel], loads: type, sharded: bool
) -> None:
    torch.manual_seed(0)
    models = [build().eval() for _ in range(2)]
    limit = {"max_shard_size": "4KB"} if sharded else {}
    folders = [save_pretrained(model, tmp_path / str(i), **limit) for i, model in enumerate(models)]
    merged = ml.merge([open_checkpoint(folder) for folder in folders], method="average")
    target = tmp_path / "merged"
    ml.write_checkpoint(target, merged, max_shard_size=4000 if sharded else None)
    carry_companions(folders[0], target)

    loaded, report = loads.from_pretrained(target, output_loading_info=True)  # type: ignore[attr-defined]
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(loaded(TOKENS).logits, mean_of(models)(TOKENS).logits, atol=1e-6)
    assert (target / "model.safetensors.index.json").exists() == sharded
    assert AutoTokenizer.from_pretrained(target).tokenize("the cat") == ["the", "cat"]
    assert not (target / "README.md").exists()


def test_tied_weights_of_a_pickled_directory_stay_one_tensor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = [gpt2().eval() for _ in range(2)]
    for i, model in enumerate(models):
        model.config.save_pretrained(tmp_path / str(i))
        torch.save(model.state_dict(), tmp_path / str(i) / "pytorch_model.bin")  # with the tied name, as it once was
    readers = [open_checkpoint(tmp_path / str(i)) for i in range(2)]
    assert readers[0].tied() == {"transformer.wte.weight": "lm_head.weight"}
    aliases = readers[0].aliases()
    assert aliases == {"lm_head.weight": "transformer.wte.weight"}
    merged = {name: tensor for name, tensor in ml.merge(readers, method="average") if name not in aliases}
    ml.write_checkpoint(tmp_path / output_name(tmp_path / "0"), merged, metadata=aliases)
    carry_companions(tmp_path / "0", tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert open_checkpoint(tmp_path).names() == readers[0].names()
    with torch.no_grad():
        assert torch.allclose(loaded(TOKENS).logits, mean_of(models)(TOKENS).logits, atol=1e-6)


def test_a_tied_model_merged_with_an_untied_one_says_that_it_is_untied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = [llama(tied=tied).eval() for tied in (True, False)]
    for i, model in enumerate(models):
        model.config.save_pretrained(tmp_path / str(i))
        torch.save(model.state_dict(), tmp_path / str(i) / "pytorch_model.bin")
    merged = ml.merge([tmp_path / "0", tmp_path / "1"], method="average")
    assert merged.untied
    ml.write_checkpoint(tmp_path / "out", merged)
    carry_companions(tmp_path / "0", tmp_path / "out", untied=merged.untied)
    assert companion_sizes(tmp_path / "0", untied=True)["config.json"] == (tmp_path / "out/config.json").stat().st_size
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.tie_word_embeddings is False
    lm_head = (models[0].lm_head.weight + models[1].lm_head.weight) / 2
    assert torch.allclose(loaded.lm_head.weight, lm_head)
    assert not torch.allclose(loaded.model.embed_tokens.weight, lm_head)
    assert not ml.merge([tmp_path / "0", tmp_path / "0"], method="average").untied


def test_the_config_says_the_dtype_that_was_written(tmp_path: Path) -> None:
    folder = save_pretrained(llama(), tmp_path / "a")
    reader = open_checkpoint(folder)
    merged = ml.merge([reader, reader], method="average", out_dtype=torch.bfloat16)
    ml.write_checkpoint(tmp_path / "b", merged)
    carry_companions(folder / "model.safetensors", tmp_path / "b", dtype=torch.bfloat16)
    assert AutoConfig.from_pretrained(tmp_path / "b").dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype="auto").dtype == torch.bfloat16


def test_a_config_of_parts_is_adapted_in_its_parts(tmp_path: Path) -> None:
    config = {
        "model_type": "llava",
        "torch_dtype": "float16",
        "vocab_size": 100,
        "text_config": {"vocab_size": 100, "dtype": "float16"},
        "vision_config": {"hidden_size": 100},
        "rope_scaling": {"vocab_size": 100},
    }
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    carry_companions(tmp_path / "a", tmp_path / "b", dtype="bfloat16", vocabulary=90)
    adapted = json.loads((tmp_path / "b" / "config.json").read_text())
    assert adapted == config | {
        "torch_dtype": "bfloat16",
        "vocab_size": 90,
        "text_config": {"vocab_size": 90, "dtype": "bfloat16"},
    }
    del config["torch_dtype"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    carry_companions(tmp_path / "a", tmp_path / "b", dtype=torch.float32, vocabulary=200)
    adapted = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (adapted["torch_dtype"], adapted["vocab_size"]) == ("float32", 100)


def test_models_with_added_tokens_merge_on_their_common_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    long, short = llama(rows=40).eval(), llama(rows=32).eval()
    folders = [save_pretrained(long, tmp_path / "long"), save_pretrained(short, tmp_path / "short")]
    readers = [open_checkpoint(folder) for folder in folders]
    smallest = smallest_vocabulary(readers)
    assert smallest == (1, 32)
    ml.write_checkpoint(tmp_path / "merged", ml.merge(common_rows(readers), method="average"))
    carry_companions(folders[0], tmp_path / "merged", vocabulary=smallest[1])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert loaded.config.vocab_size == 32
    long.resize_token_embeddings(32)
    with torch.no_grad():
        assert torch.allclose(loaded(TOKENS).logits, mean_of([short, long])(TOKENS).logits, atol=1e-6)


def test_a_source_without_companions_has_none(tmp_path: Path) -> None:
    ml.write_checkpoint(tmp_path / "a", {"w": torch.ones(2)})
    assert carry_companions(tmp_path / "a", tmp_path / "b") == []
    assert list((tmp_path / "b").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"), [("{", r"config\.json: is not JSON \(.*download"), ("[]", r"config\.json: holds a list, not")]
)
def test_a_damaged_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    ml.write_checkpoint(tmp_path / "a", {"w": torch.ones(2)})
    (tmp_path / "a" / "config.json").write_text(text)
    assert open_checkpoint(tmp_path / "a").names() == ["w"]
    with pytest.raises(InputError, match=message):
        carry_companions(tmp_path / "a", tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


def test_companions_are_not_written_over_those_of_the_reference(tmp_path: Path) -> None:
    folder = save_pretrained(llama(), tmp_path / "a")
    with pytest.raises(InputError, match="is the folder of the reference model itself"):
        carry_companions(folder, tmp_path / "." / "a", dtype="bfloat16")


def test_mergeline_does_not_import_transformers(tmp_path: Path) -> None:
    folder = save_pretrained(llama(), tmp_path / "a")
    program = (
        "import sys, mergeline as ml\n"
        "from mergeline.checkpoints.huggingface import carry_companions\n"
        "folder, target = sys.argv[1:]\n"
        "ml.write_checkpoint(target, ml.merge([folder, folder], method='average'))\n"
        "carry_companions(folder, target)\n"
        "assert ml.open_checkpoint(target).tied() == {}\n"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, folder, tmp_path / "b"]).returncode == 0
