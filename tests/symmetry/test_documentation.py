"""The worked example of docs/symmetry.md does what the page says."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "symmetry.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.fixture
def rules(monkeypatch):
    """The table of rules, put back as it was afterwards."""
    from mergeline.symmetry.rules import table

    monkeypatch.setattr(table, "_RULES", dict(table._RULES))


def test_the_worked_example_runs_as_it_stands(rules):
    code = blocks("python")
    assert len(code) == 3
    exec(compile("\n".join(code), str(PAGE), "exec"), {"__name__": "example"})


def test_the_example_of_a_symmetry_can_be_read():
    from mergeline.symmetry.symmetry import Symmetry

    symmetry = Symmetry.from_yaml(blocks("yaml")[0])
    assert list(symmetry.groups) == ["qk", "v", "stream"]
    assert [site.group for site in symmetry.sites] == ["v"]
    assert (symmetry.groups["qk"].size, symmetry.groups["qk"].blocks) == (64, 4)
