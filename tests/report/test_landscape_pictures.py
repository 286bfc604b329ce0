"""The pictures of a landscape: same bytes, the numbers in words, and shapes that are hard to draw."""

import warnings

import pytest

from mergeline.landscape.landscape import MEAN, Points, landscape_of, line_of
from mergeline.landscape.plane import Plane, lay_plane
from mergeline.report.html import report_html
from mergeline.report.landscape import draw_lines, draw_plane, landscape_section, pictures_of
from tests.report.findings import comparison, findings, plan

PRODUCTS = [[4.0, 2.0, 2.2], [2.0, 2.0, 1.5], [2.2, 1.5, 3.0]]
NAMES = ["a$1$", "_b", "merged", "c"]


def points(*losses):
    tasks = {"cats": list(losses), "dogs": [2 * loss for loss in losses]}
    return Points(losses=tasks, accuracies={task: [0.5] * len(losses) for task in tasks})


def landscape(*, loss=1.0, of_result=False, reset=True, problem="", **fields):
    plane = Plane(problem=problem) if problem else lay_plane(NAMES, PRODUCTS, shown=4, points=3, margin=0.5)
    rows = [] if problem else [points(loss, loss, loss + place) for place in range(3)]
    shares = [0.0, 0.5, 1.0]
    lines = [
        line_of("base", "a$1$", shares, {"before": points(1, 4, 1), "after": points(1, 0, 1)}),
        line_of("a$1$", "_b", shares, {"shared": points(1, 2, 3)}),
    ]
    anchors = None if problem else points(1, 2, 3)
    return landscape_of(plane, rows, anchors, lines, split="validation", of_result=of_result, reset=reset)


def test_equal_landscapes_are_drawn_in_equal_bytes():
    assert draw_plane(landscape()) == draw_plane(landscape())
    assert draw_lines(landscape()) == draw_lines(landscape())
    assert draw_plane(landscape()) != draw_plane(landscape(loss=2.0))


def drawn_without_warning(landscape):
    """The picture of a plane, where a warning of matplotlib is an error.

    Only while it draws, and no `ResourceWarning`: garbage of other tests is collected whenever it is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        return draw_plane(landscape)


@pytest.mark.parametrize("loss", [0.0, 1e-9, 150.0])
def test_losses_of_any_size_are_drawn(loss):
    assert drawn_without_warning(landscape(loss=loss)).startswith(b"\x89PNG")


def test_a_flat_landscape_is_drawn():
    flat = landscape()
    assert drawn_without_warning(flat.model_copy(update={"losses": dict.fromkeys(flat.losses, [[0.0] * 3] * 3)}))


def test_the_pictures_say_in_words_what_they_show():
    plane, lines = pictures_of(landscape(), {"plane": b"\x89PNG", "lines": b"\x89PNG"})
    assert plane.alt == (
        "Contours of the loss on the plane through a$1$, _b, merged. Mean loss over the tasks: a$1$ 1.50; _b 3.00; "
        "merged 4.50."
    )
    assert "base to a$1$: barrier 4.50 before alignment, 0.00 after alignment." in lines.alt
    assert "a$1$ to _b: barrier 0.00 in one unit order." in lines.caption
    for picture in (plane, lines):
        assert "on the split validation, which does not measure the result" in picture.caption
    (again, _) = pictures_of(landscape(of_result=True), {"plane": b"", "lines": b""})
    assert "on the split validation, which also measures the result" in again.caption


def test_a_model_beside_the_plane_is_named():
    (plane,) = pictures_of(landscape(), {"plane": b""})
    off = next(model.off for model in landscape().plane.models if model.name == "c")
    assert f"c lies {off:.2f} beside the plane" in plane.caption


def test_without_a_plane_the_lines_are_there_and_the_reason():
    alone = landscape(problem="a, b, c lie on one line")
    assert (alone.losses, alone.models) == ({}, {})
    assert len(pictures_of(alone, {"lines": b""})) == 1
    section = landscape_section(alone, {"loss between models": "landscape/lines.png"})
    assert "No plane: a, b, c lie on one line." in section
    assert "| base to a$1$ | before alignment | 4.500 | 0.50 | 1.500, 1.500 | 0.0 |" in section


def test_the_page_shows_them_with_alternative_texts():
    found = landscape()
    pictures = pictures_of(found, {"plane": draw_plane(found), "lines": draw_lines(found)})
    page = report_html(plan(), comparison(), findings(pictures=pictures))
    assert page.count("data:image/png;base64,") >= 2
    assert f'alt="{pictures[1].alt}"' in page
    assert MEAN in found.losses


def test_models_without_calibration_data_have_nothing_measured_anew():
    for reset in (True, False):
        (_, lines) = pictures_of(landscape(reset=reset), {"plane": b"", "lines": b""})
        assert ("measured anew" in lines.caption) is reset
