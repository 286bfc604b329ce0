"""Who won the competition: counted chunk by chunk, as from the whole table of coefficients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeline.balancing.pcb import coefficients
from mergeline.balancing.statistics import pcb_statistics
from mergeline.balancing.winners import BINS, all_winners, count_winners
from mergeline.errors import InputError
from mergeline.merging.engine import method_statistics
from mergeline.report.winners import winners_of_merge


def vectors(models, size, seed):
    return torch.randn(models, size, generator=torch.Generator().manual_seed(seed))


@given(
    models=st.integers(2, 5),
    size=st.integers(60, 900),
    chunk=st.integers(1, 400),
    variant=st.sampled_from(["reference", "pairwise", "paper"]),
    seed=st.integers(0, 999),
)
def test_the_counts_are_those_of_the_whole_table_whatever_the_chunks(models, size, chunk, variant, seed):
    tau = vectors(models, size, seed)
    statistics = pcb_statistics(lambda: [tau], size, 0.3, variant=variant)
    table = coefficients(tau, statistics)
    found = count_winners((part.contiguous() for part in tau.split(chunk, dim=1)), statistics)
    claims = (table > 0).sum(dim=0)
    assert found.parameters == size
    assert found.kept == tuple((table > 0).sum(dim=1).tolist())
    winners = [int(column.argmax()) for column in table.T if column.max() > 0]
    assert found.won == tuple(winners.count(model) for model in range(models))
    assert (found.contested, found.unclaimed) == (int((claims > 1).sum()), int((claims == 0).sum()))
    assert sum(found.won) + found.unclaimed == size
    assert tuple(map(sum, found.histogram)) == found.kept
    assert all(len(counts) == BINS for counts in found.histogram)


def test_the_strongest_entry_of_each_task_lies_in_the_last_bin_and_equals_go_to_the_first():
    tau = vectors(1, 500, 0).repeat(2, 1)
    statistics = pcb_statistics(lambda: [tau], 500, 0.2)
    found = count_winners([tau], statistics)
    assert all(counts[-1] >= 1 for counts in found.histogram)
    assert found.won == (found.kept[0], 0)


@pytest.mark.parametrize(
    "options", [{}, {"granularity": "tensor"}, {"options_by_pattern": {"b*": {"keep_ratio": 0.5}}}]
)
def test_a_merge_is_counted_over_all_its_groups(options):
    def state(seed):
        values = vectors(2, 300, seed)
        return {"a.weight": values[0].view(20, 15), "b.weight": values[1].view(15, 20)}

    base, models = state(0), [state(1), state(2)]
    given = {"keep_ratio": 0.2, "variant": "pairwise"} | options
    statistics = method_statistics(models, base=base, method="pcb", **given)
    found = winners_of_merge(models, base=base, statistics=statistics, **given)
    one = winners_of_merge(models, base=base, statistics=statistics, chunk=7, **given)
    assert found == one
    assert found.parameters == 600
    expected = 2 * 60 if "options_by_pattern" not in options else 60 + 150
    assert all(abs(kept - expected) <= 4 for kept in found.kept)
    with pytest.raises(InputError, match="compute them again"):
        winners_of_merge(models, base=base, statistics=statistics, **(given | {"variant": "paper"}))


def test_groups_add_up():
    tau = vectors(3, 400, 5)
    statistics = pcb_statistics(lambda: [tau], 400, 0.3)
    halves = [count_winners([part.contiguous()], statistics) for part in tau.split(150, dim=1)]
    assert all_winners(halves) == count_winners([tau], statistics)
