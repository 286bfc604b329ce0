"""Nothing new: every kind of source that may change, what counts as a success, and the command line."""

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer

from flows import command_line
from mergeline.errors import InputError
from mergeline.grid import load_cells
from mergeline.plan import Checkpoint, Plan, Promotion, Registry, Tracking
from mergeline.plan_file import load_plan
from tasks.changes import (
    News,
    check_inputs,
    checkpoint_version,
    fingerprint,
    last_success,
    look_for_news,
    nothing_to_do,
    remembered,
)
from tasks.tracking import Tracker
from tasks.watching import failures_told
from tests.checkpoints.fileserver import FileServer

ROOT = Path(__file__).resolve().parent.parent.parent
ZOO = ROOT / "data/zoo"
MODEL = hashlib.sha256(b"model").hexdigest()


@pytest.fixture
def plan(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Two copies of checkpoints, to be merged alone."""
    monkeypatch.chdir(ROOT)
    for name in ("a-clean-02478", "a-clean-13569"):
        (tmp_path / f"{name}.safetensors").write_bytes((ZOO / f"{name}.safetensors").read_bytes())
    path = tmp_path / "plan.yaml"
    entries = [{"name": file.stem, "uri": str(file)} for file in sorted(tmp_path.glob("*.safetensors"))]
    plan = {"name": "pair", "checkpoints": entries, "merge": {"method": "average"}, "align": None}
    path.write_text(yaml.safe_dump(plan))
    return load_plan(path, [f"output={tmp_path / 'out'}"])


def succeed(plan: Plan) -> SimpleNamespace:
    """What a run leaves: here without merging anything."""
    plan.output.mkdir(exist_ok=True)
    (plan.output / "alignment").mkdir(exist_ok=True)
    (plan.output / "model.safetensors").write_bytes(b"model")
    (plan.output / "lineage.json").write_text(json.dumps({"files": {"model.safetensors": MODEL}}))
    (plan.output / "report.md").write_text("a report")
    (plan.output / "alignment" / "alignment.json").write_text('{"aligned": false}')
    return SimpleNamespace(recorded=SimpleNamespace(flow_run="a-flow-run"))


def fail(plan: Plan) -> SimpleNamespace:
    raise RuntimeError("no luck")


def test_after_a_success_nothing_is_new(plan: Plan) -> None:
    assert look_for_news(plan).changed == ["no run has succeeded yet"]
    remembered(succeed, plan)
    news = look_for_news(plan)
    assert not news
    assert "a-flow-run" in news.summary
    assert news.last and (datetime.now(UTC) - news.last.at).total_seconds() < 600


def test_a_run_that_fails_is_no_success(plan: Plan) -> None:
    with pytest.raises(RuntimeError, match="no luck"):
        remembered(fail, plan)
    assert last_success(plan) is None
    remembered(succeed, plan)
    Path(plan.checkpoints[0].uri).write_bytes((ZOO / "base-a.safetensors").read_bytes())
    with pytest.raises(RuntimeError, match="no luck"):
        remembered(fail, plan)
    assert look_for_news(plan).changed == ["checkpoint a-clean-02478"], "still new: nobody has merged it"


def test_what_changes_while_a_run_goes_on_is_new_after_it(plan: Plan) -> None:
    def slow(plan: Plan) -> SimpleNamespace:
        Path(plan.checkpoints[1].uri).write_bytes((ZOO / "base-a.safetensors").read_bytes())
        return succeed(plan)

    remembered(slow, plan)
    assert look_for_news(plan).changed == ["checkpoint a-clean-13569"]


def test_what_another_run_published_meanwhile_is_not_taken_for_ones_own(plan: Plan) -> None:
    def overtaken(plan: Plan, said: dict) -> SimpleNamespace:
        outcome = succeed(plan)
        lineage = {"files": {"model.safetensors": MODEL}, "plan": said}
        (plan.output / "lineage.json").write_text(json.dumps(lineage))
        return outcome

    own = plan.model_dump(mode="json")
    remembered(lambda plan: overtaken(plan, own | {"merge": {"method": "ties"}}), plan)
    assert last_success(plan) is None
    remembered(lambda plan: overtaken(plan, own), plan)
    assert not look_for_news(plan)


def test_the_plan_counts_without_what_is_of_no_effect(plan: Plan) -> None:
    remembered(succeed, plan)
    without_effect = {"runner": "dask", "tracking": {"enabled": False}, "notify": {"on": ["success"]}}
    assert not look_for_news(plan.model_validate(plan.model_dump() | without_effect))
    other = plan.model_validate(plan.model_dump() | {"merge": {"method": "average", "out_dtype": "float16"}})
    assert look_for_news(other).changed == ["plan"]


@pytest.mark.parametrize("name", ["model.safetensors", "lineage.json", "report.md", "alignment/alignment.json"])
def test_every_published_file_must_be_there_as_it_was(plan: Plan, name: str) -> None:
    remembered(succeed, plan)
    path = plan.output / name
    content = path.read_bytes()
    path.write_bytes(content[::-1])  # of the same length
    assert look_for_news(plan).changed == [f"{plan.output} has not what the last run published ({name} is altered)"]
    path.write_bytes(content)  # DVC brings it back, with another time
    assert not look_for_news(plan)
    path.unlink()
    assert look_for_news(plan).changed == [f"{plan.output} has not what the last run published ({name} is missing)"]


def test_a_readme_of_somebody_else_is_not_published(plan: Plan) -> None:
    plan.output.mkdir()
    (plan.output / "README.md").write_text("mine")
    remembered(succeed, plan)
    (plan.output / "README.md").write_text("mine, too")
    assert not look_for_news(plan)
    assert last_success(plan).published["model.safetensors"].sha256 == MODEL  # of the lineage, not read again


def lose(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[float]:
    """The first checks of a source fail; the list gets the waits."""
    waits: list[float] = []
    failures = [error] * times

    def version(spec: Checkpoint) -> str:
        if failures:
            raise failures.pop()
        return checkpoint_version(spec)

    monkeypatch.setattr("tasks.changes.checkpoint_version", version)
    monkeypatch.setattr("tasks.policy.time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.mark.parametrize("check", [look_for_news, check_inputs.fn])
def test_a_source_that_is_lost_for_a_moment_is_asked_again(plan: Plan, monkeypatch: pytest.MonkeyPatch, check) -> None:
    remembered(succeed, plan)
    with monkeypatch.context() as patch:
        waits = lose(patch, ConnectionError("reset"), 3)
        assert not check(plan)
        assert waits == [1, 5, 30]
    with monkeypatch.context() as patch, pytest.raises(ConnectionError, match="reset"):
        lose(patch, ConnectionError("reset"), 4)
        check(plan)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="not there"):
        waits = lose(patch, InputError("not there"), 1)
        check(plan)
    assert waits == []


def test_the_command_line_asks_again_too(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remembered(succeed, plan)
    waits = lose(monkeypatch, ConnectionError("reset"), 1)
    options = ["--params", str(tmp_path / "plan.yaml"), "--set", f"output={plan.output}"]
    options += ["--set", "tracking.enabled=false", "--if-changed", "--no-table"]
    monkeypatch.setattr(sys, "argv", ["merge", *options])
    assert command_line.run(fail) == 0
    assert "nothing new since" in capsys.readouterr().out
    assert waits == [1]


def test_data_and_code_count(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "data"
    folder.mkdir()
    for file in (ROOT / "data/datasets/fashion_mnist").iterdir():
        if file.suffix in (".parquet", ".safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
    prototypes = f"datasets.fashion.prototypes={folder / 'prototypes.safetensors'}"
    plan = load_plan("params.yaml", [f"output={tmp_path / 'out'}", f"datasets.fashion.path={folder}", prototypes])
    remembered(succeed, plan)
    assert not look_for_news(plan)
    monkeypatch.setattr("tasks.changes.code_version", lambda _module: "another")
    assert look_for_news(plan).changed == ["code"]
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MERGELINE_STATE", str(state))
    (folder / "test.parquet").write_bytes((folder / "calibration.parquet").read_bytes())
    assert look_for_news(plan).changed == [f"{folder}/test"]


def version(uri: str) -> str:
    return checkpoint_version(Checkpoint(name="one", uri=uri))


def test_a_web_file_is_told_by_its_etag_or_date() -> None:
    with FileServer(b"x" * 5_000_000) as server:
        first = version(server.url)
        assert version(server.url) == first
        server.etag = '"two"'
        assert version(server.url) != first
        server.etag, server.last_modified = None, "Mon, 01 Jan 2024 00:00:00 GMT"
        dated = version(server.url)
        assert version(server.url) == dated != first
        server.last_modified = None
        assert version(server.url) != version(server.url), "who says nothing may have changed"
        assert all(seen.sent < 5_000_000 for seen in server.seen), "asked, not downloaded"


def test_a_pin_needs_no_question() -> None:
    with FileServer(b"x") as server:
        spec = Checkpoint(name="one", uri=server.url, sha256="0" * 64)
        assert checkpoint_version(spec) == "0" * 64
        assert server.seen == []


def test_a_revision_of_the_hub_is_told_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def answer(commit: str) -> bytes:
        return json.dumps({"sha": commit, "siblings": [{"rfilename": "model.safetensors", "size": 1}]}).encode()

    with FileServer(answer("a" * 40)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url.rpartition("/")[0])
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for uri in ("hf://org/repo@main", "hf://org/repo@main/model.safetensors", "hf://org/repo"):
            assert version(uri) == "a" * 40
        assert {seen.path.partition("?")[0] for seen in server.seen} == {"/api/models/org/repo/revision/main"}
        server.content = answer("b" * 40)
        assert version("hf://org/repo@main") == "b" * 40
        asked = len(server.seen)
        pinned = f"hf://org/repo@{'c' * 40}"
        assert version(pinned) == version(pinned)
        assert len(server.seen) <= asked + 2


def test_files_of_s3_are_told_by_their_etags(monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem()
        files.makedir("of-changes")
        for name in ("config.json", "model.safetensors"):
            files.pipe(f"of-changes/chat/{name}", b"one")
        folder, file = version("s3://of-changes/chat"), version("s3://of-changes/chat/model.safetensors")
        assert (version("s3://of-changes/chat"), version("s3://of-changes/chat/model.safetensors")) == (folder, file)
        files.pipe("of-changes/chat/model.safetensors", b"two")
        assert version("s3://of-changes/chat") != folder
        assert version("s3://of-changes/chat/model.safetensors") != file
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def test_any_file_system_that_tells_dates_will_do() -> None:
    files = MemoryFileSystem()
    files.pipe("/changes/model.safetensors", b"one")
    first = version("memory://changes/model.safetensors")
    assert version("memory://changes/model.safetensors") == first
    files.pipe("/changes/model.safetensors", b"three")
    assert version("memory://changes/model.safetensors") != first


def test_shards_beside_an_index_count() -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    with FileServer(index) as server:
        uri = server.url.replace("model.safetensors", "model.safetensors.index.json")
        first = version(uri)
        assert [seen.path for seen in server.seen] == [
            "/model.safetensors.index.json",
            "/model-1.safetensors",
            "/model-2.safetensors",
        ]
        server.etag = '"two"'
        assert version(uri) != first


def test_the_command_line_ends_at_once_where_nothing_changed(plan: Plan, tmp_path: Path, prefect_server: None) -> None:
    from prefect.settings import PREFECT_API_URL

    command = [
        sys.executable,
        "-m",
        "flows.merge_and_evaluate",
        "--params",
        str(tmp_path / "plan.yaml"),
        "--if-changed",
    ]
    command += ["--set", f"output={plan.output}", "--set", "tracking.enabled=false"]
    environment = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=ROOT, env=environment | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    assert "new: no run has succeeded yet" in run().stdout
    nowhere = "http://127.0.0.1:9/api"  # nobody is asked
    assert "nothing new since" in run(PREFECT_API_URL=nowhere).stdout


def test_records_of_before_are_delivered_where_nothing_is_new(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    delivered: list[str] = []
    monkeypatch.setattr(Tracker, "deliver_pending", lambda tracker: delivered.append(tracker.experiment))
    tracked = plan.model_copy(update={"tracking": Tracking(experiment="nightly")})
    assert not nothing_to_do(tracked, News(changed=["plan"]))
    assert delivered == []
    assert nothing_to_do(tracked, News(changed=[]))
    assert delivered == ["nightly"]


def test_gates_of_a_promotion_are_nothing_new(plan: Plan) -> None:
    remembered(succeed, plan)
    judged = plan.model_copy(update={"registry": Registry(model="m"), "promotion": Promotion(floor=0.5)})
    assert fingerprint(judged)["plan"] != fingerprint(plan)["plan"]  # a result that is to be registered is
    stricter = judged.model_copy(update={"promotion": Promotion(floor=0.6)})
    assert fingerprint(stricter) == fingerprint(judged)


def test_whoever_waits_for_a_run_hears_that_the_check_before_it_failed(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, str]] = []
    monkeypatch.setattr("tasks.watching.notify", lambda options, end, facts: told.append({"end": end, **facts}))
    with pytest.raises(InputError), failures_told(plan, "merge"):
        raise InputError("the alias is gone")
    assert told == [{"end": "failure", "plan": plan.name, "flow": "merge", "error": "InputError: the alias is gone"}]


def test_cells_of_a_grid_register_and_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    own = ["registry={model: m}", "promotion={floor: 0.5}", "notify.on=[success]"]
    for cell in load_cells("params.yaml", own, {"merge.keep_ratio": [0.1, 0.2]}):
        assert (cell.plan.registry, cell.plan.promotion, cell.plan.notify.on) == (None, None, [])
