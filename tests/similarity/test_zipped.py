"""The similarity of zipped models, kept up to date, is the one computed anew."""

import pytest
import torch
from torch import nn

from mergeline.alignment.fold import Fold, Zip
from mergeline.checkpoints.readers import open_checkpoint
from mergeline.models.resnet import resnet
from mergeline.similarity.weight import WeightRows
from mergeline.similarity.zipped import Change, ZippedRows
from mergeline.symmetry.derive import derive_symmetry
from tests.alignment.test_search import Grouped, Residual
from tests.symmetry.architectures.vision_transformers import VisionTransformer

CASES = {
    "resnet": (lambda: resnet(width=8, outputs=7, stem_stride=2), (4, 1, 12, 12)),
    "square matrices": (Residual, (4, 3)),
    "grouped": (Grouped, (4, 2, 9, 9)),
    "transformer": (lambda: VisionTransformer(depth=1), (2, 3, 16, 16)),
}


def random_zip(shape, models, generator):
    """Any units together, each merged unit with at least one."""
    units = shape[-1]
    assign = torch.stack([torch.randperm(units, generator=generator) for _ in range(models)])
    return Zip(assign.reshape(models, *[1] * (len(shape) - 1), units).expand(models, *shape).contiguous(), units)


def stir(zipped, generator):
    """A few units change places, and all merged units change numbers."""
    assign = zipped.assign.clone()
    first, second = torch.randint(assign.shape[-1], (2,), generator=generator).tolist()
    assign[0, ..., [first, second]] = assign[0, ..., [second, first]]
    return Zip(torch.randperm(zipped.width, generator=generator)[assign], zipped.width)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_it_follows_every_change(case, swap, models, mean, monkeypatch):
    build, shape = CASES[case]
    modules = []
    for seed in range(models):
        torch.manual_seed(seed)
        modules.append(build().eval())
        for parameter in modules[-1].parameters():
            parameter.data.mul_(1 - 0.9 * mean).add_(mean)
    generator = torch.Generator().manual_seed(1)
    symmetry = derive_symmetry(modules[0], torch.randn(shape, generator=generator))
    rows = WeightRows([open_checkpoint(module.state_dict()) for module in modules], symmetry)
    kept, anew = ZippedRows(rows), []
    begin = ZippedRows._anew
    monkeypatch.setattr(ZippedRows, "_anew", lambda self, group, *rest: anew.append(group) or begin(self, group, *rest))
    orders = [symmetry.identity() for _ in modules]
    shapes = {name: tuple(index.shape) for name, index in orders[0].items()}
    inner = [name for name in shapes if not any(name in family.over for family in symmetry.families.values())]
    zips, calls = {}, 0
    for step in range(4 * len(inner)):
        name = inner[step % len(inner)]
        zips[name] = stir(zips[name], generator) if name in zips else random_zip(shapes[name], models, generator)
        for group in symmetry.groups:
            fold = Fold(symmetry, dict(zips), models, swap=swap, epsilon=1e-5 * swap)
            calls += 1
            torch.testing.assert_close(
                kept.similarity(group, orders, fold).float(), rows.full(group, orders, fold), rtol=0, atol=2e-5
            )
    assert case == "grouped" or len(anew) < 0.7 * calls


def test_a_merged_unit_of_the_same_units_has_not_changed():
    before = Zip(torch.tensor([[0, 1, 2], [0, 1, 2]]), 3)
    after = Zip(torch.tensor([[2, 0, 1], [2, 1, 0]]), 3)  # 0 is called 2 now; 1 and 2 exchanged units of model 1
    change = Change.between(before, after)
    assert [units.tolist() for units in change.units] == [[1, 2], [1, 2]]
    assert [index.tolist() for index in change.before] == [[0, 1], [0, 1]]
    assert [index.tolist() for index in change.after] == [[0, 1], [1, 0]]


def test_a_unit_whose_weights_are_all_equal_is_like_no_other():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(50, 3, bias=False), nn.Linear(3, 2)

        def forward(self, x):
            return self.second(self.first(x).relu())

    module = Constant()
    symmetry = derive_symmetry(module, torch.randn(4, 50))
    with torch.no_grad():
        module.first.weight[1] = module.second.weight[:, 1] = 0.1
    rows = WeightRows([open_checkpoint(module.state_dict())] * 2, symmetry)
    (group,) = symmetry.groups
    similarity = ZippedRows(rows).similarity(group, [symmetry.identity()] * 2, Fold(symmetry, {}, 2))
    assert similarity[1].abs().max() == 0
    torch.testing.assert_close(similarity[0, 3], torch.ones((), dtype=torch.float64))
