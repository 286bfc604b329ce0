"""A symmetry as a table and as a drawing."""

import io

import pytest
from rich.console import Console

from mergeline.report.symmetry import draw_symmetry, symmetry_table, units_text
from mergeline.symmetry.symmetry import Family, Symmetry, parameter_layout


@pytest.fixture
def symmetry():
    return Symmetry(
        {"stream": Family("stream", 6), "heads": Family("heads", 2), "v": Family("v", 3, ("heads",))},
        {
            "embed.weight": parameter_layout(["stream", "_5"], ["out", ""]),
            "norm.weight": parameter_layout(["stream"], ["elt"]),
            "attention.v.weight": parameter_layout(["heads * v", "stream"], ["out", "in"]),
            "attention.out.weight": parameter_layout(["stream", "heads * v"], ["out", "in"]),
        },
    )


def test_the_table_says_who_writes_and_reads_each_group(symmetry):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(symmetry_table(symmetry))
    text = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert any("2 unit groups" in line for line in text)
    assert "stream 6 embed, attention.out attention.v" in text
    assert "v 2 * 3 attention.v attention.out" in text


def test_the_drawing_names_groups_and_layers_and_is_the_same_every_time(symmetry, tmp_path):
    for name in ("one.svg", "two.svg"):
        draw_symmetry(symmetry, tmp_path / name)
    drawing = (tmp_path / "one.svg").read_text()
    assert drawing == (tmp_path / "two.svg").read_text()
    for word in ("stream (6)", "v (2 * 3)", "embed", "norm", "attention.v", "attention.out", "writes the units"):
        assert f">{word}<" in drawing.replace("  (", " ("), word


def test_blocks_are_shown_as_a_product(symmetry):
    assert [units_text(group) for group in symmetry.groups.values()] == ["6", "2 * 3"]
