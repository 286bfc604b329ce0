"""The plan: what is accepted, and that everything wrong is said at once, with its place."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mergeline.comparison import RESULT, aligns, comparison_rows
from mergeline.plan import BESIDE, WITHOUT_EFFECT, Plan
from mergeline.plan_file import PlanError, load_plan
from tests.plans import ROOT, faults_of, in_the_project  # noqa: F401


@pytest.mark.parametrize(
    "path",
    [
        "params.yaml",
        "params/mudsc.yaml",
        "params/mudsc_table.yaml",
        "params/pcb_table.yaml",
        "params/newest_table.yaml",
        "params/calibration_table.yaml",
    ],
)
def test_the_shipped_plans_are_valid(path):
    assert load_plan(path).tasks


@pytest.mark.parametrize("path", ["params/text.yaml", "params/text_table.yaml"])
def test_the_shipped_plans_of_texts_lack_nothing_but_the_zoo_that_is_made_on_demand(path, tmp_path):
    here = tmp_path / "plan.yaml"
    here.write_text(Path(path).read_text().replace("data/text_zoo/", f"{tmp_path}/text_zoo/"))
    faults = faults_of(path=here)
    assert faults and all("text_zoo" in fault and "does not exist" in fault for fault in faults)


@pytest.mark.parametrize("uri", ["models:/two-teams@champion", "models:/two teams/3", "runs:/abc/model/x.safetensors"])
def test_addresses_of_mlflow_are_valid_and_nothing_is_asked(uri):
    from mergeline.preflight.sources import ask, local_path

    assert load_plan("params.yaml", [f"checkpoints[0].uri={uri}"]).checkpoints[0].uri == uri
    assert local_path(uri) is None
    [source] = ask({"base-a": uri})
    assert (source.note, source.lost) == ("in MLflow, which only a run asks", False)


def test_what_has_no_effect_are_fields_of_the_plan():
    assert BESIDE < WITHOUT_EFFECT < set(Plan.model_fields)
    effective = {"name", "architecture", "checkpoints", "datasets", "calibration", "align", "merge", "tasks"}
    effective |= {"calibrate", "evaluation", "export", "landscape"}
    assert set(Plan.model_fields) - WITHOUT_EFFECT == effective, "new: which of the two?"


def test_families_are_bases_in_the_order_of_their_task_models():
    plan = load_plan("params.yaml")
    assert plan.families == ["base-a", "base-b"]
    assert [base.name for base in plan.bases] == ["base-a", "base-b"]
    assert len(plan.task_models) == 4
    assert load_plan("params/mudsc.yaml").families == ["mudsc-02478", "mudsc-13569"]


def test_overrides_reach_every_depth():
    plan = load_plan(
        "params.yaml",
        ["merge.keep_ratio=0.2", "checkpoints[1].sha256=null", "tasks.0.where.domain=half", "align=null", "name=x"],
    )
    assert plan.merge.options["keep_ratio"] == 0.2
    assert plan.checkpoints[1].sha256 is None
    assert plan.tasks[0].where == {"domain": "half"}
    assert plan.align is None
    assert not aligns(plan)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("merge.keep_ration=0.2", "merge.keep_ration: method 'pcb' has no option 'keep_ration'; did you"),
        (
            "merge.method=ties",
            "merge.variant: method 'ties' has no option 'variant', which belongs to others; leave it out, or set "
            "all of merge: --set 'merge={method: ties}'",
        ),
        ("merge.keep_ratio=1.5", "merge.keep_ratio: .*less than or equal to 1"),
        ("merge.granularity=layers", "merge.granularity: 'layers' is not one of .*; did you mean 'layer'"),
        (
            "merge.options_by_pattern={'*.mlp.*': {keep_ration: 0.2}}",
            r"merge.options_by_pattern\['\*\.mlp\.\*'\]: method 'pcb' has no option 'keep_ration'; did you mean",
        ),
        ("merge={method: average, granularity: layer}", "merge.granularity: 'average' gathers no statistics"),
        ("merge.max_shard_size=5 parsecs", "merge.max_shard_size: could not interpret byte unit"),
        ("merge.max_shard_size=0", "merge.max_shard_size: .*greater than 0"),
        ("merge.vocabulary=comon", "merge.vocabulary: 'comon' is not one of .*; did you mean 'common'"),
        ("merge={method: slerp}", "merge.method: method 'slerp' merges 2 task models, not 4"),
        ("runner=dusk", "runner: 'dusk' is not one of .*; did you mean 'dask'"),
        ("workers=0", "workers: .*greater than 0"),
        ("architecture=null", "architecture: is missing; the models of `tasks` are evaluated with it"),
        ("calibration=null", "calibration: is missing; the models of `tasks` are evaluated with it"),
        ("merge={method: fisher, evidence: {split: tset}}", "merge.evidence.split: 'tset' is not a split"),
        ("merge={method: fisher, evidence: {split: test}}", "merge.evidence.split: tasks are measured on 'test'"),
        (
            "merge={method: fisher, evidence: {classes: any}}",
            "merge.evidence.classes: 'fisher' takes labels among the task's own classes; leave it out",
        ),
        ("merge={method: regmean_plusplus, evidence: {split: test}}", "merge.evidence.split: tasks are measured on"),
        ("merge={method: regmean_plusplus, evidence: {classes: mine}}", "merge.evidence.classes"),
        ("merge={method: wudi_closed, ridge: 0}", "merge.ridge"),
        ("merge={method: regmean, evidence: {spilt: test}}", "merge.evidence.spilt: unknown key; did you mean 'split'"),
        (
            "checkpoints[2].base=initial",
            r"checkpoints\[2\].base: 'a-clean-02478' starts from initial, 'base-a' does not",
        ),
        ("checkpoints[0].name=initial", r"checkpoints\[0\].name: 'initial' is the name of"),
        ("datasets.fashion.mean=[0.4, 0.5]", "datasets.fashion.mean: expected a finite number, or a list of .*red"),
        ("datasets.fashion.mean=grey", "datasets.fashion.mean: expected a finite number, or a list of three"),
        ("datasets.fashion.std=[0.2, 0, 0.2]", "datasets.fashion.std: pixels are divided by it"),
        (
            "datasets.fashion.tokenizer=x",
            r"datasets.fashion: texts .text_column. need a tokenizer, and images have none$",
        ),
        ("datasets.fashion.crop=0", "datasets.fashion.crop: .*greater than 0"),
        ("datasets.fashion.std=[0.2, true, 0.2]", "datasets.fashion.std: expected a finite number, or a list of three"),
        ("evaluation.device=gpu", r"evaluation.device: expected cpu, cuda, or cuda:1: .* \(found 'gpu'\)$"),
        ("checkpoints[2].sha256=12ab", r"checkpoints\[2\].sha256: expected 64 hexadecimal digits.* \(found '12ab'\)$"),
        ("name=two teams", "name: expected letters, digits, '.', '-' and '_' .found 'two teams'.$"),
        ("align=true", r"align: expected a mapping of fields \(found True\)$"),
        ("merge.method=pbc", "merge.method: .*'pbc' does not exist; did you mean 'pcb'"),
        ("align.ballance=0.2", "align.ballance: unknown key; did you mean 'balance'"),
        ("align.balance_search={balances: []}", "align.balance_search.balances: "),
        (
            "align.balance_search={split: test}",
            r"align.balance_search.split: tasks\[0\], .* are measured on 'test'; search on",
        ),
        (
            "align={space: weight, balance_search: {metric: mean}}",
            "align.balance_search: space weight has no balance; write space",
        ),
        ("align.balance=2", "align.balance: .*less than or equal to 1.*found 2"),
        ("align.space=duel", "align.space: 'duel' is not one of .*; did you mean 'dual'"),
        ("tasks[1].split=tset", r"tasks\[1\].split: 'tset' is not a split of data/datasets/fashion_mnist .*'test'"),
        ("tasks[0].checkpoint=a-clean", r"tasks\[0\].checkpoint: no task model is called 'a-clean'.*a-clean-"),
        ("tasks[0].name=half-12679", r"tasks\[2\].name: 'half-12679' is taken already"),
        ("tasks[0].classes=[1]", r"tasks\[0\].classes: .*at least 2"),
        ("tasks[0].dataset=fashoin", r"tasks\[0\].dataset: no dataset is called 'fashoin'; did you mean 'fashion'"),
        ("checkpoints[2].base=base-c", r"checkpoints\[2\].base: no checkpoint is called 'base-c'; did you mean 'base-"),
        ("checkpoints[2].base=null", r"checkpoints\[2\].base: is missing; 'pcb' merges task vectors"),
        ("checkpoints[0].base=base-b", r"checkpoints\[0\].base: 'base-a' is itself a base"),
        ("checkpoints[0].uri=nowhere.safetensors", r"checkpoints\[0\].uri: the file 'nowhere.safetensors' does"),
        ("checkpoints[0].sha256=abc", r"checkpoints\[0\].sha256: "),
        ("calibration.sample=601", "calibration.sample: sample 0 of 601 rows each needs 601 rows, and .* has 600 of"),
        ("calibration.split=calib", "calibration.split: 'calib' is not a split .*; did you mean 'calibration'"),
        ("datasets.fashion.path=data/none", "datasets.fashion.path: the folder 'data/none' does not exist"),
        ("architecture.factory=resnet", "architecture.factory: "),
        ("evaluation.compare=[ensembel]", r"evaluation.compare\[0\]: 'ensembel' is not one of .*'ensemble'"),
        ("landscape={split: tset}", "landscape.split: 'tset' is not a split of .*; did you mean 'test'"),
        ("landscape={points: 1}", "landscape.points: .*greater than or equal to 2"),
        ("landscape={margin: .inf}", "landscape.margin: "),
        (
            "landscape={through: [a-clean-02478, a-clean]}",
            r"landscape.through\[1\]: no task model is called 'a-clean'; did you mean 'a-clean-",
        ),
        (
            "landscape={through: [a-clean-02478, a-clean-02478]}",
            "landscape.through: 'a-clean-02478' is listed twice",
        ),
        ("nonsense=1", "nonsense: unknown key"),
        ("checkpoints[0].name=merged", r"checkpoints\[0\].name: 'merged' is the name of a row"),
        ("checkpoints[0].uri=data/zoo", r"checkpoints\[0\].uri: data/zoo: holds 12 .*; name the one"),
        ("checkpoints[0].uri=README.md", r"checkpoints\[0\].uri: 'README.md' is no kind of checkpoint"),
        ("checkpoints[0].uri=models:/two-teams", r"checkpoints\[0\].uri: 'models:/two-teams' names nothing in MLflow"),
        ("checkpoints[0].uri=runs:/abc", r"checkpoints\[0\].uri: 'runs:/abc' .*; write .* or runs:/run/path"),
        ("checkpoints[0].uri=htp://host/a.pt", r"checkpoints\[0\].uri: 'htp://' is not a known .* 'http'"),
        (
            "checkpoints[0].uri=hf://x",
            r"checkpoints\[0\].uri: 'hf://x' does not name a repository; write hf://org/repo@",
        ),
        ("tasks[0].where={domian: clean}", r"tasks\[0\].where: .* has no column 'domian'; did you mean 'domain'"),
        ("tasks[0].where.domain=cleen", r"tasks\[0\].where.domain: no row of .* has 'cleen'; did you mean 'clean'"),
        ("tasks[0].classes=[0,-1]", r"tasks\[0\].classes\[1\]: .*greater than or equal to 0"),
        ("datasets.fashion.image_column=img", "datasets.fashion.image_column: .* has no column 'img'"),
        ("datasets.fashion.std=.inf", "datasets.fashion.std: "),
        ("datasets.fashion.text_column=text", r"datasets.fashion: texts \(text_column\) need a tokenizer"),
        ("datasets.fashion.text_column=lable", r"datasets.fashion.text_column: .*no column 'lable'.*'label'"),
        ("datasets.fashion.tokenizer=data/zoo", r"datasets.fashion.tokenizer: the file 'data/zoo/tokenizer.json' does"),
        ("architecture.factory=no.such:thing", "architecture.factory: there is no module 'no.such'"),
        ("architecture.symmetry=no.yaml", "architecture.symmetry: the file 'no.yaml' does not exist"),
        ("output=params.yaml", "output: 'params.yaml' must be a folder of its own"),
        ("output=.", "output: '.' must be a folder of its own"),
    ],
)
def test_a_fault_is_named_with_its_field(override, fault):
    faults = faults_of(override)
    assert any(re.search(f"params.yaml: {fault}", sentence) for sentence in faults), faults


def test_what_several_tasks_lack_alike_is_said_once():
    found = faults_of("datasets.fashion.label_column=lable")
    assert len(found) == len(set(found)) == 2, "the splits of calibration and of the tasks"


def test_a_dataset_has_images_or_texts():
    faults = faults_of("datasets.fashion.text_column=label", "datasets.fashion.tokenizer=README.md")
    assert any("datasets.fashion: mean is about images, text_column about texts" in fault for fault in faults)


def test_what_a_method_that_weighs_by_data_lacks_is_named():
    faults = faults_of("merge={method: fisher}", "tasks[0].checkpoint=a-clean-13569", "align.method=zip")
    assert any("checkpoints[2]: 'fisher' weighs models by data of their tasks" in fault for fault in faults)
    assert any("merge.method: 'fisher' weighs the units of each model, and zip merges" in fault for fault in faults)


def test_a_landscape_needs_losses_and_a_common_unit_order():
    assert load_plan("params.yaml").landscape is None
    assert load_plan("params.yaml", ["landscape={}"]).landscape.split == "validation"
    assert any("landscape: align.method zip merges units" in f for f in faults_of("landscape={}", "align.method=zip"))
    assert any("landscape: no task is a classification" in fault for fault in faults_of("landscape={}", "tasks=[]"))
    one_base = json.dumps(
        [
            spec.model_dump(mode="json")
            for spec in load_plan("params.yaml").checkpoints
            if "base-a" in (spec.name, spec.base)
        ]
    )
    faults = faults_of("tasks=[]", "align.method=zip", "landscape={}", f"checkpoints={one_base}")
    assert not any("zip merges units" in fault for fault in faults), "models of one base are not zipped"


def test_checkpoints_alone_are_a_plan(tmp_path):
    entries = [{"name": name, "uri": f"data/zoo/{name}.safetensors"} for name in ("mudsc-02478", "mudsc-13569")]
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"name": "alone", "checkpoints": entries, "merge": {"method": "average"}}))
    faults = faults_of(path=path)
    assert len(faults) == 2
    assert "architecture: is missing; models of different bases are aligned by it (align: null merges" in faults[0]
    plan = load_plan(path, ["align=null", "merge.max_shard_size=5GB"])
    assert [row.name for row in comparison_rows(plan)] == [RESULT]
    assert plan.merge.max_shard_size == 5_000_000_000


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("merge.keep_ratio", "write it as section.field=value"),
        ("tasks[9].name=x", "'9' is not one of the 4 items"),
        ("name.deeper=x", "lies under a plain value"),
        ("name={", "is not a YAML value"),
    ],
)
def test_an_override_that_makes_no_sense_is_named(override, fault):
    assert any(fault in sentence and override in sentence for sentence in faults_of(override))


def test_a_number_with_an_exponent_is_one_without_a_point_too(tmp_path):
    assert load_plan("params.yaml", ["merge={method: fisher, floor: 1e-3}"]).merge.options["floor"] == 1e-3
    assert load_plan("params.yaml", ["merge.scale=2E+0"]).merge.options["scale"] == 2.0
    assert load_plan("params.yaml", ["merge.scale=.15e1"]).merge.options["scale"] == 1.5
    assert load_plan("params.yaml", ["evaluation.batch_size=1.5e2"]).evaluation.batch_size == 150
    path = tmp_path / "plan.yaml"
    path.write_text(Path("params.yaml").read_text().replace("scale: 1.0", "scale: 12e-1"))
    assert load_plan(path).merge.options["scale"] == 1.2
    assert load_plan("params.yaml", ["name=1e3x"]).name == "1e3x"


def test_all_faults_are_reported_at_once(tmp_path):
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["align"]["balance"] = -1
    raw["merge"]["keep_ratio"] = 0
    raw["tasks"][0]["split"] = "tset"
    del raw["architecture"]["factory"]
    raw["checkpoints"][0]["colour"] = "blue"
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(raw))
    text = "\n".join(faults_of(path=path))
    for field in (
        "align.balance",
        "merge.keep_ratio",
        "tasks[0].split",
        "architecture.factory",
        "checkpoints[0].colour",
    ):
        assert f"{path}: {field}" in text
    assert text.count("\n") == 4


@pytest.mark.parametrize(
    ("text", "fault"),
    [("a: [", "not valid YAML"), ("- a", "a plan is a mapping"), ("a: 1\na: 2", "the key 'a' stands twice")],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path, text, fault):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    assert fault in faults_of(path=path)[0]
    assert "is missing" in faults_of(path=tmp_path / "none.yaml")[0]


RESET = ["a-clean-02478-reset", "a-clean-13569-reset", "b-half-12679-reset", "b-half-03458-reset"]


def test_rows_of_the_default_scenario():
    rows = comparison_rows(load_plan("params.yaml"))
    assert [row.name for row in rows] == [
        *(
            "a-clean-02478",
            "a-clean-13569",
            "b-half-12679",
            "b-half-03458",
            *RESET,
            "base-a",
            "base-b",
            "ensemble",
            "average",
        ),
        *("aligned-average", "unaligned-mean", "unaligned-first", "team-base-a", "team-base-b", RESULT),
    ]
    assert [row.name for row in rows if row.aligned] == ["aligned-average", RESULT]
    assert rows[-3].members == ("a-clean-02478", "a-clean-13569")


def test_rows_of_two_models_without_a_base():
    rows = comparison_rows(load_plan("params/mudsc.yaml"))
    assert [row.name for row in rows] == [
        *("mudsc-02478", "mudsc-13569", "mudsc-02478-reset", "mudsc-13569-reset", "ensemble", "average", RESULT)
    ]


def test_rows_of_models_of_one_base_need_no_alignment():
    plan = load_plan("params.yaml", ["align=null"])
    assert "aligned-average" not in {row.name for row in comparison_rows(plan)}
    assert not comparison_rows(plan)[-1].aligned


def test_the_command_says_every_fault_and_ends_with_2():
    command = [sys.executable, "-m", "flows.merge_and_evaluate", "--set", "merge.keep_ratio=7", "--set", "align.seed=x"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2
    assert "params.yaml: merge.keep_ratio" in result.stderr
    assert "params.yaml: align.seed" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_row_of_some_models_has_their_numbers():
    plan = load_plan(
        "params.yaml", ["merge.scales=[1, 2, 3, 4]", "merge.options_by_pattern={'*': {scales: [5, 6, 7, 8]}}"]
    )
    rows = {row.name: row.merge for row in comparison_rows(plan)}
    assert rows[RESULT].options["scales"] == [1, 2, 3, 4]
    assert rows["team-base-b"].options["scales"] == [3, 4]
    assert rows["team-base-b"].options_by_pattern == {"*": {"scales": [7, 8]}}
    plain = load_plan("params.yaml")
    assert {row.name: row.merge for row in comparison_rows(plain)}["team-base-b"] == plain.merge


OUTSIDE = "{name: other, dataset: fashion, where: {domain: half}, classes: [0, 1]}"


def test_tasks_outside_name_no_model_and_are_neither_searched_on_nor_weighed_by():
    tasks = [task.model_dump() for task in load_plan("params.yaml").tasks]
    outside = {"name": "other", "dataset": "fashion", "split": "validation", "classes": [0, 1], "metric": "f1"}
    plan = load_plan(
        "params.yaml",
        [f"tasks={json.dumps([*tasks, outside])}", "align.balance_search={}", "merge={method: fisher}"],
    )
    assert plan.tasks[-1].checkpoint is None
    assert list(plan.specialists) == [task["name"] for task in tasks]
    for overrides, message in (
        ([f"tasks=[{OUTSIDE}]"], "tasks: none names the checkpoint"),
        (["tasks[0].metric=perplexity"], r"tasks\[0\].metric: .*perplexity"),
        (["tasks[0].classes=[0, 10]"], r"tasks\[0\].classes: 10 is outside the range: .* has the classes 0 to 9"),
    ):
        with pytest.raises(PlanError, match=message):
            load_plan("params.yaml", overrides)


def test_a_dataset_lies_in_a_folder_or_at_a_commit_of_the_hub():
    revision = "0123456789abcdef0123456789abcdef01234567"
    hub = ["datasets.fashion.path=null", "datasets.fashion.hub=org/pictures"]
    plan = load_plan("params.yaml", [*hub, f"datasets.fashion.revision='{revision}'"])
    assert plan.datasets["fashion"].place == f"hf://datasets/org/pictures@{revision}"
    for overrides, message in (
        (hub, "a repository of the Hub .* needs the full commit"),
        ([*hub, "datasets.fashion.revision=main"], r"datasets.fashion.revision: .*main"),
        (["datasets.fashion.path=null"], r"name either a folder \(path\) or a repository of the Hub"),
        ([hub[1], f"datasets.fashion.revision='{revision}'"], r"name either a folder \(path\) or a repository"),
    ):
        with pytest.raises(PlanError, match=message):
            load_plan("params.yaml", overrides)
