"""PCB-Merging gives what the authors' programs give, within float32 rounding."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mergeline.balancing.pcb import pcb_merge

VARIANTS = {"main": "reference", "nlp": "nlp", "vis": "vision", "es": "pairwise"}
SMALL = ["main_0.05", "main_0.1", "main_0.2", "nlp_0.1", "vis_0.05", "es_0.05"]
RUNS = {
    "n2_d1000": SMALL,
    "n2_d20000": ["main_0.1"],
    "n3_d2000_sparse_sat": SMALL,
    "n3_d3000": ["main_0.1", "main_0.2", "nlp_0.1", "vis_0.05", "es_0.05"],
    "n8_d1200_tiny": SMALL,
    "n8_d2000": ["main_0.1", "main_0.2", "nlp_0.1", "vis_0.05", "es_0.05"],
}


def dense(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """A stored tensor; the sparse ones lie as flat positions and values."""
    if name in tensors:
        return tensors[name]
    full = torch.zeros(shape).flatten()
    full[tensors[f"{name}.idx"].long()] = tensors[f"{name}.val"]
    return full.view(shape)


@pytest.mark.parametrize(("case", "run"), [(case, run) for case, runs in RUNS.items() for run in runs])
def test_merge_agrees_with_the_authors_programs(oracle, case: str, run: str) -> None:
    folder = oracle("pcb") / case
    manifest = json.loads((folder / "manifest.json").read_text())
    shape = manifest["n"], manifest["d"]
    entry = manifest["variants"][run]
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / entry["file"])
    scales = inputs["lams"] if entry["uses_lams"] else None
    variant = VARIANTS[run.partition("_")[0]]

    result = pcb_merge(dense(inputs, "task_vectors", shape), entry["ratio"], variant=variant, scales=scales)

    assert torch.equal(result.clip_bounds, torch.stack([expected["clamp_lo"], expected["clamp_hi"]], dim=1))
    scale = dense(expected, "scale", shape)
    kept = result.coefficients > 0
    assert ((scale > 0) != kept).float().mean() <= 1e-5
    assert (scale - result.coefficients)[kept & (scale > 0)].abs().max() <= 1e-5
    merged = dense(expected, "merged_tv", shape[1:])
    wrong = (merged - result.merged).abs() > 1e-5 * merged.abs().max()
    assert wrong.sum() <= max(2, 1e-5 * shape[1])
    assert kept.sum(dim=1).tolist() == entry["kept_per_task"]


def test_every_run_of_the_oracle_is_listed(oracle) -> None:
    found = {folder.name: json.loads((folder / "manifest.json").read_text()) for folder in oracle("pcb").iterdir()}
    assert {case: sorted(manifest["variants"]) for case, manifest in found.items()} == {
        case: sorted(runs) for case, runs in RUNS.items()
    }
