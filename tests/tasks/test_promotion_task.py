"""Promotions in a real registry: the alias, the audit log, the way back, and two at once."""

import json
import os
import threading
import time

import pytest
from mlflow import MlflowClient

from mergeline.errors import InputError
from tasks import promotion
from tasks.promotion import audit_log, decide, promotion_lock, roll_back
from tasks.registry import find_alias
from tests.tasks.registered import plan_of, register


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("MERGELINE_STATE", str(folder))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / '.mlflow' / 'mlflow.db'}")
        yield folder


@pytest.fixture
def client(home):
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


@pytest.fixture
def model(request):
    return request.node.name


def champion(client, model):
    found = find_alias(client, model, "champion")
    return found and str(found.version)


def lines(model):
    return [line for line in map(json.loads, audit_log().read_text().splitlines()) if line["model"] == model]


def test_a_candidate_becomes_the_champion_a_worse_one_does_not_and_back(client, model, tmp_path):
    plan = plan_of(model, floor=0.5, max_drop=0.3)
    register(None, tmp_path, 0.7, 0.7, 0.7, 0.7, number=1, model=model)
    first = decide.fn(plan)
    assert (first.action, first.before, champion(client, model)) == ("promoted", None, "1")
    assert decide.fn(plan).action == "unchanged"

    register(None, tmp_path, 0.9, 0.9, 0.9, 0.45, number=2, model=model)
    refused = decide.fn(plan)
    assert (refused.action, champion(client, model)) == ("refused", "1")
    [floor, drop] = [line for line in refused.verdicts if line.startswith("REFUSED")]
    assert floor == "REFUSED floor of half-03458: 45.0 ± 1.0 is 5.0 below the floor of 50.0"
    assert "15.0 below the least allowed, 90.0 ± 1.0 of its own model less 30.0" in drop

    register(None, tmp_path, 0.8, 0.8, 0.8, 0.8, number=3, model=model)
    assert (decide.fn(plan).before, champion(client, model)) == ("1", "3")
    register(None, tmp_path, 0.75, 0.8, 0.8, 0.8, number=4, model=model)
    assert "1.2 below the champion's 80.0" in str(decide.fn(plan))

    back = roll_back.fn(plan)
    assert (back.action, back.version, champion(client, model)) == ("rolled back", "3", "1")
    register(None, tmp_path, 0.8, 0.8, 0.8, 0.8, number=5, weights=3, model=model)  # the same weights on the next night
    again = decide.fn(plan)
    assert (again.action, champion(client, model)) == ("refused", "1")
    assert "its weights were rolled back as version 3" in str(again)
    with pytest.raises(InputError, match="version 1 is the first champion"):
        roll_back.fn(plan)

    assert [line["action"] for line in lines(model)] == [
        *("promoted", "refused", "promoted", "refused", "rolled back", "refused")
    ]
    tags = client.get_model_version(model, "3").tags
    said = [json.loads(value)["action"] for key, value in sorted(tags.items()) if key.startswith("mergeline.decision")]
    assert said == ["promoted", "rolled back"]


def test_a_version_that_is_named_is_judged_instead(client, model, tmp_path):
    for number, value in enumerate((0.7, 0.9), start=1):
        register(None, tmp_path, *[value] * 4, number=number, model=model)
    assert decide.fn(plan_of(model), "1").version == champion(client, model) == "1"


def test_the_same_weights_are_no_news_but_on_other_data_they_are_measured_anew(client, model, tmp_path):
    plan = plan_of(model, floor=0.5)
    register(None, tmp_path, *[0.7] * 4, number=1, model=model)
    decide.fn(plan)
    register(None, tmp_path, *[0.7] * 4, number=2, weights=1, model=model)
    assert decide.fn(plan).action == "unchanged"
    register(None, tmp_path, *[0.9] * 4, number=3, data="other", model=model)
    refused = decide.fn(plan)
    assert "measured on other tasks or data" in str(refused)
    register(None, tmp_path, *[0.6] * 4, number=4, weights=1, data="other", model=model)
    assert decide.fn(plan).action == "promoted"  # the champion's own weights, measured on the other data
    assert decide.fn(plan, "3").action == "promoted"


