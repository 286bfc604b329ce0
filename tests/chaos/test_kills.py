"""SIGKILL at every boundary of a stage and inside every stage, then the same command again."""

import random

import pytest

from tests.chaos.attempts import KILLED, Merge, check_end, check_visible, kill_points, published, small_plan

pytestmark = pytest.mark.flow
STAGES = {
    *("download-checkpoint", "represent-family", "prove-symmetry", "collect-activations", "weight-similarity"),
    *("activation-similarity", "solve-permutations", "merge-statistics", "merge-range", "merge"),
    *("reset-normalization", "measure-normalization", "evaluate", "map-similarity", "count-winners", "draw-chart"),
    *("publish", "track"),
}


@pytest.mark.parametrize("where", ["inside", "at the end"])
def test_a_run_that_is_killed_in_every_stage_goes_on_each_time(kitchen, unbroken, tmp_path, where):
    """Each attempt gets one stage further (at its end: its lock is free); the last one ends as an unbroken run does."""
    merge = Merge(kitchen, tmp_path / where.replace(" ", "-"), small_plan())
    points = kill_points([event for event in unbroken.attempts[0] if event.stage != "flow"])
    assert set(points) == STAGES, "the small plan does not run every stage, or there is a new one"
    chance = random.Random(7)
    for stage, numbers in points.items():
        number = numbers[-1] if where == "at the end" else chance.choice(numbers[1:-1] or numbers)
        assert merge.run(kill=(stage, number)) == KILLED, f"{stage} has no event {number}"
        check_visible(merge, unbroken.expected)
    assert merge.run() == 0
    check_end(merge, unbroken.expected)


def test_an_older_result_is_replaced_file_by_file(kitchen, unbroken, tmp_path):
    """Killed three times within publishing: every file is the old one or the new one, and nothing old is left."""
    merge = Merge(kitchen, tmp_path / "older", small_plan())
    assert merge.run("merge.max_shard_size=100KB", "merge.keep_ratio=0.5") == 0
    older = published(merge.output)
    assert "model.safetensors.index.json" in older
    numbers = kill_points(unbroken.attempts[0])["publish"]
    for number in random.Random(1).sample(numbers, 3):
        assert merge.run(kill=("publish", number)) == KILLED
        check_visible(merge, unbroken.expected, older)
    assert merge.run() == 0
    check_end(merge, unbroken.expected)


def test_a_result_that_was_published_in_part_is_not_mixed_with_another(kitchen, unbroken, tmp_path):
    """Shards of a run that was killed would shadow the single file of another plan."""
    merge = Merge(kitchen, tmp_path / "mixed", small_plan())
    assert merge.run("merge.max_shard_size=100KB", kill=("publish", 30)) == KILLED
    assert (merge.output / "model.safetensors.index.json").exists()
    assert not (merge.output / "lineage.json").exists()
    assert merge.run() == 0
    check_end(merge, unbroken.expected)


def test_a_landscape_goes_on_with_the_rows_that_are_missing(kitchen, unbroken, tmp_path):
    """Killed among its rows and lines; a plan without one then publishes none."""
    merge, wanted = Merge(kitchen, tmp_path / "landscape", small_plan()), "landscape={points: 3, line_points: 3}"
    code = merge.run(wanted, kill=("measure-losses", 40))
    begun = merge.computed().count("measure-losses")
    assert (code, begun > 1) == (KILLED, True), begun
    assert merge.run(wanted) == 0
    calls = 3 + 1 + 2 * 2  # rows, the models themselves, two lines in two states
    assert begun + merge.computed().count("measure-losses") in (calls, calls + 1), "only the killed one is begun again"
    assert merge.repeated() == []
    assert set(published(merge.output)) - set(unbroken.expected) == {
        f"landscape/{name}" for name in ("landscape.json", "plane.png", "lines.png")
    }
    assert merge.run() == 0
    assert published(merge.output) == unbroken.expected


def test_two_runs_at_once_do_every_stage_once(kitchen, unbroken, tmp_path):
    merge = Merge(kitchen, tmp_path / "two", small_plan())
    assert merge.run_together([merge.request("workers=2") for _ in range(2)]) == [0, 0]
    both = sorted(merge.computed(0) + merge.computed(1))
    assert both == unbroken.computed(0)
    check_end(merge, unbroken.expected)
