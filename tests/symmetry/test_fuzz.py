"""Random programs, short and long; what failed once is written out in test_found.py."""

import functools

import pytest

from tests.symmetry.fuzz import Verdict, judge, report

SHORT, LONG, AT_ONCE = 12, 30, 15

one = functools.cache(judge)


def failures(seeds: range, steps: int) -> list[str]:
    return [report(verdict) for verdict in (one(seed, steps) for seed in seeds) if not verdict.sound]


@pytest.mark.parametrize("first", range(0, 270, AT_ONCE))
def test_short_programs_keep_their_output(first):
    found = failures(range(first, first + AT_ONCE), SHORT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("first", range(10_000, 10_030, AT_ONCE))
def test_long_programs_keep_their_output(first):
    found = failures(range(first, first + AT_ONCE), LONG)
    assert not found, "\n".join(found)


def test_programs_have_units_to_exchange():
    """A derivation that fixed everything would be sound, too."""
    verdicts: list[Verdict] = [one(seed, SHORT) for seed in range(3 * AT_ONCE)]
    assert sum(verdict.families for verdict in verdicts) >= 4 * len(verdicts)
