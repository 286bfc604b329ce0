"""Laws of zipped alignments, and of heads that tasks keep for themselves."""

from collections import Counter

import pytest
import torch
from torch import nn

from mergeline.alignment.alignment import Alignment
from mergeline.alignment.apply import AlignedReader, apply_alignment
from mergeline.alignment.merge import merge_aligned
from mergeline.alignment.solve import align
from mergeline.errors import InputError
from mergeline.merging.engine import merge
from mergeline.models.resnet import resnet
from mergeline.symmetry.derive import derive_symmetry
from tests.derived import symmetry_of
from tests.symmetry.architectures.vision_transformers import VisionTransformer


def network(seed, outputs=7, width=4):
    torch.manual_seed(seed)
    return resnet(width=width, outputs=outputs, stem_stride=2).eval()


@pytest.fixture
def batches():
    return [torch.randn(20, 1, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def scrambled(model, seed=3):
    """A copy of the model with its units in random order."""
    copy = network(1)
    copy.load_state_dict(apply_alignment(model.state_dict(), symmetry_of(model).random_alignment(seed), 0))
    return copy


def outputs(state, batch, **options):
    module = network(0, **options)
    module.load_state_dict(state)
    with torch.no_grad():
        return module(batch)


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_zipping_copies_gives_the_function_of_one(batches):
    """Each unit is merged with its own copy. (Of three copies, the third is less alike to a merged pair.)"""
    model = network(0)
    copies = [model, scrambled(model)]
    alignment = align(copies, symmetry_of(model), method="zip", batches=batches)
    merged = merge_aligned([copy.state_dict() for copy in copies], alignment)
    torch.testing.assert_close(outputs(merged, batches[0]), model(batches[0]).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", ["weight", "activation", "dual"])
def test_the_mean_of_the_parts_is_the_merge(batches, space):
    models = [network(0), network(1)]
    alignment = align(models, symmetry_of(models[0]), space=space, method="zip", batches=batches)
    states = [model.state_dict() for model in models]
    parts = [apply_alignment(state, alignment, number) for number, state in enumerate(states)]
    for name, tensor in merge_aligned(states, alignment).items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (parts[0][name] + parts[1][name]) / 2)


def test_a_smaller_reduction_gives_wider_models(batches):
    models = [network(0), network(1)]
    alignment = align(models, symmetry_of(models[0]), method="zip", reduce=0.25, batches=batches)
    merged = merge_aligned([model.state_dict() for model in models], alignment)
    assert merged["conv1.weight"].shape == (6, 1, 3, 3)
    assert merged["layer1.0.conv1.weight"].shape == (6, 6, 3, 3)
    assert torch.isfinite(outputs(merged, batches[0], width=6)).all()


def test_without_reduction_the_models_stand_side_by_side(batches):
    """Nothing is merged, so the logits are the mean of what both models add to them."""
    models = [network(0), network(1)]
    alignment = align(models, symmetry_of(models[0]), method="zip", reduce=0.0, batches=batches)
    merged = merge_aligned([model.state_dict() for model in models], alignment)
    with torch.no_grad():
        mean = sum(model(batches[0]) for model in models) / 2
    # a unit of one model is written by n times its share: both halves of the wide model are whole
    torch.testing.assert_close(outputs(merged, batches[0], width=8), mean, rtol=1e-3, atol=1e-4)


def test_assign_says_which_merged_unit_each_unit_joins(batches):
    models = [network(0), network(1)]
    alignment = align(models, symmetry_of(models[0]), method="zip", batches=batches)
    merged = merge_aligned([model.state_dict() for model in models], alignment)
    places = alignment.assign["conv1"]
    both = torch.cat([model.state_dict()["conv1.weight"] for model in models])
    for unit in range(4):
        torch.testing.assert_close(merged["conv1.weight"][unit], both[places == unit].mean(dim=0))


def test_a_zip_survives_storage(batches, tmp_path):
    models = [network(0), network(1)]
    alignment = align(models, symmetry_of(models[0]), method="zip", batches=batches)
    alignment.save(tmp_path)
    again = Alignment.load(tmp_path)
    states = [model.state_dict() for model in models]
    assert equal(merge_aligned(states, again), merge_aligned(states, alignment))
    assert equal(again.assign, alignment.assign)
    (tmp_path / "zips.safetensors").unlink()
    with pytest.raises(InputError, match=r"zips\.safetensors is missing"):
        Alignment.load(tmp_path)


def test_a_zip_cannot_be_undone_or_composed(batches):
    models = [network(0), network(1)]
    alignment = align(models, symmetry_of(models[0]), method="zip", batches=batches)
    with pytest.raises(InputError, match="cannot be undone"):
        alignment.inverse()
    with pytest.raises(InputError, match="where they permute"):
        alignment.then(alignment)


@pytest.fixture(scope="module")
def attention():
    torch.manual_seed(0)
    model = VisionTransformer(12, 2, 3, 16, 8, 4, 5).eval()
    return model, derive_symmetry(model, torch.randn(2, 3, 8, 8))


def test_composed_alignments_do_what_both_do_one_after_the_other(attention):
    model, symmetry = attention
    first, second = symmetry.random_alignment(1), symmetry.random_alignment(2)
    state = dict(model.state_dict())
    one_by_one = apply_alignment(apply_alignment(state, first, 0), second, 0)
    assert equal(apply_alignment(state, first.then(second), 0), one_by_one)
    assert equal(apply_alignment(state, first.then(first.inverse()), 0), state)


@pytest.mark.parametrize("method", ["permute", "zip"])
@pytest.mark.parametrize("space", ["weight", "dual"])
def test_scrambled_heads_are_found_again(attention, method, space):
    """Heads of queries, keys and values are one problem: the copy is brought back to the function it had."""
    model, symmetry = attention
    copy = VisionTransformer(12, 2, 3, 16, 8, 4, 5).eval()
    copy.load_state_dict(apply_alignment(model.state_dict(), symmetry.random_alignment(5), 0))
    pictures = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    alignment = align([model, copy], symmetry, space=space, method=method, batches=[pictures])
    merged = VisionTransformer(12, 2, 3, 16, 8, 4, 5).eval()
    merged.load_state_dict(merge_aligned([model.state_dict(), copy.state_dict()], alignment))
    with torch.no_grad():
        torch.testing.assert_close(copy(pictures), model(pictures), rtol=1e-4, atol=1e-5)
        if space == "dual":  # weights alone start from neighbours in the wrong order
            torch.testing.assert_close(merged(pictures), model(pictures), rtol=1e-3, atol=1e-4)


def test_parity_unties_the_heads_and_so_changes_the_function(attention):
    model, symmetry = attention
    torch.manual_seed(4)
    other = VisionTransformer(12, 2, 3, 16, 8, 4, 5).eval()
    pictures = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    changes = {}
    for parity in (None, "authors"):
        alignment = align([model, other], symmetry, batches=[pictures], parity=parity)
        assert set(alignment.assign) == set(symmetry.groups)
        moved = VisionTransformer(12, 2, 3, 16, 8, 4, 5).eval()
        moved.load_state_dict(apply_alignment(other.state_dict(), alignment, 1))
        with torch.no_grad():
            changes[parity] = float((moved(pictures) - other(pictures)).abs().max() / other(pictures).abs().max())
    assert changes[None] <= 1e-5
    assert changes["authors"] >= 1e-3


@pytest.mark.parametrize("method", ["permute", "zip"])
def test_tasks_keep_heads_of_their_own(batches, method):
    """Heads of different shape follow the units that they read."""
    models = [network(0, outputs=7), network(1, outputs=5)]
    alignment = align(models, symmetry_of(models[0]), method=method, batches=batches)
    merged = merge_aligned([model.state_dict() for model in models], alignment)
    assert {"linear.weight", "linear.bias"}.isdisjoint(merged)
    part = apply_alignment(models[1].state_dict(), alignment, 1)
    assert part["linear.weight"].shape == (5, 16)
    if method == "permute":
        torch.testing.assert_close(outputs(part, batches[0], outputs=5), models[1](batches[0]).detach())


@pytest.mark.parametrize("outputs_of_second", [7, 5])
def test_zipped_halves_stay_halves(batches, outputs_of_second):
    models = [network(0, outputs=7), network(1, outputs=outputs_of_second)]
    alignment = align(models, symmetry_of(models[0]), method="zip", batches=batches)
    merged = merge_aligned([model.half().state_dict() for model in models], alignment)
    assert {tensor.dtype for tensor in merged.values() if tensor.is_floating_point()} == {torch.float16}


def test_each_aligned_tensor_is_computed_once(batches, monkeypatch):
    """However many chunks it takes: a zipped tensor is computed whole."""
    models = [network(0, outputs=7), network(1, outputs=5)]
    alignment = align(models, symmetry_of(models[0]), method="zip", batches=batches)
    reads, read = [], AlignedReader.read
    monkeypatch.setattr(AlignedReader, "read", lambda self, name: reads.append(name) or read(self, name))
    monkeypatch.setitem(merge.__kwdefaults__, "chunk", 8)
    merge_aligned([model.state_dict() for model in models], alignment)
    assert max(Counter(reads).values()) == len(models)


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


class Wrapped(nn.Module):
    """Another module around a model: its tensors have other names."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: network(0, width=8),
            r"'conv1\.weight' has shape \[8, 1, 3, 3\], the architecture says \[4, 1, 3, 3\]",
        ),
        (lambda: Wrapped(network(0)), r"has no tensor 'bn1\.bias'.*same tensors; did you mean 'inner\.bn1\.bias'\?"),
    ],
    ids=["wider", "other names"],
)
def test_models_of_another_architecture_are_refused(other, message):
    with pytest.raises(InputError, match=message):
        align([network(0), other()], symmetry_of(network(0)), space="weight")


def test_a_merge_needs_every_model(batches):
    models = [network(0), network(1)]
    alignment = align(models, symmetry_of(models[0]), batches=batches)
    with pytest.raises(InputError, match="3 state dicts, but the alignment is of 2 models"):
        merge_aligned([network(seed).state_dict() for seed in range(3)], alignment)


def test_fewer_samples_than_units_are_warned_about():
    model = VisionTransformer(12, 1, 3, 16, 8, 4, 5).eval()
    symmetry = derive_symmetry(model, torch.randn(2, 3, 8, 8), verify=False)
    with pytest.warns(UserWarning, match=r"2 samples for 12 units"):
        align([model, model], symmetry, batches=[torch.randn(2, 3, 8, 8)])
