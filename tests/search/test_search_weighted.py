"""A candidate that is a weighted sum is what a merge of the models gives, to rounding."""

import pytest
import torch

import mergeline as ml
from mergeline.checkpoints.readers import TensorReader
from mergeline.errors import InputError
from mergeline.merging.engine import method_statistics
from mergeline.search.weighted import candidate, weighted_bytes, write_weighted

SHAPES = {
    "layer1.weight": (40, 30),
    "layer1.bias": (40,),
    "layer2.weight": (7, 40),
    "norm.running_mean": (40,),
    "layer2.temperature": (),
}


def model(seed, dtype=torch.float32, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: spread * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    state = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    state["norm.num_batches_tracked"] = torch.tensor(seed)
    state["tied.weight"] = state["layer1.weight"]
    return state


@pytest.fixture(scope="module")
def family():
    """Three task models of two bases."""
    bases = [TensorReader(model(seed)) for seed in (1, 2)]
    origin = [bases[0], bases[0], bases[1]]
    changes = [model(seed, spread=0.01) for seed in (3, 4, 5)]
    readers = []
    for base, change in zip(origin, changes, strict=True):
        state = {name: base[name] + change[name] for name in base}
        state["tied.weight"] = state["layer1.weight"]
        readers.append(TensorReader(state))
    return readers, origin


CASES = {
    "defaults": {},
    "vision": {"variant": "vision", "keep_ratio": 0.05},
    "paper": {"variant": "paper"},
    "onto the first": {"onto": "first"},
    "bfloat16": {"out_dtype": torch.bfloat16},
    "by layer": {"granularity": "layer"},
    "by pattern": {
        "options_by_pattern": {"layer2*": {"scale": 0.5, "keep_ratio": 0.4}, "*bias": {"scales": [1, 0, 2]}}
    },
}
SCALES = [{}, {"scale": 1.7}, {"scales": [0.8, 1.3, 1.0]}, {"scale": 0.5, "scales": [1.1, -0.2, 0.93]}]


@pytest.mark.parametrize("case", CASES)
def test_a_candidate_is_the_merge(case, family, tmp_path):
    readers, base = family
    options = {"variant": "pairwise", "keep_ratio": 0.3} | CASES[case]
    asked = {k: v for k, v in options.items() if k not in ("onto", "out_dtype")}
    statistics = method_statistics(readers, base=base, method="pcb", **asked)
    write_weighted(tmp_path / "w.safetensors", readers, base=base, statistics=statistics, **options)
    for scales in SCALES:
        merged = dict(ml.merge(readers, base=base, method="pcb", **options, **scales))
        found = candidate(tmp_path / "w.safetensors", **scales)
        assert list(found) == list(merged)
        for name, tensor in merged.items():
            assert found[name].dtype == tensor.dtype, name
            assert found[name].shape == tensor.shape, name
            if "running" in name or not tensor.is_floating_point():
                assert torch.equal(found[name], tensor), name
            else:
                tolerance = 2.0**-7 if tensor.dtype == torch.bfloat16 else 1e-6
                torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=1e-7)
        assert found["tied.weight"] is found["layer1.weight"]


def test_lambda_zero_gives_the_base(family, tmp_path):
    readers, base = family
    statistics = method_statistics(readers, base=base, method="pcb", variant="pairwise", keep_ratio=0.3)
    file = tmp_path / "w.safetensors"
    write_weighted(file, readers, base=base, statistics=statistics, onto="first", variant="pairwise", keep_ratio=0.3)
    for name, tensor in candidate(file, scale=0.0).items():
        if "running" not in name:
            assert torch.equal(tensor, readers[0][name] if "tracked" in name else base[0][name]), name
    assert 0.9 * file.stat().st_size < weighted_bytes(readers) * 1.5


def test_wrong_numbers_of_scales_and_overflow_are_refused(family, tmp_path):
    readers, base = family
    statistics = method_statistics(readers, base=base, method="pcb", keep_ratio=0.3)
    write_weighted(
        tmp_path / "w.safetensors", readers, base=base, statistics=statistics, keep_ratio=0.3, out_dtype=torch.float16
    )
    with pytest.raises(InputError, match="2 scales for 3 task models"):
        candidate(tmp_path / "w.safetensors", scales=[1.0, 1.0])
    with pytest.raises(InputError, match=r"overflows torch\.float16"):
        candidate(tmp_path / "w.safetensors", scale=1e9)
