"""The cells of a comparison: what each changes in the plan, how they are named, and what is wrong with them."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mergeline.errors import InputError
from mergeline.grid import changed, folder_of, load_cells, read_grid
from mergeline.plan import Plan
from mergeline.plan_file import PlanError, load_plan

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def plans(path: str, overrides: list[str], grid: dict[str, list[object]] | None = None) -> dict[str, Plan]:
    """The plan of each cell of a comparison without repeats."""
    return {cell.name: cell.plan for cell in load_cells(path, overrides, grid)}


def faults_of(compare: str, *overrides: str, grid: dict[str, list[object]] | None = None) -> list[str]:
    with pytest.raises(PlanError) as error:
        load_cells("params.yaml", [f"compare={compare}", *overrides], grid)
    return [fault.removeprefix("params.yaml: ") for fault in error.value.faults]


def test_every_named_cell_is_tried_with_every_combination_of_the_grid() -> None:
    compare = "{cells: {weight: {align: {space: weight}}, none: {align: null}}, grid: {merge.keep_ratio: [0.1, 0.2]}}"
    cells = plans("params.yaml", [f"compare={compare}"])
    assert list(cells) == [
        "weight, merge.keep_ratio=0.1",
        "weight, merge.keep_ratio=0.2",
        "none, merge.keep_ratio=0.1",
        "none, merge.keep_ratio=0.2",
    ]
    assert [cell.align and cell.align.space for cell in cells.values()] == ["weight", "weight", None, None]
    assert [cell.merge.options["keep_ratio"] for cell in cells.values()] == [0.1, 0.2, 0.1, 0.2]
    assert len({cell.output for cell in cells.values()}) == 4
    assert {cell.output.parent for cell in cells.values()} == {folder_of(load_plan("params.yaml"))}


def test_a_cell_with_another_method_leaves_the_options_of_the_plans_own_behind() -> None:
    compare = "{cells: {ties: {merge: {method: ties, scale: 2.0}}, own: {merge: {scale: 2.0}}}}"
    cells = plans("params.yaml", ["merge.onto=first", f"compare={compare}"])
    assert cells["ties"].merge.options == {"scale": 2.0}
    assert cells["ties"].merge.onto == "first", "what all methods have is the plan's"
    assert cells["own"].merge.options == {"variant": "pairwise", "keep_ratio": 0.3, "scale": 2.0}


def test_a_grid_of_the_command_line_stands_in_place_of_the_plans() -> None:
    wanted = ["compare={grid: {merge.scale: [1, 2]}}"]
    assert list(plans("params.yaml", wanted)) == ["merge.scale=1", "merge.scale=2"]
    assert list(plans("params.yaml", wanted, {"align.sweeps": [3]})) == ["align.sweeps=3"]


def test_faults_of_all_cells_come_at_once_with_their_places() -> None:
    compare = (
        "{cells: {good: {merge: {scale: 2.0}}, weight zip: {align: {spce: weight}, merge: {method: tiess}}, "
        "strong: {merge: {keep_ratio: 7}}}}"
    )
    first, second, third = faults_of(compare)
    assert first.startswith("compare.cells.weight zip: align.spce: unknown key")
    assert second.startswith("compare.cells.weight zip: merge.method: ") and "tiess" in second
    assert third.startswith("compare.cells.strong: merge.keep_ratio: ")


def test_a_value_of_the_grid_that_does_not_fit_is_named_with_its_cell() -> None:
    (alone,) = faults_of("{grid: {merge.keep_ratio: [0.1, 7]}}")
    assert alone.startswith("compare.grid (merge.keep_ratio=7): merge.keep_ratio: ")
    (named,) = faults_of("{cells: {weight: {align: {space: weight}}}, grid: {merge.keep_ratio: [0.1, 7]}}")
    assert named.startswith("compare.cells.weight (merge.keep_ratio=7): merge.keep_ratio: ")
    (lost,) = faults_of("{grid: {'checkpoints[9].uri': [a]}}")
    assert lost.startswith('compare.grid (checkpoints[9].uri="a"): ') and "'9' is not one of the 6 items" in lost


@pytest.mark.parametrize(
    ("compare", "override", "sentence"),
    [
        ("null", "name=x", "compare: there is nothing to compare"),
        ("{grid: {merge.scale: [1, 1]}}", "name=x", "compare.grid.merge.scale: 1 is listed twice"),
        ("{grid: {output: [a, b]}}", "name=x", "compare.grid.output: all cells have the same"),
        ("{cells: {a: {tracking: {}}}}", "name=x", "compare.cells.a.tracking: all cells have the same"),
        ("{grid: {merge.scale: [1, 2]}}", "tasks=[]", "compare: the plan has no tasks"),
        ("{choose: {split: test}}", "name=x", "compare.choose.split: tasks[0], tasks[1], tasks[2], tasks[3] are"),
        ("{choose: {split: tset}}", "name=x", "compare.choose.split: 'tset' is not a split of"),
        ("{grid: {merge.scale: []}}", "name=x", "compare.grid.merge.scale: List should have at least 1 item"),
        ("{cells: {a: 3}}", "name=x", "compare.cells.a: expected a mapping of fields"),
    ],
)
def test_what_makes_no_comparison_is_refused(compare: str, override: str, sentence: str) -> None:
    assert any(fault.startswith(sentence) for fault in faults_of(compare, override))


@pytest.mark.parametrize("argument", ["merge.scale", "merge.scale=1", "merge.scale=[]", "=[1]", "merge.scale=[1"])
def test_arguments_that_are_no_grid_are_refused(argument: str) -> None:
    with pytest.raises(InputError, match=r"write it as section.field=\[value, value\]"):
        read_grid([argument])
    assert read_grid(["merge.scale=[1, 2.5, 1e-1]"]) == {"merge.scale": [1, 2.5, 0.1]}


SECTIONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
PLANS = st.dictionaries(st.sampled_from("abc"), SECTIONS, max_size=3)


@given(PLANS, PLANS)
def test_what_was_laid_over_a_plan_is_there_and_the_rest_is_untouched(plan, changes) -> None:
    before = yaml.safe_dump(plan)
    result = changed(plan, changes)
    assert yaml.safe_dump(plan) == before
    assert changed(result, changes) == result
    for key in {*plan, *changes}:
        if key not in changes:
            assert result[key] == plan[key]
        elif not (isinstance(changes[key], dict) and isinstance(plan.get(key), dict)):
            assert result[key] == changes[key]


SEEDS = "{seeds: [{align: {seed: 1}}, {align: {seed: 2}}], none: [{align: null}]}"
REPEATED = f"{{cells: {{own: {{}}, ties: {{merge: {{method: ties}}}}}}, over: {SEEDS}}}"


def test_every_cell_is_tried_in_every_repeat_and_changes_it() -> None:
    cells = load_cells("params.yaml", [f"compare={REPEATED}"])
    assert [(cell.name, cell.repeat, cell.group) for cell in cells] == [
        (name, repeat, group)
        for name in ("own", "ties")
        for repeat, group in (("seeds, 1", "seeds"), ("seeds, 2", "seeds"), ("none", "none"))
    ]
    assert [cell.plan.align and cell.plan.align.seed for cell in cells] == [1, 2, None] * 2
    assert [cell.plan.merge.method for cell in cells] == ["pcb"] * 3 + ["ties"] * 3
    assert len({cell.plan.output for cell in cells}) == len(cells)


def test_a_cell_goes_over_its_repeat() -> None:
    compare = "{cells: {a: {align: {seed: 7}}}, over: {seeds: [{align: {seed: 1, sweeps: 3}}]}}"
    (cell,) = load_cells("params.yaml", [f"compare={compare}"])
    assert cell.plan.align is not None and (cell.plan.align.seed, cell.plan.align.sweeps) == (7, 3)


def test_only_a_cell_that_says_so_is_searched() -> None:
    compare = "{cells: {fixed: {}, searched: {search: {trials: 3}}}}"
    cells = plans("params.yaml", ["search={seed: 5}", f"compare={compare}"])
    assert cells["fixed"].search is None
    assert cells["searched"].search is not None
    assert (cells["searched"].search.trials, cells["searched"].search.seed) == (3, 5)
    (fault,) = faults_of("{cells: {ties: {merge: {method: ties}, search: {trials: 3}}}}")
    assert fault.startswith("compare.cells.ties: merge.method: only coefficients of 'pcb' can be searched")


def test_faults_of_repeats_have_their_places() -> None:
    first, second = faults_of("{cells: {a: {}}, over: {x: [{align: {sweps: 3}}, {output: there}]}}")[:2]
    assert first.startswith("compare.over.x[1].output: all cells have the same")
    assert second.startswith("compare.over.x[0]: align.sweps: unknown key")
    (alone,) = faults_of("{cells: {a: {merge: {onto: first}}}, over: {x: [{}, {align: {method: zip}}]}}")
    assert alone.startswith("compare.cells.a (compare.over.x[1]): merge.onto: 'first' needs units that stay apart")
    (everywhere,) = faults_of("{cells: {a: {align: {sweps: 3}}}, over: {x: [{}, {align: {method: zip}}]}}")
    assert everywhere.startswith("compare.cells.a: align.sweps: unknown key")
    assert faults_of("{cells: {a: {}}, over: {x: []}}")[0].startswith(
        "compare.over.x: List should have at least 1 item"
    )


def test_a_cell_compares_nothing_but_the_controls_of_its_calibration(tmp_path: Path) -> None:
    def compared(evaluation: str) -> list[list[str]]:
        file = tmp_path / "plan.yaml"
        cells = "compare: {cells: {bare: {calibrate: null}, calibrated: {}}}"
        file.write_text(f"{ROOT.joinpath('params/mudsc.yaml').read_text()}\n{cells}\ncalibrate: {{}}\n{evaluation}\n")
        return [list(cell.plan.evaluation.compare) for cell in load_cells(file)]

    assert compared("") == [[], ["calibration_controls"]]
    assert compared("evaluation: {compare: [ensemble, calibration_controls]}") == [[], ["calibration_controls"]]
    assert compared("evaluation: {compare: [ensemble]}") == [[], []]


def test_a_cell_is_written_down_without_its_plan() -> None:
    """Hundreds of plans are more than Prefect keeps of the parameters of a flow."""
    cells = load_cells("params/pcb_table.yaml")
    assert sum(len(cell.model_dump_json()) for cell in cells) < 100_000


@pytest.mark.parametrize(
    ("path", "cells", "repeats", "members"),
    [
        ("params/mudsc_table.yaml", 8, 4, {2}),
        ("params/pcb_table.yaml", 26, 7, {2, 3, 4}),
        ("params/newest_table.yaml", 37, 1, {4}),
        ("params/calibration_table.yaml", 5, 6, {2}),
    ],
)
def test_the_shipped_comparisons_are_valid(path: str, cells: int, repeats: int, members: set[int]) -> None:
    """No method has more settings to choose from than another one."""
    found = load_cells(path)
    assert len({cell.name for cell in found}) == cells and len({cell.repeat for cell in found}) == repeats
    first = [cell.plan for cell in found if cell.repeat == found[0].repeat]
    methods = [plan.merge.method for plan in first if plan.search is None]
    assert {methods.count(method) for method in {*methods} - {"average"}} <= {4}
    assert {len(plan.task_models) for plan in (cell.plan for cell in found)} == members
