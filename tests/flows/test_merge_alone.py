"""Plans of checkpoints alone: downloaded, merged, published, recorded; nothing is evaluated."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from mergeline.preflight.inspect import inspect_plan
from tasks.publishing import published_beside
from tests.flows.runs import plan_for, published, run, stage_names

pytestmark = pytest.mark.flow
STAGES = ["download-checkpoint", "merge", "publish", "track"]


def write_plan(folder: Path, checkpoints: list[dict[str, str]], merge: dict[str, object], **fields: object) -> Path:
    path = folder / "llm.yaml"
    path.write_text(yaml.safe_dump({"name": "llm", "checkpoints": checkpoints, "merge": merge} | fields))
    return path


def llama(folder: Path, seed: int, vocabulary: int = 96, like: Path | None = None) -> Path:
    """A tiny Llama in shards, with a tokenizer's file; a small step away from another one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **shape)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    if like is not None:
        start = LlamaForCausalLM.from_pretrained(like, dtype=torch.bfloat16).state_dict()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                rows = len(start[name])
                tensor[:rows] = start[name] + 0.1 * tensor[:rows]
    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokens": vocabulary}))
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


@pytest.fixture(scope="module")
def language_models(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    base = llama(folder / "base", 0)
    models = [llama(folder / name, seed, like=base) for seed, name in enumerate(("code", "chat"), start=1)]
    longer = llama(folder / "longer", 3, vocabulary=104, like=base)
    return {path.name: path for path in (base, *models, longer)}


def entries(paths, *names, base=None):
    return [{"name": name, "uri": str(paths[name])} | ({"base": base} if base else {}) for name in names]


def test_language_models_become_a_folder_that_from_pretrained_opens(language_models, project, tmp_path):
    from huggingface_hub import ModelCard
    from transformers import AutoModelForCausalLM

    import mergeline as ml

    paths = language_models
    checkpoints = [*entries(paths, "base"), *entries(paths, "code", "chat", base="base")]
    merge = {"method": "ties", "keep_ratio": 0.3, "max_shard_size": "50KB", "out_dtype": "float32"}
    path = write_plan(tmp_path, checkpoints, merge)
    plan = plan_for(project / "llm", path=path)
    foretold = inspect_plan(plan, beside=published_beside(plan, measured=False))
    outcome = run(plan_for(project / "llm", path=path))
    assert sorted(set(stage_names(outcome))) == sorted([*STAGES, "merge-statistics"])
    assert outcome.comparison.rows == []

    output = project / "llm"
    names = {file.name for file in output.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json"} <= names
    assert names == {name.rstrip("/") for name in [*foretold.files, *foretold.beside]}
    assert foretold.files == {name: (output / name).stat().st_size for name in foretold.files}
    assert {"report.md", "lineage.json", "metrics.json"} <= names
    assert not names & {"model.safetensors", "chart.png", "normalization"}
    model = AutoModelForCausalLM.from_pretrained(output)
    expected = dict(
        ml.merge(
            [paths["code"], paths["chat"]], base=paths["base"], method="ties", keep_ratio=0.3, out_dtype=torch.float32
        )
    )
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    assert json.loads((output / "config.json").read_text())["dtype"] == "float32"

    lineage = json.loads((output / "lineage.json").read_text())
    assert set(lineage["files"]) == {name for name in names if name.startswith("model-") or "config" in name} | {
        "model.safetensors.index.json"
    }
    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    recorded = {file.path for file in client.list_artifacts(outcome.recorded.mlflow_run)}
    assert {"config.json", "report.md", "lineage.json"} <= recorded

    again = run(plan_for(output, path=path))
    assert again.stages.cached == again.stages.total == 3 + 1 + 1

    card = ModelCard.load(output / "README.md")
    assert card.data.library_name == "transformers"
    assert "AutoModel.from_pretrained" in card.text
    assert "fine-tuned from base | `" in card.text

    run(plan_for(output, "merge.max_shard_size=null", path=path))  # the shards of before would shadow it
    assert {file.name for file in output.iterdir() if file.suffix == ".safetensors"} == {"model.safetensors"}
    assert not (output / "model.safetensors.index.json").exists()
    assert torch.equal(AutoModelForCausalLM.from_pretrained(output).lm_head.weight, model.lm_head.weight)


def test_common_rows_of_vocabularies_and_the_tokenizer_that_fits_them(language_models, project, tmp_path):
    from transformers import AutoModelForCausalLM

    from mergeline.errors import InputError

    paths = language_models
    path = write_plan(tmp_path, entries(paths, "longer", "code"), {"method": "average"}, align=None)
    with pytest.raises(InputError, match="write vocabulary: common"):
        run(plan_for(project / "vocabulary", path=path))
    assert not (project / "vocabulary").exists()
    foretold = inspect_plan(plan_for(project / "vocabulary", "merge.vocabulary=common", path=path)).files
    run(plan_for(project / "vocabulary", "merge.vocabulary=common", path=path))
    assert foretold == {name: (project / "vocabulary" / name).stat().st_size for name in foretold}
    model = AutoModelForCausalLM.from_pretrained(project / "vocabulary")
    assert model.config.vocab_size == 96
    assert model.get_input_embeddings().weight.shape == (96, 32)
    assert json.loads((project / "vocabulary" / "tokenizer_config.json").read_text()) == {"tokens": 96}


def adapter(folder: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    names = [f"base_model.model.layers.{i}.q_proj.lora_{part}.weight" for i in range(2) for part in "AB"]
    shapes = {"A": (4, 16), "B": (16, 4)}
    folder.mkdir()
    save_file(
        {name: torch.randn(shapes[name[-8]], generator=generator) for name in names},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_adapters_are_merged_from_what_they_were_before_training(project, tmp_path):
    import mergeline as ml
    from mergeline.checkpoints.adapters import InitialAdapterReader

    paths = {name: adapter(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))}
    merge = {"method": "pcb", "keep_ratio": 0.3, "max_shard_size": 100}
    run(plan_for(project / "adapter", path=write_plan(tmp_path, entries(paths, *paths, base="initial"), merge)))
    readers = [ml.open_checkpoint(path) for path in paths.values()]
    expected = dict(ml.merge(readers, base=InitialAdapterReader(readers[0]), method="pcb", keep_ratio=0.3))
    merged = load_file(project / "adapter" / "adapter_model.safetensors")
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert json.loads((project / "adapter" / "adapter_config.json").read_text())["r"] == 4


def test_shipped_checkpoints_as_a_single_file(project, tmp_path):
    zoo = Path("data/zoo").resolve()
    paths = {name: zoo / f"{name}.safetensors" for name in ("base-a", "a-clean-02478", "a-clean-13569")}
    checkpoints = [*entries(paths, "base-a"), *entries(paths, *list(paths)[1:], base="base-a")]
    run(plan_for(project / "file", path=write_plan(tmp_path, checkpoints, {"method": "task_arithmetic"})))
    assert set(published(project / "file")) == {
        *("model.safetensors", "alignment/alignment.json", "coefficients/coefficients.json"),
        *("comparison.json", "metrics.json", "report.md", "report.html", "README.md"),
    }
