"""From the main job to a server that answers: registered, loaded, served, merged again, promoted. All servers real."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from flows.merge_and_evaluate import merge_and_evaluate
from mergeline.models.build import build_model
from mergeline.plan_file import load_plan
from tasks.registered_weights import needed
from tasks.registry import fetch_model
from tasks.store import digest
from tasks.versioning import COMMIT, plan_digest
from tests.flows.runs import computed, plan_for, stage_names
from tests.registry.servers import find_postgres, mlflow
from tests.tasks.registered import register

pytestmark = pytest.mark.flow
TEAM = ("base-a", "a-clean-02478", "a-clean-13569")


def team_plan(output, *overrides, model="team"):
    """Two models of one base on two domains, registered."""
    plan = load_plan("params.yaml")
    checkpoints = [c.model_dump() for c in plan.checkpoints if c.name in TEAM]
    tasks = [task.model_dump() for task in plan.tasks[:2]]
    tasks[1]["where"]["domain"] = "half"
    fixed = [f"checkpoints={json.dumps(checkpoints)}", f"tasks={json.dumps(tasks)}", f"registry.model={model}"]
    return plan_for(output, *fixed, "evaluation.compare=[task_models]", "name=team", *overrides)


@pytest.fixture(scope="module")
def first(project):
    """The first night: a run that is registered."""
    plan = team_plan(project / "out")
    return plan, merge_and_evaluate(plan)


@pytest.fixture(scope="module")
def client(project):
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


@pytest.fixture(scope="module")
def eager(first):
    """The published model as a user builds it, by domain; and pictures."""
    plan, _ = first

    def module(domain):
        built = build_model(plan.architecture.factory, plan.architecture.kwargs)
        built.load_state_dict(load_file(plan.output / "model.safetensors"))
        if domain:
            built.load_state_dict(load_file(plan.output / "normalization" / f"{domain}.safetensors"), strict=False)
        return built

    pictures = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return pictures.numpy(), {domain: module(domain)(pictures).numpy() for domain in ("", "clean", "half")}


def test_the_server_runs_on_postgresql(database):
    if find_postgres() is None:
        pytest.skip("PostgreSQL is not installed (initdb and pg_ctl, apt-get install postgresql); SQLite was used")
    assert database.startswith("postgresql")


def test_the_version_names_what_it_was_made_of(first, client):
    plan, outcome = first
    version = client.get_model_version_by_alias("team", "candidate")
    assert version.run_id == outcome.recorded.mlflow_run
    assert version.tags["mergeline.sha256"] == digest(plan.output / "model.safetensors")
    assert version.tags["mergeline.plan_sha256"] == plan_digest(plan.model_dump(mode="json"))
    assert version.tags["prefect.flow_run"] == outcome.recorded.flow_run
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert version.tags.get(COMMIT, "") == commit


def test_the_model_holds_no_pickle_and_no_weights_twice(first, client, tmp_path):
    _, outcome = first
    folder = Path(client.download_artifacts(outcome.recorded.mlflow_run, "", str(tmp_path)))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pth", ".pt", ".bin"))]
    assert [name for name in files if name.endswith("model.safetensors")] == [
        "model/artifacts/merged/model.safetensors"
    ]
    assert {"comparison.json", "lineage.json", "model/MLmodel", "model/input_example.json"} <= files
    assert "model/code/mergeline/models/resnet.py" in files
    requirements = (folder / "model" / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in requirements} >= {"torch", "safetensors", "numpy", "mlflow"}
    assert all("==" in line and "+" not in line for line in requirements)


def test_what_the_stages_took_is_recorded(first, client):
    _, outcome = first
    metrics = client.get_run(outcome.recorded.mlflow_run).data.metrics
    assert metrics["runs/evaluate"] == 3
    for kind in ("seconds", "cpu_seconds", "peak_megabytes"):
        assert metrics[f"{kind}/merge"] > 0
    assert metrics["peak_megabytes/merge"] > 50


LOADING = """
import json, sys
import mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
pictures = np.load(sys.argv[2])
np.savez(sys.argv[3], **{f"d{d}": model.predict(pictures, params={"domain": d} if d else None) for d in ("", "half")})
inner = model.unwrap_python_model()
signature = model.metadata.signature
example = model.input_example
import mergeline, torch
print(json.dumps({
    "code": mergeline.__file__,
    "module": type(inner.module("clean")).__mro__[-2].__name__,
    "domains": inner.domains,
    "inputs": str(signature.inputs), "params": str(signature.params),
    "example": list(model.predict(example["inputs"] if isinstance(example, dict) else example).shape),
}))
"""


def test_it_is_loaded_without_the_project_at_hand(first, client, eager, tmp_path):
    """In a folder and an interpreter that find the project nowhere but in the model."""
    pictures, expected = eager
    np.save(tmp_path / "in.npy", pictures)
    (tmp_path / "load.py").write_text(LOADING)
    # the project may be installed in editable mode: its finder must not be used
    hide = "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
    (tmp_path / "load.py").write_text(hide + LOADING)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "load.py", "models:/team@candidate", "in.npy", "out.npz"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    answers = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(answers["d"], expected[""], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(answers["dhalf"], expected["half"], rtol=1e-4, atol=1e-4)
    assert not np.allclose(expected[""], expected["half"], atol=1e-2)
    assert "/code/mergeline/" in said["code"]
    assert (said["module"], said["domains"]) == ("Module", ["clean", "half"])
    assert "(-1, 1, 28, 28)" in said["inputs"]
    assert "domain" in said["params"]
    assert said["example"] == [2, 384]


def ask(address, **body):
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return np.array(json.load(response)["predictions"])


def test_it_is_served_and_answers_like_the_eager_model(first, client, eager):
    pictures, expected = eager
    arguments = ["models", "serve", "--model-uri", "models:/team@candidate", "--env-manager", "local", "--workers", "1"]
    with mlflow(*arguments, env=os.environ | {"MLFLOW_MODELS_WORKERS": "1"}) as address:
        plain = ask(address, inputs=pictures.tolist())
        half = ask(address, inputs=pictures.tolist(), params={"domain": "half"})
        with pytest.raises(urllib.error.HTTPError) as refusal:
            ask(address, inputs=pictures.tolist(), params={"domain": "elsewhere"})
        assert "there is no domain 'elsewhere' (known: clean, half)" in refusal.value.read().decode()
        with pytest.raises(urllib.error.HTTPError):
            ask(address, inputs=[[1.0, 2.0]])
    np.testing.assert_allclose(plain, expected[""], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(half, expected["half"], rtol=1e-4, atol=1e-4)


def test_a_registered_model_is_a_checkpoint_and_a_moved_alias_reruns(first, project, client):
    """Merged with another one: again from the cache while the alias stays, anew when it moves."""
    _, outcome = first
    client.set_registered_model_alias("team", "stable", "1")
    entries = [
        {"name": "stable", "uri": "models:/team@stable"},
        {"name": "other", "uri": "data/zoo/a-clean-02478.safetensors"},
    ]
    fixed = [f"checkpoints={json.dumps(entries)}", "tasks=[]", "align=null", "merge={method: average}", "name=again"]
    plan = plan_for(project / "again", *fixed)
    one = merge_and_evaluate(plan)
    assert "find-model" in stage_names(one)
    lineage = json.loads((project / "again" / "lineage.json").read_text())
    assert lineage["checkpoints"]["stable"] == digest(project / "out" / "model.safetensors")
    tags = client.get_run(one.recorded.mlflow_run).data.tags
    assert tags["checkpoint.stable.version"] == "models:/team/1"
    assert computed(merge_and_evaluate(plan)) == 0
    by_number = plan_for(project / "again", *fixed, "checkpoints[0].uri=models:/team/1")
    assert computed(merge_and_evaluate(by_number)) == 0

    second = merge_and_evaluate(team_plan(project / "out", "merge.keep_ratio=0.5"))
    assert second.recorded.mlflow_run != outcome.recorded.mlflow_run
    client.set_registered_model_alias("team", "stable", "2")
    moved = merge_and_evaluate(plan)
    assert computed(moved) > 0
    lineage = json.loads((project / "again" / "lineage.json").read_text())
    assert lineage["checkpoints"]["stable"] == digest(project / "out" / "model.safetensors")
    by_run = plan_for(project / "again", *fixed, f"checkpoints[0].uri=runs:/{second.recorded.mlflow_run}/model")
    merge_and_evaluate(by_run)
    again = json.loads((project / "again" / "lineage.json").read_text())
    assert again["checkpoints"] == lineage["checkpoints"]


def test_weights_that_are_too_large_to_be_copied_are_read_where_they_were_written(first, project, client, monkeypatch):
    from tasks.served_model import MergedModel

    monkeypatch.setattr("tasks.recording.LARGEST", 100_000)
    plan = team_plan(project / "large", model="large")
    outcome = merge_and_evaluate(plan)
    folder = Path(client.download_artifacts(outcome.recorded.mlflow_run, "model/artifacts/merged", str(project)))
    assert not (folder / "model.safetensors").exists()

    def module():
        model = MergedModel()
        model.load_context(SimpleNamespace(artifacts={"merged": str(folder)}))
        return model.module()

    published = plan.output / "model.safetensors"
    expected = load_file(published)
    assert all(torch.equal(value, expected[name]) for name, value in module().state_dict().items())
    assert list(needed().values()) == [["models:/large/1"]]
    assert fetch_model("models:/large@candidate", project / "aside", 10**9)[1] == digest(published)
    about = json.loads((folder / "served.json").read_text())
    about["weights"]["model.safetensors"]["places"].pop(0)  # a machine that does not see the content store
    (folder / "served.json").write_text(json.dumps(about))
    module()
    published.write_bytes(published.read_bytes() + b" ")
    with pytest.raises(FileNotFoundError, match="was too large to be copied into MLflow; it must lie, unaltered, in"):
        module()


def test_language_models_are_registered_as_the_folder_they_are(project, client, tmp_path):
    entries = [{"name": name, "uri": f"data/zoo/{name}.safetensors"} for name in ("a-clean-02478", "a-clean-13569")]
    fixed = [f"checkpoints={json.dumps(entries)}", "tasks=[]", "align=null", "merge={method: average}"]
    fixed += ["architecture=null", "calibration=null"]
    bare = ["registry.model=bare", "name=bare", "merge.max_shard_size=100KB"]
    merge_and_evaluate(plan_for(project / "bare", *fixed, *bare))
    version = client.get_model_version_by_alias("bare", "candidate")
    files = {file.path for file in client.list_artifacts(version.run_id, "model")}
    published = {f"model/{file.name}" for file in (project / "bare").glob("model*")}
    assert files == published
    assert len(files) > 2
    again = [{"name": "a", "uri": "models:/bare@candidate"}, {"name": "b", "uri": "models:/bare/1"}]
    merge_and_evaluate(plan_for(project / "b", *fixed, "name=b", f"checkpoints={json.dumps(again)}"))
    first, second = (load_files(project / name) for name in ("bare", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def load_files(folder):
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


PROMOTING = """
import sys
from tests.tasks.registered import plan_of
from tasks.promotion import decide
print("ready", flush=True)
sys.stdin.readline()
decision = decide.fn(plan_of("race", champion="better"), sys.argv[1])
print(decision.action, decision.before, flush=True)
"""


def test_two_processes_that_promote_at_once_cannot_both_win(project, client, server, tmp_path):
    """Each on a machine of its own, for all they know: they share nothing but the server."""
    for number in (1, 2):
        register(server, tmp_path, *[0.8] * 4, number=number, model="race")
    processes = []
    for number in ("1", "2"):
        environment = os.environ | {"MERGELINE_STATE": str(tmp_path / number), "PYTHONPATH": str(Path.cwd())}
        command = [sys.executable, "-c", PROMOTING, number]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0].split() for process in processes]
    winner = next(i for i, (action, _) in enumerate(said) if action == "promoted")
    assert said[winner] == ["promoted", "None"]
    assert said[1 - winner] == ["refused", str(winner + 1)]
    assert str(client.get_model_version_by_alias("race", "champion").version) == str(winner + 1)
    logs = [json.loads((tmp_path / n / ".mlflow" / "promotions.jsonl").read_text())["action"] for n in ("1", "2")]
    assert sorted(logs) == ["promoted", "refused"]


def test_the_command_promotes_refuses_and_goes_back(first, project, client):
    from prefect.settings import PREFECT_API_URL

    environment = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())}

    def command(*arguments):
        plan = ["--set", "registry.model=team", "--set", "evaluation.compare=[task_models]"]
        done = subprocess.run(
            [sys.executable, "-m", "flows.promote", *plan, *arguments], capture_output=True, text=True, env=environment
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    assert command("--set", "promotion={floor: 0.3}", "--version", "1")[0] == 0
    assert str(client.get_model_version_by_alias("team", "champion").version) == "1"
    code, said = command("--set", "promotion={floor: {clean-02478: 0.999}}", "--version", "2")
    assert code == 3
    assert "team: version 2 is refused; the champion stays version 1" in said
    assert "below the floor of 99.9" in said
    code, said = command("--rollback", "--set", "promotion={}")
    assert (code, said) == (2, "team: version 1 is the first champion; none to return to\n")
