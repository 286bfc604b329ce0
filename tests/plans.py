"""What tests of plans share: they run in the project's folder, and look at the faults of the shipped plan, changed."""

from pathlib import Path

import pytest

from mergeline.plan_file import PlanError, load_plan

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    """For every test of a module that imports it: paths of the shipped plans lead somewhere."""
    monkeypatch.chdir(ROOT)


def faults_of(*overrides, path="params.yaml"):
    """The sentences that a plan with these overrides is refused with."""
    with pytest.raises(PlanError) as error:
        load_plan(path, overrides)
    return error.value.faults
