"""What `align` and its files refuse, each in one sentence; and the corners that work."""

import json

import pytest
import torch

from mergeline.alignment.alignment import Alignment
from mergeline.alignment.apply import AlignedReader
from mergeline.alignment.merge import merge_aligned
from mergeline.alignment.solve import align
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.errors import InputError
from mergeline.models.resnet import resnet
from mergeline.similarity.activation import activation_similarity
from mergeline.similarity.weight import weight_similarity
from mergeline.symmetry.derive import derive_symmetry
from tests.derived import symmetry_of
from tests.symmetry.architectures import ARCHITECTURES


def network(seed):
    torch.manual_seed(seed)
    return resnet(width=4, outputs=7, stem_stride=2).eval()


@pytest.fixture
def batches():
    return [torch.randn(20, 1, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parity": "author"}, "align.parity: 'author' is not known"),
        ({"parity": False}, "align.parity: False is not known"),
        ({"sweeps": 0}, "at least one sweep"),
        ({"order": []}, "at least one sweep"),
        ({"order": [["conv1"]]}, "a sweep must name every group once"),
        ({"balance": "0.5"}, "not between 0"),
        ({"method": "zip", "reduce": 0.95}, "which leaves none of 8 units"),
        ({"method": "zip", "budget": float("inf")}, "budget is inf"),
        ({"method": "merge"}, "'merge' is not known; use permute or zip"),
    ],
)
def test_options_that_mean_nothing_are_refused(batches, options, message):
    models = [network(0), network(1)]
    with pytest.raises(InputError, match=message):
        align(models, symmetry_of(models[0]), batches=batches, **options)


@pytest.mark.parametrize("method", ["permute", "zip"])
def test_weights_that_are_not_finite_are_named(batches, method):
    models = [network(0), network(1)]
    with torch.no_grad():
        models[1].layer1[0].conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"tensor 'layer1\.0\.conv1\.weight' holds NaN or Inf"):
        align(models, symmetry_of(models[0]), method=method, batches=batches)


def test_activations_too_large_for_float32_are_named(batches):
    model = network(0)
    with pytest.raises(InputError, match="holds NaN or Inf: activations are too large"):
        activation_similarity([model], symmetry_of(model), [batch * 1e19 for batch in batches])


@pytest.mark.parametrize("data", [[], [torch.empty(0, 1, 12, 12)]], ids=["no batches", "no rows"])
def test_no_calibration_data_is_said(data):
    model = network(0)
    with pytest.raises(InputError, match="no samples were collected; give at least one calibration batch"):
        align([model, model], symmetry_of(model), batches=data)


def test_batches_without_rows_count_for_nothing(batches):
    model = network(0)
    expected = activation_similarity([model], symmetry_of(model), batches)
    found = activation_similarity([model], symmetry_of(model), [batches[0], batches[0][:0], batches[1]])
    assert all(torch.equal(found[name], table) for name, table in expected.items())


def test_no_models_are_refused(batches):
    symmetry = symmetry_of(network(0))
    for call in (
        lambda: align([], symmetry, batches=batches),
        lambda: activation_similarity([], symmetry, batches),
        lambda: weight_similarity([], symmetry),
    ):
        with pytest.raises(InputError, match="there are no models"):
            call()


@pytest.mark.parametrize("method", ["permute", "zip"])
@pytest.mark.parametrize("space", ["weight", "activation", "dual"])
def test_one_model_stays_as_it_is(batches, space, method):
    model = network(0)
    alignment = align([model], symmetry_of(model), space=space, method=method, batches=batches)
    merged = merge_aligned([model.state_dict()], alignment)
    assert all(torch.equal(merged[name], tensor) for name, tensor in model.state_dict().items())


def test_zipped_half_precision_is_rounded_once(batches):
    models = [network(seed) for seed in range(3)]
    alignment = align(models, symmetry_of(models[0]), method="zip", reduce=0.75, batches=batches)
    halves = [
        {name: x.bfloat16() if x.is_floating_point() else x for name, x in model.state_dict().items()}
        for model in models
    ]
    wide = [{name: x.float() if x.is_floating_point() else x for name, x in state.items()} for state in halves]
    expected = merge_aligned(wide, alignment)
    for name, tensor in merge_aligned(halves, alignment).items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(tensor, expected[name].bfloat16()), name
    assert AlignedReader(open_checkpoint(halves[0]), alignment, 0).dtype("conv1.weight") == torch.bfloat16


@pytest.mark.parametrize("method", ["permute", "zip"])
def test_parity_leaves_grouped_queries_tied(method):
    """The authors have no specification for them; they are matched as they are otherwise."""
    architecture = ARCHITECTURES["hf_llama"]
    pytest.importorskip(architecture.needs)
    torch.manual_seed(0)
    models = [architecture.build().eval(), architecture.build().eval()]
    symmetry = derive_symmetry(models[0], architecture.inputs(), verify=False)
    alignment = align(models, symmetry, space="weight", method=method, parity="authors", sweeps=1)
    assert set(alignment.assign) == set(symmetry.groups)


@pytest.fixture
def stored(batches, tmp_path):
    models = [network(0), network(1)]
    align(models, symmetry_of(models[0]), method="zip", batches=batches).save(tmp_path)
    return tmp_path


def without_key(folder, key):
    summary = json.loads((folder / "alignment.json").read_text())
    del summary[key]
    (folder / "alignment.json").write_text(json.dumps(summary))


DAMAGE = {
    "cut tensors": lambda folder: (folder / "permutations.safetensors").write_bytes(
        (folder / "permutations.safetensors").read_bytes()[:-100]
    ),
    "broken JSON": lambda folder: (folder / "alignment.json").write_text("{"),
    "a key is missing": lambda folder: without_key(folder, "models"),
    "more models than stored": lambda folder: (folder / "alignment.json").write_text(
        (folder / "alignment.json").read_text().replace('"models": 2', '"models": 3')
    ),
    "a zip is missing": lambda folder: (folder / "alignment.json").write_text(
        (folder / "alignment.json").read_text().replace('"widths": {', '"widths": {"more": 3,')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_alignment_is_not_loaded(stored, damage):
    DAMAGE[damage](stored)
    with pytest.raises(InputError, match=r"not an alignment as it was saved|holds \["):
        Alignment.load(stored)
