"""Activations of units, seen in the traced graph."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from mergeline.alignment.apply import apply_alignment
from mergeline.errors import InputError
from mergeline.symmetry.derive import derive_symmetry
from mergeline.symmetry.symmetry import Symmetry
from mergeline.symmetry.tap import Tap, choose_sites
from mergeline.symmetry.units import units_first


class Attention(nn.Module):
    """A block of two heads over three inputs of width 6, a hidden layer, and the mean over the tokens."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(3, 24), nn.Linear(8, 6)
        self.norm, self.up, self.down, self.head = nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = y + self.down(functional.relu_(self.up(y)))
        return self.head(self.norm(y).mean(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Attention().eval()


@pytest.fixture
def inputs():
    return torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def symmetry(model, inputs):
    return derive_symmetry(model, inputs)


def samples_of(tap, state, inputs):
    """The samples of each site, [samples, units]."""
    values, sizes = tap.run(state, inputs), tap.symmetry.sizes
    return {
        site: torch.cat([units_first(values[site.node], span, sizes).T for span in tap.spans[site]])
        for site in tap.sites
    }


def observed(tap, model, inputs):
    return {(site.group, site.node): samples for site, samples in samples_of(tap, model.state_dict(), inputs).items()}


def test_each_group_is_seen_where_it_is_read_last(model, inputs, symmetry):
    seen = observed(Tap(model, symmetry), model, inputs)
    with torch.no_grad():
        q, k, v = model.qkv(inputs).view(4, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = model.out(mixed)
        hidden = model.up(y).relu()
        normed = model.norm(y + model.down(hidden))
    by_token = [t.transpose(1, 2).reshape(20, 8) for t in (q, k)]
    expected = {
        ("qkv.v", "flatten"): mixed.reshape(20, 8),
        ("up", "relu_"): hidden.reshape(20, 5),
        ("out", "norm.layer_norm"): normed.reshape(20, 6),  # before the mean over tokens, which head reads
    }
    queries_and_keys = [samples for (group, _), samples in seen.items() if group == "qkv.qk"]
    for samples, values in zip(queries_and_keys, by_token, strict=True):
        torch.testing.assert_close(samples, values)
    assert {key for key in seen if key[0] != "qkv.qk"} == expected.keys()
    for key, values in expected.items():
        torch.testing.assert_close(seen[key], values)


def test_every_reader_can_be_asked(symmetry):
    last, every = ({s.group for s in choose_sites(symmetry, c)} for c in ("last", "all"))
    assert last == every == set(symmetry.groups)
    stream = [site.node for site in choose_sites(symmetry, "all") if site.group == "out"]
    assert stream == ["out.linear", "norm.layer_norm"]


def test_what_is_changed_in_place_later_is_seen_as_it_was(model, inputs, symmetry):
    made = [site for site in symmetry.sites if site.group == "up" and site.kind == "def"]
    (samples,) = samples_of(Tap(model, symmetry, made), model.state_dict(), inputs).values()
    assert (samples < 0).any()


def test_values_may_be_taken_as_they_come(model, inputs, symmetry):
    """As they are at that moment: what is changed in place later is not copied."""
    tap, taken = Tap(model, symmetry, choose_sites(symmetry, "all")), {}
    kept = tap.run(model.state_dict(), inputs)
    assert tap.run(model.state_dict(), inputs, take=lambda node, value: taken.update({node: value.clone()})) == {}
    assert taken.keys() == kept.keys()
    assert all(torch.equal(taken[node], value) for node, value in kept.items())


def test_a_permuted_model_shows_the_same_units_in_another_order(model, inputs, symmetry):
    alignment = symmetry.random_alignment(2)
    tap = Tap(model, symmetry)
    before = samples_of(tap, model.state_dict(), inputs)
    after = samples_of(tap, apply_alignment(model.state_dict(), alignment, 0), inputs)
    for site, samples in before.items():
        places = alignment.assign[site.group]
        torch.testing.assert_close(after[site][:, places], samples, msg=site.group)


def test_one_graph_serves_batches_of_any_size_and_other_models(model, inputs, symmetry):
    tap = Tap(model, symmetry)
    whole = observed(tap, model, inputs)
    parts = [observed(tap, model, batch) for batch in inputs.split([1, 3])]
    for key, samples in whole.items():
        torch.testing.assert_close(torch.cat([part[key] for part in parts]), samples)
    torch.manual_seed(5)
    other = Attention().eval()
    assert not torch.allclose(observed(tap, other, inputs)["up", "relu_"], whole["up", "relu_"])
    torch.testing.assert_close(observed(tap, model, inputs)["up", "relu_"], whole["up", "relu_"])


def test_a_model_without_one_of_the_tensors_is_refused(model, inputs, symmetry):
    """The tensors of the module that was traced must not step in."""
    state = model.state_dict()
    del state["up.bias"]
    with pytest.raises(InputError, match=r"no tensor 'up\.bias', which Attention reads"):
        samples_of(Tap(model, symmetry), state, inputs)


def test_a_tied_tensor_may_have_any_of_its_names(inputs):
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))
    module[3].weight = module[1].weight
    symmetry, state = derive_symmetry(module, inputs), module.state_dict()
    expected = Tap(module, symmetry).run(state, inputs)
    for name in ("1.weight", "3.weight"):
        seen = Tap(module, symmetry).run({key: x for key, x in state.items() if key != name}, inputs)
        assert all(torch.equal(seen[node], value) for node, value in expected.items())
    assert expected


def test_inputs_of_another_shape_are_traced_again(model, inputs, symmetry):
    tap = Tap(model, symmetry)
    samples_of(tap, model.state_dict(), inputs)
    longer = observed(tap, model, torch.randn(2, 7, 3))
    assert longer["up", "relu_"].shape == (14, 5)


def test_a_symmetry_that_was_read_from_text_can_be_observed(model, inputs, symmetry):
    again = Symmetry.from_yaml(symmetry.to_yaml())
    expected = observed(Tap(model, symmetry), model, inputs)
    for key, samples in observed(Tap(model, again), model, inputs).items():
        assert torch.equal(samples, expected[key])


def test_a_symmetry_from_one_example_fits_traces_of_many(model, inputs):
    """With a single example the trace holds for that batch size only; its operations have the same names."""
    single = derive_symmetry(model, inputs[:1])
    assert observed(Tap(model, single), model, inputs)["up", "relu_"].shape == (20, 5)


def test_a_site_that_the_model_lacks_is_named(model, inputs, symmetry):
    class Other(Attention):
        def forward(self, x):
            return super().forward(x.tanh()).tanh() if x.ndim < 2 else self.head(self.out(self.qkv(x)[..., :8]))

    with pytest.raises(InputError, match=r"the trace of Other has no operation '.*': derive|derive it again"):
        samples_of(Tap(Other(), symmetry), model.state_dict(), inputs)


def test_activations_that_do_not_show_the_group_are_refused(symmetry):
    text = symmetry.to_yaml().replace("dims: {2: up}", "dims: {2: out}")
    broken = Symmetry.from_yaml(text)
    site = next(site for site in broken.sites if site.group == "up")
    with pytest.raises(InputError, match="do not show the group 'up'"):
        broken.site_spans(site)
