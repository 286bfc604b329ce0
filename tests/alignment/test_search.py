"""The sweeps: sets of linked groups, and that leaving out what is settled changes nothing."""

import pytest
import torch
from torch import nn

from mergeline.alignment.search import Search, linked_sets
from mergeline.alignment.solve import align
from mergeline.symmetry.derive import derive_symmetry
from tests.symmetry.architectures.vision_transformers import VisionTransformer


class Residual(nn.Module):
    """Square matrices on a stream: the group of the stream is its own neighbour."""

    def __init__(self):
        super().__init__()
        self.read, self.first, self.second, self.write = (nn.Linear(a, b) for a, b in [(3, 7), (7, 7), (7, 7), (7, 2)])

    def forward(self, x):
        x = self.read(x)
        x = x + self.first(x).relu()
        x = x + self.second(x).relu()
        return self.write(x)


class Grouped(nn.Module):
    """A grouped convolution: units on both of its axes lie over its groups, so they are matched at once."""

    def __init__(self):
        super().__init__()
        self.read, self.inside, self.write = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 9, 3, groups=3), nn.Conv2d(9, 2, 3)

    def forward(self, x):
        return self.write(self.inside(self.read(x).relu()).relu()).mean(dim=(2, 3))


CASES = {"residual": (Residual, (20, 3)), "grouped": (Grouped, (6, 2, 9, 9))}


@pytest.mark.parametrize("method", ["permute", "zip"])
@pytest.mark.parametrize("space", ["weight", "dual"])
@pytest.mark.parametrize("case", CASES)
def test_leaving_out_what_is_settled_changes_nothing(case, space, method, monkeypatch):
    build, shape = CASES[case]
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    torch.manual_seed(0)
    symmetry = derive_symmetry(build(), inputs)
    histories = []
    for seed in range(6):
        torch.manual_seed(seed)
        models = [build().eval(), build().eval()]

        def run(models=models):
            return align(models, symmetry, space=space, method=method, batches=[inputs])

        skipping = run()
        with monkeypatch.context() as patched:
            patched.setattr(Search, "is_settled", lambda self, number: False)
            matching_all = run()
        assert all(torch.equal(skipping.assign[name], places) for name, places in matching_all.assign.items())
        assert skipping.history == matching_all.history
        histories.append(skipping.history)
    assert max(map(len, histories)) > 2  # something moved after the first sweep


def test_linked_sets_share_families():
    model = VisionTransformer(12, 2, 3, 16, 8, 4, 5).eval()
    symmetry = derive_symmetry(model, torch.randn(2, 3, 8, 8), verify=False)
    sets = [{group.name for group in groups} for groups in linked_sets(symmetry)]
    assert {"blocks.0.attn.qkv.qk", "blocks.0.attn.qkv.v"} in sets
    assert {"blocks.0.mlp.fc1"} in sets
    assert sorted(name for names in sets for name in names) == sorted(symmetry.groups)
