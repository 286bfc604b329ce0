"""LoRA and (IA)3 adapters in the layout of PEFT."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import mergeline as ml
from mergeline.checkpoints.adapters import AdapterReader, InitialAdapterReader, refuse_unlike_adapters
from mergeline.checkpoints.files import output_name
from mergeline.checkpoints.huggingface import carry_companions
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.errors import InputError

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


def lora(r: int = 2, seed: int = 0, modules: tuple[str, ...] = MODULES) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    state = {}
    for module in modules:
        state[f"base_model.model.{module}.lora_A.weight"] = torch.randn(r, 8, generator=random)
        state[f"base_model.model.{module}.lora_B.weight"] = torch.randn(8, r, generator=random)
    return state


def ia3(seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "base_model.model.encoder.block.0.layer.0.SelfAttention.k.ia3_l": 1 + torch.randn(8, 1, generator=random),
        "base_model.model.encoder.block.0.layer.1.DenseReluDense.wo.ia3_l": 1 + torch.randn(1, 8, generator=random),
    }


def save(folder: Path, state: dict[str, Tensor], kind: str = "LORA", *, pickled: bool = False, **fields: Any) -> Path:
    """An adapter directory as PEFT's save_pretrained writes it."""
    folder.mkdir()
    config: dict[str, Any] = {
        "base_model_name_or_path": "org/model",
        "inference_mode": True,
        "modules_to_save": None,
        "peft_type": kind,
        "revision": None,
        "task_type": "CAUSAL_LM",
        "target_modules": ["v_proj", "q_proj"],
        "fan_in_fan_out": False,
    }
    if kind == "LORA":
        config |= {"r": 2, "lora_alpha": 16, "lora_dropout": 0.1, "bias": "none", "rank_pattern": {}}
        config |= {"alpha_pattern": {}, "use_rslora": False, "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))
    if pickled:
        torch.save(state, folder / "adapter_model.bin")
    else:
        save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("pickled", [False, True])
def test_an_adapter_directory_opens_as_its_tensors(tmp_path: Path, pickled: bool) -> None:
    reader = open_checkpoint(save(tmp_path / "a", lora(), pickled=pickled))
    assert isinstance(reader, AdapterReader)
    assert reader.kind == "LORA"
    assert reader.modules == sorted(MODULES)
    assert all(torch.equal(reader[name], tensor) for name, tensor in lora().items())


def test_adapters_merge_tensor_by_tensor_and_load_again(tmp_path: Path) -> None:
    folders = [save(tmp_path / str(seed), lora(seed=seed)) for seed in range(2)]
    readers = [open_checkpoint(folder) for folder in folders]
    refuse_unlike_adapters(readers)
    target = tmp_path / "merged"
    assert output_name(folders[0]) == output_name(folders[0] / "adapter_model.bin") == "adapter_model.safetensors"
    ml.write_checkpoint(target / output_name(folders[0]), ml.merge(readers, method="average"))
    assert carry_companions(folders[0], target, dtype="float32") == ["adapter_config.json"]
    merged = open_checkpoint(target)
    assert isinstance(merged, AdapterReader)
    assert merged.config == readers[0].config  # type: ignore[attr-defined]
    for name in merged:
        assert torch.equal(merged[name], (readers[0][name] + readers[1][name]) / 2), name


FAULTS = [
    (lora(4), {"r": 4}, r"b/adapter_model.safetensors: adapter_config.json: r is 4, but 2 in .*one rank"),
    (lora(), {"lora_alpha": 8}, "lora_alpha is 8, but 16 in .*one setting"),
    (lora(), {"use_rslora": True}, "use_rslora is True, but False in"),
    (lora(), {"rank_pattern": {"q_proj": 4}}, r"rank_pattern is \{'q_proj': 4\}, but \{\} in .*one rank"),
    (lora(modules=MODULES[:1]), {}, r"lacks model\.layers\.0\.self_attn\.v_proj, compared with .*target_modules"),
    (lora(modules=(*MODULES, "lm_head")), {}, "adapts lm_head besides, compared with"),
    (ia3(), {"peft_type": "IA3"}, "peft_type is IA3, but LORA in"),
]


@pytest.mark.parametrize(("state", "fields", "message"), FAULTS)
def test_adapters_that_do_not_fit_are_refused(
    tmp_path: Path, state: dict[str, Tensor], fields: dict[str, Any], message: str
) -> None:
    first, other = save(tmp_path / "a", lora()), save(tmp_path / "b", state, **fields)
    with pytest.raises(InputError, match=message):
        refuse_unlike_adapters([open_checkpoint(first), open_checkpoint(other)])


def test_fields_that_an_older_peft_did_not_write_have_their_default(tmp_path: Path) -> None:
    first, other = save(tmp_path / "a", lora()), save(tmp_path / "b", lora())
    old = json.loads((other / "adapter_config.json").read_text())
    for field in ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora"):
        del old[field]
    (other / "adapter_config.json").write_text(json.dumps(old | {"target_modules": ["q_proj", "v_proj"]}))
    refuse_unlike_adapters([open_checkpoint(first), open_checkpoint(other)])


@pytest.mark.parametrize("adapter_first", [True, False])
def test_an_adapter_and_a_model_are_not_merged(tmp_path: Path, adapter_first: bool) -> None:
    adapter, model = open_checkpoint(save(tmp_path / "a", lora())), open_checkpoint({"w": torch.ones(2)})
    with pytest.raises(InputError, match=r"state dict: is a whole model, but .* is an adapter"):
        refuse_unlike_adapters([adapter, model] if adapter_first else [model, adapter])
    refuse_unlike_adapters([model, model])


def test_a_config_without_a_kind_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", lora(), peft_type=None)
    with pytest.raises(InputError, match=r"adapter_config\.json: has no 'peft_type'"):
        open_checkpoint(folder)


@pytest.mark.parametrize(("state", "kind", "start"), [(lora(), "LORA", 0.0), (ia3(), "IA3", 1.0)])
def test_the_start_of_an_adapter_changes_nothing(
    tmp_path: Path, state: dict[str, Tensor], kind: str, start: float
) -> None:
    reader = open_checkpoint(save(tmp_path / "a", state, kind))
    base = InitialAdapterReader(reader)
    assert base.names() == reader.names()
    for name, tensor in state.items():
        assert torch.equal(base[name], torch.full_like(tensor, start)), name
        assert torch.equal(base.read_slice(name, 0, 5), torch.full_like(tensor[:5], start)), name
    with pytest.raises(InputError, match="has no tensor 'x'"):
        base.read("x")


@pytest.mark.parametrize("method", ["pcb", "task_arithmetic"])
def test_task_vectors_of_adapters_count_from_their_start(tmp_path: Path, method: str) -> None:
    readers = [open_checkpoint(save(tmp_path / str(seed), ia3(seed), "IA3")) for seed in range(2)]
    ones = {name: torch.ones_like(tensor) for name, tensor in ia3().items()}
    expected = dict(ml.merge(readers, base=ones, method=method))
    merged = dict(ml.merge(readers, base=InitialAdapterReader(readers[0]), method=method))
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "name", ["base_model.model.q_proj.lora_magnitude_vector", "base_model.model.classifier.weight"]
)
def test_a_start_that_only_the_base_model_knows_is_refused(tmp_path: Path, name: str) -> None:
    reader = open_checkpoint(save(tmp_path / "a", lora() | {name: torch.ones(8)}))
    with pytest.raises(InputError, match=f"tensor '{name}' starts at a value that only its base model knows; merge"):
        InitialAdapterReader(reader)


@pytest.mark.parametrize(("drawn", "known"), [("pissa", False), ("olora", False), ("gaussian", True), (True, True)])
def test_factors_drawn_from_the_base_model_have_no_natural_start(tmp_path: Path, drawn: object, known: bool) -> None:
    reader = open_checkpoint(save(tmp_path / "a", lora(), init_lora_weights=drawn))
    if known:
        InitialAdapterReader(reader)
    else:
        with pytest.raises(InputError, match=rf"adapter_config\.json: init_lora_weights is '{drawn}', a start"):
            InitialAdapterReader(reader)
