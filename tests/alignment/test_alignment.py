"""Laws of alignments: exact, invertible, storable, and blind to how the models were permuted."""

from math import prod

import pytest
import torch

from mergeline.alignment.alignment import Alignment, identity_alignment, random_alignment
from mergeline.alignment.apply import AlignedReader, apply_alignment
from mergeline.alignment.merge import merge_aligned
from mergeline.alignment.solve import align
from mergeline.checkpoints.readers import Reader, open_checkpoint
from mergeline.checkpoints.tensors import WithoutTensors
from mergeline.errors import InputError
from mergeline.merging.engine import merge
from mergeline.models.resnet import resnet
from mergeline.symmetry.layout import width
from mergeline.symmetry.symmetry import Symmetry, parameter_layout
from mergeline.symmetry.units import Family
from tests.derived import symmetry_of

NORMS = {"batch": {}, "group": {"norm": "group", "groups": 2}}


def network(seed, norm="batch"):
    torch.manual_seed(seed)
    return resnet(width=4, outputs=7, stem_stride=2, **NORMS[norm]).eval()


@pytest.fixture(params=NORMS)
def model(request):
    return network(0, request.param)


@pytest.fixture
def batches():
    return [torch.randn(20, 1, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def scramble(model, seed=0):
    """A copy of the model with its units in random order, and the alignment that did it."""
    alignment = symmetry_of(model).random_alignment(seed)
    return apply_alignment(model.state_dict(), alignment, 0), alignment


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_aligning_never_changes_the_function(model, batches):
    with torch.no_grad():
        before = model(batches[0])
        state, _ = scramble(model)
        assert not equal(state, model.state_dict())
        model.load_state_dict(state)
        torch.testing.assert_close(model(batches[0]), before, rtol=1e-4, atol=1e-5)


def test_inverse_undoes_bit_for_bit(model):
    state, alignment = scramble(model)
    assert equal(apply_alignment(state, alignment.inverse(), 0), dict(model.state_dict()))


@pytest.mark.parametrize("space", ["dual", "weight", "activation"])
def test_a_scrambled_copy_is_brought_back_bit_for_bit(model, batches, space):
    state, _ = scramble(model, seed=3)
    copy = network(1, "group" if any("groups" in f for f in symmetry_of(model).families) else "batch")
    copy.load_state_dict(state)
    alignment = align([model, copy], symmetry_of(model), space=space, batches=batches)
    if space != "weight":  # weights alone may stop at a worse fixed point: the neighbours start in the wrong order
        assert equal(apply_alignment(copy.state_dict(), alignment, 1), dict(model.state_dict()))
    assert equal(apply_alignment(model.state_dict(), alignment, 0), dict(model.state_dict()))


def test_assign_says_where_each_unit_goes(model):
    state, alignment = scramble(model)
    for name, group in alignment.symmetry.groups.items():
        axis = next(a for a in group.axes if a.role == "elt")
        original = model.state_dict()[axis.param]
        assert torch.equal(state[axis.param][alignment.assign[name]], original), name


def test_an_alignment_survives_storage(model, batches, tmp_path):
    alignment = align([model, network(1, "batch")] if "bn1.running_mean" in model.state_dict() else [model, model],
                      symmetry_of(model), batches=batches)  # fmt: skip
    alignment.save(tmp_path / "a")
    again = Alignment.load(tmp_path / "a")
    assert again.symmetry == alignment.symmetry
    assert (again.value, again.history, again.values) == (alignment.value, alignment.history, alignment.values)
    assert all(equal(a, b) for a, b in zip(again.permutations, alignment.permutations, strict=True))
    again.save(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_damaged_or_missing_alignment_is_named(model, tmp_path):
    with pytest.raises(InputError, match=r"permutations\.safetensors is missing"):
        Alignment.load(tmp_path)
    permutations = model_permutations = symmetry_of(model).identity()
    family = next(iter(permutations))
    model_permutations[family] = torch.zeros_like(permutations[family])
    Alignment(symmetry_of(model), (model_permutations,)).save(tmp_path)
    with pytest.raises(InputError, match=f"'0/{family}' is not a permutation"):
        Alignment.load(tmp_path)


def test_the_same_inputs_give_the_same_alignment(batches):
    models = [network(0), network(1)]
    first, second = (align(models, symmetry_of(models[0]), batches=batches, seed=4) for _ in range(2))
    assert first.assign.keys() == second.assign.keys()
    assert all(torch.equal(places, second.assign[name]) for name, places in first.assign.items())
    assert first.history == second.history


def test_balance_goes_from_activations_alone_to_weights_alone(batches):
    models = [network(0), network(1)]
    symmetry = symmetry_of(models[0])

    def assigned(**options):
        return align(models, symmetry, batches=batches, **options).assign

    only_activations = assigned(space="activation")
    assert equal(assigned(balance=0.0), only_activations)
    assert not equal(assigned(balance=1.0), only_activations)
    assert not equal(assigned(balance=0.9), assigned(balance=0.1))


def test_the_objective_of_the_result_is_the_best_of_all_sweeps(batches):
    models = [network(0), network(1)]
    alignment = align(models, symmetry_of(models[0]), batches=batches)
    assert alignment.value == pytest.approx(max(alignment.history), abs=2e-6)  # both are told with six digits
    assert len(alignment.history) < 100


def test_equal_models_merge_to_themselves(model, batches):
    alignment = align([model, model], symmetry_of(model), batches=batches)
    state = dict(model.state_dict())
    assert equal(merge_aligned([state, state], alignment), state)


def test_an_aligned_checkpoint_is_a_view(model):
    reads = []
    state = dict(model.state_dict())

    class Watched(Reader):
        source = "watched"

        def names(self):
            return sorted(state)

        def shape(self, name):
            return tuple(state[name].shape)

        def dtype(self, name):
            return state[name].dtype

        def read(self, name):
            reads.append(name)
            return state[name]

    view = AlignedReader(Watched(), symmetry_of(model).random_alignment(), 0)
    assert view.shape("conv1.weight") == (4, 1, 3, 3)
    assert reads == []
    assert torch.equal(view["linear.bias"], model.state_dict()["linear.bias"])
    assert reads == ["linear.bias"]


def test_rows_of_an_aligned_tensor_are_gathered_alone(model):
    view = AlignedReader(open_checkpoint(model.state_dict()), symmetry_of(model).random_alignment(), 0)
    for name in view:
        whole = view[name]
        for start in range(len(whole) if whole.ndim else 0):
            assert torch.equal(view.read_slice(name, start, start + 2), whole[start : start + 2])


def layered(axes):
    """A random alignment of one tensor with these axes, units in groups, and the tensor."""
    families = {"groups": Family("groups", 3), "inner": Family("inner", 4, ("groups",)), "in": Family("in", 5)}
    layout = parameter_layout(axes, ["out"] * len(axes))
    families = {name: family for name, family in families.items() if any(name in axis for axis in axes)}
    symmetry = Symmetry(families, {"weight": layout})
    shape = [width(dim, symmetry.sizes) for dim in layout.dims]
    return symmetry.random_alignment(), torch.arange(prod(shape)).reshape(shape)


@pytest.mark.parametrize(
    ("axes", "alone"),
    [
        (("groups * inner", "in"), True),  # grouped convolution: the rows' own order depends on their group
        (("groups", "inner", "in"), True),  # the columns' order depends on the row
        (("inner", "groups", "in"), False),  # the rows' order depends on the column
        (("_2", "groups * inner"), True),
    ],
)
def test_rows_are_gathered_alone_where_their_order_allows_it(axes, alone):
    alignment, tensor = layered(axes)
    view = AlignedReader(open_checkpoint({"weight": tensor}), alignment, 0)
    whole = view["weight"]
    assert view.reads_parts("weight") == alone
    assert not torch.equal(whole, tensor)
    for start in range(len(whole)):
        assert torch.equal(view.read_slice("weight", start, start + 2), whole[start : start + 2])


def test_rows_longer_than_a_chunk_are_gathered_once(monkeypatch):
    alignment, tensor = layered(("_3", "groups * inner"))
    gathered, read = [], AlignedReader.read_slice
    monkeypatch.setattr(AlignedReader, "read_slice", lambda self, *span: gathered.append(span[1:]) or read(self, *span))
    views = [AlignedReader(open_checkpoint({"weight": tensor.float()}), alignment, 0) for _ in range(2)]
    whole = views[0]["weight"]
    merged = dict(merge([WithoutTensors(view, []) for view in views], method="average", chunk=4))
    assert torch.equal(merged["weight"], whole)
    assert gathered == [(row, row + 1) for row in range(3) for _ in views]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "dual"}, "needs calibration inputs"),
        ({"space": "sideways", "batches": []}, "'sideways' is not known"),
        ({"space": "weight", "balance": 1.5}, "not between 0"),
        ({"space": "weight", "order": [["conv1"]]}, "must name every group once"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    model = network(0)
    with pytest.raises(InputError, match=message):
        align([model, model], symmetry_of(model), **options)


def test_a_checkpoint_of_another_width_is_refused():
    torch.manual_seed(0)
    wider = resnet(width=8, outputs=7)
    alignment = identity_alignment(symmetry_of(network(0)), 2)
    with pytest.raises(InputError, match="the architecture says"):
        apply_alignment(wider.state_dict(), alignment, 1)
    with pytest.raises(InputError, match="no model 2"):
        apply_alignment(network(0).state_dict(), alignment, 2)


def test_a_random_alignment_leaves_the_first_model_and_moves_every_other_in_its_own_way(model):
    symmetry = symmetry_of(model)
    first, second, third = random_alignment(symmetry, 3, seed=1).permutations
    for name, identity in symmetry.identity().items():
        assert torch.equal(first[name], identity)
        assert not torch.equal(second[name], identity) and not torch.equal(third[name], identity)
    assert any(not torch.equal(second[name], moved) for name, moved in third.items())
    again = random_alignment(symmetry, 3, seed=1).permutations
    assert all(torch.equal(again[2][name], moved) for name, moved in third.items())
