"""What is tried next follows from the file of trials alone, however often a search was killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mergeline.errors import InputError
from mergeline.search.space import Choice, Real
from mergeline.search.study import Study, best_of, check_grid
from tests.search.killed_search import KINDS, run, study

ROOT = Path(__file__).resolve().parent.parent.parent
TRIALS = 18  # with CMA-ES three generations


def tried(search):
    return [(trial.number, trial.point, trial.value, dict(trial.facts)) for trial in search.trials]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Kind -> the trials of a search in one go."""
    found = {}
    for kind in KINDS:
        search = study(tmp_path_factory.mktemp("unbroken") / "studies.db", kind)
        run(search, TRIALS)
        found[kind] = tried(search)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_that_was_killed_ends_as_one_that_was_not(kind, unbroken, tmp_path):
    file = tmp_path / "studies.db"
    # in the midst of a generation, at its end (where CMA-ES learns, and its state is written), and after it
    for event, number in (("recorded", 4), ("measured", 9), ("writing", 13)):
        arguments = [sys.executable, "-m", "tests.search.killed_search", str(file), kind, event, str(number)]
        process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert len(study(file, kind).trials) == number + (event == "recorded")
    search = study(file, kind)
    run(search, TRIALS)
    assert tried(search) == unbroken[kind]
    assert best_of(search.trials).number == best_of(study(file, kind).trials).number


@pytest.mark.parametrize("kind", KINDS)
def test_a_proposal_is_the_same_until_it_is_added(kind, tmp_path):
    search = study(tmp_path / "studies.db", kind)
    run(search, 10)
    assert search.propose() == search.propose() == study(tmp_path / "studies.db", kind).propose()


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_tries_other_points(kind, unbroken, tmp_path):
    search = study(tmp_path / "studies.db", kind, seed=4)
    run(search, TRIALS)
    assert [point for _, point, *_ in tried(search)] != [point for _, point, *_ in unbroken[kind]]


@pytest.mark.parametrize("kind", ["cma", "tpe", "cma with choices"])
def test_a_search_begins_with_the_plan_and_gets_better(kind, unbroken):
    first, *others = unbroken[kind]
    assert first[1]["scale.a"] == 1.0
    assert max(value for _, _, value, _ in others) > first[2]


def test_points_stay_in_their_ranges(unbroken):
    for kind, trials in unbroken.items():
        for _, point, *_ in trials:
            for name, known in KINDS[kind][1].items():
                allowed = (
                    known.low <= point[name] <= known.high if isinstance(known, Real) else point[name] in known.values
                )
                assert allowed, (kind, name, point)


def test_a_grid_is_gone_through_once(unbroken):
    points = [tuple(point.values()) for _, point, *_ in unbroken["grid"]]
    size = check_grid(KINDS["grid"][1])
    assert size == 3 * 3 * 3
    assert len(set(points)) == len(points) == TRIALS


def test_one_lambda_alone_can_be_searched(tmp_path):
    search = Study(tmp_path / "s.db", "one", {"scale": Real(0.8, 2.2, 0.1)}, method="cma", seed=0, first={"scale": 1.0})
    for _ in range(12):
        proposal = search.propose()
        search.add(proposal, -((proposal.point["scale"] - 1.5) ** 2), {})
    assert abs(best_of(search.trials).point["scale"] - 1.5) < 0.2


def test_of_equals_the_first_is_best(tmp_path):
    search = study(tmp_path / "s.db", "tpe")
    for _ in range(3):
        search.add(search.propose(), 0.5, {})
    assert best_of(search.trials).number == 0


def test_studies_of_other_names_are_apart(tmp_path):
    run(study(tmp_path / "s.db", "tpe"), 2)
    assert study(tmp_path / "s.db", "grid").trials == []


def test_a_grid_beyond_all_patience_is_refused(tmp_path):
    space = {f"scale.{number}": Real(0.0, 1.0, 0.1) for number in range(6)} | {"keep_ratio": Choice((0.1, 0.2))}
    with pytest.raises(InputError, match=r"the grid has 3543122 points.*method: cma"):
        Study(tmp_path / "s.db", "large", space, method="grid", seed=0, first={})