@pytest.mark.parametrize("missing", ["model", "promotion", "registry", "scores", "version"])
def test_what_is_missing_is_told(client, missing, tmp_path):
    model = f"missing-{missing}"
    plan, version = plan_of(model), None
    if missing in ("scores", "version"):
        run = register(None, tmp_path, *[0.7] * 4, number=1, model=model)
        if missing == "version":
            version = "9"
        else:
            next(audit_log().parent.glob(f"artifacts/{run}/artifacts/comparison.json")).unlink()
    sentences = {
        "model": "there is no candidate; merge a plan that says registry",
        "promotion": "promotion: is missing",
        "registry": "registry: is missing",
        "scores": "has no comparison.json in MLflow, so its scores are not known",
        "version": "MLflow says: Model Version .*not found",
    }
    if missing in ("promotion", "registry"):
        plan = plan.model_copy(update={missing: None})
    with pytest.raises(InputError, match=sentences[missing]) as error:
        decide.fn(plan, version)
    assert "\n" not in str(error.value)
    assert champion(client, model) is None


def test_a_model_without_tasks_may_be_promoted_without_gates(client, model, tmp_path):
    plan = plan_of(model, champion=None)
    plan = plan.model_copy(update={"tasks": []})
    register(None, tmp_path, *[0.7] * 4, number=1, model=model)
    assert (decide.fn(plan).verdicts, champion(client, model)) == ([], "1")


def test_of_two_at_once_one_waits_and_judges_by_the_new_champion(client, model, tmp_path, monkeypatch):
    """Both saw no champion; equal scores are not better, so the second must be refused."""
    plan = plan_of(model, champion="better")
    for number in (1, 2):
        register(None, tmp_path, *[0.8] * 4, number=number, model=model)
    inside, go = threading.Event(), threading.Event()
    whole = promotion._log

    def pause(*arguments):
        inside.set()
        assert go.wait(60)
        whole(*arguments)

    monkeypatch.setattr(promotion, "_log", pause)
    found = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: decide.fn(plan, n)})) for n in ("1", "2")]
    threads[0].start()
    assert inside.wait(60)
    waiting = threading.Event()
    monkeypatch.setattr(promotion.time, "sleep", lambda seconds: (waiting.set(), threading.Event().wait(seconds)))
    threads[1].start()
    assert waiting.wait(60)  # it found the lock taken
    assert "2" not in found
    go.set()
    for thread in threads:
        thread.join()
    assert (found["1"].action, found["2"].action, champion(client, model)) == ("promoted", "refused", "1")
    assert found["2"].before == "1"


def test_a_lock_that_a_killed_process_left_is_taken_over_once(client, model):
    name = f"mergeline promotion of {model}"
    client.create_experiment(name)
    with promotion_lock(client, model, lease=0.0) as still_mine:
        still_mine()
        with promotion_lock(client, model, lease=-1.0), pytest.raises(ConnectionError, match="another promotion took"):
            still_mine()
        with pytest.raises(ConnectionError):
            still_mine()
    assert client.get_experiment_by_name(name) is None


def test_a_lock_is_free_again_after_a_failure(client, model):
    with pytest.raises(InputError), promotion_lock(client, model):
        raise InputError("no")
    started = time.monotonic()
    with promotion_lock(client, model):
        assert time.monotonic() - started < promotion.LEASE
    assert client.get_experiment_by_name(f"mergeline promotion of {model}") is None


def test_a_champion_whose_predecessor_was_deleted_goes_further_back(client, model, tmp_path):
    plan = plan_of(model)
    for number, value in enumerate((0.6, 0.7, 0.8), start=1):
        register(None, tmp_path, *[value] * 4, number=number, model=model)
        decide.fn(plan)
    client.delete_model_version(model, "2")
    assert roll_back.fn(plan).champion == champion(client, model) == "1"
